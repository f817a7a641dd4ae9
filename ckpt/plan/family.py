"""How a tree of processes is born: who clones whom, who begins a session, who joins which group, who dies, in which order. Pure.

The steps are made by playing them: `at` says where each member stands when the next step runs.

Invariants
 1. A session is inherited, never joined. So a child that is not of its parent's own session is cloned before its parent leaves for
    that; else by a sibling that is in it (CLONE_PARENT), or by a leader for a moment, where the session's own has died.
 2. A group whose leader has died gets a leader for a moment too: it takes the number, the members join, it dies and is collected.
 3. What processes share (memory, descriptors, cwd, handlers) they have by birth: the child is cloned by one that has it.
 4. A controlling terminal is acquired by its session's leader before that has children of the session, and theirs by birth.
 5. Who is dead in the end lives until all others have what they need of it (a group's number); then it dies as it died then.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from ckpt.kinds.base import call
from ckpt.kinds.task.terminal import acquire
from ckpt.model import SIGCHLD, RemoteCall, Snapshot, Task, Zombie
from ckpt.syscalls.names import nr

CLONE_VM, CLONE_FS, CLONE_FILES, CLONE_SIGHAND, CLONE_PARENT = 0x100, 0x200, 0x400, 0x800, 0x8000
_SHARED = {"vm": CLONE_VM, "fs": CLONE_FS, "files": CLONE_FILES, "sighand": CLONE_SIGHAND}
_DUMPED = 0x80
_PR_SET_NAME = 15

Member = Task | Zombie


@dataclass(frozen=True, slots=True)
class Step:
    """In task `pid`: clone `child`, begin a session, join `group`, run `call`, or collect the dead child `reap`; or, with a `status`,
    `pid` itself ends so. Numbers are the generation's."""

    pid: int
    child: int = 0
    flags: int = 0  #: CLONE_*
    exit_signal: int = SIGCHLD
    session: bool = False
    group: int = 0
    call: RemoteCall | None = None
    reap: int = 0
    status: int | None = None


@dataclass(frozen=True, slots=True)
class Place:
    sid: int
    pgid: int


class Family:
    """`kept`: members that are there already and where they stand; None: it is a restore, only the root is there and leads a new
    session. `taken`: numbers that no leader for a moment may have. `outside`: groups of the root's session that others populate.

    `sid`, `pgid`: pid -> the session and the group that the member will have. `passing`: leaders for a moment -> their parents.
    `stuck`: (pid of a parent that is in the way or 0, why): what cannot be had. `warnings`: what is not as it was."""

    def __init__(
        self, wanted: Snapshot, kept: Mapping[int, Place] | None = None, taken: Collection[int] = (), outside: Collection[int] = ()
    ) -> None:
        self.root, self.taken, self.outside = wanted.root.pid, frozenset(taken), frozenset(outside)
        self.restoring = kept is None
        self.members: dict[int, Member] = {one.pid: one for one in everyone(wanted)}
        self.dead = {one.pid: one for one in wanted.zombies}
        self.at = dict(kept) if kept is not None else {self.root: Place(self.root, self.root)}
        self.born = [pid for pid in self.members if pid not in self.at]
        self.shares = {task.pid: _shares(task, wanted) for task in wanted.tasks}
        self.warnings: list[str] = []
        self.stuck: list[tuple[int, str]] = []
        self.passing: dict[int, int] = {}
        self.children: dict[int, list[int]] = {pid: [] for pid in self.members}
        for pid in self.members:
            if pid != self.root:
                self.children[self.parent(pid)].append(pid)
        self.sid = {pid: self._session(one) for pid, one in self.members.items()}
        self.pgid = {pid: self._group(one) for pid, one in self.members.items()}
        self.need = {pid: self._need(pid) for pid in self.members}
        self._steps = tuple(self._play())

    def steps(self) -> tuple[Step, ...]:
        return self._steps

    def parent(self, pid: int) -> int:
        ppid = self.members[pid].ppid
        return ppid if ppid in self.members and ppid not in self.dead else self.root

    # ---- what each is to have ----

    def _session(self, one: Member) -> int:
        outside = self.members[self.root].sid not in self.members
        if not self.restoring or one.sid in self.members or (one.sid != self.members[self.root].sid and one.sid not in self.taken):
            return one.sid
        if one.pid == self.root and outside:
            self.warnings.append(f"{_name(one)}: its session {one.sid} is led by nobody of the tree: it leads a new one")
        return self.root

    def _group(self, one: Member) -> int:
        if not self.restoring or (one.pgid in self.members and self.sid[one.pgid] == self.sid[one.pid]):
            return one.pgid
        mine = self.sid[one.pid]
        root = self.members[self.root]
        if mine == one.pid or one.pgid in (root.pgid, root.sid):
            return mine
        if one.pgid in self.members or one.pgid in self.taken:
            self.warnings.append(f"{_name(one)}: its process group {one.pgid} is led by nobody of the tree: it is of group {mine} now")
            return mine
        return one.pgid

    def _need(self, pid: int) -> int | None:
        """The session that it has to be born in; None: any."""
        if self.sid[pid] != pid:
            return self.sid[pid]
        needs = (self._need(child) for child in self.children[pid] if child not in self.at)
        return next((need for need in needs if need not in (None, pid)), None)

    # ---- the play ----

    def _play(self) -> Iterator[Step]:
        yield from self._make_way()
        yield from self._descend(self.root)
        yield from self._join()
        for leader, parent in self.passing.items():
            yield Step(leader, status=0)
            yield Step(parent, reap=leader)
        yield from self._die()

    def _make_way(self) -> Iterator[Step]:
        """A number is not free while a group has it."""
        for pid, place in list(self.at.items()):
            if place.pgid in self.born and place.pgid != pid and pid not in self.dead:
                yield self._setpgid(pid, pid)

    def _descend(self, pid: int) -> Iterator[Step]:
        born = [child for child in self.children[pid] if child in self.born]
        own = pid in self.born and self.sid[pid] == pid
        early = [child for child in born if own and self.need[child] not in (None, pid)]
        for child in early:
            yield from self._birth(pid, child)
        if own:
            yield self._setsid(pid)
        yield from self._acquire(pid)
        for child in self.children[pid]:
            if child in early or child not in born:
                yield from self._descend(child)
        left = [child for child in born if child not in early]
        while left:  # first those that somebody can make: they may be the makers of others
            child = next((child for child in left if self._maker(pid, child) is not None), left[0])
            left.remove(child)
            yield from self._birth(pid, child)
            yield from self._descend(child)

    def _birth(self, parent: int, child: int) -> Iterator[Step]:
        one = self.members[child]
        maker = self._maker(parent, child)
        if maker is None:
            yield from self._lead_session(parent, child)
            maker = self._maker(parent, child)
        if maker is None:
            self._give_up(parent, child)
            maker = parent
        flags = self._flags(maker, child) | (CLONE_PARENT if maker != parent else 0)
        self.at[child] = self.at[maker]
        yield Step(maker, child=child, flags=flags, exit_signal=one.exit_signal)

    def _maker(self, parent: int, child: int) -> int | None:
        """Who can clone it so that it has its session and shares what it shares."""
        alive = [pid for pid in (*self.children[parent], *self.passing) if pid in self.at and (pid not in self.dead or pid in self.born)]
        for pid in (parent, *alive):
            if pid != parent and not self._sibling_serves(parent, pid, child):
                continue
            if self.need[child] in (None, self.at[pid].sid) and self._fits(pid, child):
                return pid
        return None

    def _sibling_serves(self, parent: int, sibling: int, child: int) -> bool:
        """CLONE_PARENT hands the sibling's own end signal on."""
        if sibling in self.passing:
            return self.passing[sibling] == parent
        return self.members[sibling].exit_signal == self.members[child].exit_signal

    def _fits(self, maker: int, child: int) -> bool:
        mine, theirs = self.shares.get(child, {}), self.shares.get(maker, {})
        return all(first == child or first == theirs.get(what, maker) for what, first in mine.items())

    def _flags(self, maker: int, child: int) -> int:
        mine, theirs = self.shares.get(child, {}), self.shares.get(maker, {})
        return sum(bit for what, bit in _SHARED.items() if mine.get(what, child) == theirs.get(what, maker))

    def _lead_session(self, parent: int, child: int) -> Iterator[Step]:
        session = self.need[child]
        if session is None or not self._free(session):
            return
        self.passing[session] = parent
        self.at[session] = self.at[parent]
        yield Step(parent, child=session, exit_signal=self.members[child].exit_signal)
        yield self._setsid(session)

    def _free(self, number: int) -> bool:
        """Nobody who is there has it as its session or group."""
        used = any(number in (place.sid, place.pgid) for place in self.at.values())
        return number not in self.members and number not in self.taken and number not in self.passing and not used

    def _give_up(self, parent: int, child: int) -> None:
        one = self.members[child]
        if self.need[child] in (None, self.at[parent].sid):
            why = "shares with a task that is not its parent nor its parent's child"
        else:
            why = f"is of session {self.need[child]}, which its parent has left"
        self._lost(parent, f"{_name(one)}: {why}")
        self.sid[child] = child if self.sid[child] == child else self.at[parent].sid
        self.need[child] = None

    def _lost(self, parent: int, text: str) -> None:
        if self.restoring:
            self.warnings.append(f"{text}: not brought back")
        else:
            self.stuck.append((parent, text))

    # ---- groups ----

    def _join(self) -> Iterator[Step]:
        leaders_first = sorted(self.members, key=lambda pid: (self.pgid[pid] != pid, pid))
        for pid in leaders_first:
            place, goal = self.at[pid], self.pgid[pid]
            still = pid in self.dead and pid not in self.born
            if goal == place.pgid or place.sid == pid or still:
                continue
            if goal == pid or self._populated(goal, place.sid):
                yield self._setpgid(pid, goal)
            elif goal in self.at:
                yield from self._lend(pid, goal)
            elif self._free(goal):
                self.passing[goal] = pid
                self.at[goal] = place
                yield Step(pid, child=goal)
                yield self._setpgid(goal, goal)
                yield self._setpgid(pid, goal)
            else:
                self._lost(0, self._led_by_nobody(pid))

    def _lend(self, pid: int, leader: int) -> Iterator[Step]:
        """The member with the group's number has left it: it comes back for as long as `pid` needs to join."""
        back = self.at[leader]
        lent = back.sid == self.at[pid].sid != leader and (leader not in self.dead or leader in self.born)
        others = any(other != leader and place == back for other, place in self.at.items())
        if not (lent and others):
            self._lost(0, self._led_by_nobody(pid))
            return
        yield self._setpgid(leader, leader)
        yield self._setpgid(pid, leader)
        yield self._setpgid(leader, back.pgid)

    def _led_by_nobody(self, pid: int) -> str:
        return f"{_name(self.members[pid])}: its process group {self.pgid[pid]} is led by nobody of the tree"

    def _populated(self, group: int, session: int) -> bool:
        return group in self.outside or any(place.pgid == group and place.sid == session for place in self.at.values())

    def _setpgid(self, pid: int, group: int) -> Step:
        self.at[pid] = Place(self.at[pid].sid, group)
        return Step(pid, group=group)

    def _setsid(self, pid: int) -> Step:
        self.at[pid] = Place(pid, pid)
        return Step(pid, session=True)

    def _acquire(self, pid: int) -> Iterator[Step]:
        """The controlling terminal: before it has children, who have it by birth."""
        one = self.members[pid]
        state = one.attributes.get("terminal", {}) if isinstance(one, Task) else {}
        fresh = pid in self.born or self.restoring
        if fresh and "foreground" in state and self.at[pid].sid == pid:
            yield Step(pid, call=acquire(state))

    # ---- the dead ----

    def _die(self) -> Iterator[Step]:
        born = [one for one in self.dead.values() if one.pid in self.born]
        for parent in dict.fromkeys(self.parent(one.pid) for one in born):
            note = "dead children wait to be collected"  # a parent that ignores SIGCHLD would have none
            yield Step(parent, call=call(nr("rt_sigaction"), SIGCHLD, bytes(32), 0, 8, note=note))
        for one in born:
            if one.status & _DUMPED:
                self.warnings.append(f"{_name(one)}: dead: that it dumped core is not brought back")
            name = os.fsencode(one.comm)[:15].ljust(16, b"\0")
            yield Step(one.pid, call=call(nr("prctl"), _PR_SET_NAME, name, 0, 0, 0, note=f"name {one.comm}"))
            yield Step(one.pid, call=call(nr("setresuid"), one.uid, one.uid, one.uid, note=f"user {one.uid}", expect=None))
            yield Step(one.pid, status=one.status)


def everyone(snapshot: Snapshot) -> list[Member]:
    """Its tasks, and its dead children."""
    found: list[Member] = list(snapshot.tasks)
    return found + list(snapshot.zombies)


def _shares(task: Task, wanted: Snapshot) -> dict[str, int]:
    """What it shares -> the first task that has it; with itself where it is the first."""
    memory = next(other.pid for other in wanted.tasks if other.mm == task.mm)
    return {"vm": memory, **{what: task.shares.get(what, task.pid) for what in ("fs", "files", "sighand")}}


def _name(one: Member) -> str:
    return f"task {one.pid} ({one.comm})"
