"""FIFOs of a restored tree: whether what lay in one may be put back, and one that nobody else sees, for a trial."""

from __future__ import annotations

import fcntl
import os
import tempfile
from pathlib import Path

from ckpt.kinds.fd.file import O_PATH

ABOVE = 200  #: numbers that newborns get them at, above those of streams.py


def is_read(path: str) -> bool:
    """Whether somebody has its reading end open: then what is written into it goes to him. (ENXIO: nobody has.)"""
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC))
    except OSError:
        return False
    return True


def apart() -> int:
    """A place (O_PATH), at a number of ABOVE or more, where a FIFO without a name stands; it holds no end of it."""
    with tempfile.TemporaryDirectory(prefix="ckpt-") as folder:
        path = Path(folder) / "fifo"
        os.mkfifo(path, 0o600)
        place = os.open(path, O_PATH | os.O_CLOEXEC)
        try:
            return fcntl.fcntl(place, fcntl.F_DUPFD_CLOEXEC, ABOVE)
        finally:
            os.close(place)
