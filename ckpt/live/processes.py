"""Processes that a restored tree holds pidfds of and that are not of it: still the same, or ended."""

from __future__ import annotations

import fcntl
import os

from ckpt.errors import RefusedError
from ckpt.kinds.fd.pidfd import PIDFD_NONBLOCK, PIDFD_THREAD
from ckpt.model import OpenFile

ABOVE = 200  #: numbers that newborns get them at, above those of streams.py


def outside(file: OpenFile) -> int:
    """A pidfd, at a number of ABOVE or more, of the process outside. Raises RefusedError unless it is the one that it was."""
    pid = file.state["pid"]
    try:
        held = os.pidfd_open(pid, file.flags & (PIDFD_THREAD | PIDFD_NONBLOCK))
    except OSError:
        raise RefusedError(f"pidfd: process {pid}, which is not of the tree, has ended since") from None
    try:
        found = os.fstat(held)
        if "ino" in file.state and (found.st_dev, found.st_ino) != (file.state["dev"], file.state["ino"]):
            raise RefusedError(f"pidfd: process {pid}, which is not of the tree, is another one by now")
        return fcntl.fcntl(held, fcntl.F_DUPFD_CLOEXEC, ABOVE)
    finally:
        os.close(held)


def ended() -> int:
    """A pidfd, at a number of ABOVE or more, of a process that has ended and been waited for."""
    child = os.fork()
    if child == 0:
        os._exit(0)
    held = os.pidfd_open(child)
    try:
        return fcntl.fcntl(held, fcntl.F_DUPFD_CLOEXEC, ABOVE)
    finally:
        os.waitpid(child, 0)
        os.close(held)
