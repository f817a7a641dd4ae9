"""FIFOs: pipes with a name. The name is the file system's; what lies in it is the program's while nobody else holds an end.

A restored end is opened by its path, with O_NONBLOCK and beside a helper that has both ends, so that no open waits for anybody. An end
that nobody had ever written to is opened without it: after a writer has been there the kernel reports POLLHUP
(fs/pipe.c, fifo_open and pipe_poll). Contents die with the last close; they are written again once all ends stand.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence

from ckpt.kinds.base import CannotUndo, RawDescriptor, Unsupported, Wants, Work, call, result, same, set_flags
from ckpt.kinds.fd import pipe
from ckpt.kinds.fd.file import O_ONCE, path_of
from ckpt.model import OpenFile, RemoteCall
from ckpt.procfs import parse_fdinfo
from ckpt.syscalls.names import nr


class Fifo:
    name = "fifo"
    order = 21
    wants = (Wants(format=stat.S_IFIFO, work=Work.PIPE),)

    def recognises(self, raw: RawDescriptor) -> bool:
        return stat.S_ISFIFO(raw.mode) and not raw.link.startswith("pipe:[")

    def parse(self, raw: RawDescriptor) -> OpenFile:
        info = parse_fdinfo(raw.fdinfo)
        if Work.PIPE not in raw.work:
            raise Unsupported(f"FIFO {raw.link}: its contents cannot be read")
        state = {"path": path_of(raw), "deleted": raw.nlink == 0, "dev": raw.dev, "ino": raw.ino, **pipe.within(raw.work[Work.PIPE])}
        return OpenFile(raw.file, self.name, info.open_flags, 0, state)

    def this_end(self, file: OpenFile) -> object:
        return file.state["ino"], pipe.writes(file)

    def other_end(self, file: OpenFile) -> object:
        if file.state["alone"] or file.flags & os.O_ACCMODE == os.O_RDWR:
            return None
        return file.state["ino"], not pipe.writes(file)

    def adjust(self, fd: int, now: OpenFile, wanted: OpenFile) -> Sequence[RemoteCall]:
        return pipe.refill_in_place(fd, now, wanted)

    def recreate(self, wanted: OpenFile) -> Sequence[RemoteCall]:
        path = wanted.state["path"]
        if wanted.state["deleted"]:
            raise CannotUndo(f"FIFO {path} has been deleted, it cannot be opened again")
        name = os.fsencode(wanted.state.get("through", path)) + b"\0"
        flags = wanted.flags & ~O_ONCE
        first = flags & ~pipe.O_DIRECT | os.O_NONBLOCK
        reader = flags & os.O_ACCMODE == os.O_RDONLY
        made = call(nr("open"), name, first, 0, note=f"open {path}")
        if reader and not wanted.state["alone"] and wanted.state.get("outside"):
            return [made, *set_flags(result(0), first, flags), same(0)]
        return [
            call(nr("open"), name, os.O_RDWR | os.O_NONBLOCK, 0, note=f"both ends of {path} for a moment"),
            made,
            *set_flags(result(1), first, flags),
            call(nr("close"), result(0), note="close both ends"),
            same(1),
        ]

    def settle(self, fd: int, wanted: OpenFile) -> Sequence[RemoteCall]:
        if wanted.state.get("outside"):
            return []
        empty = OpenFile(wanted.id, wanted.kind, wanted.flags, 0, {**wanted.state, "contents": "", "capacity": 0})
        return pipe.refill_in_place(fd, empty, wanted)

    def caveats(self, now: OpenFile | None, wanted: OpenFile) -> Sequence[str]:
        if now is None and wanted.state.get("outside") and not wanted.state["alone"] and wanted.state["contents"]:
            return [f"the other end of FIFO {wanted.state['path']} is outside the tree: what was in it is not put back"]
        return []


KIND = Fifo()
