"""pidfd: a hold on a process, or on one thread (PIDFD_THREAD).

pidfs gives each process an inode of its own for as long as the machine is up (6.9), so whether a process outside is still the same can be
told; ckpt/live/processes.py looks and makes it, and one of a process that has ended (`at`). Members of the tree are there by the
time that it is opened.
"""

from __future__ import annotations

from collections.abc import Sequence

from ckpt.kinds.base import CannotUndo, RawDescriptor, Unsupported, Wants, call, set_flags
from ckpt.model import OpenFile, RemoteCall
from ckpt.procfs import parse_fdinfo
from ckpt.syscalls.names import nr

PIDFD_THREAD, PIDFD_NONBLOCK = 0o200, 0o4000  #: as open flags O_EXCL, O_NONBLOCK
_OF_ITS_OWN = "pidfd:["  #: the link of one in pidfs


class Pidfd:
    name = "pidfd"
    order = 15
    wants: tuple[Wants, ...] = ()

    def recognises(self, raw: RawDescriptor) -> bool:
        return raw.link.startswith((_OF_ITS_OWN, "anon_inode:[pidfd]", "[pidfd]"))

    def parse(self, raw: RawDescriptor) -> OpenFile:
        info = parse_fdinfo(raw.fdinfo)
        pid = info.field("Pid")
        if pid is None:
            raise Unsupported("pidfd: which process it is of cannot be read")
        if int(pid) == 0:
            raise Unsupported("pidfd of a process outside our pid namespace: not supported")
        own = {"dev": raw.dev, "ino": raw.ino} if raw.link.startswith(_OF_ITS_OWN) else {}
        return OpenFile(raw.file, self.name, info.open_flags, 0, {"pid": int(pid), **own})

    def adjust(self, fd: int, now: OpenFile, wanted: OpenFile) -> Sequence[RemoteCall]:
        if now.state["pid"] != wanted.state["pid"]:
            raise CannotUndo(f"pidfd of process {wanted.state['pid']}: it is of {now.state['pid']} now")
        return set_flags(fd, now.flags, wanted.flags)

    def recreate(self, wanted: OpenFile) -> Sequence[RemoteCall]:
        pid = wanted.state["pid"]
        if "at" in wanted.state:
            return [call(nr("dup"), wanted.state["at"], note=f"pidfd of process {pid}, which is not of the tree")]
        if pid < 0:
            raise CannotUndo("pidfd of a process that has ended: it cannot be made again in place")
        flags = wanted.flags & (PIDFD_THREAD | PIDFD_NONBLOCK)
        return [call(nr("pidfd_open"), pid, flags, note=f"pidfd of process {pid}")]


KIND = Pidfd()
