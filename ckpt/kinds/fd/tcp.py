"""TCP sockets: listening, connected, or neither; their state as far as a rollback in place needs it.

A connection whose stream has not moved since can be kept: the program has read (`consumed`) and written (`written`) exactly
as many bytes as then. What the peer sent meanwhile and lies unread is no matter, the program has not seen it. Otherwise the
bytes cannot be taken back (`Moved`): the plan puts a dead socket in its place, or keeps it, as its user wishes.

Where both ends are in the tree nothing is lost: what lies unread at either end was captured, and a rollback makes both queues
what they were. Each direction is two calls, one by either end: the writer sends again what lay unread, the reader drops as
many bytes as lie there now. They are in front, so the order of the two does not matter, and both ends decide alike, by
comparing the queues of then and now. Sequence numbers move on; no program sees them. Where one end is gone, both are made
again (tcp_pair.py); so they are where bytes had found no room at the other end (a full window), then or now: these nobody can take back.

State of such a connection: `unread` lies here, `coming` is on its way here, `away` lies at the other end, `sending` is on its way there.

    consumed = tcpi_bytes_received (a FIN counts as one) - what lies unread
    written  = tcpi_bytes_sent - tcpi_bytes_retrans + tcpi_notsent_bytes (a FIN that waits behind them counts as one)
    stream   = tcpi_bytes_acked + what is not acknowledged, without a FIN: written + 1 at the end that connected (its SYN), else written

Bytes that went out while somebody looked at the queue are missing in `written`, ever after (native/src/fdsending.c); in `stream` nothing
is. So what has been written since is the difference of two `stream`s; how much it is in all is `_written`.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from ckpt.kinds.base import Calls, CannotUndo, Moved, RawDescriptor, Unsupported, Work, call, result, same, set_flags
from ckpt.kinds.fd import sockets as so
from ckpt.kinds.fd import tcp_pair
from ckpt.kinds.fd.sockopts import IPPROTO_TCP, set_options
from ckpt.kinds.groups import Kept, Made
from ckpt.model import OpenFile, RemoteCall, State
from ckpt.procfs import parse_fdinfo
from ckpt.syscalls.names import nr

# include/net/tcp_states.h
STATES = ("", "ESTABLISHED", "SYN_SENT", "SYN_RECV", "FIN_WAIT1", "FIN_WAIT2", "TIME_WAIT", "CLOSE", "CLOSE_WAIT", "LAST_ACK", "LISTEN",
          "CLOSING", "NEW_SYN_RECV")  # fmt: skip
_OPEN = ("ESTABLISHED", "CLOSE_WAIT")  #: we may still write
_PEER_FIN = ("CLOSE_WAIT", "LAST_ACK", "CLOSING", "TIME_WAIT")
_KNOWN = ("ESTABLISHED", "CLOSE_WAIT", "FIN_WAIT1", "FIN_WAIT2")  #: what both ends of a connection may be in that can be made again
_AT_ONCE = 8192  #: bytes sent by one call
_COUNT = 8  #: bytes of the number before what waits to be acknowledged
_PENDING, _PMTU = 24, 60  #: tcpi_unacked and tcpi_sacked (of a listener: who waits, and its backlog), tcpi_pmtu


@dataclass(frozen=True, slots=True)
class Info:
    """The fields of struct tcp_info (include/uapi/linux/tcp.h) that are used."""

    state: str
    backlog: int
    pending: int  #: of a listener: connections that wait to be accepted
    received: int
    written: int  #: as far as it counts (see the head)
    wire: tuple[int, int, int, int] = (0, 0, 0, 0)  #: TCPI_OPT_*, window scales to send and to receive, MTU of the path

    @staticmethod
    def parse(data: bytes) -> Info:
        if len(data) < 216:
            raise Unsupported("tcp socket: the kernel tells too little of it (TCP_INFO)")
        (received,) = struct.unpack_from("<Q", data, 128)
        (notsent,) = struct.unpack_from("<I", data, 144)
        sent, again = struct.unpack_from("<QQ", data, 200)
        pending, backlog = struct.unpack_from("<II", data, _PENDING)
        (mtu,) = struct.unpack_from("<I", data, _PMTU)
        wire = (data[5], data[6] & 15, data[6] >> 4, mtu)
        state = STATES[data[0]] if data[0] < len(STATES) else str(data[0])
        fin = 1 if notsent and state == "FIN_WAIT1" else 0
        return Info(state, backlog, pending, received, sent - again + notsent - fin, wire)


class Tcp:
    name = "tcp"
    order = 30
    wants = so.WANTS

    def recognises(self, raw: RawDescriptor) -> bool:
        return so.is_socket(raw) and so.is_inet(so.parse_socket(raw), socket.SOCK_STREAM, IPPROTO_TCP)

    def parse(self, raw: RawDescriptor) -> OpenFile:
        found = so.known(raw)
        if so.option_data(raw, so.TCP_ULP).strip(b"\0"):
            raise Unsupported(f"tcp socket with a protocol of the kernel on it ({so.option_data(raw, so.TCP_ULP).decode()}): not supported")
        tcp = Info.parse(so.option_data(raw, so.TCP_INFO))
        fin = 1 if tcp.state in _PEER_FIN else 0
        state = {
            **so.inet_state(raw, found),
            "state": "LISTEN" if found.listening else tcp.state,
            "backlog": tcp.backlog if found.listening else 0,
            **({"pending": tcp.pending} if found.listening and tcp.pending else {}),
            "consumed": max(tcp.received - fin - max(found.inq, 0), 0) if not found.listening else 0,
            "written": tcp.written,
        }
        if tcp.state in _KNOWN:
            state |= self._queue(raw, found, tcp)
        return OpenFile(raw.file, self.name, parse_fdinfo(raw.fdinfo).open_flags, 0, state)

    def _queue(self, raw: RawDescriptor, found: so.Socket, tcp: Info) -> State:
        """What with_others() needs: the peer's name, and all that lies unread (hex)."""
        unread = b"".join(message.data for message in so.messages(raw.work.get(Work.PEEK, b"")) if not message.control)
        if Work.PEEK not in raw.work or len(unread) != found.inq:
            return {}
        outgoing = raw.work.get(Work.SENDING, b"")
        count, sending = outgoing[:_COUNT], outgoing[_COUNT:]
        return {
            "far": found.peer.hex(),
            "unread": unread.hex(),
            "wire": list(tcp.wire),
            **({"stream": int.from_bytes(count, "little")} if count else {}),
            **({"sending": sending.hex()} if sending else {}),
        }

    def adjust(self, fd: int, now: OpenFile, wanted: OpenFile) -> Sequence[RemoteCall]:
        here, there = now.state, wanted.state
        if here["cookie"] != there["cookie"]:
            raise CannotUndo("tcp socket: it is another one")
        if there["state"] in ("LISTEN", "CLOSE"):
            if here["state"] != there["state"] or here["bound"] != there["bound"]:
                raise CannotUndo(f"tcp socket: was {there['state']}, is {here['state']}")
            if here.get("waiting") != there.get("waiting"):
                if "waiting" in there:
                    raise CannotUndo("tcp socket: others wait to be accepted")
                return [
                    *_drain(fd, here, 0),
                    *set_options(fd, here["options"], there["options"]),
                    *set_flags(fd, now.flags, wanted.flags),
                ]
        elif "waits" in there and "waits" not in here:
            raise CannotUndo("tcp socket: it had not been accepted yet")
        elif "away" in here and "away" in there:
            if _side(here) != _side(there):
                raise CannotUndo(f"tcp socket: was {there['state']}, is {here['state']}")
            return [
                *self._requeue(fd, here, there),
                *set_options(fd, here["options"], there["options"]),
                *set_flags(fd, now.flags, wanted.flags),
            ]
        else:
            self._moved(here, there)
        return [*set_options(fd, here["options"], there["options"]), *set_flags(fd, now.flags, wanted.flags)]

    def _requeue(self, fd: int, here: State, there: State) -> list[RemoteCall]:
        """This end's part of both directions: as the writer of one, as the reader of the other."""
        calls: list[RemoteCall] = []
        if _streams(here) == _streams(there):
            return calls  # where the bytes are on their way is no program's doing
        if any(state.get(key) for state in (here, there) for key in ("sending", "coming")):
            raise CannotUndo("tcp socket: bytes of it are under way")
        if here["away"] != there["away"]:
            if here["state"] not in _OPEN:
                raise CannotUndo(f"tcp socket: is {here['state']} and cannot send again")
            data = bytes.fromhex(there["away"])
            for at in range(0, len(data), _AT_ONCE):
                part = data[at : at + _AT_ONCE]
                note = f"send {len(part)} bytes again to {there['peer']}"
                calls.append(call(nr("sendto"), fd, part, len(part), so.MSG_DONTWAIT | so.MSG_NOSIGNAL, 0, 0, note=note, expect=len(part)))
        stale = len(here["unread"]) // 2
        if here["unread"] != there["unread"] and stale:
            note = f"drop {stale} bytes from {there['peer']}"
            calls.append(call(nr("recvfrom"), fd, 0, stale, so.MSG_DONTWAIT | so.MSG_TRUNC, 0, 0, note=note, expect=stale))
        return calls

    def _moved(self, here: State, there: State) -> None:
        """Raises Moved where the program would notice that the connection went on without it."""
        who = f"connection {there['local']} to {there['peer']}"
        if here["state"] != there["state"] and not (here["state"] in _OPEN and there["state"] == "ESTABLISHED"):
            raise Moved(f"{who}: was {there['state']}, is {here['state']}")
        count = "stream" if "stream" in here and "stream" in there else "written"
        read, wrote = here["consumed"] - there["consumed"], here[count] - there[count]
        if read or wrote:
            raise Moved(f"{who}: {read} bytes were read and {wrote} written since")

    def recreate(self, wanted: OpenFile) -> Sequence[RemoteCall]:
        """A listener or a socket without a connection; a connection raises Moved."""
        state = wanted.state
        if state["state"] not in ("LISTEN", "CLOSE"):
            why = f"{state['underway']} bytes had found no room at the other end" if state.get("underway") else "is gone"
            raise Moved(f"connection {state['local']} to {state['peer']}: {why}")
        calls = [call(nr("socket"), state["domain"], socket.SOCK_STREAM, IPPROTO_TCP, note=f"socket for {state['local'] or 'tcp'}")]
        calls += set_options(result(0), {}, state["options"])
        bound = bytes.fromhex(state["bound"])
        if so.port(bound):
            # Without it the remains of the dead process's connections (TIME_WAIT) hold the port for a minute.
            calls.append(call(nr("setsockopt"), result(0), *so.REUSE, struct.pack("<i", 1), 4, note="setsockopt SO_REUSEADDR"))
            calls.append(call(nr("bind"), result(0), bound, len(bound), note=f"bind {state['local']}"))
        if state["state"] == "LISTEN":
            calls.append(call(nr("listen"), result(0), state["backlog"], note=f"listen, backlog {state['backlog']}"))
        if so.port(bound) and not int.from_bytes(bytes.fromhex(state["options"].get("SO_REUSEADDR", "")), "little"):
            calls.append(call(nr("setsockopt"), result(0), *so.REUSE, bytes(4), 4, note="setsockopt SO_REUSEADDR 0"))
        return [*calls, *set_flags(result(0), 0, wanted.flags & os.O_NONBLOCK), same(0)]

    def recreate_group(self, members: Sequence[OpenFile], kept: Mapping[int, Kept], *, root: bool = False) -> Made:
        if "away" in members[0].state:
            return tcp_pair.made(members[0], members[1])
        calls, at = Calls(), dict[int, int]()
        listener = next((member for member in members if member.state["state"] == "LISTEN"), members[0])
        if listener.id not in kept:
            calls.extend(self.recreate(listener))
            at[listener.id] = len(calls.list) - 1
        else:
            calls.extend(_drain(kept[listener.id].fd, kept[listener.id].now.state, 0))
        for member in members:
            if member is not listener and member.id not in kept:
                at[member.id] = tcp_pair.waiting(calls, member)
        return Made(tuple(calls.list), tuple(at.get(member.id, -1) for member in members))

    def together(self, members: Sequence[OpenFile]) -> Iterable[tuple[int, int]]:
        return [(members[0].id, members[1].id)] if "away" in members[0].state else ()

    def stays(self, member: OpenFile) -> bool:
        return "waits" not in member.state

    def quiet(self, file: OpenFile) -> OpenFile:
        return replace(file, state={key: value for key, value in file.state.items() if key not in ("pending", "waiting")})

    def links(self, files: Sequence[OpenFile]) -> Iterable[tuple[int, int]]:
        """Both ends of each connection that is inside the tree and can be made again; a listener and who waits there."""
        known = [file for file in files if "away" in file.state]
        ends = _ends(known)
        pairs = [(file.id, twin.id) for file in known if (twin := ends.get((file.state["far"], file.state["bound"]))) is not None]
        waiting = [(listener.id, client.id) for listener in files for client in _waiting(listener, files)]
        return [*pairs, *waiting]

    def with_others(self, files: Sequence[OpenFile]) -> Sequence[OpenFile]:
        """A connection whose other end is in the tree learns what lies unread there (`away`, hex), and what is on its way. Only where all
        that either has written is known: else one learns how much is under way, or waits for room (`underway`). One that waits to be
        accepted learns so (`waits`)."""
        ends = _ends(files)
        queues = {listener.id: _waiting(listener, files) for listener in files if "pending" in listener.state}
        waiting = {client.id for clients in queues.values() for client in clients}

        def one(file: OpenFile) -> OpenFile:
            state = {key: value for key, value in file.state.items() if key != "sending"}
            if file.id in waiting:
                return replace(file, state={**state, "waits": True})
            if queues.get(file.id):
                return replace(file, state={**state, "waiting": sorted(client.state["ino"] for client in queues[file.id])})
            twin = ends.get((file.state["far"], file.state["bound"])) if "unread" in file.state else None
            if twin is None or not tcp_pair.can_be_made(file, twin):
                return replace(file, state=state)
            sending, coming = _under_way(file.state, twin.state), _under_way(twin.state, file.state)
            if sending is None or coming is None:
                written = _written(file.state, twin.state)
                underway = (file.state["stream"] if written is None else written) - _got(twin.state)
                return replace(file, state={**state, "underway": underway} if underway > 0 else state)
            more = {key: data for key, data in (("sending", sending), ("coming", coming)) if data}
            return replace(file, state={**state, "away": twin.state["unread"], **more})

        return [one(file) for file in files]


def _drain(fd: int, listener: State, first: int) -> list[RemoteCall]:
    """Takes away who waits to be accepted now; `first`: index of the first call. As many as wait are there: accept does not block."""
    calls = []
    for index in range(listener.get("pending", 0)):
        calls.append(call(nr("accept4"), fd, 0, 0, 0, note="take away who waits to be accepted"))
        calls.append(call(nr("close"), result(first + 2 * index), note="close it"))
    return calls


def _waiting(listener: OpenFile, files: Sequence[OpenFile]) -> list[OpenFile]:
    """Connections of the tree to this listener whose other end nobody has, if the listener says that so many wait there. One that has
    been written to is none: what it sent cannot be seen."""
    if "pending" not in listener.state:
        return []
    ends, bound = _ends(files), bytes.fromhex(listener.state["bound"])
    found = [
        file
        for file in files
        if file.state["state"] == "ESTABLISHED" and "unread" in file.state and not file.state["written"] and _syn(file.state) is not None
        if so.port(bytes.fromhex(file.state["far"])) == so.port(bound) and (file.state["far"], file.state["bound"]) not in ends
    ]
    return found if len(found) <= listener.state["pending"] else []


def _ends(files: Sequence[OpenFile]) -> dict[tuple[str, str], OpenFile]:
    return {(file.state["bound"], file.state["far"]): file for file in files if "unread" in file.state}


def _under_way(sender: State, receiver: State) -> str | None:
    """What one has written and the other has not got (hex): the end of what waits to be acknowledged. None: it is not known."""
    written, queue = _written(sender, receiver), sender.get("sending", "")
    if written is None:
        return None
    count = written - _got(receiver)
    if not count:
        return ""
    return queue[-2 * count :] if 0 < 2 * count <= len(queue) else None


def _written(sender: State, receiver: State) -> int | None:
    """How many bytes one end has written. None: it is not known whether its SYN is counted."""
    syn = _syn(sender)
    if syn is None and _syn(receiver) == 1:
        syn = 0  # one of the two has connected
    if syn is None and sender["stream"] - len(sender.get("sending", "")) // 2 > _got(receiver):
        syn = 1  # more is acknowledged than has come
    return None if syn is None else sender["stream"] - syn if "stream" in sender else sender["written"]


def _syn(state: State) -> int | None:
    """What `stream` counts besides the bytes. None: bytes are missing in `written`."""
    more = state.get("stream", state["written"]) - state["written"]
    return more if more in (0, 1) else None


def _side(state: State) -> str:
    """Whether the end of a stream has been acknowledged is no program's doing."""
    return "FIN_WAIT" if state["state"] in ("FIN_WAIT1", "FIN_WAIT2") else str(state["state"])


def _streams(state: State) -> tuple[str, str]:
    """All that a connection holds, in either direction."""
    return state["away"] + state.get("sending", ""), state["unread"] + state.get("coming", "")


def is_under_way(file: OpenFile) -> bool:
    """Whether bytes are on their way inside the tree of which only the number is known."""
    return file.kind == KIND.name and bool(file.state.get("underway"))


def without_ways(state: State) -> State:
    """The streams alone: how much of one, and of its end, has found room at the other end already says nothing."""
    away, unread = _streams(state)
    others = {key: value for key, value in state.items() if key not in ("sending", "coming")}
    return {**others, "away": away, "unread": unread, "state": "open" if state["state"] in _OPEN else "shut down"}


def _got(state: State) -> int:
    return int(state["consumed"]) + len(state["unread"]) // 2


KIND = Tcp()
