"""Which sockets listen, asked of the kernel by sock_diag: it walks a small table then. /proc/net/tcp walks that of all connections as
well, which takes milliseconds however few there are (include/uapi/linux/inet_diag.h)."""

from __future__ import annotations

import socket
import struct

from ckpt.procfs.net import LISTEN, InetSocket, plain

_SOCK_DIAG, _BY_FAMILY, _DUMP = 4, 20, 0x301  #: NETLINK_SOCK_DIAG, SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST | NLM_F_DUMP
_HEAD = struct.Struct("=IHHII")  #: struct nlmsghdr
_ASK = struct.Struct("=BBBxI48x")  #: struct inet_diag_req_v2 with no particular socket
_TOLD = struct.Struct("=BBxx2s2s16s16s12x16xI")  #: struct inet_diag_msg
_DONE, _ERROR = 3, 2
_ROOM = 1 << 16
BOUND = 1 << 13  #: those that have a port and neither listen nor are connected (TCP_BOUND_INACTIVE, since 6.8)
EVERY = 0xFFFFFFFF


def listening(states: int = 1 << LISTEN) -> list[InetSocket]:
    """TCP sockets of this network namespace, IPv4 and IPv6. `states`: others than those that listen. Raises OSError where the kernel
    does not tell."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _SOCK_DIAG) as asking:
        return [one for family in (socket.AF_INET, socket.AF_INET6) for one in _ask(asking, family, states)]


def _ask(asking: socket.socket, family: int, states: int) -> list[InetSocket]:
    question = _ASK.pack(family, socket.IPPROTO_TCP, 0, states)
    asking.send(_HEAD.pack(_HEAD.size + len(question), _BY_FAMILY, _DUMP, 0, 0) + question)
    found: list[InetSocket] = []
    while True:
        answer, at = asking.recv(_ROOM), 0
        while at < len(answer):
            size, kind, *_ = _HEAD.unpack_from(answer, at)
            if kind == _DONE:
                return found
            if kind == _ERROR:
                raise OSError("sock_diag refuses")
            found.append(_told(answer, at + _HEAD.size))
            at += (size + 3) & ~3


def _told(answer: bytes, at: int) -> InetSocket:
    family, state, port, far_port, address, far, ino = _TOLD.unpack_from(answer, at)
    size = 4 if family == socket.AF_INET else 16
    ends = [(plain(raw[:size]), int.from_bytes(number, "big")) for raw, number in ((address, port), (far, far_port))]
    return InetSocket(ends[0], ends[1], state, ino)
