"""Threads that wait in a transfer with which a stop ends, if a part of it has gone by then: who cannot go on (native/src/cut.c).

How much has gone is seen by nobody outside. So `ckpt check` names them beforehand, as it does reads of terminals (terminal_reads.py). What
goes on, or cannot be in parts, is no matter: nothing is said of it.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path

from ckpt.kinds.base import RawDescriptor, SockOpt
from ckpt.kinds.fd import sockets as so
from ckpt.kinds.fd.sockopts import SOL_SOCKET
from ckpt.live import preflight
from ckpt.live.blocked import blocked_call
from ckpt.live.core import Tree
from ckpt.live.preflight import Problem
from ckpt.procfs import parse_fdinfo, parse_status
from ckpt.syscalls.table import BY_NR, NO_ARG, GoesOn, Row, Timeout, Vector

MSG_FASTOPEN, MSG_ZEROCOPY = 0x2000_0000, 0x400_0000  # include/linux/socket.h
_TIME_LIMITS = {"SO_RCVTIMEO": SockOpt(SOL_SOCKET, 20, 16), "SO_SNDTIMEO": SockOpt(SOL_SOCKET, 21, 16)}
_BUFFERS_LEFT = {Vector.IOVEC: 4, Vector.MSGHDR: 1}  #: of so many a list goes on (native/src/lists.c)
_MSG_IOVLEN = 24  #: in struct msghdr
#: Which arguments are descriptors: source, then sink; of others it is the first.
_FROM_TO = {"splice": (0, 2), "sendfile": (1, 0)}


def examine(tree: Tree, descriptors: Sequence[RawDescriptor]) -> Iterator[Problem]:
    """`descriptors`: those of the tree that a look has met (preflight.examine)."""
    known = {(raw.pid, raw.fd): raw for raw in descriptors}
    for thread in tree.threads():
        call, args = blocked_call(thread.pid, thread.tid)
        row = BY_NR.get(call) if call is not None else None
        if row is None or not row.partial:
            continue
        raws = [known.get((thread.pid, args[at] & 0xFFFF_FFFF)) for at in _FROM_TO.get(row.name, (0,))]
        met = [raw for raw in raws if raw is not None]
        why = lost(row, args, met, _buffers(thread.pid, row, args)) if len(met) == len(raws) else None
        if why is None and met and _is_filtered(thread.pid, thread.tid) and _may_be_in_part(row, args, met):
            why = "under a seccomp filter"
        if why is not None:
            text = f"thread {thread.tid} waits in {row.name} {why}: if a part has gone by then, a snapshot makes it return with that"
            yield Problem(thread.pid, False, preflight.refusal(met[-1].fd, thread.pid, preflight.command_name(thread.pid), text))


def lost(row: Row, args: Sequence[int], raws: Sequence[RawDescriptor], buffers: int) -> str | None:
    """What keeps a transfer of this row from going on. `raws`: its descriptors; `buffers`: how many it was told."""
    if not _may_be_in_part(row, args, raws):
        return None
    flags = args[row.flags_arg] if row.flags_arg != NO_ARG else 0
    receives = row.timeout is Timeout.RCVTIMEO and row.name != "splice"
    if row.vector is Vector.MMSGHDR:
        return "of several messages"
    if row.goes_on is GoesOn.NOT:
        return "of a message with MSG_WAITALL"
    if receives and (flags & socket.MSG_PEEK or (row.name == "recvfrom" and args[4])):
        return "with MSG_PEEK" if flags & socket.MSG_PEEK else "with room for an address"
    if not receives and flags & (MSG_ZEROCOPY | MSG_FASTOPEN):
        return "with MSG_ZEROCOPY" if flags & MSG_ZEROCOPY else "with MSG_FASTOPEN"
    ways = ("SO_RCVTIMEO", "SO_SNDTIMEO") if row.name in _FROM_TO else ("SO_RCVTIMEO",) if receives else ("SO_SNDTIMEO",)
    for raw, name in zip(raws, ways, strict=True):
        if so.is_socket(raw) and any(so.option_data(raw, _TIME_LIMITS[name])):
            return f"with {name}"
    if row.goes_on is GoesOn.LIST and buffers > _BUFFERS_LEFT[row.vector]:
        return f"of {buffers} buffers"
    return None


def _may_be_in_part(row: Row, args: Sequence[int], raws: Sequence[RawDescriptor]) -> bool:
    """It blocks, and was asked for more than what is there."""
    flags = args[row.flags_arg] if row.flags_arg != NO_ARG else 0
    if flags & row.flags_veto or (row.flags_need and not flags & row.flags_need):
        return False
    if any(parse_fdinfo(raw.fdinfo).open_flags & os.O_NONBLOCK for raw in raws):
        return False
    types = [found.type for raw in raws if so.is_socket(raw) and (found := so.parse_socket(raw)) is not None]
    return row.vector is Vector.MMSGHDR or all(kind == socket.SOCK_STREAM for kind in types)


def _buffers(pid: int, row: Row, args: Sequence[int]) -> int:
    if row.vector is Vector.IOVEC:
        return args[2]
    if row.vector is not Vector.MSGHDR:
        return 1
    try:
        with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
            memory.seek(args[1] + _MSG_IOVLEN)
            return int(struct.unpack("<Q", memory.read(8))[0])
    except (OSError, OverflowError, ValueError, struct.error):
        return 1


def _is_filtered(pid: int, tid: int) -> bool:
    try:
        return bool(parse_status(Path(f"/proc/{pid}/task/{tid}/status").read_bytes()).seccomp)
    except OSError:
        return False
