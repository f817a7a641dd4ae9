"""TCP sockets: listening, connected, or neither; their state as far as a rollback in place needs it.

A connection whose stream has not moved since can be kept: the program has read (`consumed`) and written (`written`) exactly
as many bytes as then. What the peer sent meanwhile and lies unread is no matter, the program has not seen it. Otherwise the
bytes cannot be taken back (`Moved`): the plan puts a dead socket in its place, or keeps it, as its user wishes.

Where both ends are in the tree nothing is lost: what lies unread at either end was captured, and a rollback makes both queues
what they were. Each direction is two calls, one by either end: the writer sends again what lay unread, the reader drops as
many bytes as lie there now. They are in front, so the order of the two does not matter, and both ends decide alike, by
comparing the queues of then and now. Sequence numbers move on; no program sees them.

    consumed = tcpi_bytes_received (a FIN counts as one) - what lies unread
    written  = tcpi_bytes_sent - tcpi_bytes_retrans + tcpi_notsent_bytes
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace

from ckpt.kinds.base import CannotUndo, Moved, RawDescriptor, Unsupported, Work, call, result, same, set_flags
from ckpt.kinds.fd import sockets as so
from ckpt.model import OpenFile, RemoteCall, State
from ckpt.procfs import parse_fdinfo
from ckpt.syscalls.names import nr

# include/net/tcp_states.h
STATES = ("", "ESTABLISHED", "SYN_SENT", "SYN_RECV", "FIN_WAIT1", "FIN_WAIT2", "TIME_WAIT", "CLOSE", "CLOSE_WAIT", "LAST_ACK", "LISTEN",
          "CLOSING", "NEW_SYN_RECV")  # fmt: skip
_OPEN = ("ESTABLISHED", "CLOSE_WAIT")  #: we may still write
_PEER_FIN = ("CLOSE_WAIT", "LAST_ACK", "CLOSING", "TIME_WAIT")
_MSG_TRUNC, _MSG_DONTWAIT, _MSG_NOSIGNAL = 0x20, 0x40, 0x4000  #: TRUNC: the bytes are dropped, not copied (tcp(7))
_AT_ONCE = 8192  #: bytes sent by one call
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
        found = so.known(raw)
        tcp = Info.parse(so.option_data(raw, so.TCP_INFO))
        fin = 1 if tcp.state in _PEER_FIN else 0
        state = {
            **so.inet_state(raw, found),
            "state": "LISTEN" if found.listening else tcp.state,
            "backlog": tcp.backlog if found.listening else 0,
            "consumed": max(tcp.received - fin - max(found.inq, 0), 0) if not found.listening else 0,
            "written": tcp.written,
        }
        if tcp.state == "ESTABLISHED":
            state |= self._queue(raw, found)
        return OpenFile(raw.file, self.name, parse_fdinfo(raw.fdinfo).open_flags, 0, state)

    def _queue(self, raw: RawDescriptor, found: so.Socket) -> State:
        """What with_twins() needs: the peer's name, and all that lies unread (hex)."""
        unread = b"".join(data for flags, data in so.messages(raw.work.get(Work.PEEK, b"")) if flags == 0)
        return {"far": found.peer.hex(), "unread": unread.hex()} if Work.PEEK in raw.work and len(unread) == found.inq else {}

    def adjust(self, fd: int, now: OpenFile, wanted: OpenFile) -> Sequence[RemoteCall]:
        here, there = now.state, wanted.state
        if here["cookie"] != there["cookie"]:
            raise CannotUndo("tcp socket: it is another one")
        if there["state"] in ("LISTEN", "CLOSE"):
            if here["state"] != there["state"] or here["bound"] != there["bound"]:
                raise CannotUndo(f"tcp socket: was {there['state']}, is {here['state']}")
        elif "away" in here and "away" in there:
            return [
                *self._requeue(fd, here, there),
                *so.set_options(fd, here["options"], there["options"]),
                *set_flags(fd, now.flags, wanted.flags),
            ]
        else:
            self._moved(here, there)
        return [*so.set_options(fd, here["options"], there["options"]), *set_flags(fd, now.flags, wanted.flags)]

    def _requeue(self, fd: int, here: State, there: State) -> list[RemoteCall]:
        """This end's part of both directions: as the writer of one, as the reader of the other."""
        calls = []
        if here["away"] != there["away"]:
            data = bytes.fromhex(there["away"])
            for at in range(0, len(data), _AT_ONCE):
                part = data[at : at + _AT_ONCE]
                note = f"send {len(part)} bytes again to {there['peer']}"
                calls.append(call(nr("sendto"), fd, part, len(part), _MSG_DONTWAIT | _MSG_NOSIGNAL, 0, 0, note=note, expect=len(part)))
        stale = len(here["unread"]) // 2
        if here["unread"] != there["unread"] and stale:
            note = f"drop {stale} bytes from {there['peer']}"
            calls.append(call(nr("recvfrom"), fd, 0, stale, _MSG_DONTWAIT | _MSG_TRUNC, 0, 0, note=note, expect=stale))
        return calls

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


def with_twins(files: Sequence[OpenFile]) -> tuple[OpenFile, ...]:
    """The same files; a connection whose other end is in the tree learns what lies unread there (`away`, hex). Only where each
    end has got all that the other has written: nothing is under way or waits for room."""
    ends = {(file.state["bound"], file.state["far"]): file for file in files if "unread" in file.state}

    def one(file: OpenFile) -> OpenFile:
        twin = ends.get((file.state["far"], file.state["bound"])) if "unread" in file.state else None
        if twin is None or _got(file.state) != twin.state["written"] or _got(twin.state) != file.state["written"]:
            return file
        return replace(file, state={**file.state, "away": twin.state["unread"]})

    return tuple(one(file) for file in files)


def _got(state: State) -> int:
    return int(state["consumed"]) + len(state["unread"]) // 2


KIND = Tcp()
