"""What the kinds of socket share: one row of wants, the decoded answers, and options. No kind by itself.

C cannot tell a TCP socket from any other by its link, so all socket kinds ask for the same work and take what is theirs.
"""

from __future__ import annotations

import os
import socket
import stat
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from ckpt.kinds.base import RawDescriptor, SockOpt, Unsupported, Wants, Work, call
from ckpt.model import RemoteArg, RemoteCall, State
from ckpt.syscalls.names import nr

SOL_SOCKET, IPPROTO_TCP = 1, 6
SO_REUSEADDR = (SOL_SOCKET, 2)
#: Options that a program sets and a rollback puts back: level, name, size -> what people call it.
SETTABLE: dict[tuple[int, int, int], str] = {
    (SOL_SOCKET, 2, 4): "SO_REUSEADDR",
    (SOL_SOCKET, 9, 4): "SO_KEEPALIVE",
    (SOL_SOCKET, 10, 4): "SO_OOBINLINE",
    (SOL_SOCKET, 13, 8): "SO_LINGER",
    (SOL_SOCKET, 15, 4): "SO_REUSEPORT",
    (SOL_SOCKET, 18, 4): "SO_RCVLOWAT",
    (SOL_SOCKET, 20, 16): "SO_RCVTIMEO",
    (SOL_SOCKET, 21, 16): "SO_SNDTIMEO",
    (IPPROTO_TCP, 1, 4): "TCP_NODELAY",
    (IPPROTO_TCP, 3, 4): "TCP_CORK",
    (IPPROTO_TCP, 4, 4): "TCP_KEEPIDLE",
    (IPPROTO_TCP, 5, 4): "TCP_KEEPINTVL",
    (IPPROTO_TCP, 6, 4): "TCP_KEEPCNT",
    (IPPROTO_TCP, 18, 4): "TCP_USER_TIMEOUT",
    (41, 26, 4): "IPV6_V6ONLY",
}
SO_COOKIE, TCP_INFO = SockOpt(SOL_SOCKET, 57, 8), SockOpt(IPPROTO_TCP, 11, 240)
OPTIONS = (SO_COOKIE, TCP_INFO, *(SockOpt(*key) for key in SETTABLE))
WANTS = (Wants(prefix="socket:[", format=stat.S_IFSOCK, work=Work.SOCKET | Work.PEEK | Work.UNIX_DIAG, options=OPTIONS),)

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
    """Name -> hex, of those that this socket has."""
    found = {}
    for position, option in enumerate(OPTIONS):
        title = SETTABLE.get((option.level, option.name, option.size))
        if title and position in raw.options:
            found[title] = raw.options[position].hex()
    return found


def set_options(fd: int | RemoteArg, now: State, wanted: State) -> list[RemoteCall]:
    """setsockopt for each option that differs."""
    calls = []
    for (level, option, _), title in SETTABLE.items():
        want = wanted.get(title)
        if want is not None and now.get(title) != want:
            data = bytes.fromhex(want)
            calls.append(call(nr("setsockopt"), fd, level, option, data, len(data), note=f"setsockopt {title}"))
    return calls


def option_data(raw: RawDescriptor, option: SockOpt) -> bytes:
    return raw.options.get(OPTIONS.index(option), b"")


def messages(data: bytes) -> Sequence[tuple[int, bytes]]:
    """The answer to Work.PEEK: (flags, bytes) each."""
    found, offset = [], 0
    while offset + 8 <= len(data):
        length, flags = struct.unpack_from("<II", data, offset)
        found.append((flags, data[offset + 8 : offset + 8 + length]))
        offset += 8 + length
    return found
