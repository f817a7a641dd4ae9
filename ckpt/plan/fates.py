"""What becomes of each wanted open file: one that still is, or one that is made again.

The kernel gives open file descriptions no name that outlives them, so they are recognised: same kind, same device and inode
(sockets, pipes and files each have their own) and access mode; anonymous ones (eventfd, timerfd, epoll...) by the number
that they stand at, since adjusting one makes it equal to the other in all that a program can see.

Invariants
 1. A connection that has moved or gone becomes a dead socket: reading gives the end, writing EPIPE, epoll HUP.
 2. What is made is made by one task, the first that holds it; both ends of a pair, and a whole group, by one.
 3. What cannot be undone is refused by name; nothing of a plan with a refusal runs.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from ckpt.kinds.base import CandidKind, CannotUndo, FdKind, Moved, PairKind, SettledKind, call, is_a, peers, result, same
from ckpt.kinds.fd.epoll import fired
from ckpt.kinds.fd.file import O_ONCE, seek
from ckpt.kinds.fd.readiness import can_be_fed, ready
from ckpt.kinds.groups import GroupKind, groups
from ckpt.model import OpenFile, RemoteCall, Snapshot, Task
from ckpt.plan import batch as b
from ckpt.plan.batch import Batch
from ckpt.plan.grouped import check_name, is_root, may, who_stays
from ckpt.plan.objects import Objects
from ckpt.plan.paths import judge
from ckpt.plan.scratch import in_scratch
from ckpt.plan.sources import World

_SOL_SOCKET, _SO_LINGER, _AF_INET, _SOCK_STREAM, _SHUT_RDWR = 1, 13, 2, 1, 2
_IDENTITY = ("dev", "ino")


@dataclass(slots=True)
class Said:
    """What is told about one process's descriptors."""

    refusals: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Fate:
    """What becomes of one wanted open file: an open file of now, or calls that make it. `dead`: by a dead socket."""

    source: OpenFile | None = None
    make: tuple[RemoteCall, ...] = ()
    result: int = -1  #: index of the call in `make` whose result it is
    mates: tuple[int, ...] = ()  #: others that the same calls make: the other end, or the rest of the group
    maker: int = 0  #: the task that makes it, if it is made
    adjust: tuple[RemoteCall, ...] = ()


class Fates:
    """Decides for every wanted open file. `of`: id -> its fate; `said`: pid -> refusals and warnings."""

    def __init__(
        self,
        now: Snapshot,
        wanted: Snapshot,
        tcp: str,
        world: World,
        kinds: Sequence[FdKind],
        objects: Objects,
        *,
        newborn: bool,
        scratch: bool = False,
    ) -> None:
        self.newborn, self.scratch = newborn, scratch
        self.now, self.wanted, self.tcp, self.world, self.objects = now, wanted, tcp, world, objects
        self.kinds = {kind.name: kind for kind in kinds}
        self.here = {file.id: file for file in now.files}
        self.there = {file.id: file for file in wanted.files}
        self.at_now = holders(now.tasks)
        self.at_wanted = holders(wanted.tasks)
        self.members = frozenset(task.pid for task in wanted.tasks)
        self.said = {task.pid: Said() for task in wanted.tasks}
        self.of: dict[int, Fate] = {}
        self.ended: set[int] = set()  #: wanted open files that come back as dead sockets
        self.reset: set[int] = set()  #: open files of now that end with a reset
        self.groups = groups(wanted.files)

    def decide(self) -> None:
        matched = self._unpaired(self._match())
        for identity in sorted(self.at_wanted, key=lambda item: (self.there[item].kind == "epoll", item)):
            if identity not in self.of:
                self._decide(self.there[identity], matched)

    def _refuse(self, file: OpenFile, reason: object) -> None:
        pid, fd = self.at_wanted[file.id][0]
        self.said[pid].refusals.append(f"fd {fd} of task {pid} ({self.wanted.task(pid).comm}): {reason}{self._way_out(file)}")
        self.of[file.id] = Fate()

    def _way_out(self, file: OpenFile) -> str:
        """What cannot be made in place cannot be made for a new process, but --fd puts something else there."""
        root = next((fd for pid, fd in self.at_wanted[file.id] if pid == self.wanted.root.pid), None)
        pid, fd = self.at_wanted[file.id][0]
        instead = f"--fd {pid}:{fd}=PATH" if root is None else f"--fd {root}=PATH"
        return f"; ckpt restore {instead} opens another file in its place" if self.newborn else f"; ckpt restore --replace {instead}"

    def _warn(self, file: OpenFile, text: str) -> None:
        pid, fd = self.at_wanted[file.id][0]
        self.said[pid].warnings.append(f"fd {fd} of task {pid} ({self.wanted.task(pid).comm}): {text}")

    # ---- which open file of now is which of then ----

    def _match(self) -> dict[int, OpenFile]:
        """wanted id -> open file of now; one to one, those that share most numbers first."""
        if self.newborn:
            return {}  # what it has is ckpt's, though its inode may have the number of one of then
        at = {place: other for other, places in self.at_now.items() for place in places}
        pairs = []
        for identity, places in self.at_wanted.items():
            common = Counter(at[place] for place in places if place in at)
            alike = _likeness(self.there[identity])
            pairs += [(-n, identity, other) for other, n in common.items() if _likeness(self.here[other]) == alike]
        found: dict[int, OpenFile] = {}
        taken: set[int] = set()
        for _, identity, other in sorted(pairs):
            if identity not in found and other not in taken:
                found[identity] = self.here[other]
                taken.add(other)
        # At no common number. A program may have thousands of descriptors of one file: so not each is compared with each.
        left: dict[tuple[object, ...], list[int]] = {}
        for other in sorted(self.at_now, reverse=True):
            if other not in taken and _named(self.here[other]):
                left.setdefault(_likeness(self.here[other]), []).append(other)
        for identity in sorted(self.at_wanted):
            others = left.get(_likeness(self.there[identity])) if identity not in found else None
            if others:
                found[identity] = self.here[others.pop()]
        return found

    def _unpaired(self, matched: dict[int, OpenFile]) -> dict[int, OpenFile]:
        """Ends whose other end is no longer what it was are made again, both."""
        now_peers, wanted_peers = peers(self.now.files), peers(self.wanted.files)
        changed = True
        while changed:
            changed = False
            for identity, others in wanted_peers.items():
                if identity not in matched or not others:
                    continue
                broken = any(other not in matched for other in others) or now_peers.get(matched[identity].id) is None
                if broken:
                    del matched[identity]
                    changed = True
        return matched

    # ---- what becomes of one wanted open file ----

    def _decide(self, file: OpenFile, matched: Mapping[int, OpenFile]) -> None:
        kind = self.kinds.get(file.kind)
        if kind is None:
            return self._refuse(file, f"{file.kind}: not supported")
        source = matched.get(file.id)
        if source is not None and self._kept(kind, file, source):
            return None
        anchor = self.objects.path((file.state["dev"], file.state["ino"]), self._maker(file)) if "ino" in file.state else None
        if anchor is not None:
            calls = _opened_anew(file, anchor) if file.kind != "file" else tuple(kind.recreate(_through(file, anchor)))
            self.of[file.id] = Fate(make=calls, result=len(calls) - 1, maker=self._maker(file), adjust=self._after(kind, file))
            return None
        if is_a(kind, GroupKind):
            members = [self.there[identity] for identity in self.groups[file.id] if identity in self.at_wanted]
            return self._make_group(kind, members, matched)
        if is_a(kind, PairKind):
            return self._make_pair(kind, file)
        try:
            calls = tuple(kind.recreate(file))
            self.of[file.id] = Fate(make=calls, result=len(calls) - 1, maker=self._maker(file), adjust=self._after(kind, file))
            for text in judge(file, self.world, self.members):
                self._warn(file, text)
            self._tell(kind, self._placed(file) if file.kind == "epoll" else file, None)
        except Moved as error:
            self._bury(file, error)
        except CannotUndo as error:
            self._refuse(file, error)
        return None

    def _kept(self, kind: FdKind, file: OpenFile, source: OpenFile) -> bool:
        """True when the open file of now serves (or the fate is settled otherwise); False: make it again."""
        fd = self.at_wanted[file.id][0][1]
        try:
            seen = source
            if file.kind == "epoll":
                survivor = self._epoll_after(source)
                if survivor is None:
                    return False
                seen = survivor
            goal = self._placed(file) if file.kind == "epoll" else file
            self.of[file.id] = Fate(source=source, adjust=tuple(kind.adjust(fd, seen, goal)))
            self._tell(kind, goal, source)
        except Moved as error:
            if self.tcp == "keep":
                self._warn(file, f"{error}: kept as it is")
                self.of[file.id] = Fate(source=source)
            else:
                self.reset.add(source.id)
                if len(self.groups.get(file.id, ())) > 1:
                    return False
                self._bury(file, error)
        except CannotUndo:
            return False
        return True

    def _bury(self, file: OpenFile, error: Moved) -> None:
        if self.tcp == "refuse":
            self._refuse(file, f"{error} (--tcp refuse)")
            return
        self._warn(file, f"{error}: it reads as ended")
        self.ended.add(file.id)
        if error.dead:
            self.of[file.id] = Fate(make=error.dead, result=len(error.dead) - 1, maker=self._maker(file))
            return
        family = int(file.state.get("domain", _AF_INET))
        nonblock = file.flags & b.O_NONBLOCK
        batch = Batch()
        made = batch.add(b.NR_SOCKET, family, _SOCK_STREAM | nonblock, 0, note="a dead socket")
        # ENOTCONN, and yet both directions are shut from then on (net/ipv4/af_inet.c, inet_shutdown: TCP_CLOSE falls through)
        batch.add(b.NR_SHUTDOWN, made, _SHUT_RDWR, note="shut it down", expect=None)
        self.of[file.id] = Fate(make=tuple(batch.calls), result=0, maker=self._maker(file))

    def _make_pair(self, kind: PairKind, file: OpenFile) -> None:
        others = peers(self.wanted.files)[file.id]
        if others == ():
            return self._refuse(file, f"the other end of its {file.kind} is held outside the tree, and it is gone")
        if others and len(others) > 1:
            return self._refuse(file, f"{file.kind} is gone, and its other end was opened more than once: not supported")
        other = self.there[others[0]] if others else None
        try:
            calls = tuple(kind.recreate_pair(file, other))
        except CannotUndo as error:
            return self._refuse(file, error)
        self.of[file.id] = Fate(make=calls, result=0, mates=(other.id,) if other else (), maker=self._maker(file))
        if other:
            self.of[other.id] = Fate(result=1, maker=self._maker(file))
        return None

    def _make_group(self, kind: GroupKind, members: Sequence[OpenFile], matched: Mapping[int, OpenFile]) -> None:
        numbers = {member.id: self.at_wanted[member.id][0][1] for member in members}
        staying = who_stays(self.kinds[members[0].kind], members, matched, self.at_now, numbers)
        gone = [member for member in members if member.id not in staying.kept]
        for identity, kept in staying.kept.items():
            self.of[identity] = Fate(source=kept.now, adjust=staying.adjust[identity])
        if not gone:
            return
        maker = staying.pid or self._maker(gone[0])
        task = next((task for task in self.now.tasks if task.pid == maker), None)
        try:
            made = kind.recreate_group(members, staying.kept, root=self.newborn and is_root(task))
            made = in_scratch(made, gone) if self.scratch else made
            if not may(task, made.capability):
                raise Moved(f"{members[0].kind} socket: task {maker} has not the right to make it again")
            for member in gone:
                check_name(member, self.world, self.now.files)
        except Moved as error:
            for member in gone:
                self._bury(member, error)
            return
        except CannotUndo as error:
            for member in gone:
                self._refuse(member, error)
            return
        self.reset |= self._in_the_way(gone)
        for text in made.warnings:
            self._warn(gone[0], text)
        for member, index in zip(members, made.results, strict=True):
            if member.id not in staying.kept:
                self.of[member.id] = Fate(result=index, maker=maker)
        first, *rest = gone
        self.of[first.id] = replace(self.of[first.id], make=made.calls, mates=tuple(member.id for member in rest))

    def _in_the_way(self, gone: Sequence[OpenFile]) -> set[int]:
        """Living connections between the very addresses of those that are made again. With a farewell they could hold these for long: a
        full window, or a filter on the other end, keeps it from being answered."""
        names = {(member.state["local"], member.state["peer"]) for member in gone if member.state.get("peer") and member.kind == "tcp"}
        return {file.id for file in self.now.files if file.kind == "tcp" and (file.state["local"], file.state["peer"]) in names}

    def _maker(self, file: OpenFile) -> int:
        return self.at_wanted[file.id][0][0]

    def _after(self, kind: FdKind, file: OpenFile) -> tuple[RemoteCall, ...]:
        """What waits until the numbers are right."""
        seen = self._placed(file) if file.kind == "epoll" else file
        return tuple(kind.settle(self.at_wanted[file.id][0][1], seen)) if is_a(kind, SettledKind) else ()

    def _placed(self, file: OpenFile) -> OpenFile:
        """A set whose entries know what stands at their numbers once the table is right, where that is not what they watch; and what
        makes them fire, where they have."""
        pid = self._maker(file)
        table = {item.fd: item for item in self.wanted.task(pid).descriptors}
        entries = []
        for entry in file.state["entries"]:
            places = [fd for holder, fd in self.at_wanted.get(entry["file"], ()) if holder == pid]
            if places and entry["fd"] not in places:
                there = table.get(entry["fd"])
                entry = {**entry, "holder": places[0], "cloexec": there.cloexec if there else None}
            if fired(entry) and entry["file"] in self.there:
                watched = self.there[entry["file"]]
                entry = {**entry, "ready": ready(watched), "fed": not ready(watched) and can_be_fed(watched)}
            entries.append(entry)
        return replace(file, state={**file.state, "entries": entries})

    def _tell(self, kind: FdKind, file: OpenFile, source: OpenFile | None) -> None:
        for text in kind.caveats(source, file) if is_a(kind, CandidKind) else ():
            self._warn(file, text)

    def _epoll_after(self, source: OpenFile) -> OpenFile | None:
        """The set as it is once every table is right; None where an entry's open file lives on at another number."""
        kept = {fate.source.id: identity for identity, fate in self.of.items() if fate.source}
        entries = []
        for entry in source.state["entries"]:
            watched = entry["file"]
            if watched < 0:  # held by nobody of the tree: what it watches stays as it is
                entries.append(entry)
                continue
            if watched not in kept:
                continue
            places = {fd for _, fd in self.at_wanted[kept[watched]]}
            if entry["fd"] not in places:
                return None
            entries.append({**entry, "file": kept[watched]})
        return replace(source, state={**source.state, "entries": entries})


def _opened_anew(file: OpenFile, anchor: str) -> tuple[RemoteCall, ...]:
    """An open file description of its own of an object that is made anew."""
    made = call(b.NR_OPEN, os.fsencode(anchor) + b"\0", file.flags & ~O_ONCE, 0, note=f"open {anchor}")
    if not file.pos or file.flags & b.O_PATH:
        return (made,)
    return made, seek(result(0), file.pos), same(0)


def _through(file: OpenFile, anchor: str) -> OpenFile:
    return replace(file, state={**file.state, "through": anchor})


def holders(tasks: Iterable[Task]) -> dict[int, list[tuple[int, int]]]:
    """OpenFile.id -> [(pid, fd)] in order."""
    found: dict[int, list[tuple[int, int]]] = {}
    for task in tasks:
        for item in task.descriptors:
            found.setdefault(item.file, []).append((task.pid, item.fd))
    return found


def _named(file: OpenFile) -> bool:
    """Its inode is its own: it can be recognised at another number."""
    return "ino" in file.state


def _likeness(file: OpenFile) -> tuple[object, ...]:
    """Equal for open files that may be one."""
    return file.kind, file.flags & (b.O_ACCMODE | b.O_PATH), *(file.state.get(key) for key in _IDENTITY)
