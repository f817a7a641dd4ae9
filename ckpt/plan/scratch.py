"""What must leave no trace outside: a plan for newborns that are looked at and discarded, in mount namespaces of their own. Pure.

A unix socket's name is a file: it would be bound where the living program's own socket stands. So while a group of sockets is
made, an empty file system lies over each folder that they are bound in; it goes again at once, and with it the names. The
sockets keep them: the kernel remembers the text and the inode.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace

from ckpt.kinds.base import CannotUndo, call, shift
from ckpt.kinds.groups import Made
from ckpt.model import OpenFile

_NR_MOUNT, _NR_UMOUNT2, _MNT_DETACH = 165, 166, 2
_AF_UNIX_HEAD = 2  #: bytes of the family before the path


def in_scratch(made: Made, members: Sequence[OpenFile]) -> Made:
    """The same calls, under file systems of their own."""
    folders = sorted({folder for member in members if (folder := _folder(member))})
    if not folders:
        return made
    tmpfs = b"tmpfs\0"
    before = [call(_NR_MOUNT, tmpfs, where, tmpfs, 0, 0, note=f"an empty {os.fsdecode(where[:-1])} for a moment") for where in folders]
    after = [call(_NR_UMOUNT2, where, _MNT_DETACH, note=f"{os.fsdecode(where[:-1])} again") for where in reversed(folders)]
    moved = tuple(shift(item, len(before)) for item in made.calls)
    results = tuple(index + len(before) if index >= 0 else index for index in made.results)
    return replace(made, calls=(*before, *moved, *after), results=results)


def _folder(member: OpenFile) -> bytes:
    """Where it is bound, NUL-terminated; empty if it has no name in a file system. Raises CannotUndo where nothing can lie over it."""
    name = bytes.fromhex(str(member.state.get("local", "")))[_AF_UNIX_HEAD:] if member.kind == "unix" else b""
    path = name.split(b"\0")[0]
    if not path:
        return b""
    folder, _slash, _name = path.rpartition(b"/")
    if not folder.startswith(b"/"):
        raise CannotUndo(f"unix socket bound as {os.fsdecode(path)}: cannot be tried without a trace")
    return folder + b"\0"
