"""Pipes: an open file per end, what lies between them, the capacity.

A pipe whose other end is held outside the tree (output into a shell's pipe, a test harness) is normal: what is in it is the
other side's business, and a rollback leaves it alone (`outside`, see base.with_outside). Otherwise the contents are put back
in place through /proc/self/fd, which opens either end of a pipe anew, whichever end is at hand.
"""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Sequence

from ckpt.kinds.base import CannotUndo, RawDescriptor, Unsupported, Wants, Work, call, result, same, set_flags, swap, two_lowest
from ckpt.model import OpenFile, RemoteArg, RemoteCall
from ckpt.procfs import parse_fdinfo
from ckpt.syscalls.names import nr

F_SETPIPE_SZ = 1031
O_DIRECT = 0o40000
_POLLERR, _POLLHUP = 0x8, 0x10
_HEAD = struct.Struct("<III")


def _size(fd: int | RemoteArg, capacity: int) -> RemoteCall:
    return call(nr("fcntl"), fd, F_SETPIPE_SZ, capacity, note=f"F_SETPIPE_SZ {capacity}", expect=capacity)


def _writes(file: OpenFile) -> bool:
    return bool(file.flags & os.O_ACCMODE)


class Pipe:
    name = "pipe"
    order = 20
    wants = (Wants(prefix="pipe:[", format=stat.S_IFIFO, work=Work.PIPE),)

    def recognises(self, raw: RawDescriptor) -> bool:
        return raw.link.startswith("pipe:[")

    def parse(self, raw: RawDescriptor) -> OpenFile:
        info = parse_fdinfo(raw.fdinfo)
        if Work.PIPE not in raw.work:
            raise Unsupported("pipe: its contents cannot be read")
        capacity, revents, length = _HEAD.unpack_from(raw.work[Work.PIPE])
        contents = raw.work[Work.PIPE][_HEAD.size : _HEAD.size + length]
        if info.flags & O_DIRECT and contents:
            raise Unsupported("pipe in packet mode with packets in it: not supported")
        state = {
            "dev": raw.dev,
            "ino": raw.ino,
            "capacity": capacity,
            "alone": bool(revents & (_POLLERR | _POLLHUP)),  # nobody holds the other end any more
            "contents": contents.hex(),
        }
        return OpenFile(raw.file, self.name, info.open_flags, 0, state)

    def this_end(self, file: OpenFile) -> object:
        return file.state["ino"], _writes(file)

    def other_end(self, file: OpenFile) -> object:
        return None if file.state["alone"] else (file.state["ino"], not _writes(file))

    def adjust(self, fd: int, now: OpenFile, wanted: OpenFile) -> Sequence[RemoteCall]:
        calls = set_flags(fd, now.flags, wanted.flags)
        if now.state.get("outside") or wanted.state.get("outside"):
            return calls
        there, want = bytes.fromhex(now.state["contents"]), bytes.fromhex(wanted.state["contents"])
        if there == want and now.state["capacity"] == wanted.state["capacity"]:
            return calls
        if _writes(wanted) and not wanted.state["alone"]:
            return calls  # the end that reads sees to it: once is enough
        return [*_refill(fd, there, want, wanted.state["capacity"]), *calls]

    def recreate(self, wanted: OpenFile) -> Sequence[RemoteCall]:
        raise CannotUndo("pipe: one end alone cannot be made again")

    def recreate_pair(self, first: OpenFile | None, second: OpenFile | None) -> Sequence[RemoteCall]:
        known = first or second
        if known is None or known.state.get("outside"):
            raise CannotUndo("pipe: its other end is held outside the tree")
        first_writes = _writes(first) if first else not _writes(known)
        reader, writer = (1, 0) if first_writes else (0, 1)
        packets = known.flags & O_DIRECT
        calls = [*two_lowest(), call(nr("pipe2"), bytes(8), packets, note="pipe")]
        if first_writes:
            calls += swap(len(calls))
        calls.append(_size(result(reader), known.state["capacity"]))
        contents = bytes.fromhex(known.state["contents"])
        if contents:
            calls.append(call(nr("write"), result(writer), contents, len(contents), note="the pipe's contents", expect=len(contents)))
        for index, end in enumerate((first, second)):
            if end is None:
                calls.append(call(nr("close"), result(index), note="nobody holds this end"))
            else:
                calls += set_flags(result(index), packets, end.flags)
        return [*calls, same(0 if first else 1)]


def _refill(fd: int, there: bytes, want: bytes, capacity: int) -> list[RemoteCall]:
    """Drains and fills in place. The tree is frozen and both ends are in it: nobody else reads or writes meanwhile."""
    path = f"/proc/self/fd/{fd}".encode() + b"\0"
    calls = [
        call(nr("open"), path, os.O_RDONLY | os.O_NONBLOCK, 0, note="the pipe's read end"),
        call(nr("open"), path, os.O_WRONLY | os.O_NONBLOCK, 0, note="the pipe's write end"),
    ]
    if there:
        calls.append(call(nr("read"), result(0), bytes(len(there)), len(there), note="drain the pipe", expect=len(there)))
    calls.append(_size(result(0), capacity))
    if want:
        calls.append(call(nr("write"), result(1), want, len(want), note="the pipe's contents", expect=len(want)))
    return [*calls, *(call(nr("close"), result(index), note="close that end") for index in (0, 1))]


KIND = Pipe()
