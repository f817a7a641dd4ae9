"""Open files that a restore puts in place of ones that lead out of the tree: terminals, pipes to strangers, and what --fd names."""

from __future__ import annotations

import os
from pathlib import Path

from ckpt.errors import CkptError
from ckpt.kinds.base import RawDescriptor
from ckpt.live.preflight import recognise
from ckpt.model import OpenFile

_LASTING = os.O_ACCMODE | os.O_APPEND | os.O_NONBLOCK


def open_file(path: str, identity: int, flags: int) -> OpenFile:
    """What a descriptor of `path` would be captured as; made (mode 0666) where it is missing and `flags` write."""
    create = os.O_CREAT if flags & os.O_ACCMODE else 0
    try:
        descriptor = os.open(path, flags & _LASTING | create | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise CkptError(f"--fd {path}: {error.strerror}: give a path that can be opened") from None
    try:
        stat = os.fstat(descriptor)
        info = Path(f"/proc/self/fdinfo/{descriptor}").read_text()
        link = os.readlink(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)
    raw = RawDescriptor(
        os.getpid(), descriptor, stat.st_dev, stat.st_ino, stat.st_rdev, stat.st_size, stat.st_nlink, stat.st_mode, identity, link, info
    )
    kind = recognise(raw)
    if kind is None:
        raise CkptError(f"--fd {path}: not a file or a device that a restore can open")
    made = kind.parse(raw)
    return OpenFile(identity, made.kind, flags & _LASTING, 0, made.state)
