"""What the kinds of socket share: one row of wants, the decoded answers, and names. No kind by itself.

C cannot tell a TCP socket from any other by its link, so all socket kinds ask for the same work and take what is theirs.
"""

from __future__ import annotations

import os
import socket
import stat
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from ckpt.kinds.base import RawDescriptor, SockOpt, Unsupported, Wants, Work
from ckpt.kinds.fd.sockopts import IPPROTO_TCP, SETTABLE, SOL_NETLINK, SOL_SOCKET, locked, where
from ckpt.model import State

SO_COOKIE, TCP_INFO, SO_PEERCRED = SockOpt(SOL_SOCKET, 57, 8), SockOpt(IPPROTO_TCP, 11, 240), SockOpt(SOL_SOCKET, 17, 12, socket.AF_UNIX)
TCP_ULP, NETLINK_GROUPS = SockOpt(IPPROTO_TCP, 31, 16), SockOpt(SOL_NETLINK, 9, 32)
SO_MEMINFO = SockOpt(SOL_SOCKET, 55, 36, socket.AF_NETLINK)
SO_GET_FILTER, SO_LOCK_FILTER = SockOpt(SOL_SOCKET, 26, 0), SockOpt(SOL_SOCKET, 44, 4)  #: sockfilter.py
_SETTABLE = (SockOpt(*key, *where(title)) for key, title in SETTABLE.items())
OPTIONS = (SO_COOKIE, TCP_INFO, SO_PEERCRED, TCP_ULP, NETLINK_GROUPS, SO_MEMINFO, SO_GET_FILTER, SO_LOCK_FILTER, *_SETTABLE)
_TITLES = {position: SETTABLE[key] for position, o in enumerate(OPTIONS) if (key := (o.level, o.name, o.size)) in SETTABLE}
_WORK = Work.SOCKET | Work.PEEK | Work.UNIX_DIAG | Work.GROUPS | Work.SENDING
WANTS = (Wants(prefix="socket:[", format=stat.S_IFSOCK, work=_WORK, options=OPTIONS),)

REUSE = (SOL_SOCKET, 2)
MSG_TRUNC, MSG_DONTWAIT, MSG_NOSIGNAL = 0x20, 0x40, 0x4000  #: TRUNC: bytes of TCP are dropped, not copied (tcp(7))
_HEAD = struct.Struct("<8i")


@dataclass(frozen=True, slots=True)
class Socket:
    """The answer to Work.SOCKET (format: kinds/base.py)."""

    domain: int
    type: int
    protocol: int
    listening: bool
    inq: int
    outq: int
    local: bytes  #: struct sockaddr; empty where there is none
    peer: bytes


@dataclass(frozen=True, slots=True)
class Message:
    """One of the answer to Work.PEEK."""

    data: bytes
    control: bool  #: it carries descriptors or other control data
    unreadable: bool  #: there is something, but a pending error forbids to look
    sender: bytes  #: struct sockaddr; empty where there is none


def is_socket(raw: RawDescriptor) -> bool:
    return raw.link.startswith("socket:[")


def parse_socket(raw: RawDescriptor) -> Socket | None:
    """None where C could not answer, and in the pre-flight, which asks C nothing."""
    data = raw.work.get(Work.SOCKET, b"")
    if len(data) < _HEAD.size:
        return None
    domain, kind, protocol, listening, inq, outq, local, peer = _HEAD.unpack_from(data)
    local, peer = max(local, 0), max(peer, 0)
    names = data[_HEAD.size :]
    return Socket(domain, kind, protocol, listening == 1, inq, outq, names[:local], names[local : local + peer])


def known(raw: RawDescriptor) -> Socket:
    """Raises Unsupported where C could not answer."""
    found = parse_socket(raw)
    if found is None:
        raise Unsupported("socket: nothing can be learnt of it")
    return found


def is_inet(found: Socket | None, kind: int, protocol: int) -> bool:
    inet = found is not None and found.domain in (socket.AF_INET, socket.AF_INET6)
    return inet and found is not None and found.type == kind and found.protocol in (0, protocol)


def inet_state(raw: RawDescriptor, found: Socket) -> State:
    """What the state of every internet socket begins with."""
    return {
        "dev": raw.dev,
        "ino": raw.ino,
        "cookie": option_data(raw, SO_COOKIE).hex(),
        "domain": found.domain,
        "local": address(found.local),
        "peer": address(found.peer),
        "bound": found.local.hex(),
        "options": options_of(raw),
    }


def address(name: bytes) -> str:
    """sockaddr -> "127.0.0.1:80", "[::1]:80", a path, "@abstract", or "" where there is none."""
    if len(name) < 2:
        return ""
    family = int.from_bytes(name[:2], "little")
    if family == socket.AF_INET and len(name) >= 8:
        return f"{socket.inet_ntop(socket.AF_INET, name[4:8])}:{int.from_bytes(name[2:4], 'big')}"
    if family == socket.AF_INET6 and len(name) >= 24:
        return f"[{socket.inet_ntop(socket.AF_INET6, name[8:24])}]:{int.from_bytes(name[2:4], 'big')}"
    if family == socket.AF_UNIX:
        path = name[2:]
        return "@" + os.fsdecode(path[1:]) if path[:1] == b"\0" else os.fsdecode(path.split(b"\0")[0])
    return ""


def port(name: bytes) -> int:
    return int.from_bytes(name[2:4], "big")


def options_of(raw: RawDescriptor) -> dict[str, str]:
    """Name -> hex, of those that this socket has and that say something."""
    found = {_TITLES[position]: data.hex() for position, data in raw.options.items() if position in _TITLES}
    for title in ("SO_SNDBUF", "SO_RCVBUF"):
        if title in found and not locked(title, found):  # tuned by the kernel
            del found[title]
    return found


def option_data(raw: RawDescriptor, option: SockOpt) -> bytes:
    return raw.options.get(OPTIONS.index(option), b"")


def messages(data: bytes) -> Sequence[Message]:
    """The answer to Work.PEEK."""
    found, offset = [], 0
    while offset + 12 <= len(data):
        length, flags, names = struct.unpack_from("<III", data, offset)
        start = offset + 12
        found.append(Message(data[start : start + length], bool(flags & 1), bool(flags & 2), data[start + length : start + length + names]))
        offset = start + length + names
    return found
