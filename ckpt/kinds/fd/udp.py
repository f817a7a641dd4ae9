"""UDP sockets: names and options. Datagrams may get lost at any time, so those that came or went since are left as they are."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence

from ckpt.kinds.base import CannotUndo, RawDescriptor, call, result, same, set_flags
from ckpt.kinds.fd import sockets as so
from ckpt.model import OpenFile, RemoteCall
from ckpt.procfs import parse_fdinfo
from ckpt.syscalls.names import nr

_IPPROTO_UDP = 17


class Udp:
    name = "udp"
    order = 31
    wants = so.WANTS

    def recognises(self, raw: RawDescriptor) -> bool:
        return so.is_socket(raw) and so.is_inet(so.parse_socket(raw), socket.SOCK_DGRAM, _IPPROTO_UDP)

    def parse(self, raw: RawDescriptor) -> OpenFile:
        found = so.known(raw)
        state = {**so.inet_state(raw, found), "connected": found.peer.hex()}
        return OpenFile(raw.file, self.name, parse_fdinfo(raw.fdinfo).open_flags, 0, state)

    def adjust(self, fd: int, now: OpenFile, wanted: OpenFile) -> Sequence[RemoteCall]:
        if any(now.state[key] != wanted.state[key] for key in ("cookie", "bound", "connected")):
            raise CannotUndo("udp socket: its names have changed")
        return [*so.set_options(fd, now.state["options"], wanted.state["options"]), *set_flags(fd, now.flags, wanted.flags)]

    def recreate(self, wanted: OpenFile) -> Sequence[RemoteCall]:
        state = wanted.state
        kind = socket.SOCK_DGRAM | wanted.flags & os.O_NONBLOCK
        calls = [call(nr("socket"), state["domain"], kind, _IPPROTO_UDP, note=f"socket for {state['local'] or 'udp'}")]
        calls += so.set_options(result(0), {}, state["options"])
        for name, key in (("bind", "bound"), ("connect", "connected")):
            data = bytes.fromhex(state[key])
            if data and so.port(data):
                calls.append(call(nr(name), result(0), data, len(data), note=f"{name} {so.address(data)}"))
        return [*calls, same(0)]


KIND = Udp()
