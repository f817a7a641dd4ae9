"""Regular files: path, identity, position, flags, locks. Contents are the file system's: no rollback takes them back.

A file that has no name any more (st_nlink = 0) is captured too: in place its descriptor still is, but it cannot be opened
again. A name may really end in " (deleted)", so the number of links decides.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence

from ckpt.kinds.base import CannotUndo, RawDescriptor, Unsupported, Wants, call, result, same, set_flags
from ckpt.model import OpenFile, RemoteArg, RemoteCall
from ckpt.procfs import parse_fdinfo
from ckpt.syscalls.names import nr

O_PATH = 0o10000000
O_ONCE = 0o100 | 0o200 | 0o400 | 0o1000 | 0o20000000  #: O_CREAT O_EXCL O_NOCTTY O_TRUNC and O_TMPFILE's own bit: for opening only
_DELETED = " (deleted)"
_LOCK_UN = 8


def path_of(raw: RawDescriptor) -> str:
    return raw.link.removesuffix(_DELETED) if raw.nlink == 0 else raw.link


def seek(fd: int | RemoteArg, pos: int) -> RemoteCall:
    return call(nr("lseek"), fd, pos, os.SEEK_SET, note=f"lseek to {pos}", expect=pos)


def reopen(wanted: OpenFile) -> list[RemoteCall]:
    """open(path) with the flags that last, and the position. Whether the path still leads to that file, the executor checks."""
    path = wanted.state["path"]
    if wanted.state["deleted"]:
        raise CannotUndo(f"{path} has been deleted, it cannot be opened again")
    flags = wanted.flags & ~O_ONCE
    made = call(nr("open"), os.fsencode(path) + b"\0", flags, 0, note=f"open {path}")
    if not wanted.pos or flags & O_PATH:
        return [made]
    return [made, seek(result(0), wanted.pos), same(0)]


class File:
    name = "file"
    order = 40
    wants = (Wants(format=stat.S_IFREG),)

    def recognises(self, raw: RawDescriptor) -> bool:
        return stat.S_ISREG(raw.mode)

    def parse(self, raw: RawDescriptor) -> OpenFile:
        info = parse_fdinfo(raw.fdinfo)
        if any("LEASE" in lock for lock in info.locks):
            raise Unsupported(f"lease on {raw.link}: not supported")
        state = {
            "path": path_of(raw),
            "dev": raw.dev,
            "ino": raw.ino,
            "size": raw.size,
            "deleted": raw.nlink == 0,
            "locks": [" ".join(lock.split()[1:4]) for lock in info.locks],
        }
        return OpenFile(raw.file, self.name, info.open_flags, info.pos, state)

    def adjust(self, fd: int, now: OpenFile, wanted: OpenFile) -> Sequence[RemoteCall]:
        calls = list(self._locks(fd, now, wanted))
        if now.pos != wanted.pos:
            calls.append(seek(fd, wanted.pos))
        return [*calls, *set_flags(fd, now.flags, wanted.flags)]

    def _locks(self, fd: int, now: OpenFile, wanted: OpenFile) -> Sequence[RemoteCall]:
        """Locks ("FLOCK ADVISORY WRITE") that were taken since are given back; one that was given back may be another's by now."""
        there, want = now.state["locks"], wanted.state["locks"]
        if there == want:
            return []
        if want or any(not lock.startswith("FLOCK") for lock in there):
            raise CannotUndo(f"the locks on {wanted.state['path']} have changed")
        return [call(nr("flock"), fd, _LOCK_UN, note="flock LOCK_UN")]

    def recreate(self, wanted: OpenFile) -> Sequence[RemoteCall]:
        if wanted.state["locks"]:
            raise CannotUndo(f"{wanted.state['path']} was locked, the lock may be another's by now")
        return reopen(wanted)


KIND = File()
