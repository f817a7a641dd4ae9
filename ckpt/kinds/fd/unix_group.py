"""Unix sockets that hang together, made again by one sequence of calls: a listener and whoever it accepted or has still to accept, both
ends of a connection, datagram sockets and those who sent to them.

1. Order: listeners, then unconnected and datagram sockets (all names stand), pairs, queues, connections of datagram sockets (a
   connected one takes from its peer only), connections that wait to be accepted, shut down directions.
2. A connection by name goes through the listener of the group, else through one for the moment: its accepted end shows the name. A
   name is bound once, and only accept gives it to a second socket (net/unix/af_unix.c, unix_stream_connect).
3. A name in the file system is bound anew: the file that the dead process left is taken away first (the plan has looked whether it is
   that one), and the new one gets its owner and permissions.
4. What is queued is sent by the socket that sent it; a sender without a name may be any.
5. listen, connect and socketpair write down who does so (SO_PEERCRED): root is for a moment who did it then.
6. A listener that stays is drained first: who waits there now would be accepted in place of those that are made.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from ckpt.kinds.base import Calls, CannotUndo, Moved, result, set_flags, value
from ckpt.kinds.fd import sockets as so
from ckpt.kinds.fd.sockopts import SO_BUF_LOCK, SO_SNDBUFFORCE, SOL_SOCKET, set_options
from ckpt.kinds.groups import Kept, Made
from ckpt.model import OpenFile, RemoteArg, RemoteCall, State

_SHUT = {1: socket.SHUT_RD, 2: socket.SHUT_WR, 3: socket.SHUT_RDWR}  #: sk_shutdown -> how
_SHUT_BOTH = 3
_PR_SET_DUMPABLE = 4
_AS_IT_IS = 0xFFFF_FFFF  #: -1: this id stays
_AT_FDCWD, _NO_FOLLOW = -100, 0x100
_PLAIN_ROOM, _DEFAULT_BUFFER = 96 * 1024, 212992 // 2


def links(files: Sequence[OpenFile]) -> Iterable[tuple[int, int]]:
    """What has to be made together."""
    at = {file.state["ino"]: file for file in files}
    listeners = {file.state["local"]: file for file in files if file.state["backlog"] >= 0}
    bound = {file.state["local"]: file for file in files if file.state["local"] and file.state["type"] == socket.SOCK_DGRAM}
    for file in files:
        state = file.state
        found = [at.get(state["peer"])]
        if state["type"] != socket.SOCK_DGRAM:
            found += [listeners.get(name) for name in (state["local"], state["far"]) if name]
        found += [bound.get(name) for name in state.get("senders", []) if name]
        found += [at.get(ino) for ino in state.get("pending", ())]
        yield from ((file.id, other.id) for other in found if other is not None and other is not file)


class Group:
    """The members' calls in the making. `at`: OpenFile.id -> its descriptor."""

    def __init__(self, members: Sequence[OpenFile], kept: Mapping[int, Kept], *, root: bool) -> None:
        self.members, self.kept, self.root = members, kept, root
        self.gone = [member for member in members if member.id not in kept]
        self.calls = Calls()
        self.at = {identity: value(one.fd) for identity, one in kept.items()}
        self.warnings: list[str] = []
        self.by_ino = {member.state["ino"]: member for member in members}
        self.listeners = {member.state["local"]: member for member in members if member.state["backlog"] >= 0}
        self.spare: dict[int, RemoteArg] = {}  #: member -> the other end that nobody holds any more

    def made(self) -> Made:
        waiting = self._pending()
        for member in self.members:
            if member.id in self.kept and member.state["backlog"] >= 0:
                one = self.kept[member.id]
                self.calls.extend(drain(one.fd, one.now.state, len(self.calls.list)))
            elif member.state["backlog"] >= 0:
                self._listener(member)
        for member in self.gone:
            if member.id not in self.at and member.id not in waiting:
                self._start(member)
        self._queues()
        for member in self.gone:
            self._connect(member, waiting)
        for member in self.gone:
            self._finish(member)
        for end in self.spare.values():
            self.calls.add("close", end, note="nobody holds this end")
        results = tuple(-1 if member.id in self.kept else self.at[member.id].value for member in self.members)
        return Made(tuple(self.calls.list), results, warnings=tuple(self.warnings))

    @contextmanager
    def _as(self, who: Sequence[int] | None) -> Iterator[None]:
        """Calls as this user and group."""
        other = self.root and who is not None and list(who) != [0, 0]
        if other and who is not None:
            for name, number in (("setresgid", who[1]), ("setresuid", who[0])):
                self.calls.add(name, _AS_IT_IS, number, _AS_IT_IS, note=f"be {number} for a moment")
        yield
        if other:
            for name in ("setresuid", "setresgid"):
                self.calls.add(name, _AS_IT_IS, 0, _AS_IT_IS, note="be root again")
            self.calls.add("prctl", _PR_SET_DUMPABLE, 1, 0, 0, 0, note="dumpable, which such a change takes away")

    # ---- one by one ----

    def _socket(self, state: State) -> RemoteArg:
        return self.calls.add("socket", socket.AF_UNIX, state["type"], 0, note=f"unix socket {_title(state)}".rstrip())

    def _bind(self, fd: RemoteArg, state: State) -> None:
        name = bytes.fromhex(state["local"])
        path = state.get("name", "")
        if path and not path.startswith("/"):
            raise CannotUndo(f"unix socket bound to {path}: a name relative to a folder that may have changed: not supported")
        if path:
            self.calls.add("unlink", os.fsencode(path) + b"\0", note=f"remove {path}, left by the dead process", expect=None)
        self.calls.add("bind", fd, name, len(name), note=f"bind {so.address(name)}")
        if "mode" in state:
            text = os.fsencode(path) + b"\0"
            self.calls.add("fchmodat", _AT_FDCWD, text, state["mode"], note=f"chmod {state['mode']:o} {path}")
            self.calls.add("fchownat", _AT_FDCWD, text, *state["owner"], _NO_FOLLOW, note=f"chown {path}", expect=None)

    def _listener(self, member: OpenFile) -> None:
        state = member.state
        fd = self.at[member.id] = self._socket(state)
        if state["local"]:
            self._bind(fd, state)
        self.calls.extend(set_options(fd, {}, state["options"]))
        with self._as(state.get("creds")):
            self.calls.add("listen", fd, state["backlog"], note=f"listen, backlog {state['backlog']}")

    def _start(self, member: OpenFile) -> None:
        """The socket, in a pair if it is of one, with its name."""
        state = member.state
        twin = self.by_ino.get(state["peer"])
        if twin is not None and twin.state["peer"] == state["ino"]:
            self._pair(member, twin)
        elif state["type"] != socket.SOCK_DGRAM and state["connected"]:
            if state.get("outside") or state["shutdown"] != _SHUT_BOTH:
                raise Moved(f"unix connection {_title(state)}: its other end is outside the tree", _dead(member))
            self._pair(member, None)
        elif state["connected"] and not state["far"] and not state.get("outside"):
            self._pair(member, None)
        else:
            if state.get("outside") and not state["far"]:
                raise Moved("unix socket pair: its other end is outside the tree", _dead(member))
            fd = self.at[member.id] = self._socket(state)
            if state["local"]:
                self._bind(fd, state)
            if state["local"] or not state["far"]:  # else once it is connected
                self.calls.extend(set_options(fd, {}, state["options"]))

    def _pair(self, one: OpenFile, other: OpenFile | None) -> None:
        """Connected to each other. `other` None: its end is closed again at the end."""
        name, far = one.state["local"], one.state["far"]
        if one.state["type"] == socket.SOCK_DGRAM and (name or far):
            ends = tuple(self._socket(one.state) for _ in range(2))
            for end, member in zip(ends, (one, other), strict=True):
                if member is not None and member.state["local"]:
                    self._bind(end, member.state)
            for end, to in ((ends[0], far), (ends[1], name)):
                if to:
                    self.calls.add("connect", end, bytes.fromhex(to), len(to) // 2, note=f"connect to {so.address(bytes.fromhex(to))}")
        elif name or far:
            ends = self._through_listener(one, other)
        else:
            ends = self.calls.two_lowest()
            with self._as(one.state.get("creds")):
                self.calls.add("socketpair", socket.AF_UNIX, one.state["type"], 0, bytes(8), note="socketpair")
        self.at[one.id] = ends[0]
        if other is None:
            self.spare[one.id] = ends[1]
        else:
            self.at[other.id] = ends[1]
        for member in filter(None, (one, other)):
            self.calls.extend(set_options(self.at[member.id], {}, member.state["options"]))

    def _through_listener(self, one: OpenFile, other: OpenFile | None) -> tuple[RemoteArg, RemoteArg]:
        """Both ends of a connection by name: who shows the listener's name was accepted."""
        name, far = one.state["local"], one.state["far"]
        accepted = name in self.listeners or (bool(name) and far not in self.listeners)
        server = name if accepted else far
        client_name = far if accepted else name
        known = self.listeners.get(server)
        served, dialled = (one, other) if accepted else (other, one)
        listener = self.at[known.id] if known else self._for_a_moment(one.state, server, dialled.state.get("creds") if dialled else None)
        client = self._socket(one.state)
        if client_name:
            owner = other if accepted else one
            self._bind(client, owner.state if owner is not None else {"local": client_name})
        target = bytes.fromhex(server)
        with self._as(served.state.get("creds") if served else None):
            self.calls.add("connect", client, target, len(target), note=f"connect to {so.address(target)}")
        taken = self.calls.add("accept4", listener, 0, 0, 0, note="accept it")
        if known is None:
            self.calls.add("close", listener, note="close that listener")
            if _path(target):
                self.calls.add("unlink", _path(target), note=f"remove {so.address(target)}")
        return (taken, client) if accepted else (client, taken)

    def _for_a_moment(self, state: State, name: str, who: Sequence[int] | None) -> RemoteArg:
        """A listener that the tree has no longer."""
        target = bytes.fromhex(name)
        fd = self.calls.add("socket", socket.AF_UNIX, state["type"], 0, note="a listener for a moment")
        self.calls.add("bind", fd, target, len(target), note=f"bind {so.address(target)}")
        with self._as(who):
            self.calls.add("listen", fd, 1, note="listen")
        return fd

    # ---- what is queued ----

    def _queues(self) -> None:
        for member in self.gone:
            state = member.state
            twin = self.by_ino.get(state["peer"])
            mutual = twin is not None and twin.state["peer"] == state["ino"]
            senders = state.get("senders") or [""] * len(state["queue"])
            heavy = sum(len(text) // 2 + 1024 for text in state["queue"]) > _PLAIN_ROOM
            for data, name in zip(map(bytes.fromhex, state["queue"]), senders, strict=True):
                if mutual and twin is not None and name == (twin.state["local"] if state["type"] == socket.SOCK_DGRAM else name):
                    self._send(self.at[twin.id], data, b"", heavy=heavy)
                elif member.id in self.spare:
                    self._send(self.spare[member.id], data, b"", heavy=heavy)
                else:
                    self._deliver(member, data, name, heavy=heavy)
            if heavy and mutual and twin is not None:
                self._light(self.at[twin.id], twin.state)

    def _deliver(self, member: OpenFile, data: bytes, name: str, *, heavy: bool) -> None:
        """A datagram by whoever has the sender's name; by a socket for the moment if it had none."""
        sender = next((one for one in self.members if name and one.state["local"] == name), None)
        if not member.state["local"] or (name and sender is None):
            who = so.address(bytes.fromhex(name)) or "a socket without a name"
            raise CannotUndo(f"unix socket {_title(member.state)}: a datagram from {who}, which is not in the tree: not supported")
        fd = self.at[sender.id] if sender else self.calls.add("socket", socket.AF_UNIX, socket.SOCK_DGRAM, 0, note="a sender for a moment")
        self._send(fd, data, bytes.fromhex(member.state["local"]), heavy=heavy)
        if sender is None:
            self.calls.add("close", fd, note="close that sender")
        elif heavy:
            self._light(fd, sender.state)

    def _send(self, fd: RemoteArg, data: bytes, to: bytes, *, heavy: bool) -> None:
        if heavy:
            size = struct.pack("<i", 1 << 22)
            self.calls.add("setsockopt", fd, SOL_SOCKET, SO_SNDBUFFORCE, size, 4, note="room for what is queued", expect=None)
        flags = so.MSG_DONTWAIT | so.MSG_NOSIGNAL
        self.calls.add("sendto", fd, data, len(data), flags, to or 0, len(to), note="queued data", expect=len(data))

    def _light(self, fd: RemoteArg, state: State) -> None:
        """The send buffer as it was."""
        self.calls.add(
            "setsockopt", fd, SOL_SOCKET, SO_SNDBUFFORCE, struct.pack("<i", _DEFAULT_BUFFER), 4, note="its send buffer", expect=None
        )
        self.calls.add("setsockopt", fd, SOL_SOCKET, SO_BUF_LOCK, bytes(4), 4, note="its size is the kernel's", expect=None)
        names = ("SO_SNDBUF", "SO_BUF_LOCK")
        self.calls.extend(set_options(fd, {}, {title: state["options"][title] for title in names if title in state["options"]}))

    # ---- the end ----

    def _connect(self, member: OpenFile, waiting: Sequence[int]) -> None:
        """Datagram sockets, and those that wait to be accepted."""
        state = member.state
        far = bytes.fromhex(state["far"])
        if member.id in waiting:
            fd = self.at[member.id] = self._socket(state)
            if state["local"]:
                self._bind(fd, state)
            self.calls.add("connect", fd, far, len(far), note=f"connect to {so.address(far)}, not accepted yet")
            self.calls.extend(set_options(fd, {}, state["options"]))
            return
        twin = self.by_ino.get(state["peer"])
        if state["type"] != socket.SOCK_DGRAM or not far or (twin is not None and twin.state["peer"] == state["ino"]):
            return
        # Who is outside may be gone: then it is as if it had gone now.
        expect = 0 if twin is not None else None
        self.calls.add("connect", self.at[member.id], far, len(far), note=f"connect to {so.address(far)}", expect=expect)
        if not state["local"]:
            self.calls.extend(set_options(self.at[member.id], {}, state["options"]))

    def _finish(self, member: OpenFile) -> None:
        fd, state = self.at[member.id], member.state
        how = _SHUT.get(state["shutdown"])
        if how is not None and member.id not in self.spare:
            self.calls.add("shutdown", fd, how, note=f"shutdown({how})", expect=None)
        self.calls.extend(set_flags(fd, 0, member.flags & os.O_NONBLOCK))

    def _pending(self) -> list[int]:
        """Members that wait in a listener's queue, in order."""
        found = []
        for listener in self.listeners.values():
            strangers = 0
            for ino in listener.state.get("pending", ()):
                client = self.by_ino.get(ino)
                if client is None:
                    strangers += 1
                elif client.state.get("sent"):
                    raise CannotUndo(f"unix socket {_title(client.state)}: has sent to one that has not accepted it yet: not supported")
                else:
                    found.append(client.id)
            if strangers and listener.id not in self.kept:
                self.warnings.append(
                    f"{strangers} connections from outside that waited to be accepted on {_title(listener.state)} are gone"
                )
        return found


def waits(member: OpenFile) -> bool:
    """Has connected and is not accepted yet."""
    state = member.state
    return bool(state["type"] != socket.SOCK_DGRAM and state["connected"] and not state["peer"] and state["shutdown"] != _SHUT_BOTH)


def drain(fd: int, listener: State, first: int = 0) -> list[RemoteCall]:
    """Takes away who waits to be accepted now; `first`: index of the first call. As many as wait are there: accept does not block."""
    calls = Calls()
    for index in range(len(listener.get("pending", ()))):
        calls.add("accept4", fd, 0, 0, 0, note="take away who waits to be accepted")
        calls.add("close", result(first + 2 * index), note="close it")
    return calls.list


def _dead(member: OpenFile) -> list[RemoteCall]:
    """A socket whose other end has been closed."""
    calls = Calls()
    ends = calls.two_lowest()
    calls.add("socketpair", socket.AF_UNIX, member.state["type"] | member.flags & os.O_NONBLOCK, 0, bytes(8), note="a dead socket pair")
    calls.add("close", ends[1], note="close its other end")
    calls.add("dup2", ends[0], ends[0], note="that descriptor")
    return calls.list


def _path(name: bytes) -> bytes:
    return name[2:].split(b"\0")[0] + b"\0" if name[2:3] not in (b"", b"\0") else b""


def _title(state: State) -> str:
    names = [so.address(bytes.fromhex(state[key])) for key in ("local", "far") if state.get(key)]
    return " to ".join(names)
