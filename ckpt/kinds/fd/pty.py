"""Pseudo-terminals: a master (/dev/ptmx) and its slave (/dev/pts/N).

One whose master is in the tree is the program's own: a rollback puts its settings and size back, a restore gets it made by
ckpt (`at`, ckpt/live/terminals.py), under the same number where that is free. A slave alone leads to somebody else's terminal
(`outside`), which nothing here touches. What lies in it cannot be looked at without taking it away: a restore says that it is lost.
"""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Sequence

from ckpt.kinds.base import CannotUndo, RawDescriptor, Unsupported, Wants, Work, call, result, same, set_flags
from ckpt.kinds.fd.file import O_ONCE
from ckpt.kinds.task.terminal import SLAVES
from ckpt.model import OpenFile, RemoteCall
from ckpt.procfs import parse_fdinfo
from ckpt.syscalls.names import nr

MASTER = (5, 2)
TCSETS2, TIOCSWINSZ, TIOCPKT, TIOCSPTLCK = 0x402C_542B, 0x5414, 0x5420, 0x4004_5431
_O_NOCTTY = 0o400
_TERMIOS, _WINSIZE = 44, 8
_ANSWERS = struct.Struct("<7i")  #: index, locked, packet mode, exclusive, group, session, bytes that can be read


class Pty:
    name = "pty"
    order = 37
    wants = (
        Wants(prefix="/dev/ptmx", format=stat.S_IFCHR, work=Work.TTY),
        Wants(prefix="/dev/pts/", format=stat.S_IFCHR, work=Work.TTY),
    )

    def recognises(self, raw: RawDescriptor) -> bool:
        return stat.S_ISCHR(raw.mode) and (_device(raw) == MASTER or _device(raw)[0] in SLAVES)

    def is_master(self, raw: RawDescriptor) -> bool:
        return _device(raw) == MASTER

    def parse(self, raw: RawDescriptor) -> OpenFile:
        info = parse_fdinfo(raw.fdinfo)
        answer = raw.work.get(Work.TTY, b"")
        if len(answer) < _TERMIOS + _WINSIZE + _ANSWERS.size:
            raise Unsupported(f"terminal {raw.link}: its settings cannot be read")
        index, locked, packet, _exclusive, _group, _session, queued = _ANSWERS.unpack_from(answer, _TERMIOS + _WINSIZE)
        master = self.is_master(raw)
        major, minor = _device(raw)
        state = {
            "path": raw.link,
            "master": master,
            "index": index if master else (major - SLAVES.start) * 256 + minor,
            "termios": answer[:_TERMIOS].hex(),
            "winsize": answer[_TERMIOS : _TERMIOS + _WINSIZE].hex(),
            "queued": max(queued, 0),
            **({"locked": locked == 1, "packet": packet == 1} if master else {}),
        }
        return OpenFile(raw.file, self.name, info.open_flags, 0, state)

    def this_end(self, file: OpenFile) -> object:
        return file.state["index"], file.state["master"]

    def other_end(self, file: OpenFile) -> object:
        return None if file.state["master"] else (file.state["index"], True)

    def adjust(self, fd: int, now: OpenFile, wanted: OpenFile) -> Sequence[RemoteCall]:
        if self.this_end(now) != self.this_end(wanted):
            raise CannotUndo(f"{now.state['path']}: it is another terminal by now")
        calls: list[RemoteCall] = []
        if wanted.state["master"]:  # the settings are the pair's; through the master nobody is asked whether he is in the foreground
            for key, request in (("termios", TCSETS2), ("winsize", TIOCSWINSZ)):
                if now.state[key] != wanted.state[key]:
                    calls.append(
                        call(nr("ioctl"), fd, request, bytes.fromhex(wanted.state[key]), note=f"{key} of pty {wanted.state['index']}")
                    )
            for key, request in (("packet", TIOCPKT), ("locked", TIOCSPTLCK)):
                if now.state[key] != wanted.state[key]:
                    value = struct.pack("<i", wanted.state[key])
                    calls.append(call(nr("ioctl"), fd, request, value, note=f"pty {wanted.state['index']}: {key} {wanted.state[key]}"))
        return [*calls, *set_flags(fd, now.flags, wanted.flags)]

    def recreate(self, wanted: OpenFile) -> Sequence[RemoteCall]:
        state, path = wanted.state, wanted.state["path"]
        if "at" in state:
            return [call(nr("dup"), state["at"], note=f"{path}, made anew")]
        if state["master"]:  # a slave can be opened for as long as its master is there; where that one goes, it refuses
            raise CannotUndo(f"{path}: pty {state['index']} is gone")
        if "(" in path:
            raise CannotUndo(f"terminal {path} has gone")
        made = call(nr("open"), os.fsencode(path) + b"\0", wanted.flags & ~O_ONCE | _O_NOCTTY, 0, note=f"open {path}")
        return [made, *set_flags(result(0), wanted.flags, wanted.flags), same(0)]

    def caveats(self, now: OpenFile | None, wanted: OpenFile) -> Sequence[str]:
        if now is not None or not wanted.state["queued"] or wanted.state.get("outside"):
            return []
        return [f"{wanted.state['path']}: {wanted.state['queued']} bytes that lay in pty {wanted.state['index']} unread are lost"]


def _device(raw: RawDescriptor) -> tuple[int, int]:
    return os.major(raw.rdev), os.minor(raw.rdev)


KIND = Pty()
