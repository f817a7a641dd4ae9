"""The descriptor tables: which numbers are closed, kept, moved, made again, so that `now` becomes `wanted`.

The kernel gives open file descriptions no name that outlives them, so they are recognised: same kind, same device and inode
(sockets, pipes and files each have their own) and access mode; anonymous ones (eventfd, timerfd, epoll...) by the number
that they stand at, since adjusting one makes it equal to the other in all that a program can see.

Invariants
 1. Sharing is kept explicit: one wanted open file is made or moved once and dup'ed to all its numbers.
 2. Whatever is made or moved is first lifted above both tables, so that no number is overwritten that is still needed.
 3. Positions, counters and contents are brought back once every number is right; epoll sets last of all, for they
    name numbers. An entry whose open file was closed is gone from the set by itself.
 4. A connection that has moved or gone becomes a dead socket: reading gives the end, writing EPIPE, epoll HUP.
 5. What cannot be undone is refused by name; nothing of a plan with a refusal runs.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from ckpt.kinds.base import CannotUndo, FdKind, Moved, PairKind, fd_kinds, peers, result, value
from ckpt.model import Descriptor, OpenFile, RemoteArg, RemoteCall, Snapshot, Task
from ckpt.plan import batch as b
from ckpt.plan.batch import Batch
from ckpt.plan.mappings import World

_SOL_SOCKET, _SO_LINGER, _AF_INET, _SOCK_STREAM, _SHUT_RDWR = 1, 13, 2, 1, 2
_IDENTITY = ("dev", "ino")


@dataclass(slots=True)
class TablePlan:
    """One process's table."""

    batch: Batch = field(default_factory=Batch)
    refusals: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Fate:
    """What becomes of one wanted open file: an open file of now, or calls that make it. `dead`: by a dead socket."""

    source: OpenFile | None = None
    make: tuple[RemoteCall, ...] = ()
    result: int = -1  #: index of the call in `make` whose result it is
    pair: int | None = None  #: the other end, made by the same calls
    adjust: tuple[RemoteCall, ...] = ()


def plan_tables(
    now: Snapshot, wanted: Snapshot, tcp: str, reserved: Mapping[int, int], world: World, kinds: Sequence[FdKind] | None = None
) -> dict[int, TablePlan]:
    """pid -> its table's plan. `tcp`: reset | keep | refuse, for connections that have moved since. `reserved`: pid -> the
    number of the tracker's own descriptor, which neither snapshot shows. `world`: what stands under `opened_paths(wanted)`."""
    return _Tables(now, wanted, tcp, reserved, world, kinds if kinds is not None else fd_kinds()).plan()


class _Tables:
    def __init__(
        self, now: Snapshot, wanted: Snapshot, tcp: str, reserved: Mapping[int, int], world: World, kinds: Sequence[FdKind]
    ) -> None:
        self.now, self.wanted, self.tcp, self.reserved, self.world = now, wanted, tcp, reserved, world
        self.kinds = {kind.name: kind for kind in kinds}
        self.here = {file.id: file for file in now.files}
        self.there = {file.id: file for file in wanted.files}
        self.at_now = _holders(now.tasks)
        self.at_wanted = _holders(wanted.tasks)
        self.plans = {task.pid: TablePlan() for task in wanted.tasks}
        self.fates: dict[int, _Fate] = {}
        self.reset: set[int] = set()  #: open files of now that end with a reset

    # ---- the whole ----

    def plan(self) -> dict[int, TablePlan]:
        matched = self._unpaired(self._match())
        for identity in sorted(self.at_wanted, key=lambda item: (self.there[item].kind == "epoll", item)):
            if identity not in self.fates:
                self._decide(self.there[identity], matched)
        if not any(plan.refusals for plan in self.plans.values()):
            for task in self.wanted.tasks:
                self._table(self.now.task(task.pid), task)
        return self.plans

    def _refuse(self, file: OpenFile, reason: object) -> None:
        pid, fd = self.at_wanted[file.id][0]
        self.plans[pid].refusals.append(f"fd {fd} of task {pid} ({self.wanted.task(pid).comm}): {reason}; ckpt restore --replace")
        self.fates[file.id] = _Fate()

    def _warn(self, file: OpenFile, text: str) -> None:
        pid, fd = self.at_wanted[file.id][0]
        self.plans[pid].warnings.append(f"fd {fd} of task {pid} ({self.wanted.task(pid).comm}): {text}")

    # ---- which open file of now is which of then ----

    def _match(self) -> dict[int, OpenFile]:
        """wanted id -> open file of now; one to one, those that share most numbers first."""
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
        if len({pid for pid, _ in self.at_wanted[file.id]}) > 1:
            return self._refuse(file, f"{file.kind} shared by several tasks is gone: not supported")
        if isinstance(kind, PairKind):
            return self._make_pair(kind, file)
        try:
            calls = tuple(kind.recreate(file))
            self.fates[file.id] = _Fate(make=calls, result=len(calls) - 1, adjust=self._after(kind, file))
            self._check_path(file)
        except Moved as error:
            self._bury(file, error)
        except CannotUndo as error:
            self._refuse(file, error)
        return None

    def _check_path(self, file: OpenFile) -> None:
        """Opening its path must give that very file."""
        path = file.state.get("path")
        if not isinstance(path, str) or not _named(file):
            return
        there = self.world.get(path)
        if there is None:
            raise CannotUndo(f"{path} is gone")
        if (there.dev, there.ino) != (file.state["dev"], file.state["ino"]):
            raise CannotUndo(f"{path} is another file by now")
        if file.kind == "file" and there.size < file.pos:
            raise CannotUndo(f"{path} has become shorter than the position {file.pos} in it")

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
            self.fates[file.id] = _Fate(source=source, adjust=tuple(kind.adjust(fd, seen, file)))
        except Moved as error:
            if self.tcp == "keep":
                self._warn(file, f"{error}: kept as it is")
                self.fates[file.id] = _Fate(source=source)
            else:
                self.reset.add(source.id)
                self._bury(file, error)
        except CannotUndo:
            return False
        return True

    def _bury(self, file: OpenFile, error: Moved) -> None:
        if self.tcp == "refuse":
            self._refuse(file, f"{error} (--tcp refuse)")
            return
        self._warn(file, f"{error}: it reads as ended")
        family = int(file.state.get("domain", _AF_INET))
        nonblock = file.flags & b.O_NONBLOCK
        batch = Batch()
        made = batch.add(b.NR_SOCKET, family, _SOCK_STREAM | nonblock, 0, note="a dead socket")
        # ENOTCONN, and yet both directions are shut from then on (net/ipv4/af_inet.c, inet_shutdown: TCP_CLOSE falls through)
        batch.add(b.NR_SHUTDOWN, made, _SHUT_RDWR, note="shut it down", expect=None)
        self.fates[file.id] = _Fate(make=tuple(batch.calls), result=0)

    def _make_pair(self, kind: PairKind, file: OpenFile) -> None:
        others = peers(self.wanted.files)[file.id]
        if others == () or (others and len(others) > 1):
            return self._refuse(file, f"{file.kind} is gone, its other end is held outside the tree or was opened more than once")
        other = self.there[others[0]] if others else None
        if other and {pid for pid, _ in self.at_wanted[other.id]} != {pid for pid, _ in self.at_wanted[file.id]}:
            return self._refuse(file, f"{file.kind} between several tasks is gone: not supported")
        try:
            calls = tuple(kind.recreate_pair(file, other))
        except CannotUndo as error:
            return self._refuse(file, error)
        self.fates[file.id] = _Fate(make=calls, result=0, pair=other.id if other else None)
        if other:
            self.fates[other.id] = _Fate(result=1)
        return None

    def _after(self, kind: FdKind, file: OpenFile) -> tuple[RemoteCall, ...]:
        """An epoll made anew gets its set once the numbers are right."""
        if file.kind != "epoll":
            return ()
        blank = replace(file, state={**file.state, "entries": []})
        return tuple(kind.adjust(self.at_wanted[file.id][0][1], blank, file))

    def _epoll_after(self, source: OpenFile) -> OpenFile | None:
        """The set as it is once every table is right; None where an entry's open file lives on at another number."""
        kept = {fate.source.id: identity for identity, fate in self.fates.items() if fate.source}
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

    # ---- one table ----

    def _table(self, now: Task, wanted: Task) -> None:
        batch = self.plans[wanted.pid].batch
        here = {item.fd: item for item in now.descriptors}
        there = {item.fd: item for item in wanted.descriptors}
        seat = self.reserved.get(wanted.pid, -1)
        above = max((*here, *there, seat), default=0) + 1
        stays = {fd for fd, item in there.items() if fd in here and self._source(item.file) == here[fd].file}
        lifted = self._lift(batch, wanted, stays, here, above)
        if isinstance(lifted, str):
            self.plans[wanted.pid].refusals.append(lifted)
            return
        if seat in there:
            batch.add(b.NR_FCNTL, seat, b.F_DUPFD_CLOEXEC, above, note="move the tracker's descriptor away", expect=above)
        self._close(batch, here, there, stays)
        for fd, item in sorted(there.items()):
            if fd not in stays:
                batch.add(b.NR_DUP3, lifted[item.file], fd, b.O_CLOEXEC if item.cloexec else 0, note=f"fd {fd}", expect=fd)
            elif here[fd].cloexec != item.cloexec:
                batch.add(b.NR_FCNTL, fd, b.F_SETFD, int(item.cloexec), note=f"fd {fd} close-on-exec {item.cloexec}")
        for arg in lifted.values():
            batch.add(b.NR_CLOSE, arg, note="close the lifted number")
        self._adjust(batch, wanted)

    def _source(self, identity: int) -> int | None:
        source = self.fates[identity].source
        return source.id if source else None

    def _lift(self, batch: Batch, wanted: Task, stays: set[int], here: Mapping[int, Descriptor], above: int) -> dict[int, RemoteArg] | str:
        """Makes or finds every open file that some number still lacks, and dups it above both tables."""
        lifted: dict[int, RemoteArg] = {}
        needed = dict.fromkeys(item.file for item in wanted.descriptors if item.fd not in stays)
        for identity in needed:
            fate = self.fates[identity]
            if identity in lifted or (fate.source is None and not fate.make):
                continue  # the second end of a pair: made with the first
            ends = [(identity, fate.result)]
            if fate.source is not None:
                held = [fd for pid, fd in self.at_now[fate.source.id] if pid == wanted.pid]
                if not held:
                    fd = min(item.fd for item in wanted.descriptors if item.file == identity)
                    who = f"fd {fd} of task {wanted.pid} ({wanted.comm})"
                    return f"{who}: only another task still holds it: not supported; ckpt restore --replace"
                found = [value(held[0])]
            else:
                base = len(batch.calls)
                batch.extend(fate.make)
                if fate.pair is not None:
                    ends.append((fate.pair, self.fates[fate.pair].result))
                found = [result(base + index) for _, index in ends]
            for (end, _), source in zip(ends, found, strict=True):
                kind = self.there[end].kind
                lifted[end] = batch.add(b.NR_FCNTL, source, b.F_DUPFD_CLOEXEC, above, note=f"lift the {kind}", expect=above)
                if fate.source is None:
                    batch.add(b.NR_CLOSE, source, note="close the low number")
        return lifted

    def _close(self, batch: Batch, here: Mapping[int, Descriptor], there: Mapping[int, Descriptor], stays: set[int]) -> None:
        for fd, item in sorted(here.items()):
            if fd in stays:
                continue
            if item.file in self.reset:
                linger = struct.pack("<ii", 1, 0)
                batch.add(b.NR_SETSOCKOPT, fd, _SOL_SOCKET, _SO_LINGER, linger, 8, note=f"fd {fd}: end it with a reset", expect=None)
            batch.add(b.NR_CLOSE, fd, note=f"close fd {fd}")

    def _adjust(self, batch: Batch, wanted: Task) -> None:
        """Each open file once, in the first task that has it; epoll sets last."""
        mine = dict.fromkeys(item.file for item in wanted.descriptors if self.at_wanted[item.file][0][0] == wanted.pid)
        for identity in sorted(mine, key=lambda item: (self.there[item].kind == "epoll", item)):
            batch.extend(self.fates[identity].adjust)


def opened_paths(wanted: Snapshot) -> set[str]:
    """Paths that may have to be opened again."""
    return {str(file.state["path"]) for file in wanted.files if "path" in file.state and _named(file)}


def _holders(tasks: Iterable[Task]) -> dict[int, list[tuple[int, int]]]:
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
