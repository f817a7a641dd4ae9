"""Snapshot against snapshot: nothing where nothing changed, and each change by name."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from ckpt.compare import REGISTERS, Field, compare
from ckpt.model import Descriptor, OpenFile, PidRef, SharedObject, Snapshot, Task
from tests.unit import samples

BASE = samples.snapshot()
TASK = BASE.tasks[0]


def changed(**fields: Any) -> list[tuple[str, str, str]]:
    found = compare(BASE, replace(BASE, tasks=(replace(TASK, **fields),)))
    return [(item.category, item.change, item.subject) for item in found]


def test_a_snapshot_equals_itself() -> None:
    assert compare(BASE, BASE) == []
    assert compare(BASE, replace(BASE, taken_at=1)) == []


def test_threads_come_and_go() -> None:
    assert changed(threads=(*TASK.threads, samples.thread(4130))) == [("thread", "added", "thread 4130")]
    assert changed(threads=TASK.threads[:1]) == [("thread", "removed", "thread 4122")]


def test_a_register_is_named() -> None:
    regs = bytearray(TASK.threads[0].regs)
    regs[16 * 8] = 0x10
    threads = (replace(TASK.threads[0], regs=bytes(regs)), TASK.threads[1])
    (found,) = compare(BASE, replace(BASE, tasks=(replace(TASK, threads=threads),)))
    assert found.fields == (Field("rip", 0, 16),)
    assert len(REGISTERS) == 27


def test_mappings() -> None:
    text, heap, stack = TASK.mappings
    assert changed(mappings=(text, replace(heap, end=heap.end + 4096), stack)) == [
        ("mapping", "changed", f"{heap.start:x}-{heap.end + 4096:x} [heap]")
    ]
    assert changed(mappings=(text, heap)) == [("mapping", "removed", f"{stack.start:x}-{stack.end:x} [stack]")]
    assert changed(mappings=(replace(text, backing=replace(text.backing, mtime_ns=7)), heap, stack))[0][1] == "changed"


def test_descriptors_and_what_they_share() -> None:
    zero, three, four = TASK.descriptors
    assert changed(descriptors=(zero, three)) == [("descriptor", "removed", "fd 4 (eventfd)")]
    assert changed(descriptors=(zero, replace(three, cloexec=False), four)) == [("descriptor", "changed", "fd 3 (eventfd)")]
    apart = replace(
        BASE,
        tasks=(replace(TASK, descriptors=(zero, three, Descriptor(4, False, 3))),),
        files=(*BASE.files, OpenFile(3, "eventfd", 0o4002, 0, {"count": 7})),
    )
    (found,) = compare(BASE, apart)
    assert [field.name for field in found.fields] == ["shares"]


def test_identities_of_files_mean_nothing_between_snapshots() -> None:
    renumbered = replace(
        BASE,
        tasks=(replace(TASK, descriptors=tuple(replace(item, file=item.file + 70) for item in TASK.descriptors)),),
        files=tuple(replace(file, id=file.id + 70) for file in BASE.files),
    )
    assert compare(BASE, renumbered) == []


def test_attributes_by_kind() -> None:
    assert changed(attributes={"brk": {"start": 1, "brk": 2}}) == [("attribute", "changed", "brk of the process")]
    assert changed(attributes={}) == [("attribute", "changed", "brk of the process")]


def test_the_root_is_matched_whatever_its_pid() -> None:
    moved = replace(TASK, pid=99)
    (found,) = compare(BASE, replace(BASE, root=PidRef(99, TASK.start_ticks), tasks=(moved,)))
    assert (found.category, [field.name for field in found.fields]) == ("process", ["pid"])


def test_children_and_objects() -> None:
    child = samples.task(5000, comm="child", mm=1)
    (found,) = compare(BASE, replace(BASE, tasks=(TASK, child)))
    assert (found.change, found.subject) == ("added", "process 5000 (child)")
    shared = replace(BASE, objects=(SharedObject(1_000_000, 5, 9, 4096),))
    assert [item.change for item in compare(shared, BASE)] == ["removed"]
    grown = replace(shared, objects=(replace(shared.objects[0], size=8192),))
    assert compare(shared, grown)[0].fields == (Field("size", 4096, 8192),)


MUTATIONS = {
    "start_ticks": lambda task: replace(task, start_ticks=task.start_ticks + 1),
    "comm": lambda task: replace(task, comm=task.comm + "x"),
    "pending": lambda task: replace(task, pending=(*task.pending, b"s")),
    "sigmask": lambda task: replace(task, threads=(replace(task.threads[0], sigmask=5), *task.threads[1:])),
    "xstate": lambda task: replace(task, threads=(replace(task.threads[0], xstate=b"y" * 2696), *task.threads[1:])),
    "thread attribute": lambda task: replace(task, threads=(replace(task.threads[0], attributes={}), *task.threads[1:])),
}


@given(st.sampled_from(sorted(MUTATIONS)))
def test_no_change_is_overlooked(name: str) -> None:
    assert compare(BASE, replace(BASE, tasks=(MUTATIONS[name](TASK),)))


def test_components_in_use_are_the_processors_own_matter() -> None:
    """One that holds its initial values may be told as in use or not (XSTATE_BV, byte 512 on); what it holds counts."""
    legacy, rest = bytes(512), bytes(312)
    thread = replace(TASK.threads[0], xstate=legacy + (0).to_bytes(8, "little") + rest)

    def found(xstate: bytes) -> list[Any]:
        then, now = (replace(TASK, threads=(one, *TASK.threads[1:])) for one in (thread, replace(thread, xstate=xstate)))
        return compare(replace(BASE, tasks=(then,)), replace(BASE, tasks=(now,)))

    assert found(legacy + (2).to_bytes(8, "little") + rest) == []
    assert found(b"\1" + legacy[1:] + (0).to_bytes(8, "little") + rest)
    assert found(legacy + (0).to_bytes(8, "little") + rest[:-1] + b"\1")


def _consistent(snapshot: Snapshot) -> Snapshot:
    """Any snapshot, but with every descriptor's file there and nothing twice."""
    files = {file.id: file for file in snapshot.files}
    tasks: dict[int, Task] = {}
    for task in snapshot.tasks:
        descriptors = {item.fd: item for item in task.descriptors if item.file in files}
        tasks[task.pid] = replace(task, descriptors=tuple(descriptors.values()))
    return replace(snapshot, tasks=tuple(tasks.values()), files=tuple(files.values()))


@given(samples.SNAPSHOTS.map(_consistent))
@settings(max_examples=60, deadline=None)
def test_any_snapshot_equals_itself(snapshot: Snapshot) -> None:
    assert compare(snapshot, snapshot) == []
