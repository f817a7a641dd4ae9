"""Pipes: an open file per end, what lies between them, the capacity.

A pipe whose other end is held outside the tree (output into a shell's pipe, a test harness) is normal: what is in it is the
other side's business, and a rollback leaves it alone (`outside`, see base.with_outside). Otherwise the contents are put back
in place through /proc/self/fd, which opens either end of a pipe anew, whichever end is at hand.

Packets (O_DIRECT at the writing end): a read gives one at a time, so their sizes are known (`packets`), and each is written by a
write of its own through an end with O_DIRECT.
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


def writes(file: OpenFile) -> bool:
    return bool(file.flags & os.O_ACCMODE)


def within(answer: bytes) -> dict[str, object]:
    """What the answer to Work.PIPE says."""
    capacity, revents, length = _HEAD.unpack_from(answer)
    reads = answer[_HEAD.size + length :]
    packets = [size for (size,) in struct.iter_unpack("<I", reads)]
    return {
        "capacity": capacity,
        "alone": bool(revents & (_POLLERR | _POLLHUP)),  # nobody holds the other end any more
        "contents": answer[_HEAD.size : _HEAD.size + length].hex(),
        **({"packets": packets} if len(packets) > 1 else {}),
    }


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
        state = {"dev": raw.dev, "ino": raw.ino, **within(raw.work[Work.PIPE])}
        return OpenFile(raw.file, self.name, info.open_flags, 0, state)

    def this_end(self, file: OpenFile) -> object:
        return file.state["ino"], writes(file)

    def other_end(self, file: OpenFile) -> object:
        return None if file.state["alone"] else (file.state["ino"], not writes(file))

    def adjust(self, fd: int, now: OpenFile, wanted: OpenFile) -> Sequence[RemoteCall]:
        return refill_in_place(fd, now, wanted)

    def recreate(self, wanted: OpenFile) -> Sequence[RemoteCall]:
        raise CannotUndo("pipe: one end alone cannot be made again")

    def recreate_pair(self, first: OpenFile | None, second: OpenFile | None) -> Sequence[RemoteCall]:
        known = first or second
        if known is None or known.state.get("outside"):
            raise CannotUndo("pipe: its other end is held outside the tree")
        first_writes = writes(first) if first else not writes(known)
        reader, writer = (1, 0) if first_writes else (0, 1)
        packets = O_DIRECT if known.state.get("packets") or any(end and end.flags & O_DIRECT for end in (first, second)) else 0
        calls = [*two_lowest(), call(nr("pipe2"), bytes(8), packets, note="pipe")]
        if first_writes:
            calls += swap(len(calls))
        calls.append(_size(result(reader), known.state["capacity"]))
        calls += _fill(result(writer), known)
        for index, end in enumerate((first, second)):
            if end is None:
                calls.append(call(nr("close"), result(index), note="nobody holds this end"))
            else:
                calls += set_flags(result(index), packets, end.flags)
        return [*calls, same(0 if first else 1)]


def refill_in_place(fd: int, now: OpenFile, wanted: OpenFile) -> list[RemoteCall]:
    """What lies in the pipe behind fd becomes what lay in it, unless somebody outside holds the other end."""
    calls = set_flags(fd, now.flags, wanted.flags)
    if now.state.get("outside") or wanted.state.get("outside"):
        return calls
    if all(now.state.get(key) == wanted.state.get(key) for key in ("contents", "packets", "capacity")):
        return calls
    if writes(wanted) and not wanted.state["alone"] and wanted.flags & os.O_ACCMODE != os.O_RDWR:
        return calls  # the end that reads sees to it: once is enough
    return [*_refill(fd, now, wanted), *calls]


def _refill(fd: int, now: OpenFile, wanted: OpenFile) -> list[RemoteCall]:
    """Drains and fills in place. The tree is frozen and both ends are in it: nobody else reads or writes meanwhile."""
    path = f"/proc/self/fd/{fd}".encode() + b"\0"
    calls = [
        call(nr("open"), path, os.O_RDONLY | os.O_NONBLOCK, 0, note="the pipe's read end"),
        call(nr("open"), path, os.O_WRONLY | os.O_NONBLOCK, 0, note="the pipe's write end"),
    ]
    if wanted.state.get("packets") or wanted.flags & O_DIRECT:  # open() itself refuses it (fs/fcntl.c, setfl)
        calls += set_flags(result(1), os.O_NONBLOCK, os.O_NONBLOCK | O_DIRECT)
    for size in _pieces(now):
        calls.append(call(nr("read"), result(0), bytes(size), size, note="drain the pipe", expect=size))
    calls.append(_size(result(0), wanted.state["capacity"]))
    calls += _fill(result(1), wanted)
    return [*calls, *(call(nr("close"), result(index), note="close that end") for index in (0, 1))]


def _fill(end: RemoteArg, wanted: OpenFile) -> list[RemoteCall]:
    calls, at, contents = [], 0, bytes.fromhex(wanted.state["contents"])
    for size in _pieces(wanted):
        piece, at = contents[at : at + size], at + size
        calls.append(call(nr("write"), end, piece, size, note="the pipe's contents", expect=size))
    return calls


def _pieces(file: OpenFile) -> list[int]:
    """How much each read gives: packet by packet, or all at once."""
    length = len(file.state["contents"]) // 2
    return list(file.state.get("packets") or ([length] if length else []))


KIND = Pipe()
