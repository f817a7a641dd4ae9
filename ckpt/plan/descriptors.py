"""The descriptor tables: which numbers are closed, kept, moved, made again, so that `now` becomes `wanted`.

What becomes of each open file is decided in fates.py; here it gets its numbers, in stages of all tasks:

    freed   sockets that go are closed: their names and ports are needed by those that are made
    made    each task makes what it is to make and lifts it, and what must move, above its tables
    shared  whoever lacks an open file that another task has pulls it from there (pidfd_open, pidfd_getfd)
    placed  what goes is closed, what was lifted is dup'ed to its numbers, contents and positions are brought back
    told    much later, who is signalled of each open file (kinds/fd/sigio.py)

Invariants
 1. Sharing is kept explicit: one wanted open file is made or moved once in the whole tree and dup'ed to all its numbers.
 2. Lifted numbers are known ahead (a stage does not see another's results) and lie above both tables, so that no number is
    overwritten that is still needed; APART leaves room for numbers that a kind takes for a moment, beside those of a group.
 3. Positions, counters and contents are brought back once every number of its task is right; epoll sets last of all, for they
    name numbers. An entry whose open file was closed is gone from the set by itself.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

from ckpt.kinds.base import FdKind, fd_kinds, result, value
from ckpt.kinds.fd import sigio, sockfilter
from ckpt.model import OpenFile, RemoteArg, Snapshot, Task
from ckpt.plan import batch as b
from ckpt.plan.batch import Batch
from ckpt.plan.fates import Fate, Fates
from ckpt.plan.objects import Objects
from ckpt.plan.paths import opened_paths
from ckpt.plan.sources import World

__all__ = ["TablePlan", "opened_paths", "plan_tables"]

APART = 32
_SOL_SOCKET, _SO_LINGER = 1, 13
_NR_PIDFD_OPEN, _NR_PIDFD_GETFD = 434, 438


@dataclass(slots=True)
class TablePlan:
    """One process's table."""

    freed: Batch = field(default_factory=Batch)
    made: Batch = field(default_factory=Batch)
    shared: Batch = field(default_factory=Batch)
    placed: Batch = field(default_factory=Batch)
    told: Batch = field(default_factory=Batch)
    refusals: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    ended: frozenset[int] = frozenset()  #: of the whole tree

    @property
    def calls(self) -> list[object]:
        return [*self.freed.calls, *self.made.calls, *self.shared.calls, *self.placed.calls, *self.told.calls]


def plan_tables(
    now: Snapshot,
    wanted: Snapshot,
    tcp: str,
    reserved: Mapping[int, int],
    world: World,
    kinds: Sequence[FdKind] | None = None,
    objects: Objects | None = None,
    newborn: bool = False,
    scratch: bool = False,
) -> dict[int, TablePlan]:
    """pid -> its table's plan. `tcp`: reset | keep | refuse, for connections that have moved since. `reserved`: pid -> the
    number of the tracker's own descriptor, which neither snapshot shows. `world`: what stands under `opened_paths(wanted)`.
    `objects`: shared memory that is made anew."""
    fates = Fates(
        now, wanted, tcp, world, kinds if kinds is not None else fd_kinds(), objects or Objects(), newborn=newborn, scratch=scratch
    )
    fates.decide()
    ended = frozenset(fates.ended)
    plans = {pid: TablePlan(refusals=said.refusals, warnings=said.warnings, ended=ended) for pid, said in fates.said.items()}
    if not any(plan.refusals for plan in plans.values()):
        own = [task for task in wanted.tasks if "files" not in task.shares]
        members = sigio.members(wanted)
        tables = {task.pid: _Table(fates, now.task(task.pid), task, reserved.get(task.pid, -1), plans[task.pid], members) for task in own}
        for table in tables.values():
            table.free()
        for table in tables.values():
            table.make()
        for table in tables.values():
            table.share(tables)
        for table in tables.values():
            table.place()
    return plans


class _Table:
    """One task's table on its way."""

    def __init__(self, fates: Fates, now: Task, wanted: Task, seat: int, plan: TablePlan, members: Collection[tuple[str, int]]) -> None:
        self.fates, self.pid, self.comm, self.seat, self.plan = fates, wanted.pid, wanted.comm, seat, plan
        self.members = members
        self.here = {item.fd: item for item in now.descriptors}
        self.there = {item.fd: item for item in wanted.descriptors}
        self.above = max((*self.here, *self.there, seat), default=0) + 1
        self.stays = {fd for fd, item in self.there.items() if fd in self.here and self._source(item.file) == self.here[fd].file}
        self.needed = dict.fromkeys(item.file for item in wanted.descriptors if item.fd not in self.stays)
        self.lifted: dict[int, int] = {}  #: open file -> the number that it is lifted to
        self.apart = APART + max((len(fate.mates) for fate in fates.of.values()), default=0)
        self.freed: set[int] = set()

    def _source(self, identity: int) -> int | None:
        source = self.fates.of[identity].source
        return source.id if source else None

    # ---- freed ----

    def free(self) -> None:
        kept = {fate.source.id for fate in self.fates.of.values() if fate.source}
        for fd, item in sorted(self.here.items()):
            if item.file not in kept and "cookie" in self.fates.here[item.file].state:
                self._end(self.plan.freed, fd, item.file)
                self.freed.add(fd)

    # ---- made ----

    def make(self) -> None:
        for identity, fate in self.fates.of.items():
            if fate.make and fate.maker == self.pid:
                self._make(identity, fate)
        for identity in self.needed:
            source = self._source(identity)
            held = self._held(source) if source is not None else None
            if held is not None:
                self._lift(self.plan.made, identity, value(held))

    def _make(self, identity: int, fate: Fate) -> None:
        base = len(self.plan.made.calls)
        self.plan.made.extend(fate.make)
        ends = [(identity, fate.result), *((mate, self.fates.of[mate].result) for mate in fate.mates)]
        for end, index in ends:
            made = result(base + index)
            self._lift(self.plan.made, end, made)
            self.plan.made.add(b.NR_CLOSE, made, note="close the low number")

    def _held(self, source: int) -> int | None:
        """A number of now that this task has it at."""
        return next((fd for pid, fd in self.fates.at_now[source] if pid == self.pid), None)

    def _lift(self, batch: Batch, identity: int, source: RemoteArg) -> None:
        number = self.above + self.apart + len(self.lifted)
        batch.add(b.NR_DUP3, source, number, b.O_CLOEXEC, note=f"lift the {self.fates.there[identity].kind}", expect=number)
        self.lifted[identity] = number

    # ---- shared ----

    def share(self, tables: Mapping[int, _Table]) -> None:
        batch, pidfds = self.plan.shared, dict[int, RemoteArg]()
        for identity in self.needed:
            if identity in self.lifted:
                continue
            owner, number = self._owner(identity, tables)
            if owner not in pidfds:
                pidfds[owner] = batch.add(_NR_PIDFD_OPEN, owner, 0, note=f"reach task {owner}")
            kind = self.fates.there[identity].kind
            pulled = batch.add(_NR_PIDFD_GETFD, pidfds[owner], number, 0, note=f"take the {kind} at {number} of task {owner}")
            self._lift(batch, identity, pulled)
            batch.add(b.NR_CLOSE, pulled, note="close the low number")
        for pidfd in pidfds.values():
            batch.add(b.NR_CLOSE, pidfd, note="let go of the task")

    def _owner(self, identity: int, tables: Mapping[int, _Table]) -> tuple[int, int]:
        """Another task that has it before anything is placed, and its number there."""
        fate = self.fates.of[identity]
        if fate.source is None:
            return fate.maker, tables[fate.maker].lifted[identity]
        return self.fates.at_now[fate.source.id][0]

    # ---- placed ----

    def place(self) -> None:
        batch = self.plan.placed
        if self.seat in self.there:
            batch.add(b.NR_FCNTL, self.seat, b.F_DUPFD_CLOEXEC, self.above, note="move the tracker's descriptor away", expect=self.above)
        self._close(batch)
        for fd, item in sorted(self.there.items()):
            if fd not in self.stays:
                number = self.lifted[item.file]
                batch.add(b.NR_DUP3, number, fd, b.O_CLOEXEC if item.cloexec else 0, note=f"fd {fd}", expect=fd)
            elif self.here[fd].cloexec != item.cloexec:
                batch.add(b.NR_FCNTL, fd, b.F_SETFD, int(item.cloexec), note=f"fd {fd} close-on-exec {item.cloexec}")
        for number in self.lifted.values():
            batch.add(b.NR_CLOSE, number, note="close the lifted number")
        self._adjust(batch)

    def _close(self, batch: Batch) -> None:
        for fd, item in sorted(self.here.items()):
            if fd not in self.stays and fd not in self.freed:
                self._end(batch, fd, item.file)

    def _end(self, batch: Batch, fd: int, identity: int) -> None:
        if identity in self.fates.reset:
            linger = struct.pack("<ii", 1, 0)
            batch.add(b.NR_SETSOCKOPT, fd, _SOL_SOCKET, _SO_LINGER, linger, 8, note=f"fd {fd}: end it with a reset", expect=None)
        batch.add(b.NR_CLOSE, fd, note=f"close fd {fd}")

    def _adjust(self, batch: Batch) -> None:
        """Each open file once, in the first task that has it; epoll sets late, and last of all POSIX locks, which are lost when any
        descriptor of their file is closed."""
        fates = self.fates
        mine = dict.fromkeys(item.file for item in self.there.values() if fates.at_wanted[item.file][0][0] == self.pid)
        for identity in sorted(mine, key=lambda item: (_rank(fates.there[item]), item)):
            batch.extend(fates.of[identity].adjust)
        for identity in mine:
            self._tell(identity)

    def _tell(self, identity: int) -> None:
        file, source, fd = self.fates.there[identity], self.fates.of[identity].source, self.fates.at_wanted[identity][0][1]
        known, goal = (one.state.get("sigio_to") if one else None for one in (source, file))
        if goal and goal != known and tuple(goal) not in self.members:
            who = f"fd {fd} of task {self.pid} ({self.comm})"
            self.plan.warnings.append(f"{who}: it signals {goal[0]} {goal[1]}, which is not of the tree: that is not brought back")
            file = replace(file, state={**file.state, "sigio_to": known})
        self.plan.told.extend(sigio.restore(fd, source, file))
        if (reason := sockfilter.cannot(source, file)) is not None:
            self.plan.refusals.append(f"fd {fd} of task {self.pid} ({self.comm}): {file.kind} socket: {reason}; ckpt restore --replace")
        self.plan.told.extend(sockfilter.restore(fd, source, file))


def _rank(file: OpenFile) -> int:
    if file.kind == "epoll":
        return 1
    return 2 if any(lock.startswith("POSIX") for lock in file.state.get("locks", ())) else 0
