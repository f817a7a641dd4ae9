"""`make demo`: the main job on a real redis-server and a threaded CPython program. Exits non-zero if anything is not so.

Everything lives in a temporary folder; only processes that are started here are ended, by pid.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import demo_restore
from demo_tools import ROOT, Ckpt, DemoError, Redis, Started, console, free_port, require, start_time, wait_for
from demo_worker import THREADS, step

KEYS = 200_000


class Writer:
    """A client that keeps writing live:N; acknowledged is the last N that the server has confirmed."""

    def __init__(self, port: int) -> None:
        self.client = Redis(port)
        self.sent = self.acknowledged = 0
        self.ended: str | None = None
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        while not self.stop.is_set():
            try:
                self.sent += 1
                self.client.call("SET", f"live:{self.sent}", str(self.sent))
                self.acknowledged = self.sent
            except (EOFError, ConnectionError) as error:
                self.ended = type(error).__name__
                return
            except TimeoutError:
                self.ended = "hung"
                return
            time.sleep(0.001)

    def close(self) -> None:
        self.stop.set()
        self.thread.join(10)
        self.client.close()


def redis_part(ckpt: Ckpt, pid: int, port: int) -> None:
    console.rule("redis-server")
    client = wait_for("redis-server", lambda: Redis(port))
    client.fill(KEYS)
    before = client.info()
    born = start_time(pid)
    ckpt.show("check", str(pid))
    first = ckpt.json("snapshot", str(pid), "--full", "--tag", "redis-full")
    require(first["kind"] == "full", f"full snapshot: generation {first['generation']}, stopped {first['stop_us'] / 1000:.2f} ms")
    writer = Writer(port)
    moments: dict[int, tuple[int, int]] = {}
    for _ in range(10):
        time.sleep(0.2)
        low = writer.acknowledged
        made = ckpt.json("snapshot", str(pid), "--incremental")
        moments[made["generation"]] = (low, writer.sent)
        if made["kind"] != "incremental" or made["tracker"] != "uffd":
            raise DemoError(f"generation {made['generation']} is {made['kind']} by {made['tracker']}, not incremental by uffd")
    require(True, "ten incremental snapshots while a client kept writing")
    ckpt.show("log")
    client.call("SET", "sentinel", "set after the last snapshot")
    generations = sorted(moments)
    redis_rollback(ckpt, pid, port, writer, born, before, generations[3], moments)
    forward = Writer(port)
    time.sleep(0.3)
    redis_rollback(ckpt, pid, port, forward, born, before, generations[8], moments)
    made = ckpt.json("snapshot", str(pid), "--incremental")
    require(made["parent"] == generations[8], f"the next generation, {made['generation']}, branches from {generations[8]}")
    ckpt.show("log", "--graph", "--pid", str(pid))
    ckpt.show("diff", str(generations[3]), str(generations[8]))
    client.close()


def redis_rollback(
    ckpt: Ckpt, pid: int, port: int, old: Writer, born: int, before: dict[str, str], generation: int, moments: dict[int, tuple[int, int]]
) -> None:
    done = ckpt.json("rollback", str(generation), "--pid", str(pid))
    console.print(
        f"\n[bold]rolled back to generation {generation}[/]: stopped {done['stop_us'] / 1000:.2f} ms, {done['pages_written']} pages"
    )
    require(Path(f"/proc/{pid}").exists() and start_time(pid) == born, f"same pid {pid}, same start time")
    old.thread.join(5)
    require(old.ended not in (None, "hung"), f"the old client's connection ended cleanly ({old.ended})")
    old.close()
    client = Redis(port)
    require(client.call("GET", "sentinel") is None, "the sentinel is gone; a new client is served")
    low, high = moments[generation]
    require(client.call("GET", f"live:{low}") == str(low), f"live:{low}, written before that moment, is back")
    require(client.call("GET", f"live:{high + 1}") is None, f"live:{high + 1}, written after it, never was")
    require(all(client.call("GET", f"key:{n}") == f"value-{n * 7919}" * 4 for n in range(0, KEYS, 997)), "the keys are right")
    time.sleep(0.3)
    now = client.info()
    require(now["run_id"] == before["run_id"], "INFO's run_id is unchanged")
    uptime, expected = int(now["uptime_in_seconds"]), time.time() - wall_birth(pid)
    require(abs(uptime - expected) <= 2, f"uptime is consistent: {uptime} s, the process is {expected:.0f} s old")
    client.close()


def wall_birth(pid: int) -> float:
    boot = float(next(line.split()[1] for line in Path("/proc/stat").read_text().splitlines() if line.startswith("btime")))
    return boot + start_time(pid) / os.sysconf("SC_CLK_TCK")


def report(path: Path) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(path.read_text())
    return answer


def chains_right(state: dict[str, Any], known: dict[int, list[str]]) -> bool:
    for seed, (number, head) in enumerate(state["threads"]):
        heads = known.setdefault(seed, [f"seed-{seed}"])
        while len(heads) <= number:
            heads.append(step(heads[-1], len(heads)))
        if heads[number] != head:
            return False
    return True


def python_part(ckpt: Ckpt, pid: int, path: Path) -> None:
    console.rule("a threaded CPython program")
    known: dict[int, list[str]] = {}
    wait_for("the Python program", lambda: report(path)["ticks"] > 5)
    born = start_time(pid)
    first = ckpt.json("snapshot", str(pid))
    at = report(path)
    require(
        chains_right(at, known), f"generation {first['generation']}: {THREADS} hash chains are right, at {[n for n, _ in at['threads']]}"
    )
    time.sleep(0.5)
    second = ckpt.json("snapshot", str(pid), "--incremental")
    time.sleep(0.5)
    late = report(path)
    for generation in (first, second):
        ckpt.json("rollback", str(generation["generation"]), "--pid", str(pid))
        back = wait_for("a report after the rollback", lambda: report(path))
        time.sleep(0.1)
        back = report(path)
        require(start_time(pid) == born, f"rolled back to generation {generation['generation']}: same pid {pid}, same start time")
        if generation is first:
            require(back["ticks"] < late["ticks"], f"time went back: {late['ticks']} ticks -> {back['ticks']}")
        require(chains_right(back, known), "the chains are right")
        time.sleep(0.3)
        on = report(path)
        moving = all(a[0] < b[0] for a, b in zip(back["threads"], on["threads"], strict=True))
        require(moving and chains_right(on, known), f"all {THREADS} threads go on, and rightly")


def main() -> int:
    started = Started()
    with tempfile.TemporaryDirectory(prefix="ckpt-demo-") as name:
        folder = Path(name)
        ckpt = Ckpt(folder / "store.db")
        try:
            port = free_port()
            redis = started.run(["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"], folder)
            worker = started.run([sys.executable, str(ROOT / "scripts/demo_worker.py"), str(folder / "report.json")], folder)
            redis_part(ckpt, redis.pid, port)
            python_part(ckpt, worker.pid, folder / "report.json")
            demo_restore.redis_part(ckpt, started, redis, port, KEYS)
            demo_restore.lines_part(ckpt, started, folder)
            demo_restore.lazy_part(ckpt, started, folder)
            console.rule("the store")
            ckpt.show("fsck", "--full")
            for query in ("growth", "hot-mappings", "sharing"):
                ckpt.show("query", query)
            ckpt.show("stats")
        except DemoError as error:
            console.print(f"[bold red]not so:[/] {error}")
            return 1
        finally:
            started.end_all()
    console.print("\n[bold green]demo: all of it was so[/]")
    return 0


if __name__ == "__main__":
    sys.exit(main())
