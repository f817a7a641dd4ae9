"""UDP sockets: names, options, and for one that is made again the datagrams that lay unread.

Datagrams may get lost at any time, so in place those that came or went since are left as they are; but where two sockets of the tree
are connected to each other, a rollback makes both queues what they were: who sent sends again, who receives drops what is stale.
Made again, a socket gets its datagrams once more, in order and from the same addresses: by the socket of the tree that sent them, else
by one for the moment (IP_FREEBIND lets it have an address that is not ours). They arrive before the socket is connected: a connected
one takes from its peer only.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from ckpt.kinds.base import Calls, CannotUndo, RawDescriptor, Unsupported, Work, call, same, set_flags, value
from ckpt.kinds.fd import multicast
from ckpt.kinds.fd import sockets as so
from ckpt.kinds.fd.sockopts import IPPROTO_IP, IPPROTO_UDP, set_options
from ckpt.kinds.groups import Kept, Made
from ckpt.model import OpenFile, RemoteArg, RemoteCall, State
from ckpt.procfs import parse_fdinfo
from ckpt.syscalls.names import nr

_IP_FREEBIND = 15
_MAPPED = bytes(10) + b"\xff\xff"  #: ::ffff:a.b.c.d
_LOOPBACK = {4: socket.inet_aton("127.0.0.1"), 16: bytes(15) + b"\1"}


class Udp:
    name = "udp"
    order = 31
    wants = so.WANTS

    def recognises(self, raw: RawDescriptor) -> bool:
        return so.is_socket(raw) and so.is_inet(so.parse_socket(raw), socket.SOCK_DGRAM, IPPROTO_UDP)

    def parse(self, raw: RawDescriptor) -> OpenFile:
        found = so.known(raw)
        state = {**so.inet_state(raw, found), "connected": found.peer.hex()}
        if int(state["options"].get("UDP_CORK", "00")[:2], 16):
            raise Unsupported("udp socket that holds a datagram back (UDP_CORK): not supported")
        if queue := [message for message in so.messages(raw.work.get(Work.PEEK, b"")) if not message.unreadable]:
            state["queue"] = [[message.sender.hex(), message.data.hex()] for message in queue]
        if groups := multicast.parse(raw.work.get(Work.GROUPS, b"")):
            state["groups"] = groups
        return OpenFile(raw.file, self.name, parse_fdinfo(raw.fdinfo).open_flags, 0, state)

    def adjust(self, fd: int, now: OpenFile, wanted: OpenFile) -> Sequence[RemoteCall]:
        if any(now.state[key] != wanted.state[key] for key in ("cookie", "bound", "connected")):
            raise CannotUndo("udp socket: its names have changed")
        calls = [*set_options(fd, now.state["options"], wanted.state["options"]), *set_flags(fd, now.flags, wanted.flags)]
        calls += multicast.change(fd, now.state.get("groups", ()), wanted.state.get("groups", ()))
        return [*_requeue(fd, now.state, wanted.state), *calls] if "away" in now.state and "away" in wanted.state else calls

    def with_others(self, files: Sequence[OpenFile]) -> Sequence[OpenFile]:
        """One of two that are connected to each other learns what lies unread at the other (`away`)."""
        ends = {(file.state["bound"], file.state["connected"]): file for file in files if file.state["connected"]}

        def one(file: OpenFile) -> OpenFile:
            twin = ends.get((file.state["connected"], file.state["bound"]))
            if twin is None or twin is file or any(sender != file.state["bound"] for sender, _ in twin.state.get("queue", ())):
                return file
            return replace(file, state={**file.state, "away": [data for _, data in twin.state.get("queue", ())]})

        return [one(file) for file in files]

    def recreate(self, wanted: OpenFile) -> Sequence[RemoteCall]:
        made = self.recreate_group([wanted], {})
        return [*made.calls, same(made.results[0])]

    def links(self, files: Sequence[OpenFile]) -> Iterable[tuple[int, int]]:
        """A socket and those of the tree who sent what lies unread in it."""
        for file in files:
            for sender, _ in file.state.get("queue", ()):
                found = _owner(bytes.fromhex(sender), files)
                if found is not None and found is not file:
                    yield file.id, found.id

    def together(self, members: Sequence[OpenFile]) -> Iterable[tuple[int, int]]:
        return ()

    def stays(self, member: OpenFile) -> bool:
        return True

    def quiet(self, file: OpenFile) -> OpenFile:
        """Without its queue: where a sender is gone, what came and went is left as it is."""
        return replace(file, state={key: value for key, value in file.state.items() if key not in ("queue", "away")})

    def recreate_group(self, members: Sequence[OpenFile], kept: Mapping[int, Kept], *, root: bool = False) -> Made:
        calls, at = Calls(), {identity: value(one.fd) for identity, one in kept.items()}
        gone = [member for member in members if member.id not in kept]
        for member in gone:
            at[member.id] = _bound(calls, member.state)
        for member in gone:
            for sender, data in member.state.get("queue", ()):
                owner = _owner(bytes.fromhex(sender), members)
                _deliver(calls, member.state, bytes.fromhex(sender), bytes.fromhex(data), at[owner.id] if owner else None)
        for member in gone:
            peer = bytes.fromhex(member.state["connected"])
            if peer and so.port(peer):
                calls.add("connect", at[member.id], peer, len(peer), note=f"connect to {so.address(peer)}")
            calls.extend(set_flags(at[member.id], 0, member.flags & os.O_NONBLOCK))
        return Made(tuple(calls.list), tuple(-1 if member.id in kept else at[member.id].value for member in members))


def _requeue(fd: int, here: State, there: State) -> list[RemoteCall]:
    """This end's part of both directions."""
    calls: list[RemoteCall] = []
    if here["away"] != there["away"]:
        for data in map(bytes.fromhex, there["away"]):
            note, flags = f"send {len(data)} bytes again to {there['peer']}", so.MSG_DONTWAIT | so.MSG_NOSIGNAL
            calls.append(call(nr("sendto"), fd, data, len(data), flags, 0, 0, note=note, expect=None))
    if here.get("queue") != there.get("queue"):  # a read of nothing takes a datagram away
        drop = call(nr("recvfrom"), fd, bytes(8), 0, so.MSG_DONTWAIT, 0, 0, note=f"drop a datagram from {there['peer']}", expect=None)
        calls += [drop] * len(here.get("queue", ()))
    return calls


def _bound(calls: Calls, state: State) -> RemoteArg:
    fd = calls.add("socket", state["domain"], socket.SOCK_DGRAM, IPPROTO_UDP, note=f"socket for {state['local'] or 'udp'}")
    calls.extend(set_options(fd, {}, state["options"]))
    name = bytes.fromhex(state["bound"])
    if name and so.port(name):
        calls.add("bind", fd, name, len(name), note=f"bind {so.address(name)}")
    calls.extend(multicast.change(fd, (), state.get("groups", ())))
    return fd


def _deliver(calls: Calls, state: State, sender: bytes, data: bytes, owner: RemoteArg | None) -> None:
    own = owner
    if own is None:
        domain = int.from_bytes(sender[:2], "little")
        own = calls.add("socket", domain, socket.SOCK_DGRAM, IPPROTO_UDP, note="a sender for a moment")
        one = struct.pack("<i", 1)
        for level, option in (so.REUSE, (IPPROTO_IP, _IP_FREEBIND)):
            calls.add("setsockopt", own, level, option, one, 4, note="it may have any address", expect=None)
        calls.add("bind", own, sender, len(sender), note=f"bind {so.address(sender)}")
    to = _target(bytes.fromhex(state["bound"]), sender)
    calls.add("sendto", own, data, len(data), so.MSG_DONTWAIT | so.MSG_NOSIGNAL, to, len(to), note="queued datagram", expect=len(data))
    if owner is None:
        calls.add("close", own, note="close that sender")


def _address(name: bytes) -> bytes:
    """4 or 16 bytes; an IPv4 address in IPv6's form is one."""
    raw = name[4:8] if int.from_bytes(name[:2], "little") == socket.AF_INET else name[8:24]
    return raw[12:] if raw[:12] == _MAPPED else raw


def _owner(sender: bytes, files: Sequence[OpenFile]) -> OpenFile | None:
    """The socket that has this address."""
    for file in files:
        name = bytes.fromhex(file.state["bound"])
        if name and so.port(name) == so.port(sender) and (not any(_address(name)) or _address(name) == _address(sender)):
            return file
    return None


def _target(bound: bytes, sender: bytes) -> bytes:
    """Where a datagram reaches the socket that is bound so, in the sender's family."""
    family = int.from_bytes(sender[:2], "little")
    address = _address(bound)
    if not any(address):
        address = _LOOPBACK[len(_address(sender))]
    if family == socket.AF_INET:
        return sender[:2] + bound[2:4] + address + bytes(8)
    return sender[:2] + bound[2:4] + bytes(4) + (_MAPPED + address if len(address) == 4 else address) + bytes(4)


KIND = Udp()
