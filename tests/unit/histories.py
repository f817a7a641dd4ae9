"""A small store with a history in it: two programs, a branch after a rollback, a page that returns to old contents."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

from ckpt.history.open import History, Mode, open_store
from ckpt.history.recording import Meta
from ckpt.history.runs import pack
from ckpt.model import PAGE, Content, Descriptor, Evidence, PageWrite, Snapshot, Writer
from tests.unit import samples

HEAP = samples.HEAP.start // PAGE
STACK = samples.STACK.start // PAGE
REDIS, PYTHON = "3f9ac01b77de", "77aa01bb22cc"
START_NS = 1_790_000_000_000_000_000


def page(*what: object) -> bytes:
    """A page that nothing compresses, the same for the same `what`."""
    return hashlib.shake_128(repr(what).encode()).digest(PAGE)


def meta(lineage: str, command: str, pid: int, *, full: bool) -> Meta:
    kind = "full" if full else "incremental"
    return Meta(lineage, f"{lineage}-1", kind, "uffd", pid, command, 1_500_000, 30_000_000, phases={"freeze": 200_000, "copy": 900_000})


def evidence(*writes: tuple[int, int]) -> Evidence:
    """(page, writer): 0 is a function that wrote itself, 1 another for which the kernel wrote."""
    writers = (
        Writer(0x5554_0000_0010, "/usr/bin/redis-server", "setCommand", 0x10, None),
        Writer(0x5554_0000_0020, "/usr/bin/redis-server", "readQuery", 0x20, "read"),
    )
    return Evidence(writers, tuple(PageWrite(4121, page * PAGE, START_NS + page, 4121 + writer, writer) for page, writer in writes))


def take(
    history: History,
    parent: int | None,
    pages: dict[int, bytes],
    snapshot: Snapshot,
    lineage: str = REDIS,
    zero: int = 0,
    evidence: Evidence | None = None,
) -> int:
    """One generation: 8 heap pages and 4 of the stack; `pages` are those written since the parent, `zero` stack pages are zeros."""
    task = snapshot.tasks[0]
    with history.begin(parent) as recording:
        for number, content in sorted(pages.items()):
            recording.add(0, pack([(number, 1, Content.DATA)]), content)
        if zero:
            recording.add(0, pack([(STACK, zero, Content.ZERO)]), b"")
        same = Content.SAME
        recording.finish(
            0, pack([(HEAP, 8, same), (STACK, 4, same)]) if parent else pack([(HEAP, 8, Content.DATA), (STACK, 4, Content.ZERO)])
        )
        return recording.commit(snapshot, meta(lineage, task.comm, task.pid, full=parent is None), evidence).number


def snapshot(generation: int, comm: str = "redis-server", pid: int = 4121) -> Snapshot:
    """The third generation has a thread that was disturbed, one more descriptor and one more mapping."""
    task = samples.task(pid, comm=comm)
    if generation == 3:
        anonymous = replace(samples.HEAP, start=0x7F00_0000_0000, end=0x7F00_0000_4000, name="")
        task = replace(
            task,
            threads=(task.threads[0], samples.thread(pid + 1, disturbed=True)),
            descriptors=(*task.descriptors, Descriptor(9, False, 2)),
            mappings=(*task.mappings[:2], anonymous, task.mappings[2]),
        )
    return samples.snapshot(task, taken_at=START_NS + generation * 600 * 10**9)


def fill(path: Path) -> None:
    """Writes were watched before 2 and 3.

    1 - 2 - 3 and, after a rollback, 2 - 5; python 4. Page HEAP + 1 is a, b, a (3), c (5); HEAP + 7 changes every time."""
    first = {HEAP + n: page("first", n) for n in range(8)}
    with open_store(path, Mode.CREATE) as history:
        assert take(history, None, first, snapshot(1), zero=4) == 1
        by = evidence((HEAP + 1, 0), (HEAP + 7, 0))
        assert take(history, 1, {HEAP + 1: page("b"), HEAP + 7: page(2)}, snapshot(2), evidence=by) == 2
        again = evidence((HEAP + 1, 0), (HEAP + 7, 1), (0x10, 1))
        assert take(history, 2, {HEAP + 1: page("first", 1), HEAP + 7: page(3)}, snapshot(3), evidence=again) == 3
        python = {HEAP + n: page("first", n) if n < 4 else page("python", n) for n in range(8)}
        assert take(history, None, python, snapshot(4, "python3", 977), PYTHON, zero=4) == 4
        assert take(history, 2, {HEAP + 1: page("c"), HEAP + 7: page(5)}, snapshot(5)) == 5
        history.store.tag("before-upgrade", 2)
