"""Netlink sockets of the families that keep nothing for a socket but its name and its groups: routes, diagnostics, device events,
generic. Made again, one has the same port number and the same groups; messages that lay unread cannot be read without taking them
away, so a socket with any is not made again.

A rollback in place takes away the answers to questions that the program has not asked yet, and refuses where one that lay unread
has been read. Of a socket with groups what lies unread are events of the machine, which nobody takes back: they stay.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Sequence

from ckpt.kinds.base import Calls, CannotUndo, RawDescriptor, Unsupported, call, same, set_flags
from ckpt.kinds.fd import sockets as so
from ckpt.kinds.fd.sockopts import SOL_NETLINK, set_options
from ckpt.model import OpenFile, RemoteCall
from ckpt.procfs import parse_fdinfo
from ckpt.syscalls.names import nr

_FAMILIES = {0: "route", 4: "diagnostics", 15: "device events", 16: "generic"}
_NETLINK_ADD_MEMBERSHIP = 1
_LEAST, _MOST = 512, 256  #: what a message takes of `waiting` at least (sk_buff and its shared info); messages taken away
_NAME = struct.Struct("<HHII")  #: struct sockaddr_nl: family, pad, port, groups


class Netlink:
    name = "netlink"
    order = 33
    wants = so.WANTS

    def recognises(self, raw: RawDescriptor) -> bool:
        found = so.parse_socket(raw)
        return so.is_socket(raw) and found is not None and found.domain == socket.AF_NETLINK

    def parse(self, raw: RawDescriptor) -> OpenFile:
        info, found = parse_fdinfo(raw.fdinfo), so.parse_socket(raw)
        if found is None or len(found.local) != _NAME.size:
            raise Unsupported("socket: nothing can be learnt of it")
        if found.protocol not in _FAMILIES:
            raise Unsupported(f"netlink socket of family {found.protocol}: not supported")
        groups = so.option_data(raw, so.NETLINK_GROUPS)
        state = {
            "dev": raw.dev,
            "ino": raw.ino,
            "cookie": so.option_data(raw, so.SO_COOKIE).hex(),
            "domain": found.domain,
            "type": found.type,
            "protocol": found.protocol,
            "port": _NAME.unpack(found.local)[2],
            "groups": [bit + 1 for bit in range(8 * len(groups)) if groups[bit // 8] >> bit % 8 & 1],
            "to": found.peer.hex() if any(found.peer[2:]) else "",
            "options": so.options_of(raw),
        }
        if waiting := int.from_bytes(so.option_data(raw, so.SO_MEMINFO)[:4], "little"):
            state["waiting"] = waiting
        return OpenFile(raw.file, self.name, info.open_flags, 0, state)

    def adjust(self, fd: int, now: OpenFile, wanted: OpenFile) -> Sequence[RemoteCall]:
        if any(now.state[key] != wanted.state[key] for key in ("cookie", "port", "groups", "to")):
            raise CannotUndo("netlink socket: its name or its groups have changed")
        here, there = now.state.get("waiting", 0), wanted.state.get("waiting", 0)
        if here < there:
            raise CannotUndo("netlink socket: messages that lay unread in it have been read")
        stale = [] if there or now.state["groups"] else _taken_away(fd, here)
        return [*stale, *set_options(fd, now.state["options"], wanted.state["options"]), *set_flags(fd, now.flags, wanted.flags)]

    def recreate(self, wanted: OpenFile) -> Sequence[RemoteCall]:
        state = wanted.state
        title = f"netlink socket ({_FAMILIES[state['protocol']]})"
        if "waiting" in state:
            raise CannotUndo(f"{title}: messages that lay unread in it cannot be made again")
        calls = Calls()
        fd = calls.add("socket", socket.AF_NETLINK, state["type"], state["protocol"], note=title)
        calls.extend(set_options(fd, {}, state["options"]))
        if state["port"]:
            name = _NAME.pack(socket.AF_NETLINK, 0, state["port"], 0)
            calls.add("bind", fd, name, len(name), note=f"bind port {state['port']}")
        for group in state["groups"]:
            calls.add("setsockopt", fd, SOL_NETLINK, _NETLINK_ADD_MEMBERSHIP, struct.pack("<i", group), 4, note=f"join group {group}")
        if state["to"]:
            calls.add("connect", fd, bytes.fromhex(state["to"]), _NAME.size, note="connect")
        return [*calls.list, *set_flags(fd, 0, wanted.flags & os.O_NONBLOCK), same(fd.value)]


def _taken_away(fd: int, waiting: int) -> list[RemoteCall]:
    """As many calls as there may be messages; the last ones find none."""
    count = min(-(-waiting // _LEAST), _MOST)
    flags = so.MSG_DONTWAIT | so.MSG_TRUNC
    return [call(nr("recvfrom"), fd, 0, 0, flags, 0, 0, note="take a stale answer away", expect=None) for _ in range(count)]


def has_unread(file: OpenFile) -> bool:
    return file.kind == KIND.name and "waiting" in file.state


KIND = Netlink()
