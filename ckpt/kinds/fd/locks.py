"""Locks on a file as fdinfo and /proc/locks tell them ("POSIX ADVISORY WRITE 0 EOF"), and the calls that take and give them (no kind of
its own: see file.py).

flock(2) and open-file-description locks belong to the open file; POSIX locks to the process, which loses all that it has on a
file when it closes any descriptor of it: so those are taken when every number is right. A lease is none of these: it is refused.
"""

from __future__ import annotations

import fcntl
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from ckpt.kinds.base import RawDescriptor, call
from ckpt.model import OpenFile, RemoteArg, RemoteCall
from ckpt.procfs import parse_fdinfo
from ckpt.syscalls.names import nr

F_SETLK, F_OFD_SETLK = 6, 37
_FLOCK = struct.Struct("<hh4xqqi4x")  #: struct flock: type, whence, start, length, pid
_END = "EOF"


@dataclass(frozen=True, slots=True)
class Lock:
    """`end` is the last byte; None: to the end of the file and beyond."""

    kind: str  #: "FLOCK" | "POSIX" | "OFDLCK"
    writes: bool
    start: int = 0
    end: int | None = None

    def conflicts(self, other: Lock) -> bool:
        """Whether two owners cannot have both (flock(2) and fcntl(2) know nothing of each other)."""
        if (self.kind == "FLOCK") != (other.kind == "FLOCK") or not (self.writes or other.writes):
            return False
        return (other.end is None or self.start <= other.end) and (self.end is None or other.start <= self.end)


def text_of(line: str) -> str:
    """A line of fdinfo ("1: POSIX ADVISORY WRITE 4121 fe:00:131 0 EOF") without what passes: number, pid, inode."""
    words = line.split()[1:]
    return " ".join(words[:3] if words[0] == "FLOCK" else words[:3] + words[5:7])


def with_locks_of(file: OpenFile, raw: RawDescriptor) -> OpenFile:
    """Another descriptor of an open file that is known: a task that shares it may have POSIX locks of its own, which only its own
    fdinfo tells. Whose they are is remembered; to take them again for it is not supported."""
    if file.kind != "file" or "lock:" not in raw.fdinfo:
        return file
    own = [text for text in map(text_of, parse_fdinfo(raw.fdinfo).locks) if text.startswith("POSIX") and text not in file.state["locks"]]
    if not own:
        return file
    return replace(file, state={**file.state, "locked_by": sorted({*file.state.get("locked_by", ()), raw.pid})})


def parse(text: str) -> Lock:
    kind, _advisory, mode, *span = text.split()
    start, end = span or ("0", _END)
    return Lock(kind, mode == "WRITE", int(start), None if end == _END else int(end))


def taken(texts: Iterable[str], others: Iterable[str]) -> str | None:
    """The first of `texts` that cannot be had beside the locks of others."""
    held = [parse(other) for other in others]
    return next((text for text in texts if any(parse(text).conflicts(other) for other in held)), None)


def with_file(fd: int | RemoteArg, texts: Iterable[str], path: str) -> list[RemoteCall]:
    """Takes the locks that belong to the open file. They fail rather than wait."""
    return [call_ for lock in map(parse, texts) if lock.kind != "POSIX" for call_ in _take(fd, lock, path)]


def of_process(fd: int | RemoteArg, texts: Iterable[str], path: str) -> list[RemoteCall]:
    return [call_ for lock in map(parse, texts) if lock.kind == "POSIX" for call_ in _take(fd, lock, path)]


def give_back(fd: int, texts: Iterable[str]) -> Sequence[RemoteCall]:
    """Each kind once, over the whole file."""
    calls = []
    for kind in sorted({parse(text).kind for text in texts}):
        if kind == "FLOCK":
            calls.append(call(nr("flock"), fd, fcntl.LOCK_UN, note="flock LOCK_UN"))
        else:
            command = F_SETLK if kind == "POSIX" else F_OFD_SETLK
            calls.append(call(nr("fcntl"), fd, command, _FLOCK.pack(fcntl.F_UNLCK, 0, 0, 0, 0), note=f"give the {kind} locks back"))
    return calls


def _take(fd: int | RemoteArg, lock: Lock, path: str) -> list[RemoteCall]:
    note = f"lock {path} again ({lock.kind}, {'write' if lock.writes else 'read'})"
    if lock.kind == "FLOCK":
        operation = (fcntl.LOCK_EX if lock.writes else fcntl.LOCK_SH) | fcntl.LOCK_NB
        return [call(nr("flock"), fd, operation, note=note)]
    length = 0 if lock.end is None else lock.end - lock.start + 1
    packed = _FLOCK.pack(fcntl.F_WRLCK if lock.writes else fcntl.F_RDLCK, 0, lock.start, length, 0)
    return [call(nr("fcntl"), fd, F_SETLK if lock.kind == "POSIX" else F_OFD_SETLK, packed, note=note)]
