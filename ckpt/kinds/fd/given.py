"""A path that somebody chose for a restored descriptor (--fd N=PATH, or /dev/null where a terminal was). Nothing that lives is of
this kind: a snapshot of the restored program sees what really stands there."""

from __future__ import annotations

import os
from collections.abc import Sequence

from ckpt.kinds.base import CannotUndo, RawDescriptor, Unsupported, Wants, call
from ckpt.model import OpenFile, RemoteCall
from ckpt.syscalls.names import nr

_O_NOCTTY = 0o400
_LASTING = os.O_ACCMODE | os.O_APPEND | os.O_NONBLOCK


class Given:
    name = "given"
    order = 99
    wants: tuple[Wants, ...] = ()

    def recognises(self, raw: RawDescriptor) -> bool:
        return False

    def parse(self, raw: RawDescriptor) -> OpenFile:
        raise Unsupported(f"{raw.link}: not supported")

    def adjust(self, fd: int, now: OpenFile, wanted: OpenFile) -> Sequence[RemoteCall]:
        raise CannotUndo(f"{wanted.state['path']} was given for a restore")

    def recreate(self, wanted: OpenFile) -> Sequence[RemoteCall]:
        path = str(wanted.state["path"])
        return [call(nr("open"), os.fsencode(path) + b"\0", wanted.flags & _LASTING | _O_NOCTTY, 0, note=f"open {path}")]


def given(identity: int, path: str, flags: int, *, pollable: bool) -> OpenFile:
    return OpenFile(identity, Given.name, flags & _LASTING, 0, {"path": path, "pollable": pollable})


KIND = Given()
