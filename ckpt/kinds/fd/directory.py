"""Directories: path and position. What readdir had already fetched lies in the program's own memory."""

from __future__ import annotations

import stat
from collections.abc import Sequence

from ckpt.kinds.base import RawDescriptor, Wants, set_flags
from ckpt.kinds.fd.file import path_of, reopen, seek
from ckpt.model import OpenFile, RemoteCall
from ckpt.procfs import parse_fdinfo


class Directory:
    name = "directory"
    order = 41
    wants = (Wants(format=stat.S_IFDIR),)

    def recognises(self, raw: RawDescriptor) -> bool:
        return stat.S_ISDIR(raw.mode)

    def parse(self, raw: RawDescriptor) -> OpenFile:
        info = parse_fdinfo(raw.fdinfo)
        state = {"path": path_of(raw), "dev": raw.dev, "ino": raw.ino, "deleted": raw.nlink == 0}
        return OpenFile(raw.file, self.name, info.open_flags, info.pos, state)

    def adjust(self, fd: int, now: OpenFile, wanted: OpenFile) -> Sequence[RemoteCall]:
        moved = [seek(fd, wanted.pos)] if now.pos != wanted.pos else []
        return [*moved, *set_flags(fd, now.flags, wanted.flags)]

    def recreate(self, wanted: OpenFile) -> Sequence[RemoteCall]:
        return reopen(wanted)


KIND = Directory()
