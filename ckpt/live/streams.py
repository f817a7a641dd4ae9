"""Files that a restore opens in place of descriptors that lead out of the tree: what --fd names, and /dev/null."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from ckpt.errors import CkptError
from ckpt.kinds.fd.given import given
from ckpt.model import OpenFile


def open_file(path: str, identity: int, flags: int) -> OpenFile:
    """The open file that stands in; a file that `flags` write is made (mode 0666) where it is missing."""
    where = str(Path(path).absolute())
    try:
        if flags & os.O_ACCMODE and not os.path.lexists(where):
            os.close(os.open(where, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666))
        mode = os.stat(where).st_mode
    except OSError as error:
        raise CkptError(f"--fd {path}: {error.strerror}: give a path that can be opened") from None
    if stat.S_ISSOCK(mode) or stat.S_ISDIR(mode):
        raise CkptError(
            f"--fd {path}: a {'socket' if stat.S_ISSOCK(mode) else 'directory'} cannot stand in: give a file, a pipe or a device"
        )
    terminal = stat.S_ISCHR(mode) and os.major(os.stat(where).st_rdev) != 1
    return given(identity, where, flags, pollable=stat.S_ISFIFO(mode) or terminal)
