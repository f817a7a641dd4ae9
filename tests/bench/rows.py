"""One function per figure of the speed table; each measures its floor in the same run, in turn with ours.

The machine may be shared and noisy: medians, and ratios of what was measured side by side.
"""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from tests.bench import bench_store
from tests.bench.restore_rows import lazy_redis, restore_threads, verify_python
from tests.bench.row import Row, scratch
from tests.bench.trace_rows import at_a_freeze, attach, first_write, stop_with_ebpf, traced_syscall, untraced_syscall
from tests.harness import Ckpt, Victim
from tests.harness.ckpt import COMMAND
from tests.harness.victim import BIN, build

HERE = Path(__file__).resolve().parent
GIB = 1 << 30


def floors(*words: str) -> dict[str, Any]:
    """The C floors: scan, scan-copy, fill, freeze."""
    binary = BIN / "floors"
    source = HERE / "floors.c"
    if not binary.exists() or binary.stat().st_mtime < source.stat().st_mtime:
        build()
        subprocess.run(["gcc", "-O2", "-std=gnu11", "-Wall", "-o", str(binary), str(source)], check=True)
    answer: dict[str, Any] = json.loads(subprocess.run([str(binary), *words], check=True, capture_output=True, text=True).stdout)
    return answer


def dirty_victim(mib: int, content: str = "random", *options: str) -> Victim:
    build()
    return Victim([str(BIN / "dirty"), str(mib), content, *options], timeout_s=300)


def stops(precopy: int, rounds: int = 9) -> tuple[list[float], list[float], list[float]]:
    """In us: the stop as ckpt says, the largest clock gap as the victim saw it, and the same of a time as long when nobody touched
    it: what the machine itself takes from the victim. 1 GiB resident, 1 % dirty."""
    ours, gaps, alone = [], [], []
    with scratch() as folder, dirty_victim(1024) as victim:

        def gap() -> float:
            return int(victim.ask("gap").split()[1]) / 1000

        # Its clock's gaps are to be the stop's, not those of whoever else wants the processor.
        os.setpriority(os.PRIO_PROCESS, victim.pid, -20)
        ckpt = Ckpt(folder)
        ckpt.snapshot(victim.pid, "--full")
        for _ in range(rounds):
            victim.ask("dirty 1")
            gap()
            start = time.perf_counter()
            made = ckpt.snapshot(victim.pid, "--incremental", "--precopy", str(precopy))
            lasted = time.perf_counter() - start
            gaps.append(gap())
            time.sleep(lasted)
            alone.append(gap())
            ours.append(float(made["stop_us"]))
            if made["kind"] != "incremental" or made["tracker"] != "uffd":
                raise AssertionError(f"not incremental by uffd: {made}")
    return ours, gaps, alone


def agreement(ours: list[float], gaps: list[float], alone: list[float]) -> str:
    ratios = [gap / stop for gap, stop in zip(gaps, ours, strict=True)]
    return (
        f"victim's own clock gap / stop: median {statistics.median(ratios):.2f}, least disturbed {min(ratios):.2f}; "
        f"its gap without ckpt: median {statistics.median(alone):,.0f} us"
    )


def stop_incremental() -> Row:
    ours, gaps, alone = stops(precopy=0)
    floor = floors("scan-copy", "1024", "1", "9")["us"]
    return Row("stop, 1 GiB, 1 % dirty, no pre-copy", statistics.median(ours), "us", floor, 1.5, agreement(ours, gaps, alone))


def stop_precopied() -> Row:
    ours, gaps, alone = stops(precopy=1)
    floor = floors("scan", "1024", "1", "9")["us"]
    return Row("stop, the same with one round of pre-copy", statistics.median(ours), "us", floor, 3.0, agreement(ours, gaps, alone))


def stop_python() -> Row:
    """The floor is one stop by a fresh process, as ckpt's is: nothing of the target is in its caches. Five in a row are told beside it."""
    with scratch() as folder, Victim.start("python-threads", folder / "victim") as victim:
        ckpt = Ckpt(folder)
        ckpt.snapshot(victim.pid, "--full")
        ours, floor, in_a_row = [], [], []
        for _ in range(15):
            time.sleep(0.05)
            ours.append(float(ckpt.snapshot(victim.pid, "--incremental")["stop_us"]))
            time.sleep(0.05)
            floor.append(float(floors("freeze", str(victim.pid), "1")["us"]))
            in_a_row.append(float(floors("freeze", str(victim.pid), "5")["us"]))
    stop, warm = statistics.median(ours), statistics.median(in_a_row)
    note = f"floor: one stop by a fresh process; the middle one of five in a row takes {warm:,.0f} us: {stop / warm:.2f}x"
    return Row("stop, CPython with threads", stop, "us", statistics.median(floor), 2.0, note)


def full_snapshot() -> Row:
    """The whole command, until it has exited and the bytes are in the file. The victim waits to be asked; the note also tells the ratio
    beside one that spins, and so leaves ckpt one of two processors."""
    ours, floor = full_times("wait")
    spinning, beside = full_times()
    note = f"beside a victim that spins {statistics.median(spinning) / statistics.median(beside):.2f}x"
    return Row("full snapshot, 1 GiB of random data", statistics.median(ours), "s", statistics.median(floor), 2.0, note)


def full_times(*options: str) -> tuple[list[float], list[float]]:
    """Seconds of five snapshots, and of writing as many bytes after each."""
    ours, floor = [], []
    with dirty_victim(1024, "random", *options) as victim:
        for _ in range(5):
            with scratch() as folder:
                start = time.perf_counter()
                Ckpt(folder).snapshot(victim.pid, "--full")
                ours.append(time.perf_counter() - start)
                floor.append(write_floor(folder, GIB))
    return ours, floor


def write_floor(folder: Path, size: int) -> float:
    block = os.urandom(1 << 20)
    path = folder / "floor"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT)
    start = time.perf_counter()
    for _ in range(size >> 20):
        os.write(descriptor, block)
    os.fdatasync(descriptor)
    elapsed = time.perf_counter() - start
    os.close(descriptor)
    path.unlink()
    return elapsed


def incremental_work() -> Row:
    """`total_ms`: from the command's own first step to the published generation. The interpreter's start and the imports are not
    in it; the note tells the whole command. The victim waits to be asked, as a server does; the note also tells the figure beside
    one that spins, and so leaves ckpt one of two processors."""
    waiting, stopped, whole = incremental_times("wait")
    spinning, _stopped, _whole = incremental_times()
    note = (
        f"total_ms, without interpreter start and imports; least {min(waiting):.0f} ms; stopped {statistics.median(stopped):.0f} us; "
        f"whole command {statistics.median(whole):.0f} ms; beside a victim that spins {statistics.median(spinning):.0f} ms"
    )
    return Row("incremental, 1 GiB, 1 % dirty: work of the command", statistics.median(waiting), "ms", None, 60.0, note)


def incremental_times(*options: str) -> tuple[list[float], list[float], list[float]]:
    """Of nine: milliseconds of work, microseconds of stop, milliseconds of the whole command."""
    times, stopped, whole = [], [], []
    with scratch() as folder, dirty_victim(1024, "half", *options) as victim:
        ckpt = Ckpt(folder)
        ckpt.snapshot(victim.pid, "--full")
        for _ in range(9):
            victim.ask("dirty 1")
            start = time.perf_counter()
            made = ckpt.snapshot(victim.pid, "--incremental")
            whole.append((time.perf_counter() - start) * 1000)
            times.append(float(made["total_ms"]))
            stopped.append(float(made["stop_us"]))
    return times, stopped, whole


def rollback_redis() -> Row:
    from tests.bench.redis import Redis

    times: list[float] = []
    pages = 0
    with scratch() as folder, Redis(folder) as redis:
        redis.populate(500_000, 900)
        ckpt = Ckpt(folder)
        generation = ckpt.snapshot(redis.pid, "--full")["generation"]
        for _ in range(5):
            redis.touch(750)  # a value and what points to it: two pages each
            done = ckpt.json("rollback", str(generation), "--pid", str(redis.pid))
            times.append(done["stop_us"] / 1000)
            pages = done["pages_written"]
        resident = redis.resident() >> 20
    return Row("rollback stop, redis", statistics.median(times), "ms", None, 15.0, f"{resident} MB resident, {pages} pages written")


def revived(ckpt: Ckpt, generation: int, pid: int) -> float:
    """Milliseconds of one restore; the process that it made is ended again. The number is free first: init may reap late."""
    while Path(f"/proc/{pid}").exists():
        time.sleep(0.02)
    done = ckpt.json("restore", str(generation), "--stopped", "--fd", "0=/dev/null", "--fd", "1=/dev/null")
    os.kill(pid, signal.SIGKILL)
    return float(done["total_ms"])


def restore_gib() -> Row:
    ours, floor = [], []
    with scratch() as folder, dirty_victim(1024) as victim:
        ckpt = Ckpt(folder)
        generation = ckpt.snapshot(victim.pid, "--full")["generation"]
        victim.kill()
        for _ in range(5):
            floor.append(float(floors("fill", "1024", "3")["us"]) / 1000)
            ours.append(revived(ckpt, generation, victim.pid))
    return Row("restore, 1 GiB, eager", statistics.median(ours), "ms", statistics.median(floor), 1.5, f"fastest {min(ours):.0f} ms")


def restore_python() -> Row:
    with scratch() as folder, Victim.start("python-threads", folder / "victim") as victim:
        ckpt = Ckpt(folder)
        generation = ckpt.snapshot(victim.pid, "--full")["generation"]
        victim.kill()
        times = [revived(ckpt, generation, victim.pid) for _ in range(9)]
    return Row("restore, CPython with threads", statistics.median(times), "ms", None, 12.0, f"fastest {min(times):.1f} ms")


def help_time() -> Row:
    ours: list[float] = []
    floor: list[float] = []
    for _ in range(11):
        for times, command in ((ours, [*COMMAND, "--help"]), (floor, [sys.executable, "-c", "pass"])):
            start = time.perf_counter()
            subprocess.run(command, check=True, capture_output=True)
            times.append((time.perf_counter() - start) * 1000)
    extra = statistics.median(ours) - statistics.median(floor)
    return Row("ckpt --help beyond python3 -c pass", extra, "ms", None, 150.0)


def peak_memory() -> Row:
    with scratch() as folder, dirty_victim(4096) as victim:
        process = Ckpt(folder).start("snapshot", victim.pid, "--full", "--json")
        out = process.stdout.read() if process.stdout else ""
        _pid, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode != 0:
            raise AssertionError(f"exit {process.returncode}: {process.stderr.read() if process.stderr else ''}")
        resident = json.loads(out)["pages"]["resident"] * 4096 / GIB
    return Row("peak memory while 4 GiB are captured", usage.ru_maxrss / 1024, "MB", None, 256.0, f"{resident:.2f} GiB resident")


@cache
def history_reads() -> tuple[dict[str, Any], dict[str, Any]]:
    """Reads of sampled generations of 200 of 256 MiB (CKPT_BENCH_PAGES: of so many pages), before and after every second was removed."""
    pages = int(os.environ.get("CKPT_BENCH_PAGES", "65536"))
    with scratch() as folder:
        path = folder / "store.db"
        bench_store.build_history(path, pages, 200, 0.01)
        before = bench_store.read_many(path, bench_store.sampled(bench_store.there(path), 9), 5)
        bench_store.remove_every_second(path)
        return before, bench_store.read_many(path, bench_store.sampled(bench_store.there(path), 9), 5)


def reads_row(name: str, found: dict[str, Any]) -> Row:
    """The floor is the generation that reads fastest."""
    note = f"generations {', '.join(found['medians_ms'])}, {'caches dropped' if found['cold'] else 'WARM: no right to drop caches'}"
    return Row(name, found["slowest_ms"], "ms", found["fastest_ms"], 1.3, note)


def store_reads() -> Row:
    return reads_row("reading back: slowest to fastest of 200 generations", history_reads()[0])


def store_reads_removed() -> Row:
    return reads_row("the same after every second was removed", history_reads()[1])


ROWS: dict[str, Callable[[], Row]] = {
    "stop": stop_incremental,
    "stop-precopy": stop_precopied,
    "stop-python": stop_python,
    "full": full_snapshot,
    "incremental": incremental_work,
    "rollback": rollback_redis,
    "restore-1gib": restore_gib,
    "restore-python": restore_python,
    "restore-threads": restore_threads,
    "restore-lazy": lazy_redis,
    "verify-python": verify_python,
    "trace-attach": attach,
    "trace-untraced": untraced_syscall,
    "trace-traced": traced_syscall,
    "trace-first-write": first_write,
    "deadlines-attach": at_a_freeze,
    "deadlines-stop": stop_with_ebpf,
    "help": help_time,
    "memory": peak_memory,
    "store-reads": store_reads,
    "store-reads-removed": store_reads_removed,
}
