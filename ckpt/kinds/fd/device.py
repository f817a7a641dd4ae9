"""Character devices that hold no state of ours: null, zero, full, random, urandom, and terminals other
than pseudo-terminals (pty.py).

A terminal is shared with whoever sits at it (the shell, the emulator): its settings, size and input are remembered for
`ckpt show` but no rollback touches them. Any other device has state that only its driver knows: refused by its path.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence

from ckpt.kinds.base import CannotUndo, RawDescriptor, Unsupported, Wants, Work, call, set_flags
from ckpt.kinds.fd.file import O_ONCE
from ckpt.model import OpenFile, RemoteCall
from ckpt.procfs import parse_fdinfo
from ckpt.syscalls.names import nr

_MEMORY = {3: "null", 5: "zero", 7: "full", 8: "random", 9: "urandom"}  #: minors of major 1 (drivers/char/mem.c)
_TTY, _TTYAUX, _PTS = 4, 5, range(136, 144)
_KVM = (10, 232)
_O_NOCTTY = 0o400


def device(rdev: int) -> str:
    """What the device is: "null", ..., "tty"; raises Unsupported."""
    major, minor = os.major(rdev), os.minor(rdev)
    if (major, minor) == _KVM:
        raise Unsupported("kvm: not supported")
    if major == 1 and minor in _MEMORY:
        return _MEMORY[minor]
    if major in (_TTY, _TTYAUX) or major in _PTS:
        return "tty"
    raise Unsupported(f"device {major}:{minor}: not supported")


class Device:
    name = "device"
    order = 42
    wants = (
        Wants(prefix="/dev/tty", format=stat.S_IFCHR, work=Work.TTY),
        Wants(prefix="/dev/console", format=stat.S_IFCHR, work=Work.TTY),
        Wants(format=stat.S_IFCHR),
    )

    def recognises(self, raw: RawDescriptor) -> bool:
        return stat.S_ISCHR(raw.mode)

    def check(self, raw: RawDescriptor) -> None:
        self.parse(raw)

    def parse(self, raw: RawDescriptor) -> OpenFile:
        info = parse_fdinfo(raw.fdinfo)
        state: dict[str, object] = {"path": raw.link, "dev": raw.dev, "ino": raw.ino, "rdev": raw.rdev, "device": device(raw.rdev)}
        if Work.TTY in raw.work:
            state["tty"] = raw.work[Work.TTY].hex()
        return OpenFile(raw.file, self.name, info.open_flags, info.pos, state)

    def adjust(self, fd: int, now: OpenFile, wanted: OpenFile) -> Sequence[RemoteCall]:
        return set_flags(fd, now.flags, wanted.flags)

    def recreate(self, wanted: OpenFile) -> Sequence[RemoteCall]:
        path = wanted.state["path"]
        if path.endswith(" (deleted)") or (path.startswith("/dev/pts/") and "(" in path):
            raise CannotUndo(f"terminal {path} has gone")
        return [call(nr("open"), os.fsencode(path) + b"\0", wanted.flags & ~O_ONCE | _O_NOCTTY, 0, note=f"open {path}")]


KIND = Device()
