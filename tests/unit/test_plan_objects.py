"""Shared memory that nobody holds any more: made once, for all who had it."""

from __future__ import annotations

from dataclasses import replace

from ckpt.model import PAGE, Backing, Descriptor, Mapping, OpenFile, PidRef, Plan, RemoteCall, SharedObject, Snapshot, Task
from ckpt.plan import batch as b
from ckpt.plan import plan
from ckpt.plan.successors import renamed
from ckpt.procfs import Segment
from tests.unit import samples

BASE, RW = 0x5000_0000, 3
DEV = 1
SHMGET, SHMAT, SHMCTL, MEMFD_CREATE, UNLINK = 29, 30, 31, 319, 87
STRANGE = Segment(1 << 15, 5, 0o600, PAGE, 0, 0, 0)


def of(ino: int, path: str, page: int = 0, pages: int = 2, offset: int = 0, *words: str) -> Mapping:
    start = BASE + page * PAGE
    backing = Backing("object", path, DEV, ino, offset * PAGE, deleted=True)
    return Mapping(start, start + pages * PAGE, RW, 1, backing, "", words or ("mw",))


def task(pid: int, *mappings: Mapping, fds: tuple[Descriptor, ...] = ()) -> Task:
    return Task(pid, 1, 1, 7, 7, "prog", pid, (samples.thread(pid),), mappings, fds, ())


def tree(*tasks: Task, objects: tuple[SharedObject, ...] = (), files: tuple[OpenFile, ...] = ()) -> Snapshot:
    return Snapshot(PidRef(tasks[0].pid, 1), tasks, files, objects, {}, 0)


def item(ino: int, pages: int = 2, **state: int) -> SharedObject:
    return SharedObject(1_000_000 + ino, DEV, ino, pages * PAGE, state)


def made(wanted: Snapshot, **options: object) -> Plan:
    now = tree(*(task(one.pid) for one in wanted.tasks))
    return plan(now, wanted, options.pop("world", {}), **options)  # type: ignore[arg-type]


def calls(result: Plan, name: str, pid: int = 7) -> list[RemoteCall]:
    return [one for stage in result.stages if (stage.name, stage.pid) == (name, pid) for one in stage.calls]


def test_all_mappings_of_shared_anonymous_memory_are_of_one_object() -> None:
    zero = "/dev/zero"
    wanted = tree(task(7, of(9, zero), of(9, zero, 4, 1, 1)), task(8, of(9, zero)), objects=(item(9),))
    result = made(wanted)
    assert not result.refusals
    (anchor,) = result.objects
    mine = calls(result, "mappings")
    assert [one.nr for one in mine] == [b.NR_MMAP, b.NR_MREMAP, b.NR_MREMAP]
    at = mine[0].args[0].value
    assert [one.args[0].value for one in mine[1:]] == [at, at + PAGE], "the second begins at the object's second page"
    assert all(one.args[1].value == 0 for one in mine[1:]), "an old size of 0 duplicates"
    other = calls(result, "mappings", 8)
    assert [one.nr for one in other] == [b.NR_OPEN, b.NR_MMAP, b.NR_CLOSE]
    assert other[0].args[0].data == f"/proc/7/{anchor.entry}\0".encode()
    assert [one.nr for one in calls(result, "finish")] == [b.NR_MUNMAP]


def test_a_memfd_is_one_for_its_mappings_and_descriptors_and_sealed_by_the_writer_of_its_contents() -> None:
    def file(identity: int, flags: int, pos: int) -> OpenFile:
        return OpenFile(identity, "memfd", flags, pos, {"name": "q", "dev": DEV, "ino": 9, "size": 2 * PAGE, "seals": 0xD})

    fds = (Descriptor(3, False, 1), Descriptor(4, False, 2))
    reader = of(9, "/memfd:q", 4, 2, 0, "ac")
    wanted = tree(task(7, of(9, "/memfd:q"), reader, fds=fds), objects=(item(9),), files=(file(1, 2, 5), file(2, 0, 0)))
    result = made(wanted)
    assert not result.refusals
    (anchor,) = result.objects
    assert anchor.seals == 0xD
    layout = calls(result, "mappings")
    assert sum(one.nr == MEMFD_CREATE for one in layout) == 1
    assert next(one for one in layout if one.nr == MEMFD_CREATE).args[1].value & 2, "seals may be added"
    opened = [one.args[1].value & b.O_ACCMODE for one in layout if one.nr == b.NR_OPEN]
    assert sorted(opened) == [b.O_RDONLY, b.O_RDWR], "one mapping may never be written"
    descriptors = [one for one in calls(result, "descriptors-made") if one.nr == b.NR_OPEN]
    assert [one.args[0].data for one in descriptors] == [f"/proc/self/{anchor.entry}\0".encode()] * 2
    assert [one.args[1].value & b.O_ACCMODE for one in descriptors] == [b.O_RDWR, b.O_RDONLY]


def test_an_object_that_still_is_is_not_made() -> None:
    wanted = tree(task(7, of(9, "/memfd:q"), of(9, "/memfd:q", 4)), objects=(item(9),))
    now = tree(task(7, of(9, "/memfd:q")))
    result = plan(now, wanted, {})
    assert not result.objects
    assert not result.refusals


def test_a_segment_that_is_gone_is_made_with_its_id_and_goes_with_its_last_mapping() -> None:
    wanted = tree(task(7, of(5, "/SYSV0000002a")), objects=(item(5, shmid=5, key=42, mode=0o1640, uid=3, gid=4),))
    mine = calls(made(wanted), "mappings")
    assert mine[0].args[0].data.startswith(b"/proc/sys/kernel/shm_next_id")
    assert mine[1].args[1].data == b"5"
    shmget = next(one for one in mine if one.nr == SHMGET)
    assert [arg.value for arg in shmget.args] == [42, 2 * PAGE, 0o3640]
    assert [one.args[1].value for one in mine if one.nr == SHMCTL] == [1, 0], "IPC_SET, then IPC_RMID"
    kept = tree(task(7, of(5, "/SYSV0000002a")), objects=(item(5, shmid=5, key=42, mode=0o640, uid=0, gid=0),))
    assert not [one for one in calls(made(kept), "mappings") if one.nr == SHMCTL]


def test_a_segment_that_still_is_is_attached_and_keeps_what_others_see() -> None:
    wanted = tree(task(7, of(5, "/SYSV0000002a")), objects=(item(5),))
    there = Segment(5, 42, 0o600, 2 * PAGE, 0, 0, 0)
    result = made(wanted, segments={5: there})
    assert SHMGET not in [one.nr for one in calls(result, "mappings")]
    assert result.objects[0].contents
    used = made(wanted, segments={5: replace(there, attached=1)})
    assert not used.objects[0].contents
    assert "attached by others" in used.warnings[0]


def test_a_segment_whose_id_or_key_is_taken_is_refused_by_name() -> None:
    wanted = tree(task(7, of(32768 + 5, "/SYSV0000002a")), objects=(item(32768 + 5),))
    (size,) = made(wanted, segments={32773: Segment(32773, 42, 0o600, PAGE, 0, 0, 0)}).refusals
    assert "segment 32773 is another one" in size
    (place,) = made(wanted, segments={5: Segment(5, 1, 0o600, PAGE, 0, 0, 0)}).refusals
    assert "segment 5 has the place of its id" in place
    (key,) = made(wanted, segments={6: Segment(6, 42, 0o600, PAGE, 0, 0, 0)}).refusals
    assert "segment 6 has its key 0x2a" in key


def test_a_deleted_file_gets_its_name_for_a_moment_or_none() -> None:
    wanted = tree(task(7, of(9, "/dev/shm/x")), objects=(item(9),))
    folder = {"/dev/shm": object()}
    mine = calls(made(wanted, world=folder), "mappings")
    assert (mine[0].args[0].data, mine[0].args[1].value & 0o300) == (b"/dev/shm/x\0", 0o300), "created, never opened"
    assert mine[1].nr == UNLINK
    taken = made(wanted, world={**folder, "/dev/shm/x": object()})
    assert calls(taken, "mappings")[0].args[0].data == b"/dev/shm\0"
    assert "no name" in taken.warnings[0]


def test_what_a_restore_has_made_anew_is_what_it_stands_for() -> None:
    """It stays where it is: nothing is unmapped, nothing made."""
    zero = "/dev/zero"
    wanted = tree(task(7, of(9, zero), of(9, zero, 4, 1, 1)), task(8, of(9, zero)), objects=(item(9),))
    now = tree(task(7, of(19, zero), of(19, zero, 4, 1, 1)), task(8, of(19, zero)))
    again = renamed(wanted, now)
    assert [(one.space, one.ino) for one in again.objects] == [(1_000_009, 19)]
    assert {m.backing.ino for one in again.tasks for m in one.mappings} == {19}
    result = plan(now, again, {})
    assert (result.stages, result.objects, result.refusals) == ((), (), ())


def test_a_successor_is_of_one_only() -> None:
    """Two that were apart do not become one; nor does one that is mapped in another way, or that has two at its places."""
    zero = "/dev/zero"
    apart = tree(task(7, of(8, zero), of(9, zero, 4)), objects=(item(8), item(9)))
    assert renamed(apart, tree(task(7, of(19, zero), of(19, zero, 4)))) is apart
    wanted = tree(task(7, of(9, zero), of(9, zero, 4)), objects=(item(9),))
    assert renamed(wanted, tree(task(7, of(18, zero), of(19, zero, 4)))) is wanted
    assert renamed(wanted, tree(task(7, of(19, zero, 0, 1)))) is wanted
    assert renamed(wanted, tree(task(7, of(9, zero)))) is wanted, "it lives yet"
    assert renamed(wanted, tree(task(7, of(19, "/memfd:x")))) is wanted


def test_who_may_not_open_entries_of_map_files_is_refused() -> None:
    """Before anything is touched: an unprivileged program could not be given the memory again."""
    nobody = samples.thread(8)
    nobody = replace(nobody, attributes={**nobody.attributes, "credentials": {"cap_effective": 1 << 12}})
    wanted = tree(task(7, of(9, "/dev/zero")), task(8, of(9, "/dev/zero")), objects=(item(9),))
    now = tree(task(7), replace(task(8), threads=(nobody,)))
    assert any("CAP_CHECKPOINT_RESTORE" in line and "task 8" in line for line in plan(now, wanted, {}).refusals)
    assert not plan(tree(task(7), task(8)), wanted, {}).refusals
