"""signalfd: a set of signals to read. The signals themselves are pending on the task, not here."""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence

from ckpt.kinds.base import RawDescriptor, Unsupported, Wants, call, set_flags
from ckpt.model import OpenFile, RemoteCall
from ckpt.procfs import parse_fdinfo
from ckpt.syscalls.names import nr


class Signalfd:
    name = "signalfd"
    order = 11
    wants = (Wants(prefix="anon_inode:[signalfd]"),)

    def recognises(self, raw: RawDescriptor) -> bool:
        return raw.link == "anon_inode:[signalfd]"

    def parse(self, raw: RawDescriptor) -> OpenFile:
        info = parse_fdinfo(raw.fdinfo)
        if info.sigmask is None:
            raise Unsupported("signalfd: its set cannot be read")
        return OpenFile(raw.file, self.name, info.open_flags, 0, {"mask": info.sigmask})

    def adjust(self, fd: int, now: OpenFile, wanted: OpenFile) -> Sequence[RemoteCall]:
        mask = wanted.state["mask"]
        changed = [self._set(fd, mask, 0)] if now.state["mask"] != mask else []
        return [*changed, *set_flags(fd, now.flags, wanted.flags)]

    def recreate(self, wanted: OpenFile) -> Sequence[RemoteCall]:
        return [self._set(-1, wanted.state["mask"], wanted.flags & os.O_NONBLOCK)]

    def _set(self, fd: int, mask: int, flags: int) -> RemoteCall:
        return call(nr("signalfd4"), fd, struct.pack("<Q", mask), 8, flags, note=f"signalfd of {mask:#x}")


KIND = Signalfd()
