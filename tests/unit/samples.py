"""Snapshots to test with: a small one by hand, and hypothesis strategies for any."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hypothesis import strategies as st

from ckpt.model import (
    Action,
    Backing,
    Descriptor,
    Mapping,
    OpenFile,
    PidRef,
    RetvalDecision,
    SharedObject,
    Snapshot,
    SyscallState,
    Task,
    Thread,
    Zombie,
)

HEAP = Mapping(0x5555_0000_0000, 0x5555_0000_8000, 3, 0x22, Backing("anonymous"), "[heap]")
TEXT = Mapping(0x5554_0000_0000, 0x5554_0000_4000, 5, 2, Backing("file", "/usr/bin/worker", 0xFD01, 4711, 0, 16384, 10**18), "")
STACK = Mapping(0x7FFF_0000_0000, 0x7FFF_0002_1000, 3, 0x122, Backing("anonymous"), "[stack]")


def thread(tid: int, *, disturbed: bool = False) -> Thread:
    call = SyscallState("call", 7, (0x1000, 1, 0, 0, 0, 0), -514, None, {"source": "table"})
    decision = RetvalDecision(Action.RESTART, -514, "poll without a time limit begins again", disturbed)
    return Thread(tid, 1000, bytes(27 * 8), bytes(2696), 0, (), call, decision, {"rseq": {"address": 0}})


def task(pid: int = 4121, *, comm: str = "worker", threads: int = 2, mm: int = 0) -> Task:
    return Task(
        pid=pid,
        start_ticks=1000,
        ppid=1,
        pgid=pid,
        sid=pid,
        comm=comm,
        mm=mm,
        threads=tuple(thread(pid + number) for number in range(threads)),
        mappings=(TEXT, HEAP, STACK),
        descriptors=(Descriptor(0, False, 1), Descriptor(3, True, 2), Descriptor(4, False, 2)),
        pending=(),
        attributes={"brk": {"start": HEAP.start, "brk": HEAP.end}},
    )


def snapshot(*tasks: Task, taken_at: int = 1_790_000_000_000_000_000) -> Snapshot:
    tasks = tasks or (task(),)
    return Snapshot(
        root=tasks[0].ref,
        tasks=tasks,
        files=(OpenFile(1, "chardev", 0o2, 0, {"path": "/dev/null"}), OpenFile(2, "eventfd", 0o4002, 0, {"count": 7})),
        objects=(),
        features={"kernel": "6.12.0", "page_size": 4096},
        taken_at=taken_at,
    )


def large(threads: int = 200, mappings: int = 400) -> Snapshot:
    """As large as real programs get: every thread with xstate of its own contents."""
    one = task(threads=1)
    many = tuple(
        replace(
            thread(4121 + n), xstate=bytes(512) + n.to_bytes(8, "little") * 64 + bytes(1672), regs=(n * 7919).to_bytes(8, "little") * 27
        )
        for n in range(threads)
    )
    maps = tuple(
        replace(TEXT, start=n << 20, end=(n << 20) + 0x4000, backing=replace(TEXT.backing, path=f"/usr/lib/lib{n // 5}.so"))
        for n in range(mappings)
    )
    return snapshot(replace(one, threads=many, mappings=maps))


# ---- strategies ----

U64 = st.integers(0, 2**64 - 1)
INT = st.integers(-(2**63), 2**63 - 1)
SMALL = st.integers(0, 2**31)
TEXTS = st.text(max_size=12)
JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | INT | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=5,
)
STATES = st.dictionaries(TEXTS, JSON, max_size=3)
ATTRIBUTES = st.dictionaries(TEXTS, STATES, max_size=2)
BLOBS = st.binary(max_size=16)
PENDING = st.lists(BLOBS, max_size=2).map(tuple)

BACKINGS = st.builds(Backing, st.sampled_from(["anonymous", "file", "object", "kernel"]), TEXTS, U64, U64, U64, U64, INT, st.booleans())
MAPPINGS = st.builds(Mapping, U64, U64, SMALL, SMALL, BACKINGS, TEXTS)
CALLS = st.builds(SyscallState, st.sampled_from(["user", "call"]), INT, st.lists(U64, max_size=6).map(tuple), INT, st.none() | INT, STATES)
DECISIONS = st.builds(RetvalDecision, st.sampled_from(Action), INT, TEXTS, st.booleans())
THREADS = st.builds(Thread, SMALL, U64, BLOBS, BLOBS, U64, PENDING, CALLS, DECISIONS, ATTRIBUTES)
DESCRIPTORS = st.builds(Descriptor, SMALL, st.booleans(), SMALL)
TASKS = st.builds(
    Task,
    SMALL,
    U64,
    SMALL,
    SMALL,
    SMALL,
    TEXTS,
    SMALL,
    st.lists(THREADS, max_size=3).map(tuple),
    st.lists(MAPPINGS, max_size=3).map(tuple),
    st.lists(DESCRIPTORS, max_size=3).map(tuple),
    PENDING,
    ATTRIBUTES,
    SMALL,
    SMALL,
    st.dictionaries(TEXTS, SMALL, max_size=2),
)
ZOMBIES = st.builds(Zombie, SMALL, U64, SMALL, SMALL, SMALL, TEXTS, SMALL, SMALL, SMALL)
FILES = st.builds(OpenFile, SMALL, TEXTS, SMALL, INT, STATES)
OBJECTS = st.builds(SharedObject, SMALL, U64, U64, U64)
SNAPSHOTS = st.builds(
    Snapshot,
    st.builds(PidRef, SMALL, U64),
    st.lists(TASKS, max_size=2).map(tuple),
    st.lists(FILES, max_size=3).map(tuple),
    st.lists(OBJECTS, max_size=2).map(tuple),
    STATES,
    U64,
    st.lists(ZOMBIES, max_size=2).map(tuple),
)
