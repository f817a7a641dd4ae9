"""Figures of restore and verify that have no floor but a limit in milliseconds: the work of the command, without interpreter start."""

from __future__ import annotations

import os
import signal
import socket
import statistics
import time
from contextlib import suppress
from pathlib import Path

from ckpt.kinds.table import table
from tests.bench.redis import Redis
from tests.bench.row import Row, scratch
from tests.harness import Ckpt, Victim
from tests.harness.victim import BIN, build

LARGE_KEYS, LARGE_VALUE = 1_000_000, 900


def _end(pid: int) -> None:
    """A process that was restored here, and that init reaps."""
    pidfd = os.pidfd_open(pid)
    with suppress(ProcessLookupError):
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    os.close(pidfd)
    while os.path.exists(f"/proc/{pid}"):  # noqa: PTH110
        time.sleep(0.01)


def restore_threads() -> Row:
    build()
    times = []
    with scratch() as folder, Victim([str(BIN / "threads"), "500", "sleepy"]) as victim:
        ckpt = Ckpt(folder)
        generation = ckpt.snapshot(victim.pid, "--full")["generation"]
        victim.kill()
        for _ in range(5):
            done = ckpt.json("restore", generation, "--fd", "2=/dev/null")
            times.append(float(done["total_ms"]))
            assert done["threads"] == 501, done
            _end(done["pid"])
    return Row("restore, 500 threads", statistics.median(times), "ms", None, 50.0, f"fastest {min(times):.1f} ms")


def verify_python() -> Row:
    with scratch() as folder, Victim.start("python-threads", folder / "victim") as victim:
        ckpt = Ckpt(folder)
        generation = ckpt.snapshot(victim.pid, "--full")["generation"]
        times = [float(ckpt.json("verify", generation)["total_ms"]) for _ in range(9)]
    return Row("verify, CPython with threads", statistics.median(times), "ms", None, 150.0, f"fastest {min(times):.1f} ms")


def lazy_redis() -> Row:
    """From the beginning of the work to the answer of a GET. In this process: a command of its own would add the interpreter
    and the imports."""
    table()
    times = []
    with scratch() as folder, Redis(folder) as redis:
        redis.populate(LARGE_KEYS, LARGE_VALUE)
        resident = redis.resident() >> 20
        ckpt = Ckpt(folder)
        generation = ckpt.snapshot(redis.pid, "--full")["generation"]
        redis.process.kill()
        redis.process.wait()
        for turn in range(5):
            begin = time.perf_counter()
            _in_background(ckpt, generation)
            answer = _get(redis.port, f"key:{turn * 997}")
            times.append((time.perf_counter() - begin) * 1000)
            assert answer.startswith(b"$"), answer
            assert answer != b"$-1\r\n", "the key is not there"
            while _tracer(redis.pid):
                time.sleep(0.02)
            _end(redis.pid)
    note = f"{resident} MB resident; fastest {min(times):.0f} ms"
    return Row("restore --lazy, redis, to the first reply", statistics.median(times), "ms", None, 50.0, note)


def _in_background(ckpt: Ckpt, generation: int) -> None:
    from ckpt.ops.lazy import in_background
    from ckpt.ops.restore import Request, restore

    os.environ["CKPT_RUNTIME_DIR"] = str(ckpt.runtime)
    request = Request(str(generation), ckpt.store, lazy=True)
    in_background(lambda tell: restore(request, running=lambda result: tell(result.json())))


def _get(port: int, key: str) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        connection.sendall(f"GET {key}\r\n".encode())
        return connection.makefile("rb").readline()


def _tracer(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("TracerPid"))
