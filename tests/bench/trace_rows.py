"""What eBPF costs: `ckpt trace` the programs, traced or not, and the freeze-time program a snapshot. Each is measured with and without it
in turn, on the same process."""

from __future__ import annotations

import signal
import statistics
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import bpf
from ckpt.live import core
from tests.bench.row import Row, scratch
from tests.harness import Ckpt, Victim
from tests.harness.victim import BIN, build

ROUNDS = 5
APART_S = 0.05  #: sooner after a detach the kernel has an attach wait
HERE = Path(__file__).resolve().parent


def costs() -> Victim:
    build()
    binary, source = BIN / "costs", HERE / "costs.c"
    if not binary.exists() or binary.stat().st_mtime < source.stat().st_mtime:
        subprocess.run(["gcc", "-O2", "-std=gnu11", "-Wall", "-pthread", "-o", str(binary), str(source)], check=True)
    return Victim([str(binary)])


def ns(victim: Victim, question: str) -> float:
    return float(victim.ask(question).split()[1])


@contextmanager
def traced(ckpt: Ckpt, pid: int) -> Iterator[None]:
    process = ckpt.start("trace", pid, "--json", "--every", "500ms")
    try:
        if process.stdout is None or not process.stdout.readline():
            raise AssertionError(f"ckpt trace: {process.communicate()[1]}")
        yield
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate()


def syscall_cost(name: str, limit: float, *, of_the_traced: bool) -> Row:
    """Nanoseconds that a call takes longer."""
    with scratch() as folder, costs() as measured, costs() as other:
        target, pairs = measured if of_the_traced else other, []
        for _ in range(ROUNDS):
            alone = ns(measured, "calls")
            with traced(Ckpt(folder), target.pid):
                pairs.append((alone, ns(measured, "calls")))
    alone, beside = (statistics.median(column) for column in zip(*pairs, strict=True))
    return Row(name, beside - alone, "ns", None, limit, f"getppid {alone:.0f} ns alone, {beside:.0f} ns beside it")


def untraced_syscall() -> Row:
    return syscall_cost("what a call of an untraced process pays while ckpt trace runs", 150.0, of_the_traced=False)


def traced_syscall() -> Row:
    return syscall_cost("the same in the traced process", 300.0, of_the_traced=True)


def attach() -> Row:
    """All programs of ckpt trace, from the cache."""
    bpf.prepare()
    there, gone = [], []
    for _ in range(2 * ROUNDS):
        start = time.perf_counter()
        with ExitStack() as stack:
            followed = stack.enter_context(bpf.Filter())
            stack.enter_context(bpf.Syscalls(followed))
            stack.enter_context(bpf.Writes(followed))
            attached = time.perf_counter()
        there.append((attached - start) * 1000)
        gone.append((time.perf_counter() - attached) * 1000)
    note = f"detach {statistics.median(gone):.1f} ms; fastest {min(there):.1f} and {min(gone):.1f} ms"
    return Row("attach of ckpt trace's programs, compiled before", statistics.median(there), "ms", None, 50.0, note)


def at_a_freeze() -> Row:
    """Of the program that says when waits end: attached and detached again, as a snapshot does it."""
    bpf.prepare(("deadlines",))
    loads, there, gone = [], [], []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        with bpf.Deadlines() as programs:
            loads.append((time.perf_counter() - start) * 1000)
            for _again in range(ROUNDS):
                time.sleep(APART_S)
                start = time.perf_counter()
                programs.attach([1])
                attached = time.perf_counter()
                programs.detach()
                there.append((attached - start) * 1000)
                gone.append((time.perf_counter() - attached) * 1000)
    both = statistics.median(map(sum, zip(there, gone, strict=True)))
    note = f"detach {statistics.median(gone):.2f} ms; loaded from the cache before, in {statistics.median(loads):.1f} ms"
    return Row("attach and detach of the freeze-time program", both, "ms", None, 5.0, note)


def stop_with_ebpf() -> Row:
    """200 threads that sleep 20 ms at a time: each snapshot meets new waits, and asks about all of them."""
    bpf.prepare(("deadlines",))
    with_it, without, told = [], [], 0
    with scratch() as folder, Victim.start("threads200", folder / "victim") as victim:
        ckpt = Ckpt(folder)
        ckpt.snapshot(victim.pid, "--full")
        for _ in range(3 * ROUNDS):
            made = ckpt.snapshot(victim.pid)
            with_it.append(float(made["stop_us"]))
            rows = ckpt.json("show", made["generation"], "--threads")["threads"]
            told += sum("ebpf" in row["evidence"] for row in rows)
            without.append(float(ckpt.run("snapshot", victim.pid, "--json", env={"CKPT_CACHE_DIR": "/proc/nowhere"}).json["stop_us"]))
    if told < 100 * len(with_it):
        raise AssertionError(f"eBPF told of {told} waits in {len(with_it)} snapshots: it was not asked")
    note = f"{told / len(with_it):.0f} waits told at each; fastest {min(with_it):.0f} against {min(without):.0f} us"
    return Row("stop with eBPF, 200 sleepers", statistics.median(with_it), "us", statistics.median(without), 1.2, note)


def first_write() -> Row:
    """The floor is the same fault without a program that is told of it."""
    ours, floor = [], []
    with costs() as victim, ExitStack() as stack:
        tree = stack.enter_context(core.Tree(victim.pid))
        track = tree.arm(victim.pid)
        for _ in range(ROUNDS):
            tree.protect(track)
            floor.append(ns(victim, "pages"))
            with bpf.Filter() as followed, bpf.Writes(followed) as writes:
                followed.add([victim.pid])
                tree.protect(track)
                ours.append(ns(victim, "pages"))
                told = len(writes.take())
                if told < 4096:
                    raise AssertionError(f"{told} events for 4096 pages")
        again = ns(victim, "pages")
    note = (
        f"fastest {min(ours):.0f} against {min(floor):.0f} ns; a write of a page that is not protected {again:.0f} ns, both with the clock"
    )
    return Row("first write of a protected page, told by eBPF", statistics.median(ours), "ns", statistics.median(floor), 1.4, note)
