"""Socket options that a program sets and that are put back: one table, and the calls.

A state names those that are not zero. A fresh socket gets those that it does not have by itself: an option whose wanted value is its
usual default is not set, for some want a right even to be set to what they are (SO_MARK). Buffer sizes are put back where the program has
chosen them (SO_BUF_LOCK says so); elsewhere the kernel tunes them and they say nothing.
"""

from __future__ import annotations

import socket
import struct

from ckpt.kinds.base import call
from ckpt.model import RemoteArg, RemoteCall, State
from ckpt.syscalls.names import nr

IPPROTO_IP, SOL_SOCKET, IPPROTO_TCP, IPPROTO_UDP, IPPROTO_IPV6, SOL_NETLINK = 0, 1, 6, 17, 41, 270
SO_SNDBUF, SO_RCVBUF, SO_BUF_LOCK, SO_SNDBUFFORCE, SO_RCVBUFFORCE = 7, 8, 72, 32, 33
#: level, name, size -> what people call it
SETTABLE: dict[tuple[int, int, int], str] = {
    (SOL_SOCKET, 2, 4): "SO_REUSEADDR",
    (SOL_SOCKET, 5, 4): "SO_DONTROUTE",
    (SOL_SOCKET, 6, 4): "SO_BROADCAST",
    (SOL_SOCKET, SO_SNDBUF, 4): "SO_SNDBUF",
    (SOL_SOCKET, SO_RCVBUF, 4): "SO_RCVBUF",
    (SOL_SOCKET, SO_BUF_LOCK, 4): "SO_BUF_LOCK",
    (SOL_SOCKET, 9, 4): "SO_KEEPALIVE",
    (SOL_SOCKET, 10, 4): "SO_OOBINLINE",
    (SOL_SOCKET, 13, 8): "SO_LINGER",
    (SOL_SOCKET, 15, 4): "SO_REUSEPORT",
    (SOL_SOCKET, 16, 4): "SO_PASSCRED",
    (SOL_SOCKET, 18, 4): "SO_RCVLOWAT",
    (SOL_SOCKET, 20, 16): "SO_RCVTIMEO",
    (SOL_SOCKET, 21, 16): "SO_SNDTIMEO",
    (SOL_SOCKET, 25, 16): "SO_BINDTODEVICE",
    (SOL_SOCKET, 29, 4): "SO_TIMESTAMP",
    (SOL_SOCKET, 35, 4): "SO_TIMESTAMPNS",
    (SOL_SOCKET, 36, 4): "SO_MARK",
    (SOL_SOCKET, 40, 4): "SO_RXQ_OVFL",
    (SOL_SOCKET, 42, 4): "SO_PEEK_OFF",
    (SOL_SOCKET, 46, 4): "SO_BUSY_POLL",
    (SOL_SOCKET, 60, 4): "SO_ZEROCOPY",
    (SOL_SOCKET, 76, 4): "SO_PASSPIDFD",
    (IPPROTO_TCP, 1, 4): "TCP_NODELAY",
    (IPPROTO_TCP, 3, 4): "TCP_CORK",
    (IPPROTO_TCP, 4, 4): "TCP_KEEPIDLE",
    (IPPROTO_TCP, 5, 4): "TCP_KEEPINTVL",
    (IPPROTO_TCP, 6, 4): "TCP_KEEPCNT",
    (IPPROTO_TCP, 7, 4): "TCP_SYNCNT",
    (IPPROTO_TCP, 8, 4): "TCP_LINGER2",
    (IPPROTO_TCP, 9, 4): "TCP_DEFER_ACCEPT",
    (IPPROTO_TCP, 13, 16): "TCP_CONGESTION",
    (IPPROTO_TCP, 18, 4): "TCP_USER_TIMEOUT",
    (IPPROTO_TCP, 23, 4): "TCP_FASTOPEN",
    (IPPROTO_TCP, 25, 4): "TCP_NOTSENT_LOWAT",
    (IPPROTO_UDP, 1, 4): "UDP_CORK",
    (IPPROTO_UDP, 103, 4): "UDP_SEGMENT",
    (IPPROTO_UDP, 104, 4): "UDP_GRO",
    (IPPROTO_IP, 1, 4): "IP_TOS",
    (IPPROTO_IP, 2, 4): "IP_TTL",
    (IPPROTO_IP, 8, 4): "IP_PKTINFO",
    (IPPROTO_IP, 10, 4): "IP_MTU_DISCOVER",
    (IPPROTO_IP, 11, 4): "IP_RECVERR",
    (IPPROTO_IP, 12, 4): "IP_RECVTTL",
    (IPPROTO_IP, 13, 4): "IP_RECVTOS",
    (IPPROTO_IP, 15, 4): "IP_FREEBIND",
    (IPPROTO_IP, 19, 4): "IP_TRANSPARENT",
    (IPPROTO_IP, 20, 4): "IP_RECVORIGDSTADDR",
    (IPPROTO_IP, 24, 4): "IP_BIND_ADDRESS_NO_PORT",
    (IPPROTO_IP, 32, 4): "IP_MULTICAST_IF",
    (IPPROTO_IP, 33, 4): "IP_MULTICAST_TTL",
    (IPPROTO_IP, 34, 4): "IP_MULTICAST_LOOP",
    (IPPROTO_IPV6, 16, 4): "IPV6_UNICAST_HOPS",
    (IPPROTO_IPV6, 17, 4): "IPV6_MULTICAST_IF",
    (IPPROTO_IPV6, 18, 4): "IPV6_MULTICAST_HOPS",
    (IPPROTO_IPV6, 19, 4): "IPV6_MULTICAST_LOOP",
    (IPPROTO_IPV6, 23, 4): "IPV6_MTU_DISCOVER",
    (IPPROTO_IPV6, 25, 4): "IPV6_RECVERR",
    (IPPROTO_IPV6, 26, 4): "IPV6_V6ONLY",
    (IPPROTO_IPV6, 49, 4): "IPV6_RECVPKTINFO",
    (IPPROTO_IPV6, 51, 4): "IPV6_RECVHOPLIMIT",
    (IPPROTO_IPV6, 66, 4): "IPV6_RECVTCLASS",
    (IPPROTO_IPV6, 67, 4): "IPV6_TCLASS",
    (SOL_NETLINK, 3, 4): "NETLINK_PKTINFO",
    (SOL_NETLINK, 4, 4): "NETLINK_BROADCAST_ERROR",
    (SOL_NETLINK, 5, 4): "NETLINK_NO_ENOBUFS",
    (SOL_NETLINK, 8, 4): "NETLINK_LISTEN_ALL_NSID",
    (SOL_NETLINK, 10, 4): "NETLINK_CAP_ACK",
    (SOL_NETLINK, 11, 4): "NETLINK_EXT_ACK",
    (SOL_NETLINK, 12, 4): "NETLINK_GET_STRICT_CHK",
    (SOL_SOCKET, 12, 4): "SO_PRIORITY",  # behind IP_TOS, which sets it
}
#: Usual values that are not zero and that need not, or may not, be set on a fresh socket.
_USUAL = {"SO_PEEK_OFF": "ffffffff", "IP_TTL": "40000000", "IPV6_UNICAST_HOPS": "40000000", "SO_RCVLOWAT": "01000000",
          "IP_MULTICAST_TTL": "01000000", "IP_MULTICAST_LOOP": "01000000", "IPV6_MULTICAST_HOPS": "01000000",
          "IPV6_MULTICAST_LOOP": "01000000"}  # fmt: skip
_BUFFERS = {"SO_SNDBUF": 1, "SO_RCVBUF": 2}  #: bits of SO_BUF_LOCK
_AS_TEXT = ("SO_BINDTODEVICE", "TCP_CONGESTION")
_ALWAYS = ("IPV6_V6ONLY",)  #: its default is the administrator's


#: Where an option says something: (family, type), 0 = any.
_OF_DATAGRAMS = ("MULTICAST", "PKTINFO", "IP_RECV", "IPV6_RECV", "SO_RXQ", "SO_BROADCAST", "RECVERR")


def where(title: str) -> tuple[int, int]:
    if title.startswith("SO_PASS"):
        return socket.AF_UNIX, 0
    return 0, socket.SOCK_DGRAM if any(word in title for word in _OF_DATAGRAMS) else 0


def _kept(title: str, now: State, wanted: State) -> bool:
    """Nothing has to be done about this one."""
    if title not in now and title not in wanted:
        return True
    zeros = "0" * len(now.get(title) or wanted[title])
    here, want = now.get(title, zeros), wanted.get(title, zeros)
    if here == want:
        return bool(now) or title not in _ALWAYS
    if title in _BUFFERS:
        return not locked(title, wanted)
    if title == "SO_BUF_LOCK":
        return title not in now  # setting a size has locked it
    return not now and want == _USUAL.get(title)


def locked(title: str, options: State) -> bool:
    """Whether the program has chosen the size of this buffer."""
    return bool(int.from_bytes(bytes.fromhex(options.get("SO_BUF_LOCK", "00")), "little") & _BUFFERS[title])


def set_options(fd: int | RemoteArg, now: State, wanted: State, *, without: tuple[str, ...] = ()) -> list[RemoteCall]:
    """setsockopt for each option that differs; `now` empty: a fresh socket."""
    calls = []
    for (level, option, _), title in SETTABLE.items():
        if title in without or _kept(title, now, wanted):
            continue
        data = bytes.fromhex(wanted.get(title) or "0" * len(now[title]))
        if title in _BUFFERS:  # the kernel doubles what it is told
            data = struct.pack("<i", int.from_bytes(data, "little") // 2)
        if title in _AS_TEXT:
            data = data.split(b"\0")[0] + b"\0"
        calls.append(call(nr("setsockopt"), fd, level, option, data, len(data), note=f"setsockopt {title}"))
    return calls
