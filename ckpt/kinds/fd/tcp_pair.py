"""A TCP connection whose both ends are in the tree, made again: same addresses, same ports, unread bytes in order, both ways.

The kernel makes each end by itself (TCP_REPAIR): no packet is sent, no listener is needed, and the port may have a listener. Both ends
begin with sequence numbers of our choice, for no program sees them, and each is told the other's window, so that the first write does
not wait for a probe. Facts: net/ipv4/tcp.c, do_tcp_setsockopt.

1. Only what nobody can send or receive meanwhile is made so: the tree is frozen, and all that either end wrote is known.
2. Entering repair sets SO_REUSEADDR to 2, leaving it to 0: that option is put back last.
3. What lay unread, and behind it what was on its way (a full window), is sent by the other end, not put into the queue in repair:
   the counts of either end must agree with each other, or the next snapshot would take the connection for one with bytes under way.
4. Data and FIN are sent when both ends stand: otherwise nobody would answer them.
"""

from __future__ import annotations

import os
import socket
import struct
import zlib

from ckpt.kinds.base import Calls, CannotUndo, set_flags
from ckpt.kinds.fd import sockets as so
from ckpt.kinds.fd.sockopts import IPPROTO_TCP, SO_BUF_LOCK, SO_RCVBUFFORCE, SO_SNDBUFFORCE, SOL_SOCKET, set_options
from ckpt.kinds.groups import Made
from ckpt.model import OpenFile, RemoteArg, State

CAP_NET_ADMIN = 12
# include/uapi/linux/tcp.h
_TCP_MAXSEG, _REPAIR, _REPAIR_QUEUE, _QUEUE_SEQ, _REPAIR_OPTIONS, _REPAIR_WINDOW = 2, 19, 20, 21, 22, 29
_ON, _OFF_NO_PROBE = 1, -1
_NO_QUEUE, _RECEIVE, _SEND = 0, 1, 2
_OPT_WSCALE, _OPT_SACK, _OPT_TIMESTAMP = 3, 4, 8  #: TCPOPT_*
_HAS_TIMESTAMPS, _HAS_SACK, _HAS_WSCALE = 1, 2, 4  #: TCPI_OPT_*
_HEADERS = {socket.AF_INET: 40, socket.AF_INET6: 60}  #: bytes of IP and TCP header without options
_WINDOW = 65535
_PIECE = 8192
_ROOMY = 16 * 1024  #: unread bytes that the buffers of a fresh socket take in any case
_BUFFERS = ("SO_SNDBUF", "SO_RCVBUF", "SO_BUF_LOCK")
#: Which end has shut its writing side down. In FIN_WAIT1 the end of its stream waits behind bytes that have found no room, or has come
#: and is not acknowledged yet. Where both have shut down, and bytes wait, nothing is made: they would find room, and the connection be
#: at its end before its time.
_SHUT = {
    ("ESTABLISHED", "ESTABLISHED"): None,
    ("FIN_WAIT2", "CLOSE_WAIT"): 0,
    ("CLOSE_WAIT", "FIN_WAIT2"): 1,
    ("FIN_WAIT1", "CLOSE_WAIT"): 0,
    ("CLOSE_WAIT", "FIN_WAIT1"): 1,
    ("FIN_WAIT1", "ESTABLISHED"): 0,
    ("ESTABLISHED", "FIN_WAIT1"): 1,
}


def can_be_made(first: OpenFile, second: OpenFile) -> bool:
    return (first.state["state"], second.state["state"]) in _SHUT


def made(first: OpenFile, second: OpenFile) -> Made:
    """Results 0 and 1 of the sequence's list are the two ends."""
    ends = (first, second)
    if not can_be_made(first, second):
        raise CannotUndo(f"tcp connection between {first.state['state']} and {second.state['state']}: not supported")
    shut = _SHUT[first.state["state"], second.state["state"]]
    calls = Calls()
    sockets = [_end(calls, one, other) for one, other in (ends, ends[::-1])]
    for made_one in sockets:
        _option(calls, made_one, _REPAIR, _OFF_NO_PROBE, "leave repair")
    unread = [bytes.fromhex(end.state["unread"] + end.state.get("coming", "")) for end in ends]
    for index, data in enumerate(unread):
        for at in range(0, len(data), _PIECE):
            part = data[at : at + _PIECE]
            flags = so.MSG_DONTWAIT | so.MSG_NOSIGNAL
            calls.add("sendto", sockets[1 - index], part, len(part), flags, 0, 0, note=f"{len(part)} unread bytes", expect=len(part))
    if shut is not None:
        calls.add("shutdown", sockets[shut], socket.SHUT_WR, note="shut its writing side down")
    for end, made_one in zip(ends, sockets, strict=True):
        _settle(calls, made_one, end, roomy=max(map(len, unread)) > _ROOMY)
    return Made(tuple(calls.list), (sockets[0].value, sockets[1].value), CAP_NET_ADMIN)


def waiting(calls: Calls, client: OpenFile) -> int:
    """A connection that its listener, made before, has not accepted yet: by a real connect. The index of its result."""
    state = client.state
    bound, far = bytes.fromhex(state["bound"]), bytes.fromhex(state["far"])
    fd = calls.add("socket", state["domain"], socket.SOCK_STREAM, IPPROTO_TCP, note=f"socket for {state['local']} to {state['peer']}")
    calls.extend(set_options(fd, {}, state["options"]))
    one = struct.pack("<i", 1)
    calls.add("setsockopt", fd, *so.REUSE, one, 4, note="setsockopt SO_REUSEADDR")
    name = bound[:8] + bytes(20) if _any(state, bound) else bound
    calls.add("bind", fd, name, len(name), note=f"bind {state['local']}")
    calls.add("connect", fd, far, len(far), note=f"connect to {state['peer']}, not accepted yet")
    _settle(calls, fd, client, roomy=False)
    return fd.value


def _end(calls: Calls, end: OpenFile, twin: OpenFile) -> RemoteArg:
    """One end, connected, still in repair."""
    state = end.state
    bound, far = bytes.fromhex(state["bound"]), bytes.fromhex(state["far"])
    received, sent = _sequence(twin), _sequence(end)
    fd = calls.add("socket", state["domain"], socket.SOCK_STREAM, IPPROTO_TCP, note=f"socket for {state['local']} to {state['peer']}")
    calls.extend(set_options(fd, {}, state["options"], without=("SO_REUSEADDR", *_BUFFERS)))
    most = max(len(state["unread"] + state.get("coming", "")), len(state["away"] + state.get("sending", ""))) // 2
    if most > _ROOMY:
        for option in (SO_SNDBUFFORCE, SO_RCVBUFFORCE):
            calls.add("setsockopt", fd, SOL_SOCKET, option, struct.pack("<i", 2 * most), 4, note="room for what is unread")
    _option(calls, fd, _REPAIR, _ON, "enter repair")
    for queue, number in ((_RECEIVE, received), (_SEND, sent)):
        _option(calls, fd, _REPAIR_QUEUE, queue, "choose a queue")
        _option(calls, fd, _QUEUE_SEQ, number, "its sequence number")
    _option(calls, fd, _REPAIR_QUEUE, _NO_QUEUE, "no queue")
    name = bound[:8] + bytes(20) if _any(state, bound) else bound
    calls.add("bind", fd, name, len(name), note=f"bind {state['local']}")
    calls.add("connect", fd, far, len(far), note=f"connect to {state['peer']}")
    options = _wire(state["wire"], _HEADERS[state["domain"]])
    calls.add("setsockopt", fd, IPPROTO_TCP, _REPAIR_OPTIONS, options, len(options), note="what was agreed on")
    size = max(_WINDOW, 2 * most)
    window = struct.pack("<5I", received - 1, size, size, size, received)
    calls.add("setsockopt", fd, IPPROTO_TCP, _REPAIR_WINDOW, window, len(window), note="the windows")
    return fd


def _any(state: State, bound: bytes) -> bool:
    """Bound to an IPv6 address a socket becomes IPV6_V6ONLY; one that was not was bound by connect, which finds the same address."""
    mapped = bound[8:20] == bytes(10) + b"\xff\xff"
    return bool(state["domain"] == socket.AF_INET6 and not mapped and not any(bytes.fromhex(state["options"].get("IPV6_V6ONLY", "01"))))


def _settle(calls: Calls, fd: RemoteArg, end: OpenFile, *, roomy: bool) -> None:
    """What was different for the making only."""
    options = end.state["options"]
    if roomy:
        calls.add("setsockopt", fd, SOL_SOCKET, SO_BUF_LOCK, bytes(4), 4, note="the sizes of the buffers are the kernel's again")
    calls.extend(set_options(fd, {}, {title: options[title] for title in _BUFFERS if title in options}))
    reuse = bytes.fromhex(options.get("SO_REUSEADDR", "00000000"))
    calls.add("setsockopt", fd, *so.REUSE, reuse, len(reuse), note="setsockopt SO_REUSEADDR")
    calls.extend(set_flags(fd, 0, end.flags & os.O_NONBLOCK))


def _sequence(end: OpenFile) -> int:
    """The number of the next byte that this end sends; half of all numbers lie above it."""
    return 0x1000_0000 | zlib.crc32(f"{end.state['bound']} {end.state['far']}".encode()) & 0x3FFF_FFFF


def _wire(agreed: list[int], headers: int) -> bytes:
    """struct tcp_repair_opt[]."""
    has, to_send, to_receive, mtu = agreed
    found = [(_TCP_MAXSEG, mtu - headers)]
    if has & _HAS_WSCALE:
        found.append((_OPT_WSCALE, to_send | to_receive << 16))
    if has & _HAS_SACK:
        found.append((_OPT_SACK, 0))
    if has & _HAS_TIMESTAMPS:
        found.append((_OPT_TIMESTAMP, 0))
    return b"".join(struct.pack("<II", *item) for item in found)


def _option(calls: Calls, fd: RemoteArg, option: int, number: int, note: str) -> None:
    data = struct.pack("<I", number & 0xFFFF_FFFF)
    calls.add("setsockopt", fd, IPPROTO_TCP, option, data, 4, note=note)
