"""The second half of `make demo`: kill -9, and back from the dead; what becomes of files; a large one at once (--lazy)."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from pathlib import Path

from demo_tools import ROOT, Ckpt, DemoError, Redis, Started, console, free_port, require, start_time, wait_for

LARGE_KEYS, LARGE_VALUE = 1_000_000, 900


def kill(started: Started, process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    started.gone(process.pid)


def redis_part(ckpt: Ckpt, started: Started, process: subprocess.Popen[bytes], port: int, keys: int) -> None:
    console.rule("kill -9 of redis-server")
    client = Redis(port)
    client.call("SET", "last words", "before the snapshot")
    before = client.info()
    count = int(client.call("DBSIZE") or 0)
    made = ckpt.json("snapshot", str(process.pid))
    client.call("SET", "last words", "after it")
    born = start_time(process.pid)
    kill(started, process)
    client.close()
    ckpt.show("verify", str(made["generation"]))
    ckpt.show("restore", str(made["generation"]))
    started.adopt(process.pid)
    client = wait_for("the restored redis-server", lambda: Redis(port))
    require(start_time(process.pid) != born, f"pid {process.pid} again, another process")
    require(int(client.call("DBSIZE") or 0) == count, f"all {count} keys are back")
    require(all(client.call("GET", f"key:{n}") == f"value-{n * 7919}" * 4 for n in range(0, keys, 499)), "with the right values")
    require(client.call("GET", "last words") == "before the snapshot", "of the moment of its last snapshot")
    require(client.info()["run_id"] == before["run_id"], "INFO's run_id is unchanged")
    again = ckpt.json("snapshot", str(process.pid))
    require(
        again["parent"] == made["generation"], f"its history goes on: generation {again['generation']} descends from {made['generation']}"
    )
    client.close()


def lines_part(ckpt: Ckpt, started: Started, folder: Path) -> None:
    console.rule("kill -9 of a program that writes files")
    command = [sys.executable, str(ROOT / "scripts/demo_lines.py"), str(folder)]
    process = started.run(command, folder)
    positioned, appended = folder / "positioned.txt", folder / "appended.txt"
    wait_for("the first lines", lambda: positioned.stat().st_size > 500)
    ckpt.json("snapshot", str(process.pid))
    time.sleep(0.2)
    made = ckpt.json("snapshot", str(process.pid), "--incremental")
    time.sleep(random.uniform(0.1, 0.6))
    kill(started, process)
    died_at = len(appended.read_text().splitlines())
    ckpt.show("restore", str(made["generation"]))
    started.adopt(process.pid)
    wait_for("new lines", lambda: len(positioned.read_text().splitlines()) > died_at + 50)
    started.end(process.pid)
    got = positioned.read_text().splitlines()
    require(got == [f"line {n}" for n in range(len(got))], f"the file with a position: {len(got)} lines, each once, in order")
    got = appended.read_text().splitlines()
    numbers = [int(line.split()[1]) for line in got]
    again = next(n for n in range(1, len(numbers)) if numbers[n] != numbers[n - 1] + 1)
    require(again == died_at and numbers[again] <= died_at, f"the O_APPEND log: lines 0 to {died_at - 1} of the dead one")
    require(numbers[again:] == list(range(numbers[again], numbers[-1] + 1)), f"then {numbers[again]} to {numbers[-1]} of the restored one")


def lazy_part(ckpt: Ckpt, started: Started, folder: Path) -> None:
    console.rule("a redis-server of 1 GB, at once")
    port = free_port()
    options = ["--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--enable-debug-command", "local"]
    process = started.run(["redis-server", "--port", str(port), *options], folder)
    client = wait_for("the large redis-server", lambda: Redis(port))
    client.socket.settimeout(120)
    if client.call("DEBUG", "POPULATE", str(LARGE_KEYS), "large", str(LARGE_VALUE)) != "OK":
        raise DemoError("DEBUG POPULATE: redis-server refused it")
    size = int(client.info()["used_memory"]) / 1e9
    made = ckpt.json("snapshot", str(process.pid))
    client.close()
    kill(started, process)
    begin = time.monotonic()
    done = ckpt.json("restore", str(made["generation"]), "--lazy")
    started.adopt(process.pid)
    client = wait_for("the restored redis-server", lambda: Redis(port))
    value = client.call("GET", "large:777777")
    command = time.monotonic() - begin
    require((value or "").startswith("value:777777"), f"{size:.2f} GB: the first GET is answered {command * 1000:.0f} ms after the command")
    console.print(f"    of these the restore itself took {done['total_ms']:.0f} ms; {done['pages_later']} pages were still to come")
    wait_for("everything there", lambda: not tracer(process.pid), 60)
    require(client.call("DBSIZE") == str(LARGE_KEYS), f"all {LARGE_KEYS} keys are there {time.monotonic() - begin:.1f} s after it")
    client.close()


def tracer(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("TracerPid"))
