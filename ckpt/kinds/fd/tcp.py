"""TCP sockets: listening, connected, or neither; their state as far as a rollback in place needs it.

A connection whose stream has not moved since can be kept: the program has read (`consumed`) and written (`written`) exactly
as many bytes as then. What the peer sent meanwhile and lies unread is no matter, the program has not seen it. Otherwise the
bytes cannot be taken back (`Moved`): the plan puts a dead socket in its place, or keeps it, as its user wishes.

    consumed = tcpi_bytes_received (a FIN counts as one) - what lies unread
    written  = tcpi_bytes_sent - tcpi_bytes_retrans + tcpi_notsent_bytes
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from ckpt.kinds.base import CannotUndo, Moved, RawDescriptor, Unsupported, call, result, same, set_flags
from ckpt.kinds.fd import sockets as so
from ckpt.model import OpenFile, RemoteCall, State
from ckpt.procfs import parse_fdinfo
from ckpt.syscalls.names import nr

# include/net/tcp_states.h
STATES = ("", "ESTABLISHED", "SYN_SENT", "SYN_RECV", "FIN_WAIT1", "FIN_WAIT2", "TIME_WAIT", "CLOSE", "CLOSE_WAIT", "LAST_ACK", "LISTEN",
          "CLOSING", "NEW_SYN_RECV")  # fmt: skip
_OPEN = ("ESTABLISHED", "CLOSE_WAIT")  #: we may still write
_PEER_FIN = ("CLOSE_WAIT", "LAST_ACK", "CLOSING", "TIME_WAIT")
_BACKLOG = 28  #: tcpi_sacked of a listener


@dataclass(frozen=True, slots=True)
class Info:
    """The fields of struct tcp_info (include/uapi/linux/tcp.h) that are used."""

    state: str
    backlog: int
    received: int
    written: int

    @staticmethod
    def parse(data: bytes) -> Info:
        if len(data) < 216:
            raise Unsupported("tcp socket: the kernel tells too little of it (TCP_INFO)")
        (received,) = struct.unpack_from("<Q", data, 128)
        (notsent,) = struct.unpack_from("<I", data, 144)
        sent, again = struct.unpack_from("<QQ", data, 200)
        (backlog,) = struct.unpack_from("<I", data, _BACKLOG)
        return Info(STATES[data[0]] if data[0] < len(STATES) else str(data[0]), backlog, received, sent - again + notsent)


class Tcp:
    name = "tcp"
    order = 30
    wants = so.WANTS

    def recognises(self, raw: RawDescriptor) -> bool:
        return so.is_socket(raw) and so.is_inet(so.parse_socket(raw), socket.SOCK_STREAM, so.IPPROTO_TCP)

    def parse(self, raw: RawDescriptor) -> OpenFile:
        info, found = parse_fdinfo(raw.fdinfo), so.parse_socket(raw)
        if found is None:
            raise Unsupported("socket: nothing can be learnt of it")
        tcp = Info.parse(so.option_data(raw, so.TCP_INFO))
        fin = 1 if tcp.state in _PEER_FIN else 0
        state = {
            "dev": raw.dev,
            "ino": raw.ino,
            "cookie": so.option_data(raw, so.SO_COOKIE).hex(),
            "domain": found.domain,
            "local": so.address(found.local),
            "peer": so.address(found.peer),
            "bound": found.local.hex(),
            "state": "LISTEN" if found.listening else tcp.state,
            "backlog": tcp.backlog if found.listening else 0,
            "consumed": max(tcp.received - fin - max(found.inq, 0), 0) if not found.listening else 0,
            "written": tcp.written,
            "options": so.options_of(raw),
        }
        return OpenFile(raw.file, self.name, info.open_flags, 0, state)

    def adjust(self, fd: int, now: OpenFile, wanted: OpenFile) -> Sequence[RemoteCall]:
        here, there = now.state, wanted.state
        if here["cookie"] != there["cookie"]:
            raise CannotUndo("tcp socket: it is another one")
        if there["state"] in ("LISTEN", "CLOSE"):
            if here["state"] != there["state"] or here["bound"] != there["bound"]:
                raise CannotUndo(f"tcp socket: was {there['state']}, is {here['state']}")
        else:
            self._moved(here, there)
        return [*so.set_options(fd, here["options"], there["options"]), *set_flags(fd, now.flags, wanted.flags)]

    def _moved(self, here: State, there: State) -> None:
        """Raises Moved where the program would notice that the connection went on without it."""
        who = f"connection {there['local']} to {there['peer']}"
        if here["state"] != there["state"] and not (here["state"] in _OPEN and there["state"] == "ESTABLISHED"):
            raise Moved(f"{who}: was {there['state']}, is {here['state']}")
        read, wrote = here["consumed"] - there["consumed"], here["written"] - there["written"]
        if read or wrote:
            raise Moved(f"{who}: {read} bytes were read and {wrote} written since")

    def recreate(self, wanted: OpenFile) -> Sequence[RemoteCall]:
        """A listener or a socket without a connection; a connection raises Moved."""
        state = wanted.state
        if state["state"] not in ("LISTEN", "CLOSE"):
            raise Moved(f"connection {state['local']} to {state['peer']}: is gone")
        kind = socket.SOCK_STREAM | wanted.flags & os.O_NONBLOCK
        calls = [call(nr("socket"), state["domain"], kind, so.IPPROTO_TCP, note=f"socket for {state['local'] or 'tcp'}")]
        calls += so.set_options(result(0), {}, state["options"])
        bound = bytes.fromhex(state["bound"])
        if so.port(bound):
            calls.append(call(nr("bind"), result(0), bound, len(bound), note=f"bind {state['local']}"))
        if state["state"] == "LISTEN":
            calls.append(call(nr("listen"), result(0), state["backlog"], note=f"listen, backlog {state['backlog']}"))
        return [*calls, same(0)]


KIND = Tcp()
