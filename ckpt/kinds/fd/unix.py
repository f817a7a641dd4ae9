"""Unix sockets without a name that are connected to each other (socketpair): both ends, and the data queued in each.

A pair whose other end is held outside the tree stays as it is on a rollback. Sockets with a name are refused: who else
has connected, and what was said meanwhile, is not ours to take back.

What is queued in an end was written by the other one, and a socket cannot be opened anew through /proc: so a pair whose
queues have changed is made again, both ends, and filled from either side.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Sequence

from ckpt.kinds.base import CannotUndo, RawDescriptor, Unsupported, Work, call, result, same, set_flags, two_lowest
from ckpt.kinds.fd import sockets as so
from ckpt.model import OpenFile, RemoteCall
from ckpt.procfs import parse_fdinfo
from ckpt.syscalls.names import nr

_DIAG_HEAD = 16  #: struct unix_diag_msg
_DIAG_PEER, _DIAG_SHUTDOWN = 2, 6
_MSG_DONTWAIT, _MSG_NOSIGNAL = 0x40, 0x4000
_QUEUE_MAX = 96 * 1024  #: fits the default send buffer with the kernel's own overhead
_SHUT = {1: socket.SHUT_RD, 2: socket.SHUT_WR, 3: socket.SHUT_RDWR}  #: sk_shutdown -> how


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
        local, peer = so.address(found.local), so.address(found.peer)
        if found.listening:
            raise Unsupported(f"unix socket listening on {local}: not supported")
        if local or peer:
            raise Unsupported(f"unix socket connected by name ({local or peer}): not supported")
        queue = so.messages(raw.work.get(Work.PEEK, b""))
        if info.scm_fds or any(flags for flags, _ in queue):
            raise Unsupported("unix socket with descriptors in flight: not supported")
        diag = _attributes(raw.work[Work.UNIX_DIAG])
        other = int.from_bytes(diag.get(_DIAG_PEER, b"")[:4], "little")
        if not other and not found.peer:
            raise Unsupported("unix socket that is not connected: not supported")
        state = {
            "dev": raw.dev,
            "ino": raw.ino,
            "cookie": so.option_data(raw, so.SO_COOKIE).hex(),
            "type": found.type,
            "peer": other,  # inode of the other end; 0: it has been closed
            "shutdown": diag.get(_DIAG_SHUTDOWN, b"\0")[0],
            "queue": [data.hex() for _, data in queue],
            "options": so.options_of(raw),
        }
        return OpenFile(raw.file, self.name, info.open_flags, 0, state)

    def this_end(self, file: OpenFile) -> object:
        return file.state["ino"]

    def other_end(self, file: OpenFile) -> object:
        return file.state["peer"] or None

    def adjust(self, fd: int, now: OpenFile, wanted: OpenFile) -> Sequence[RemoteCall]:
        calls = [*so.set_options(fd, now.state["options"], wanted.state["options"]), *set_flags(fd, now.flags, wanted.flags)]
        if now.state.get("outside") and wanted.state.get("outside"):
            return calls
        if any(now.state[key] != wanted.state[key] for key in ("peer", "shutdown", "queue")):
            raise CannotUndo("unix socket pair: what is queued in it has changed")
        return calls

    def recreate(self, wanted: OpenFile) -> Sequence[RemoteCall]:
        raise CannotUndo("unix socket: one end alone cannot be made again")

    def recreate_pair(self, first: OpenFile | None, second: OpenFile | None) -> Sequence[RemoteCall]:
        ends = (first, second)
        known = first or second
        if known is None or known.state.get("outside"):
            raise CannotUndo("unix socket: its other end is held outside the tree")
        kind = known.state["type"]
        calls = [*two_lowest(), call(nr("socketpair"), socket.AF_UNIX, kind, 0, bytes(8), note="socketpair")]
        for index, end in enumerate(ends):
            if end is not None:
                calls += self._filled(index, end)
        for index, end in enumerate(ends):
            if end is None:
                calls.append(call(nr("close"), result(index), note="nobody holds this end"))
                continue
            how = _SHUT.get(end.state["shutdown"])
            if how is not None and ends[1 - index] is not None:
                calls.append(call(nr("shutdown"), result(index), how, note=f"shutdown({how})"))
            calls += so.set_options(result(index), {}, end.state["options"])
            calls += set_flags(result(index), 0, end.flags & os.O_NONBLOCK)
        return [*calls, same(0 if first else 1)]

    def _filled(self, index: int, end: OpenFile) -> list[RemoteCall]:
        """What is queued in end `index` is sent from the other one."""
        queue = [bytes.fromhex(text) for text in end.state["queue"]]
        if sum(map(len, queue)) > _QUEUE_MAX:
            raise CannotUndo(f"unix socket pair: {sum(map(len, queue))} queued bytes are more than can be put back")
        flags = _MSG_DONTWAIT | _MSG_NOSIGNAL
        return [call(nr("sendto"), result(1 - index), data, len(data), flags, 0, 0, note="queued data", expect=len(data)) for data in queue]


KIND = Unix()
