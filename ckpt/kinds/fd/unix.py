"""Unix sockets: stream, datagram, seqpacket; listening, connected, bound, paired; what is queued in each.

Both ends of a connection in the tree: a rollback makes both queues what they were, each end doing its part, as with TCP: who wrote
sends again, who reads drops what is stale. Where an end is gone, or what hangs together has changed in another way, all of the group
is made again (unix_group.py). A connection whose other end is held outside the tree stays as it is on a rollback; once it is gone, it
cannot be made again: a dead one stands in its place. A datagram socket that is connected by name to somebody outside (/dev/log) is
connected by that name again.

Not captured: descriptors in flight (refused by name), and what a connection that waits to be accepted has in its queue.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from ckpt.kinds.base import CannotUndo, RawDescriptor, Unsupported, Work, call, same, set_flags
from ckpt.kinds.fd import sockets as so
from ckpt.kinds.fd import unix_group
from ckpt.kinds.fd.sockopts import set_options
from ckpt.kinds.groups import Kept, Made
from ckpt.model import OpenFile, RemoteCall, State
from ckpt.procfs import parse_fdinfo
from ckpt.syscalls.names import nr

_DIAG_HEAD = 16  #: struct unix_diag_msg
# include/uapi/linux/unix_diag.h
_DIAG_VFS, _DIAG_PEER, _DIAG_ICONS, _DIAG_RQLEN, _DIAG_SHUTDOWN = 1, 2, 3, 4, 6
_SHUT_BOTH = 3
_ROOM, _OVERHEAD = 192 * 1024, 1024  #: what the default buffer takes; what the kernel adds to a message, at most
_IN_PLACE = ("type", "local", "far", "peer", "shutdown", "backlog")


def _attributes(answer: bytes) -> dict[int, bytes]:
    """Netlink attributes behind struct unix_diag_msg."""
    found, offset = {}, _DIAG_HEAD
    while offset + 4 <= len(answer):
        length, kind = struct.unpack_from("<HH", answer, offset)
        if length < 4:
            break
        found[kind] = answer[offset + 4 : offset + length]
        offset += (length + 3) & ~3
    return found


class Unix:
    name = "unix"
    order = 32
    wants = so.WANTS

    def recognises(self, raw: RawDescriptor) -> bool:
        found = so.parse_socket(raw)
        return so.is_socket(raw) and found is not None and found.domain == socket.AF_UNIX

    def parse(self, raw: RawDescriptor) -> OpenFile:
        info, found = parse_fdinfo(raw.fdinfo), so.parse_socket(raw)
        if found is None or Work.UNIX_DIAG not in raw.work:
            raise Unsupported("unix socket: nothing can be learnt of it")
        queue = so.messages(raw.work.get(Work.PEEK, b""))
        if info.scm_fds or any(message.control for message in queue):
            raise Unsupported("unix socket with descriptors in flight: not supported")
        if any(message.unreadable for message in queue):
            raise Unsupported("unix socket with messages behind an error that nobody has taken yet: not supported")
        diag = _attributes(raw.work[Work.UNIX_DIAG])
        local = so.address(found.local)
        state = {
            "dev": raw.dev,
            "ino": raw.ino,
            "cookie": so.option_data(raw, so.SO_COOKIE).hex(),
            "domain": socket.AF_UNIX,
            "type": found.type,
            "local": found.local.hex() if local else "",
            "far": found.peer.hex() if so.address(found.peer) else "",
            "peer": int.from_bytes(diag.get(_DIAG_PEER, b"")[:4], "little"),  # inode of the other end; 0: closed, or not accepted yet
            "connected": bool(found.peer),
            "shutdown": diag.get(_DIAG_SHUTDOWN, b"\0")[0],
            "backlog": struct.unpack_from("<II", diag[_DIAG_RQLEN])[1] if found.listening and _DIAG_RQLEN in diag else -1,
            "queue": [message.data.hex() for message in queue],
            "options": so.options_of(raw),
        }
        creds = so.option_data(raw, so.SO_PEERCRED)
        if len(creds) == 12 and creds[4:8] != b"\xff" * 4:
            state["creds"] = list(struct.unpack("<II", creds[4:]))  # user and group of the other end, of a listener its own
        if any(so.address(message.sender) for message in queue):
            state["senders"] = [message.sender.hex() if so.address(message.sender) else "" for message in queue]
        if found.listening and (icons := diag.get(_DIAG_ICONS)):
            state["pending"] = list(struct.unpack(f"<{len(icons) // 4}I", icons))
        elif found.peer and not state["peer"] and state["shutdown"] != _SHUT_BOTH and found.outq > 0:
            state["sent"] = True  # bytes lie where nobody has accepted them yet
        if local and not local.startswith("@"):
            state |= {"name": local, "name_ino": int.from_bytes(diag.get(_DIAG_VFS, b"")[:4], "little")}
        return OpenFile(raw.file, self.name, info.open_flags, 0, state)

    # ---- who belongs to whom ----

    def this_end(self, file: OpenFile) -> object:
        return file.state["ino"]

    def other_end(self, file: OpenFile) -> object:
        return file.state["peer"] or None

    def links(self, files: Sequence[OpenFile]) -> Iterable[tuple[int, int]]:
        return unix_group.links(files)

    def with_others(self, files: Sequence[OpenFile]) -> Sequence[OpenFile]:
        """An end whose other end is in the tree learns what is queued there (`away`), a listener who of the tree waits (`waiting`)."""
        ends = {file.state["ino"]: file for file in files}

        def one(file: OpenFile) -> OpenFile:
            waiting = [ino for ino in file.state.get("pending", ()) if ino in ends]
            if waiting:
                return replace(file, state={**file.state, "waiting": waiting})
            twin = ends.get(file.state["peer"])
            if twin is None or twin.state["peer"] != file.state["ino"] or set(_senders(twin)) - {file.state["local"]}:
                return file
            return replace(file, state={**file.state, "away": twin.state["queue"]})

        return [one(file) for file in files]

    # ---- in place ----

    def adjust(self, fd: int, now: OpenFile, wanted: OpenFile) -> Sequence[RemoteCall]:
        here, there = now.state, wanted.state
        calls = [*set_options(fd, here["options"], there["options"]), *set_flags(fd, now.flags, wanted.flags)]
        if here.get("outside") and there.get("outside"):
            return calls
        if any(here[key] != there[key] for key in _IN_PLACE):
            raise CannotUndo("unix socket: it is connected or bound in another way")
        if here.get("waiting") != there.get("waiting"):
            if "waiting" in there:
                raise CannotUndo("unix socket: others wait to be accepted")
            return [*unix_group.drain(fd, here), *calls]
        if "away" in here and "away" in there:
            return [*self._requeue(fd, here, there), *calls]
        if here["queue"] != there["queue"] or here.get("senders") != there.get("senders"):
            raise CannotUndo("unix socket: what is queued in it has changed")
        return calls

    def _requeue(self, fd: int, here: State, there: State) -> list[RemoteCall]:
        """This end's part of both directions: as the writer of one, as the reader of the other."""
        calls: list[RemoteCall] = []
        if here["away"] != there["away"]:
            if _weight(here["away"]) + _weight(there["away"]) > _ROOM:
                raise CannotUndo("unix socket: more is queued in it than can be put back in place")
            for data in map(bytes.fromhex, there["away"]):
                note = f"send {len(data)} bytes again"
                flags = so.MSG_DONTWAIT | so.MSG_NOSIGNAL
                calls.append(call(nr("sendto"), fd, data, len(data), flags, 0, 0, note=note, expect=len(data)))
        if here["queue"] != there["queue"]:
            calls += self._drop(fd, here)
        return calls

    def _drop(self, fd: int, here: State) -> list[RemoteCall]:
        sizes = [len(text) // 2 for text in here["queue"]]
        if here["type"] != socket.SOCK_STREAM:  # a read of nothing takes a message away
            return [call(nr("recvfrom"), fd, bytes(8), 0, so.MSG_DONTWAIT, 0, 0, note=f"drop a message of {size} bytes") for size in sizes]
        if int(here["options"].get("SO_PASSCRED", "00")[:2], 16):
            raise CannotUndo("unix socket: a read may stop where its sender changes (SO_PASSCRED)")
        size = sum(sizes)
        return [call(nr("recvfrom"), fd, bytes(size), size, so.MSG_DONTWAIT, 0, 0, note=f"drop {size} bytes", expect=size)] if size else []

    # ---- made again ----

    def recreate(self, wanted: OpenFile) -> Sequence[RemoteCall]:
        made = self.recreate_group([wanted], {})
        return [*made.calls, same(made.results[0])]

    def together(self, members: Sequence[OpenFile]) -> Iterable[tuple[int, int]]:
        at = {member.state["ino"]: member for member in members}
        return [(member.id, at[member.state["peer"]].id) for member in members if member.state["peer"] in at]

    def stays(self, member: OpenFile) -> bool:
        return not unix_group.waits(member)

    def quiet(self, file: OpenFile) -> OpenFile:
        return replace(file, state={key: value for key, value in file.state.items() if key not in ("pending", "waiting")})

    def recreate_group(self, members: Sequence[OpenFile], kept: Mapping[int, Kept], *, root: bool = False) -> Made:
        return unix_group.Group(members, kept, root=root).made()


def _senders(file: OpenFile) -> list[str]:
    return list(file.state.get("senders", [])) if file.state["type"] == socket.SOCK_DGRAM else []


def _weight(queue: Sequence[str]) -> int:
    """Bytes of a send buffer that these messages take, at most."""
    return sum(len(text) // 2 + _OVERHEAD for text in queue)


KIND = Unix()
