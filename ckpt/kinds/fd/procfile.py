"""Files and directories of /proc: what is read there is the kernel's, so a path is all there is to one. Inode numbers there are given
anew each time somebody looks, and say nothing.

One of a process (`pid`) can be opened again if that is of the tree; a restore with new numbers opens the new one's. One of a process
that has ended is an ordinary file that has been deleted, which cannot be had again (file.py).
"""

from __future__ import annotations

import re
import stat
from collections.abc import Mapping, Sequence
from dataclasses import replace

from ckpt.kinds.base import CannotUndo, RawDescriptor, Wants, set_flags
from ckpt.kinds.fd.file import O_PATH, reopen, seek
from ckpt.model import OpenFile, RemoteCall
from ckpt.procfs import parse_fdinfo

_OF_PROCESS = re.compile(r"/proc/(\d+)(?=/|$)")
_OF_THREAD = re.compile(r"(?<=/task/)\d+")


class ProcFile:
    name = "procfile"
    order = 38
    wants = (Wants(prefix="/proc/"),)

    def recognises(self, raw: RawDescriptor) -> bool:
        if parse_fdinfo(raw.fdinfo).flags & O_PATH or raw.link.endswith(" (deleted)"):
            return False
        return raw.link.startswith("/proc") and raw.link[5:6] in ("", "/") and (stat.S_ISREG(raw.mode) or stat.S_ISDIR(raw.mode))

    def parse(self, raw: RawDescriptor) -> OpenFile:
        info = parse_fdinfo(raw.fdinfo)
        found = _OF_PROCESS.match(raw.link)
        state = {"path": raw.link, "deleted": False, "pid": int(found[1]) if found else 0}
        return OpenFile(raw.file, self.name, info.open_flags, info.pos, state)

    def adjust(self, fd: int, now: OpenFile, wanted: OpenFile) -> Sequence[RemoteCall]:
        if now.state["path"] != wanted.state["path"]:
            raise CannotUndo(f"{wanted.state['path']} was closed since")
        moved = [seek(fd, wanted.pos)] if now.pos != wanted.pos else []
        return [*moved, *set_flags(fd, now.flags, wanted.flags)]

    def recreate(self, wanted: OpenFile) -> Sequence[RemoteCall]:
        return reopen(wanted)


def renumbered(file: OpenFile, numbers: Mapping[int, int]) -> OpenFile:
    """`numbers`: of processes and threads, old -> new."""
    if file.kind != ProcFile.name or file.state["pid"] not in numbers:
        return file
    pid = numbers[file.state["pid"]]
    path = _OF_PROCESS.sub(f"/proc/{pid}", file.state["path"])
    path = _OF_THREAD.sub(lambda found: str(numbers.get(int(found[0]), int(found[0]))), path)
    return replace(file, state={**file.state, "path": path, "pid": pid})


KIND = ProcFile()
