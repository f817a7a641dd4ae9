"""What somebody chose for a restored descriptor (--fd N=PATH, or /dev/null where a terminal was): ckpt opened it, and the newborn has
it at the number `at`. Nothing that lives is of this kind: a snapshot of the restored program sees what really stands there."""

from __future__ import annotations

from collections.abc import Sequence

from ckpt.kinds.base import CannotUndo, RawDescriptor, Unsupported, Wants, call
from ckpt.model import OpenFile, RemoteCall
from ckpt.syscalls.names import nr


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
        return [call(nr("dup"), wanted.state["at"], note=f"{wanted.state['path']}, which was given")]


def given(identity: int, path: str, flags: int, at: int, *, pollable: bool) -> OpenFile:
    return OpenFile(identity, Given.name, flags, 0, {"path": path, "at": at, "pollable": pollable})


KIND = Given()
