"""The table plan against a small model of a descriptor table: running its calls on `now` must give `wanted`, sharing included."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ckpt.kinds.base import CannotUndo, FdKind, Moved, call
from ckpt.model import Arg, Descriptor, OpenFile, PidRef, RemoteCall, Snapshot, Task
from ckpt.plan import batch as b
from ckpt.plan.descriptors import TablePlan, plan_tables
from ckpt.plan.mappings import FileIdentity

MAKE, SET, WATCH = 1000, 1001, 1002
PIDFD_OPEN, PIDFD_GETFD = 434, 438


class Box:
    """An anonymous kind: no inode, all of its state can be set."""

    name, order, wants = "box", 1, ()

    def recognises(self, raw: object) -> bool:
        return False

    def parse(self, raw: object) -> OpenFile:
        raise NotImplementedError

    def adjust(self, fd: int, now: OpenFile, wanted: OpenFile) -> Sequence[RemoteCall]:
        return [] if now.state == wanted.state else [call(SET, fd, wanted.state["v"], note="set")]

    def recreate(self, wanted: OpenFile) -> Sequence[RemoteCall]:
        return [call(MAKE, 0, note="a helper"), call(MAKE, wanted.state["v"], note="make"), *CLOSE_HELPER]


CLOSE_HELPER = (
    RemoteCall(b.NR_CLOSE, (call(0, 0, note="").args[0].__class__(Arg.RESULT, 0),), "close the helper"),
    RemoteCall(33, (call(0, 0, note="").args[0].__class__(Arg.RESULT, 1),) * 2, "that one"),
)


class Node(Box):
    """A kind with an inode of its own."""

    name = "node"


class Stone(Box):
    """Cannot be changed or made."""

    name = "stone"

    def adjust(self, fd: int, now: OpenFile, wanted: OpenFile) -> Sequence[RemoteCall]:
        if now.state == wanted.state:
            return []
        raise CannotUndo("stone: it cannot be changed")

    def recreate(self, wanted: OpenFile) -> Sequence[RemoteCall]:
        raise CannotUndo("stone: it is gone")


class Wire(Box):
    """A connection: v is how far it has come."""

    name = "wire"

    def adjust(self, fd: int, now: OpenFile, wanted: OpenFile) -> Sequence[RemoteCall]:
        if now.state == wanted.state:
            return []
        raise Moved("the connection has moved")

    def recreate(self, wanted: OpenFile) -> Sequence[RemoteCall]:
        raise Moved("the connection is gone")


class File(Box):
    name = "file"


class Epoll(Box):
    name = "epoll"

    def adjust(self, fd: int, now: OpenFile, wanted: OpenFile) -> Sequence[RemoteCall]:
        before = [entry["fd"] for entry in now.state["entries"]]
        return [call(WATCH, fd, e["fd"], note="watch") for e in wanted.state["entries"] if e["fd"] not in before]

    def recreate(self, wanted: OpenFile) -> Sequence[RemoteCall]:
        return [call(MAKE, 77, note="epoll_create1")]

    def settle(self, fd: int, wanted: OpenFile) -> Sequence[RemoteCall]:
        return self.adjust(fd, replace(wanted, state={"entries": []}), wanted)


WORLD = {"/data": FileIdentity(3, 9, 100, 1), **{f"/proc/{pid}/maps": FileIdentity(3, 9, 0, 1) for pid in (7, 8)}}
KINDS: tuple[FdKind, ...] = (Box(), Node(), Stone(), Wire(), File(), Epoll())


class Table:
    """fd -> (object number, cloexec); objects: number -> [kind, value, set of watched objects]."""

    def __init__(self, snapshot: Snapshot, seat: int = -1, pid: int = 7, others: dict[int, Table] | None = None) -> None:
        self.others = others if others is not None else {}
        self.others[pid] = self
        first = next(iter(self.others.values()))
        self.objects = {file.id: [file.kind, file.state.get("v")] for file in snapshot.files} if first is self else first.objects
        self.fds = {item.fd: (item.file, item.cloexec) for item in snapshot.task(pid).descriptors}
        self.reset: set[int] = set()
        self.watched: list[tuple[int, int]] = []
        self.seat = seat
        if seat >= 0:
            self.objects[-1] = ["tracker", 0]
            self.fds[seat] = (-1, True)

    def lowest(self, least: int = 0) -> int:
        return next(fd for fd in range(least, 4096) if fd not in self.fds)

    def open(self, what: list[object]) -> int:
        number = max([1000, *self.objects]) + 1
        fd = self.lowest()
        self.objects[number] = what
        self.fds[fd] = (number, False)
        return fd

    def run(self, calls: Sequence[RemoteCall]) -> None:
        results: list[int] = []
        for item in calls:
            args = [results[arg.value] if arg.form is Arg.RESULT else arg.value for arg in item.args]
            got = self.one(item.nr, args)
            assert item.expect is None or got >= item.expect, item.note
            results.append(got)

    def one(self, nr: int, args: list[int]) -> int:
        if nr in (MAKE, b.NR_SOCKET):
            return self.open(["made", args[0]])
        if nr == PIDFD_OPEN:
            return self.open(["pidfd", args[0]])
        if nr == PIDFD_GETFD:
            kind, pid = self.objects[self.fds[args[0]][0]]
            assert kind == "pidfd"
            fd = self.lowest()
            self.fds[fd] = (self.others[int(pid)].fds[args[1]][0], True)
            return fd
        assert args[0] in self.fds, "a number that is not open"
        if nr == SET:
            self.objects[self.fds[args[0]][0]][1] = args[1]
        elif nr == WATCH:
            self.watched.append((self.fds[args[0]][0], self.fds[args[1]][0]))
        elif nr == b.NR_CLOSE:
            del self.fds[args[0]]
        elif nr == 33:
            return args[1]
        elif nr == b.NR_DUP3:
            assert args[0] != args[1]
            self.fds[args[1]] = (self.fds[args[0]][0], bool(args[2]))
            return args[1]
        elif nr == b.NR_FCNTL and args[1] == b.F_DUPFD_CLOEXEC:
            fd = self.lowest(args[2])
            self.fds[fd] = (self.fds[args[0]][0], True)
            return fd
        elif nr == b.NR_FCNTL:
            self.fds[args[0]] = (self.fds[args[0]][0], bool(args[2]))
        elif nr == b.NR_SETSOCKOPT:
            self.reset.add(self.fds[args[0]][0])
        elif nr == b.NR_SHUTDOWN:
            return -107
        return 0


def snapshot(table: Mapping[int, int | tuple[int, bool]], files: Mapping[int, OpenFile]) -> Snapshot:
    """table: fd -> file id, or (file id, cloexec)."""
    items = [(fd, *(entry if isinstance(entry, tuple) else (entry, False))) for fd, entry in sorted(table.items())]
    descriptors = tuple(Descriptor(fd, cloexec, file) for fd, file, cloexec in items)
    task = Task(7, 1, 1, 7, 7, "prog", 0, (), (), descriptors, (), {})
    used = {item.file for item in descriptors}
    return Snapshot(PidRef(7, 1), (task,), tuple(file for file in files.values() if file.id in used), (), {}, 0)


def box(identity: int, v: int, kind: str = "box") -> OpenFile:
    state = {"v": v, "dev": 3, "ino": v} if kind == "node" else {"v": v}
    return OpenFile(identity, kind, 2, 0, state)


def planned(now: Snapshot, wanted: Snapshot, tcp: str = "reset", seat: int = -1) -> TablePlan:
    return plan_tables(now, wanted, tcp, {7: seat} if seat >= 0 else {}, WORLD, KINDS)[7]


def apply(now: Snapshot, wanted: Snapshot, tcp: str = "reset", seat: int = -1) -> Table:
    plan = planned(now, wanted, tcp, seat)
    assert not plan.refusals
    table = Table(now, seat)
    for batch in (plan.made, plan.shared, plan.placed):
        table.run(batch.calls)
    expected = {item.fd: (wanted.file(item.file).state["v"], item.cloexec) for item in wanted.tasks[0].descriptors}
    got = {fd: (table.objects[identity][1], cloexec) for fd, (identity, cloexec) in table.fds.items() if identity != -1}
    if not any(file.kind in ("wire", "epoll") for file in wanted.files):
        assert got == expected
    for first in wanted.tasks[0].descriptors:
        for second in wanted.tasks[0].descriptors:
            assert (first.file == second.file) == (table.fds[first.fd][0] == table.fds[second.fd][0]), "sharing differs"
    if seat >= 0:
        assert [identity for identity, _ in table.fds.values()].count(-1) == 1
    return table


FILES = {1: box(1, 10), 2: box(2, 20), 3: box(3, 30, "node"), 4: box(4, 40, "node")}


def test_equal_tables_need_nothing() -> None:
    same = snapshot({0: 1, 1: 1, 5: 3}, FILES)
    assert planned(same, same).calls == []


def test_new_ones_are_closed_and_gone_ones_made_and_state_brought_back() -> None:
    table = apply(snapshot({0: 1, 4: 3}, FILES), snapshot({0: 1, 9: 4}, FILES))
    assert table.fds.keys() == {0, 9}
    apply(snapshot({0: 1}, FILES), snapshot({0: 5}, {5: box(5, 99)}))


def test_what_has_an_inode_is_found_at_another_number() -> None:
    now, wanted = snapshot({3: 3, 4: 4}, FILES), snapshot({3: 4, 4: 3}, FILES)
    table = apply(now, wanted)
    assert (table.fds[3][0], table.fds[4][0]) == (4, 3)


def test_dup_sharing_is_made_and_undone() -> None:
    apply(snapshot({0: 1, 1: 2}, FILES), snapshot({0: 1, 1: 1, 2: 1}, FILES))
    apply(snapshot({0: 1, 1: 1, 2: 1}, FILES), snapshot({0: 1, 1: 2}, FILES))


def test_thousands_of_descriptors_of_one_file_are_matched_at_once() -> None:
    """The second plan is made while the target is frozen: comparing each with each took 2.3 s for 800 of /dev/null."""
    many = {number: OpenFile(number, "node", 2, 0, {"v": 7, "dev": 3, "ino": 7}) for number in range(6000)}
    now, moved = snapshot({n: n for n in many}, many), snapshot({n + 3000: n for n in many}, many)
    start = time.process_time()
    assert planned(now, now).calls == []
    assert not planned(now, moved).refusals
    assert time.process_time() - start < 5


def test_close_on_exec_alone() -> None:
    (only,) = planned(snapshot({0: (1, False)}, FILES), snapshot({0: (1, True)}, FILES)).calls
    assert (only.nr, [arg.value for arg in only.args]) == (b.NR_FCNTL, [0, b.F_SETFD, 1])


def test_the_trackers_descriptor_makes_room() -> None:
    apply(snapshot({0: 1}, FILES), snapshot({0: 1, 63: 4}, FILES), seat=63)
    apply(snapshot({0: 1}, FILES), snapshot({0: 1, 62: 4}, FILES), seat=63)


def test_what_cannot_be_undone_is_refused_by_name() -> None:
    stone, other = OpenFile(1, "stone", 2, 0, {"v": 1}), OpenFile(1, "stone", 2, 0, {"v": 2})
    for now in (snapshot({}, {}), snapshot({6: 1}, {1: other})):
        (line,) = planned(now, snapshot({6: 1}, {1: stone})).refusals
        assert line.startswith("fd 6 of task 7 (prog): stone: it is gone")


@pytest.mark.parametrize("there", [True, False])
def test_a_connection_that_moved_or_is_gone_becomes_a_dead_socket(there: bool) -> None:
    was, moved = OpenFile(1, "wire", 2, 0, {"v": 1}), OpenFile(1, "wire", 2, 0, {"v": 2})
    now, wanted = snapshot({8: 1} if there else {}, {1: moved}), snapshot({8: 1}, {1: was})
    table = apply(now, wanted)
    assert table.objects[table.fds[8][0]][0] == "made"
    assert table.reset == ({1} if there else set())
    assert planned(now, wanted).warnings
    (line,) = planned(now, wanted, "refuse").refusals
    assert "fd 8" in line
    if there:
        assert planned(now, wanted, "keep").calls == []


@pytest.mark.parametrize(
    ("path", "ino", "pos", "reason"),
    [
        ("/data", 9, 100, None),
        ("/data", 8, 0, "another file"),
        ("/data", 9, 101, "shorter"),
        ("/gone", 9, 0, "is gone"),
        ("/proc/7/maps", 8, 0, None),  # its own, whatever number the inode has today
        ("/proc/8/maps", 8, 0, "another file"),
    ],
)
def test_a_path_is_opened_again_only_if_it_still_leads_there(path: str, ino: int, pos: int, reason: str | None) -> None:
    file = OpenFile(1, "file", 0, pos, {"v": 5, "dev": 3, "ino": ino, "path": path})
    plan = planned(snapshot({}, {}), snapshot({4: 1}, {1: file}))
    assert [reason in line for line in plan.refusals] == ([True] if reason else [])


def entry(fd: int, file: int) -> dict[str, int]:
    return {"fd": fd, "file": file, "events": 1, "data": fd}


def test_an_epoll_set_is_written_when_the_numbers_are_right() -> None:
    was = {**FILES, 9: OpenFile(9, "epoll", 2, 0, {"v": 77, "entries": [entry(3, 3), entry(4, 4)]})}
    table = apply(snapshot({3: 3}, FILES), snapshot({3: 3, 4: 4, 5: 9}, was))
    assert sorted(watched for _, watched in table.watched) == sorted({table.fds[3][0], table.fds[4][0]})


def test_an_entry_of_a_closed_file_counts_as_gone() -> None:
    """fd 4 was node 40 and is now node 30 in the same set: its entry went with the old file and is added again."""
    now_files = {1: box(1, 10), 8: box(8, 50, "node"), 9: OpenFile(9, "epoll", 2, 0, {"v": 77, "entries": [entry(4, 8)]})}
    was = {**FILES, 9: OpenFile(9, "epoll", 2, 0, {"v": 77, "entries": [entry(4, 4)]})}
    table = apply(snapshot({4: 8, 5: 9}, now_files), snapshot({4: 4, 5: 9}, was))
    assert table.watched == [(9, table.fds[4][0])]
    same = snapshot({4: 4, 5: 9}, was)
    assert planned(same, same).calls == []


@st.composite
def tables(draw: st.DrawFn) -> Snapshot:
    files = {n: box(n, draw(st.integers(1, 3)), draw(st.sampled_from(("box", "node")))) for n in range(1, 6)}
    nodes = {n: replace(f, state={"v": n * 100, "dev": 3, "ino": n * 100}) if f.kind == "node" else f for n, f in files.items()}
    entries = st.tuples(st.integers(1, 5), st.booleans())
    return snapshot(draw(st.dictionaries(st.integers(0, 9), entries, max_size=8)), nodes)


@given(tables(), tables(), st.sampled_from((-1, 12, 63)))
@settings(max_examples=300, deadline=None)
def test_any_table_becomes_any_other(now: Snapshot, wanted: Snapshot, seat: int) -> None:
    apply(now, wanted, seat=seat)


@st.composite
def families(draw: st.DrawFn) -> Snapshot:
    """Two or three tasks with open files of their own and in common."""
    one = draw(tables())
    entries = st.tuples(st.integers(1, 5), st.booleans())
    files = {n: box(n, draw(st.integers(1, 3)), draw(st.sampled_from(("box", "node")))) for n in range(1, 6)}
    nodes = {n: replace(f, state={"v": n * 100, "dev": 3, "ino": n * 100}) if f.kind == "node" else f for n, f in files.items()}
    parts = [snapshot(draw(st.dictionaries(st.integers(0, 9), entries, max_size=6)), nodes).tasks[0] for _ in range(2)]
    family = [replace(part, pid=7 + index) for index, part in enumerate(parts)]
    used = {item.file for task in family for item in task.descriptors}
    return replace(one, tasks=tuple(family), files=tuple(file for file in nodes.values() if file.id in used))


@given(families(), families())
@settings(max_examples=300, deadline=None)
def test_tables_that_share_open_files_become_any_others(now: Snapshot, wanted: Snapshot) -> None:
    plans = plan_tables(now, wanted, "reset", {}, WORLD, KINDS)
    assert not any(plan.refusals for plan in plans.values())
    family: dict[int, Table] = {}
    for task in now.tasks:
        Table(now, pid=task.pid, others=family)
    for stage in ("made", "shared", "placed"):
        for pid, table in family.items():
            table.run(getattr(plans[pid], stage).calls)
    places = [(task.pid, item) for task in wanted.tasks for item in task.descriptors]
    for pid, item in places:
        identity, cloexec = family[pid].fds[item.fd]
        assert (family[pid].objects[identity][1], cloexec) == (wanted.file(item.file).state["v"], item.cloexec)
    assert {(pid, fd) for pid, table in family.items() for fd in table.fds} == {(pid, item.fd) for pid, item in places}
    for pid, first in places:
        for other, second in places:
            same = family[pid].fds[first.fd][0] == family[other].fds[second.fd][0]
            assert (first.file == second.file) == same, "sharing differs"
