"""Files that a restore opens in place of descriptors that lead out of the tree: what --fd names, and /dev/null.

They are opened here, by the names that the user's own surroundings give them, and handed down to the newborn.
"""

from __future__ import annotations

import fcntl
import os
import resource
import stat
from types import TracebackType
from typing import Self

from ckpt.errors import CkptError, RefusedError
from ckpt.kinds.fd.given import given
from ckpt.model import OpenFile

ABOVE = 100  #: numbers that the newborn gets them at: out of the way of what it opens itself
NUMBERS = 300  #: of ours, at least: beside these there are those of terminals and processes, from 200 on
_LASTING = os.O_ACCMODE | os.O_APPEND | os.O_NONBLOCK


class Streams:
    """`numbers`: descriptors of ours that the newborn is to keep. Closed here at the end of the `with`."""

    def __init__(self) -> None:
        self.numbers: list[int] = []
        _make_room()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number in self.numbers:
            os.close(number)

    def open(self, path: str, identity: int, flags: int) -> OpenFile:
        """The open file that stands in; with O_CREAT one that is missing is made (mode 0666)."""
        create, flags = flags & os.O_CREAT, flags & ~os.O_CREAT
        try:
            opened = os.open(path, flags & _LASTING | create | os.O_NOCTTY | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise CkptError(f"--fd {path}: {error.strerror}: give a path that can be opened") from None
        try:
            number = fcntl.fcntl(opened, fcntl.F_DUPFD_CLOEXEC, ABOVE)
        finally:
            os.close(opened)
        return self._handed_down(identity, path, flags, number)

    def pass_on(self, fd: int, identity: int, flags: int) -> OpenFile:
        """Our own standard stream."""
        return self._handed_down(identity, f"ckpt's own fd {fd}", flags, fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, ABOVE))

    def _handed_down(self, identity: int, name: str, flags: int, number: int) -> OpenFile:
        self.numbers.append(number)
        mode = os.fstat(number).st_mode
        terminal = stat.S_ISCHR(mode) and os.major(os.fstat(number).st_rdev) != 1
        return given(identity, name, flags, number, pollable=stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) or terminal)


def _make_room() -> None:
    """What newborns are handed stands at high numbers of ours. Their own limits are the generation's."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < NUMBERS:
        raise RefusedError(f"ckpt itself may have {hard} open files, a restore wants {NUMBERS}: raise that hard limit (ulimit -Hn)")
    if soft < NUMBERS:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
