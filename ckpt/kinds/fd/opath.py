"""O_PATH: a place in the file system, whatever stands there (a file, a directory, a FIFO, a symbolic link...); nothing can be read."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence

from ckpt.kinds.base import CannotUndo, RawDescriptor, Wants, call
from ckpt.kinds.fd.file import O_PATH, path_of
from ckpt.model import OpenFile, RemoteCall
from ckpt.procfs import parse_fdinfo
from ckpt.syscalls.names import nr


class Place:
    name = "opath"
    order = 5  #: before the kinds that know what stands there
    wants: tuple[Wants, ...] = ()

    def recognises(self, raw: RawDescriptor) -> bool:
        return raw.link.startswith("/") and bool(parse_fdinfo(raw.fdinfo).flags & O_PATH)

    def parse(self, raw: RawDescriptor) -> OpenFile:
        state = {"path": path_of(raw), "deleted": raw.nlink == 0, "type": stat.S_IFMT(raw.mode)}
        if not stat.S_ISLNK(raw.mode):  # looking at a path follows links
            state |= {"dev": raw.dev, "ino": raw.ino}
        return OpenFile(raw.file, self.name, parse_fdinfo(raw.fdinfo).open_flags, 0, state)

    def adjust(self, fd: int, now: OpenFile, wanted: OpenFile) -> Sequence[RemoteCall]:
        what = ("dev", "ino", "type") if "ino" in wanted.state else ("path", "type")
        if any(now.state.get(key) != wanted.state.get(key) for key in what):
            raise CannotUndo(f"it leads to {now.state['path']} now")
        return []

    def recreate(self, wanted: OpenFile) -> Sequence[RemoteCall]:
        path = wanted.state["path"]
        if wanted.state["deleted"]:
            raise CannotUndo(f"{path} has been deleted, it cannot be opened again")
        flags = O_PATH | wanted.flags & (os.O_DIRECTORY | os.O_NOFOLLOW)
        if wanted.state["type"] == stat.S_IFLNK:
            flags |= os.O_NOFOLLOW
        return [call(nr("open"), os.fsencode(path) + b"\0", flags, 0, note=f"open {path} (O_PATH)")]


KIND = Place()
