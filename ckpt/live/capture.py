"""One capture: the options that C is given before the freeze, and the parse of what it brought back after the thaw.

Between freeze and thaw nothing of Python runs. A resource that appeared after the pre-flight is found by the parse:
RefusedError names it, and the caller commits nothing.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping as MappingABC
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from stat import S_IMODE, S_ISSOCK
from types import MappingProxyType

from ckpt.errors import CkptError, RefusedError
from ckpt.kinds.base import Answer, RawTask, Unsupported, with_outside
from ckpt.kinds.fd.locks import with_locks_of
from ckpt.kinds.fd.sigio import with_owner
from ckpt.kinds.fd.sockfilter import with_filter
from ckpt.kinds.groups import with_others
from ckpt.kinds.table import table
from ckpt.kinds.task.terminal import own_terminals
from ckpt.live import clock, core, records
from ckpt.live.advice import Adviser, described
from ckpt.live.doctor import machine
from ckpt.live.fingerprint import Fingerprint, fingerprint
from ckpt.live.known import Known
from ckpt.live.preflight import is_tracker, raw_descriptor, recognise, refusal
from ckpt.live.records import RawCapture, RawFd, RawProcess, RawThread
from ckpt.live.runtime import TrackerSeat
from ckpt.live.spaces import Spaces
from ckpt.model import (
    Action,
    Descriptor,
    Mapping,
    OpenFile,
    PidRef,
    RetvalDecision,
    SharedObject,
    Snapshot,
    State,
    SyscallState,
    Task,
    Thread,
    Zombie,
)
from ckpt.procfs import parse_fdinfo, parse_maps, parse_stat, parse_status
from ckpt.syscalls.decide import Waited, arguments, decide, unpack
from ckpt.syscalls.int80 import as_syscall, is_int80

O_CLOEXEC = 0o2000000
SHARED = ("files", "fs", "sighand")  #: in the order of the record
ACTIONS = (Action.KEEP, Action.RESTART, Action.REBUILD, Action.LINGER, Action.GO_ON)


class Capture:
    """Built before the freeze, run once, parsed after the thaw."""

    def __init__(
        self,
        tree: core.Tree,
        tracks: Sequence[core.Track],
        *,
        paranoid: bool = False,
        no_inject: bool = False,
        scan_threads: int = 2,
        last_round: bool = False,
        adviser: Adviser | None = None,
    ) -> None:
        self.tree, self.table = tree, table()
        self.adviser = adviser or Adviser()
        self.options = core.CaptureOptions(
            proc_files=self.table.process_files,
            thread_files=self.table.thread_files,
            wants=[
                core.WantRow(row.format, row.prefix, int(row.work), [(o.level, o.name, o.size, o.domain, o.type) for o in row.options])
                for row in self.table.wants
            ],
            questions=[
                core.QuestionRow(q.question.nr, q.question.args, q.question.answer_arg, q.question.answer_size, q.kind.per_thread)
                for q in self.table.questions
            ],
            tracks=tracks,
            paranoid=paranoid,
            no_inject=no_inject,
            scan_threads=scan_threads,
            last_round=last_round,
        )
        self.taken_at = self.frozen_at = 0

    def run(self, sink: core.Sink) -> dict[str, int]:
        """Freeze to thaw. Nanoseconds by phase."""
        self.taken_at = time.time_ns()
        timing = self.tree.capture(self.options, sink)
        self.frozen_at = timing["at"]
        return timing

    def parse(self, sink: core.Sink, spaces: Spaces) -> Snapshot:
        raw = records.decode(sink.records(), self.table.process_files, self.table.thread_files)
        spaces.learn([core.ThreadId(t.pid, t.tid, t.start_ticks, t.mm) for t in raw.threads.values()])
        spaces.learn_objects(raw.objects)
        waits = self.tree.waits
        return Parser(raw, spaces, self.adviser, waits.last, waits.no_ebpf).snapshot(self.tree.pid, self.taken_at, self.frozen_at)


class Layout:
    """The tree without its pages: inside the caller's freeze, or in a short one of its own (some 200 us). Prepared once,
    taken as often as wanted; the sink is the caller's.

    `parent`: the generation whose numbers of spaces are to be kept. `seats`: the tracker's descriptors, which are left out.
    `newborn`: nobody asks what its mappings are, for all of them go.
    """

    def __init__(
        self, tree: core.Tree, parent: Snapshot | None, seats: Sequence[TrackerSeat], sink: core.Sink, *, newborn: bool = False
    ) -> None:
        self.tree, self.parent, self.seats, self.sink, self.newborn = tree, parent, seats, sink, newborn
        at = {seat.pid: seat for seat in seats}
        owners = {thread.mm: thread.pid for thread in reversed(tree.threads())}
        tracks = [
            core.Track(pid, core.NONE, at[pid].fd if pid in at else -1, at[pid].ino if pid in at else 0, fresh=False)
            for _mm, pid in sorted(owners.items())
        ]
        self.adviser = Adviser(silent=newborn)
        self.capture = Capture(tree, tracks, adviser=self.adviser)
        self.seen: Fingerprint = {}

    def take(self) -> Snapshot:
        self._run()
        if not self.newborn:  # nobody looks again
            self.seen = self._fingerprint()
        return self.capture.parse(self.sink, Spaces(self.tree.threads(), self.parent))

    def again(self, known: Snapshot) -> Snapshot:
        """`known`, which take() gave, if nothing has changed since that a plan depends on; else the tree parsed anew. For use
        inside a freeze: what take() learned of mappings stands, for asking again takes time."""
        self.adviser.frozen = True
        self._run()
        before, self.seen = self.seen, self._fingerprint()
        return known if self.seen == before else self.capture.parse(self.sink, Spaces(self.tree.threads(), self.parent))

    def _run(self) -> None:
        self.sink.reset()
        self.capture.run(self.sink)

    def _fingerprint(self) -> Fingerprint:
        return fingerprint(self.sink.records(), self.capture.table.process_files, self.capture.table.thread_files)


class Parser:
    def __init__(
        self, raw: RawCapture, spaces: Spaces, adviser: Adviser, waits: MappingABC[int, Known] = MappingProxyType({}), no_ebpf: str = ""
    ) -> None:
        """`no_ebpf`: why the kernel was not asked when the waits end."""
        self.raw, self.spaces, self.table, self.adviser, self.waits, self.no_ebpf = raw, spaces, table(), adviser, waits, no_ebpf
        self.files: dict[int, OpenFile] = {}

    def snapshot(self, root: int, taken_at: int, frozen_at: int) -> Snapshot:
        """`taken_at`: CLOCK_REALTIME; `frozen_at`: the machine's CLOCK_MONOTONIC."""
        tasks = tuple(self._task(process) for process in self.raw.processes.values())
        objects = described([SharedObject(self.spaces.store(o.space), o.dev, o.ino, o.size) for o in self.raw.objects], tasks)
        start = self.raw.threads[root].start_ticks
        files = with_others(with_outside(sorted(self.files.values(), key=lambda file: file.id)))
        zombies = tuple(_zombie(texts) for texts in self.raw.zombies.values())
        tasks = own_terminals(tasks, zombies, files)
        features = {**machine(), "clocks": clock.at(frozen_at, self._clocks(root))}
        return Snapshot(PidRef(root, start), tasks, files, objects, features, taken_at, zombies)

    def _clocks(self, root: int) -> clock.Clocks:
        """What is added to the machine's for the whole tree. By what links told, which are read when tasks are parsed."""
        first = self.raw.processes[root].files
        for process in self.raw.processes.values():
            if reason := clock.strange(process.files, first, root):
                raise RefusedError(f"task {process.pid} ({parse_stat(process.files['stat']).comm}): {reason}")
        return clock.offsets(first)

    def _task(self, process: RawProcess) -> Task:
        stat = parse_stat(process.files["stat"])
        threads = sorted((t for t in self.raw.threads.values() if t.pid == process.pid), key=lambda t: (t.tid != t.pid, t.tid))
        return Task(
            pid=process.pid,
            start_ticks=clock.ticks(stat.start_ticks),
            ppid=stat.ppid,
            pgid=stat.pgid,
            sid=stat.sid,
            comm=stat.comm,
            mm=self.spaces.store(threads[0].mm),
            threads=tuple(self._thread(thread) for thread in threads),
            mappings=self._mappings(process, clock.ticks(stat.start_ticks)),
            descriptors=self._descriptors(process, stat.comm),
            pending=tuple(process.pending),
            attributes=self._attributes(process),
            exit_signal=stat.exit_signal,
            stopped=threads[0].stopped,
            shares={name: first for name, first in zip(SHARED, process.shares, strict=True) if first not in (0, process.pid)},
        )

    def _mappings(self, process: RawProcess, start_ticks: int) -> tuple[Mapping, ...]:
        found = list(parse_maps(process.files["maps"]))
        if not self.adviser.silent:
            found = [_with_identity(process.pid, mapping) for mapping in found]
        return self.adviser.advised(PidRef(process.pid, start_ticks), found, parse_status(process.files["status"]))

    def _attributes(self, process: RawProcess) -> dict[str, State]:
        extra: dict[str, bytes] = {}
        process.files.update(_links(process) or self._links_of_kin(process))
        raw = (process.pid, process.pid, process.files, process.answers, process.limits, extra)
        return {kind.name: kind.parse(self._raw_task(kind, *raw)) for kind in self.table.task_kinds if not kind.per_thread}

    def _links_of_kin(self, process: RawProcess) -> dict[str, bytes]:
        """A fork that has ended since it was thawed has what its kin have: who shares its auxiliary vector runs the same image."""
        kin = (one for one in self.raw.processes.values() if one is not process and one.files["auxv"] == process.files["auxv"])
        return next((found for one in kin if (found := _links(one))), {})

    def _raw_task(
        self,
        kind: object,
        pid: int,
        tid: int,
        files: dict[str, bytes],
        answers: dict[int, Answer],
        limits: tuple[tuple[int, int], ...],
        extra: dict[str, bytes],
    ) -> RawTask:
        return RawTask(pid, tid, files, self.table.answers(kind, answers), limits, extra)  # type: ignore[arg-type]

    def _thread(self, thread: RawThread) -> Thread:
        words: Sequence[int] = unpack(thread.regs)
        nr, shown, value, action, disturbed = thread.decision
        known = self.waits.get(thread.tid)
        if is_int80(nr):
            words, known = as_syscall(words, nr), None  # what /proc shows of it looks like another call
        waited = Waited(known.remaining, known.source, known.nr, known.fresh, known.kept, known.told_remaining) if known else None
        state = SyscallState(
            phase="user" if nr < 0 else "call",
            nr=nr,
            args=arguments(words),
            raw_retval=shown,
            remaining_ns=waited.left_ns if waited else None,
            evidence=self._evidence(waited) if waited else {},
        )
        limits: tuple[tuple[int, int], ...] = ()  # of the process, not of a thread
        raw = (thread.pid, thread.tid, thread.files, thread.answers, limits, thread.extra)
        attributes = {kind.name: kind.parse(self._raw_task(kind, *raw)) for kind in self.table.task_kinds if kind.per_thread}
        deliverable = bool(parse_status(thread.files["status"]).deliverable)
        goes_on = ACTIONS[action] is Action.GO_ON
        told = decide(words, deliverable, waited, whole=shown > 0 and not disturbed and not goes_on, goes_on=goes_on)
        kept = told.action is Action.LINGER and ACTIONS[action] is Action.RESTART
        decision = RetvalDecision(Action.LINGER if kept else ACTIONS[action], value, told.reason, bool(disturbed) and told.disturbed)
        return Thread(
            thread.tid, thread.start_ticks, thread.regs, thread.xstate, thread.sigmask, tuple(thread.pending), state, decision, attributes
        )

    def _evidence(self, waited: Waited) -> State:
        found = {"deadline": waited.words, "call": waited.nr, "fresh": waited.fresh}
        if waited.told is not None:
            return {**found, "ebpf": dict(waited.told.raw)}
        return {**found, "no_ebpf": self.no_ebpf} if self.no_ebpf else found

    def _descriptors(self, process: RawProcess, comm: str) -> tuple[Descriptor, ...]:
        found = []
        table_size = parse_status(process.files["status"]).fd_size
        for fd, raw in sorted(process.fds.items()):
            if is_tracker(raw_descriptor(raw), table_size):
                continue  # left by another way of tracking, inherited by a fork, or by a ckpt that died: not the program's
            if not raw.fdinfo:
                raise records.missing(f"fd {fd} of task {process.pid} ({comm})", f"fdinfo/{fd}")
            cloexec = bool(parse_fdinfo(raw.fdinfo).flags & O_CLOEXEC)
            found.append(Descriptor(fd, cloexec, self._open_file(raw, comm)))
        return tuple(found)

    def _open_file(self, fd: RawFd, comm: str) -> int:
        raw = raw_descriptor(fd)
        identity = raw.file
        if identity in self.files:
            self.files[identity] = with_locks_of(self.files[identity], raw)
            return identity
        kind = recognise(raw)
        try:
            if kind is None:
                raise Unsupported(f"{fd.link}: not supported")
            self.files[identity] = with_filter(with_owner(_with_name(fd.pid, fd.fd, kind.parse(raw)), raw), raw)
        except Unsupported as reason:
            raise RefusedError(refusal(fd.fd, fd.pid, comm, str(reason))) from None
        return identity


def _text(path: str) -> bytes:
    """Empty where the kernel has no such file."""
    try:
        return Path(path).read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        if Path(path).parent.exists():
            return b""
        raise


def _zombie(files: dict[str, bytes]) -> Zombie:
    stat = parse_stat(files["stat"])
    return Zombie(
        pid=stat.pid,
        start_ticks=clock.ticks(stat.start_ticks),
        ppid=stat.ppid,
        pgid=stat.pgid,
        sid=stat.sid,
        comm=stat.comm,
        status=stat.exit_code,
        exit_signal=stat.exit_signal,
        uid=parse_status(files["status"]).uid.real,
    )


def _links(process: RawProcess) -> dict[str, bytes]:
    """What only links tell, and what belongs to the machine more than to the program: read after the thaw. None of a process that has
    ended since."""
    here = f"/proc/{process.pid}"
    try:
        links = {name: os.fsencode(os.readlink(f"{here}/{name}")) for name in ("exe", "root")}
        links |= clock.look(process.pid)
        links |= {name: text for name in ("cgroup", "autogroup") if (text := _text(f"{here}/{name}"))}
        same = Path(here, "auxv").read_bytes() == process.files["auxv"]
    except (FileNotFoundError, ProcessLookupError):
        return {}
    if not same:
        raise CkptError(f"task {process.pid}: has executed another program just now: nothing was kept; try again")
    return links


def _with_identity(pid: int, mapping: Mapping) -> Mapping:
    """A file mapping learns size and time of its file, so that a later rollback can tell that the file has changed."""
    backing = mapping.backing
    if backing.kind != "file" or backing.deleted:
        return mapping
    size, mtime = _file_identity(f"/proc/{pid}/root{backing.path}", backing.ino)
    if size < 0:  # it may have ended since; the inode tells whether ours is the same file
        size, mtime = _file_identity(backing.path, backing.ino)
    return replace(mapping, backing=replace(backing, size=size, mtime_ns=mtime)) if size >= 0 else mapping


def _with_name(pid: int, fd: int, file: OpenFile) -> OpenFile:
    """A socket that is bound to a name learns permissions and owner of the file there, which bind makes anew."""
    if file.kind == "mqueue":
        return _with_queue_owner(pid, fd, file)
    name = file.state.get("name", "")
    if not name.startswith("/"):
        return file
    try:
        found = os.lstat(f"/proc/{pid}/root{name}")
    except OSError:
        return file
    if not S_ISSOCK(found.st_mode) or found.st_ino & 0xFFFF_FFFF != file.state["name_ino"]:
        return file
    return replace(file, state={**file.state, "mode": S_IMODE(found.st_mode), "owner": [found.st_uid, found.st_gid]})


def _with_queue_owner(pid: int, fd: int, file: OpenFile) -> OpenFile:
    try:
        found = os.stat(f"/proc/{pid}/fd/{fd}")
    except OSError:
        return file
    return replace(file, state={**file.state, "owner": [found.st_uid, found.st_gid]}) if found.st_ino == file.state["ino"] else file


def _file_identity(path: str, ino: int) -> tuple[int, int]:
    try:
        stat = os.stat(path)
    except OSError:
        return -1, 0
    return (stat.st_size, stat.st_mtime_ns) if stat.st_ino == ino else (-1, 0)
