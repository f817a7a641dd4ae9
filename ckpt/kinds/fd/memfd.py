"""memfd: a file without a name. Its contents are pages of an object space (C stores them once), not this kind's business."""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Sequence

from ckpt.kinds.base import CannotUndo, RawDescriptor, Wants, Work, call, result, same, set_flags
from ckpt.kinds.fd.file import seek
from ckpt.model import OpenFile, RemoteCall
from ckpt.procfs import parse_fdinfo
from ckpt.syscalls.names import nr

_PREFIX, _DELETED = "/memfd:", " (deleted)"
_MFD_ALLOW_SEALING = 2
_F_SEAL_SEAL, _F_SEAL_SHRINK, _F_SEAL_GROW, _F_SEAL_WRITE = 1, 2, 4, 8


class Memfd:
    name = "memfd"
    order = 14
    wants = (Wants(prefix=_PREFIX, format=stat.S_IFREG, work=Work.SEALS | Work.CONTENTS),)

    def recognises(self, raw: RawDescriptor) -> bool:
        return raw.link.startswith(_PREFIX) and raw.link.endswith(_DELETED)

    def parse(self, raw: RawDescriptor) -> OpenFile:
        info = parse_fdinfo(raw.fdinfo)
        answer = raw.work.get(Work.SEALS, b"")
        seals = struct.unpack_from("<i", answer)[0] if len(answer) >= 4 else 0
        state = {
            "name": raw.link.removeprefix(_PREFIX).removesuffix(_DELETED),
            "dev": raw.dev,
            "ino": raw.ino,
            "size": raw.size,
            "seals": max(seals, 0),
        }
        return OpenFile(raw.file, self.name, info.open_flags, info.pos, state)

    def adjust(self, fd: int, now: OpenFile, wanted: OpenFile) -> Sequence[RemoteCall]:
        title, since = wanted.state["name"], now.state["seals"] & ~wanted.state["seals"]
        if since:
            raise CannotUndo(f"memfd {title}: it was sealed since (seals {since:#x}), a seal cannot be taken back")
        calls: list[RemoteCall] = []
        if now.state["size"] != wanted.state["size"]:
            forbidden = _F_SEAL_GROW if wanted.state["size"] > now.state["size"] else _F_SEAL_SHRINK
            if now.state["seals"] & forbidden or not wanted.flags & os.O_ACCMODE:
                raise CannotUndo(f"memfd {title}: its size has changed and cannot be set")
            calls.append(call(nr("ftruncate"), fd, wanted.state["size"], note=f"memfd {title}: {wanted.state['size']} bytes"))
        if now.pos != wanted.pos:
            calls.append(seek(fd, wanted.pos))
        return [*calls, *set_flags(fd, now.flags, wanted.flags)]

    def recreate(self, wanted: OpenFile) -> Sequence[RemoteCall]:
        """Only an empty one: contents come back as pages of an object that still is."""
        title, seals = wanted.state["name"], wanted.state["seals"]
        if wanted.state["size"]:
            raise CannotUndo(f"memfd {title} is gone, its {wanted.state['size']} bytes cannot be put back in place")
        allow = 0 if seals & _F_SEAL_SEAL else _MFD_ALLOW_SEALING
        calls = [call(nr("memfd_create"), os.fsencode(title) + b"\0", allow, note=f"memfd {title}")]
        if wanted.pos:
            calls.append(seek(result(0), wanted.pos))
        if seals & ~_F_SEAL_SEAL:
            calls.append(call(nr("fcntl"), result(0), 1033, seals, note=f"memfd {title}: seals {seals:#x}"))
        return [*calls, same(0)]


KIND = Memfd()
