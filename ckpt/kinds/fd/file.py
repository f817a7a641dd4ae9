"""Regular files: path, identity, position, flags, locks. Contents are the file system's: no rollback takes them back.

A file that has no name any more (st_nlink = 0) is the program's own: its contents are captured (Work.UNNAMED) as pages of an object
space, like those of a memfd. In place its descriptor still is; for a restore it is made anew once (ckpt/plan/objects.py) and opened
through `through`: so it is one file however often it is open. A name may really end in " (deleted)", so the number of links decides.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence

from ckpt.kinds.base import UNNAMED_BYTES, CannotUndo, RawDescriptor, Unsupported, Wants, Work, call, result, same, set_flags
from ckpt.kinds.fd import locks
from ckpt.model import OpenFile, RemoteArg, RemoteCall
from ckpt.procfs import parse_fdinfo
from ckpt.syscalls.names import nr

O_PATH = 0o10000000
O_TMPFILE = 0o20000000  #: its own bit; the kernel keeps it among the flags, with O_DIRECTORY
O_ONCE = 0o100 | 0o200 | 0o400 | 0o1000 | O_TMPFILE  #: with O_CREAT O_EXCL O_NOCTTY O_TRUNC: for opening only
_DELETED = " (deleted)"
_MIB = 1 << 20


def path_of(raw: RawDescriptor) -> str:
    return raw.link.removesuffix(_DELETED) if raw.nlink == 0 else raw.link


def seek(fd: int | RemoteArg, pos: int) -> RemoteCall:
    return call(nr("lseek"), fd, pos, os.SEEK_SET, note=f"lseek to {pos}", expect=pos)


def reopen(wanted: OpenFile) -> list[RemoteCall]:
    """open(path) with the flags that last, and the position. Whether the path still leads to that file, the plan checks."""
    path = wanted.state["path"]
    through = wanted.state.get("through")
    if wanted.state["deleted"] and through is None:
        raise CannotUndo(f"{path} has been deleted, and its contents were not captured")
    flags = wanted.flags & ~(O_ONCE | os.O_NOFOLLOW) if through else wanted.flags & ~O_ONCE  # what it goes through is a link
    made = call(nr("open"), os.fsencode(through or path) + b"\0", flags, 0, note=f"open {path}")
    if not wanted.pos or flags & O_PATH:
        return [made]
    return [made, seek(result(0), wanted.pos), same(0)]


def unnamed_too_large(path: str, size: int) -> str | None:
    """Of a file that has been deleted: what is told of one that is too large to be captured."""
    if size <= UNNAMED_BYTES:
        return None
    mib = f"{size // _MIB} MiB, more than {UNNAMED_BYTES // _MIB} MiB"
    return f"{path} has been deleted and holds {mib}: its contents are not captured, it cannot be restored"


class File:
    name = "file"
    order = 40
    wants = (Wants(format=stat.S_IFREG, work=Work.UNNAMED | Work.MQUEUE),)

    def recognises(self, raw: RawDescriptor) -> bool:
        return stat.S_ISREG(raw.mode) and Work.MQUEUE not in raw.work

    def caution(self, raw: RawDescriptor) -> str | None:
        """For the pre-flight: what a snapshot will not hold."""
        return None if raw.nlink else unnamed_too_large(path_of(raw), raw.size)

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
            "locks": sorted(locks.text_of(lock) for lock in info.locks),
        }
        flags = info.open_flags & ~(O_TMPFILE | os.O_DIRECTORY) if info.open_flags & O_TMPFILE else info.open_flags
        if raw.nlink == 0:
            state["mode"] = stat.S_IMODE(raw.mode)
            flags &= ~os.O_NOFOLLOW  # it says how a name was opened, which is gone; made anew it is reached through a link
        return OpenFile(raw.file, self.name, flags, info.pos, state)

    def adjust(self, fd: int, now: OpenFile, wanted: OpenFile) -> Sequence[RemoteCall]:
        calls = list(self._locks(fd, now, wanted))
        if now.pos != wanted.pos:
            calls.append(seek(fd, wanted.pos))
        return [*calls, *set_flags(fd, now.flags, wanted.flags)]

    def _locks(self, fd: int, now: OpenFile, wanted: OpenFile) -> Sequence[RemoteCall]:
        """Locks that were taken since are given back; one that was given back may be another's by now."""
        there, want = now.state["locks"], wanted.state["locks"]
        if there == want:
            return []
        if want:
            raise CannotUndo(f"the locks on {wanted.state['path']} have changed")
        return locks.give_back(fd, there)

    def recreate(self, wanted: OpenFile) -> Sequence[RemoteCall]:
        if wanted.state.get("locked_by"):
            pids = ", ".join(map(str, wanted.state["locked_by"]))
            raise CannotUndo(f"{wanted.state['path']}: task {pids}, which shares it, had a POSIX lock on it: not supported")
        calls = reopen(wanted)
        held = locks.with_file(result(0), wanted.state["locks"], wanted.state["path"])
        return [*calls, *held, same(0)] if held else calls

    def settle(self, fd: int, wanted: OpenFile) -> Sequence[RemoteCall]:
        return locks.of_process(fd, wanted.state["locks"], wanted.state["path"])


KIND = File()
