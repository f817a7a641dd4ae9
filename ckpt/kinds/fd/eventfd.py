"""eventfd: a counter behind a descriptor. The example of a kind: what it wants, its state, the calls that bring it back.

fdinfo tells all of it: `eventfd-count` (hex) and `eventfd-semaphore`, so no work while frozen. The id of fdinfo cannot be
chosen; no program can see it but through fdinfo itself.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from ckpt.kinds.base import CannotUndo, RawDescriptor, Unsupported, Wants, call, result, same, set_flags
from ckpt.model import OpenFile, RemoteCall
from ckpt.procfs import parse_fdinfo
from ckpt.syscalls.names import nr

EFD_SEMAPHORE = 1
O_NONBLOCK = 0o4000
_INITIAL_MAX = 0xFFFF_FFFF  #: eventfd2 takes an unsigned int
_READS_MAX = 1000  #: a semaphore gives one unit a read


class Eventfd:
    name = "eventfd"
    order = 10
    wants = (Wants(prefix="anon_inode:[eventfd]"),)

    def recognises(self, raw: RawDescriptor) -> bool:
        return raw.link == "anon_inode:[eventfd]"

    def parse(self, raw: RawDescriptor) -> OpenFile:
        info = parse_fdinfo(raw.fdinfo)
        if info.eventfd_count is None:
            raise Unsupported("eventfd: its counter cannot be read")
        state = {"count": info.eventfd_count, "semaphore": info.eventfd_semaphore}
        return OpenFile(raw.file, self.name, info.open_flags, info.pos, state)

    def adjust(self, fd: int, now: OpenFile, wanted: OpenFile) -> Sequence[RemoteCall]:
        """Brings the counter back without a call that could block: only what is there is read."""
        if now.state["semaphore"] != wanted.state["semaphore"]:
            raise CannotUndo("eventfd: semaphore mode cannot be changed")
        calls: list[RemoteCall] = []
        there, want = now.state["count"], wanted.state["count"]
        if want < there:
            reads = there - want if now.state["semaphore"] else 1
            if reads > _READS_MAX:
                raise CannotUndo(f"eventfd: a semaphore would have to be read {reads} times")
            calls += [call(nr("read"), fd, bytes(8), 8, note="read the eventfd", expect=8)] * reads
            there = want if now.state["semaphore"] else 0
        if want > there:
            calls.append(call(nr("write"), fd, struct.pack("<Q", want - there), 8, note=f"eventfd += {want - there}", expect=8))
        return [*calls, *set_flags(fd, now.flags, wanted.flags)]

    def recreate(self, wanted: OpenFile) -> Sequence[RemoteCall]:
        count = wanted.state["count"]
        flags = (EFD_SEMAPHORE if wanted.state["semaphore"] else 0) | (wanted.flags & O_NONBLOCK)
        made = call(nr("eventfd2"), min(count, _INITIAL_MAX), flags, note=f"eventfd2({count})")
        if count <= _INITIAL_MAX:
            return [made]
        rest = struct.pack("<Q", count - _INITIAL_MAX)
        return [made, call(nr("write"), result(0), rest, 8, note="the rest of the counter", expect=8), same(0)]


KIND = Eventfd()
