"""The record stream of a capture (struct ckpt_record) -> raw bytes by process, thread and descriptor. No meaning yet."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from ckpt.errors import CkptError
from ckpt.kinds.base import Answer

PROC_FILE, THREAD_FILE, REGS, XSTATE, SIGMASK, PENDING_SHARED, PENDING_THREAD, RSEQ, ROBUST = range(1, 10)
DECISION, ANSWER, FD, FDINFO, FD_WORK, FD_OPTION, LIMITS, THREADS, OBJECT = range(10, 19)
ZOMBIE, SHARES = 24, 25
ZOMBIE_FILES = ("stat", "status")

HEADER = struct.Struct("<IiiiiI")
THREAD_ID = struct.Struct("<iiQii")
FD_HEAD = struct.Struct("<QQQQQIiiI")
OBJECT_HEAD = struct.Struct("<QQQ")
DECISION_BODY = struct.Struct("<qqqII")
SIGINFO = 128


def missing(resource: str, name: str) -> CkptError:
    return CkptError(f"{resource}: /proc showed no {name} while it was stopped: nothing was kept; try again")


class Texts(dict[str, bytes]):
    """Files of /proc by name. The core leaves out what cannot be read; whoever needs one of those hears which."""

    def __init__(self, resource: str) -> None:
        super().__init__()
        self.resource = resource

    def __missing__(self, name: str) -> bytes:
        raise missing(self.resource, name)


@dataclass(slots=True)
class RawThread:
    pid: int
    tid: int
    start_ticks: int
    mm: int
    files: Texts
    regs: bytes = b""
    xstate: bytes = b""
    sigmask: int = 0
    pending: list[bytes] = field(default_factory=list)
    extra: dict[str, bytes] = field(default_factory=dict)  #: "rseq", "robust"
    decision: tuple[int, int, int, int, int] = (-1, 0, 0, 0, 0)  #: nr, shown, value, action, disturbed
    stopped: int = 0  #: the signal by which somebody else has stopped it
    answers: dict[int, Answer] = field(default_factory=dict)


@dataclass(slots=True)
class RawFd:
    pid: int
    fd: int
    head: tuple[int, ...]  #: dev, ino, rdev, size, nlink, mode, file, duplicate, pad
    link: str
    fdinfo: str = ""
    work: dict[int, bytes] = field(default_factory=dict)
    options: dict[int, bytes] = field(default_factory=dict)


@dataclass(slots=True)
class RawProcess:
    pid: int
    files: Texts
    pending: list[bytes] = field(default_factory=list)
    limits: tuple[tuple[int, int], ...] = ()
    answers: dict[int, Answer] = field(default_factory=dict)
    fds: dict[int, RawFd] = field(default_factory=dict)
    shares: tuple[int, int, int] = (0, 0, 0)  #: first process with the same table; cwd and root; handlers. 0 = not asked


@dataclass(slots=True)
class RawObject:
    space: int
    dev: int
    ino: int
    size: int


@dataclass(slots=True)
class RawCapture:
    processes: dict[int, RawProcess] = field(default_factory=dict)
    threads: dict[int, RawThread] = field(default_factory=dict)  #: by tid, in the order of the core
    objects: list[RawObject] = field(default_factory=list)
    zombies: dict[int, dict[str, bytes]] = field(default_factory=dict)  #: pid -> texts of /proc, by ZOMBIE_FILES


def _stream(view: memoryview) -> Iterator[tuple[int, int, int, int, int, bytes]]:
    offset = 0
    while offset < len(view):
        kind, pid, tid, fd, index, size = HEADER.unpack_from(view, offset)
        start = offset + HEADER.size
        yield kind, pid, tid, fd, index, bytes(view[start : start + size])
        offset = (start + size + 7) & ~7


def _pieces(data: bytes, size: int) -> list[bytes]:
    return [data[start : start + size] for start in range(0, len(data), size)]


def decode(view: memoryview, proc_files: Sequence[str], thread_files: Sequence[str]) -> RawCapture:
    """Bytes are copied: the result outlives the sink. Descriptors stand under the process that the core names."""
    raw = RawCapture()
    pairs = list(_stream(view))
    for kind, _pid, _tid, _fd, _index, data in pairs:
        if kind == THREADS:
            for pid, tid, start, mm, stopped in THREAD_ID.iter_unpack(data):
                raw.threads[tid] = RawThread(pid, tid, start, mm, Texts(f"thread {tid} of task {pid}"), stopped=stopped)
                raw.processes.setdefault(pid, RawProcess(pid, Texts(f"task {pid}")))
    for kind, pid, tid, fd, index, data in pairs:
        if kind == THREADS:
            continue
        if kind == OBJECT:
            raw.objects.append(RawObject(index, *OBJECT_HEAD.unpack_from(data)))
        elif kind in (FD, FDINFO, FD_WORK, FD_OPTION):
            _descriptor(raw.processes.setdefault(pid, RawProcess(pid, Texts(f"task {pid}"))), kind, fd, index, data)
        elif kind == ZOMBIE:
            raw.zombies.setdefault(pid, {})[ZOMBIE_FILES[index]] = data
        elif kind == ANSWER:
            answer = Answer(struct.unpack_from("<q", data)[0], data[8:])
            (raw.threads[tid].answers if tid else raw.processes[pid].answers)[index] = answer
        elif tid and kind not in (PROC_FILE, PENDING_SHARED, LIMITS):
            _thread(raw.threads[tid], kind, index, data, thread_files)
        else:
            _process(raw.processes[pid], kind, index, data, proc_files)
    return raw


def _process(process: RawProcess, kind: int, index: int, data: bytes, proc_files: Sequence[str]) -> None:
    if kind == PROC_FILE:
        process.files[proc_files[index]] = data
    elif kind == PENDING_SHARED:
        process.pending = _pieces(data, SIGINFO)
    elif kind == SHARES:
        process.shares = struct.unpack("<iii", data)
    elif kind == LIMITS:
        process.limits = tuple(struct.iter_unpack("<QQ", data))


def _thread(thread: RawThread, kind: int, index: int, data: bytes, thread_files: Sequence[str]) -> None:
    match kind:
        case 2:  # THREAD_FILE
            thread.files[thread_files[index]] = data
        case 3:
            thread.regs = data
        case 4:
            thread.xstate = data
        case 5:
            thread.sigmask = int.from_bytes(data[:8], "little")
        case 7:
            thread.pending = _pieces(data, SIGINFO)
        case 8:
            thread.extra["rseq"] = data
        case 9:
            thread.extra["robust"] = data
        case 10:
            thread.decision = DECISION_BODY.unpack_from(data)


def _descriptor(process: RawProcess, kind: int, fd: int, index: int, data: bytes) -> None:
    if kind == FD:
        process.fds[fd] = RawFd(process.pid, fd, FD_HEAD.unpack_from(data), data[FD_HEAD.size :].decode(errors="surrogateescape"))
    elif kind == FDINFO:
        process.fds[fd].fdinfo = data.decode(errors="replace")
    elif kind == FD_WORK:
        process.fds[fd].work[index] = data
    else:
        process.fds[fd].options[index] = data
