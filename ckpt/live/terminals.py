"""Pseudo-terminals whose masters were in the tree, made anew for a restore: under the number that they had, where it is free.

The kernel gives a new pty the lowest free number; so lower ones are taken for a moment. Nothing but the number is visible of
that, and it is all that a program can have remembered: where another has it, that is said.
"""

from __future__ import annotations

import fcntl
import os
import struct
from collections.abc import Sequence

from ckpt.errors import RefusedError
from ckpt.kinds.fd.pty import TCSETS2, TIOCPKT, TIOCSPTLCK, TIOCSWINSZ
from ckpt.model import OpenFile

ABOVE = 200  #: numbers that newborns get them at, above those of streams.py
_TIOCGPTN, _TIOCGPTPEER = 0x8004_5430, 0x5441
_O_LARGEFILE = 0o100000  #: every open(2) of a 64-bit program sets it; openpty(3) does not open
_LASTING = os.O_ACCMODE | os.O_NONBLOCK
_AT_MOST = 4096


class Terminal:
    """One pty; its descriptors are handed to `keep` (list of ours that newborns are to have)."""

    def __init__(self, master: OpenFile, keep: list[int]) -> None:
        self._keep = keep
        try:
            self._master = self._kept(_open_master(master.state["path"], master.state["index"]), master.flags)
        except OSError as error:
            raise RefusedError(f"{master.state['path']}: pty {master.state['index']} cannot be made: {error.strerror}") from None
        self.index = _index(self._master)
        self._locked = bool(master.state.get("locked"))
        for request, value in ((TCSETS2, bytes.fromhex(master.state["termios"])), (TIOCSWINSZ, bytes.fromhex(master.state["winsize"]))):
            fcntl.ioctl(self._master, request, value)
        fcntl.ioctl(self._master, TIOCPKT, struct.pack("<i", bool(master.state.get("packet"))))

    def ends(self, master: OpenFile, slaves: Sequence[OpenFile]) -> dict[int, int]:
        """OpenFile.id -> our descriptor of it."""
        fcntl.ioctl(self._master, TIOCSPTLCK, struct.pack("<i", 0))
        found = {master.id: self._master}
        for slave in slaves:
            flags = slave.flags & _LASTING | os.O_NOCTTY
            if slave.flags & _O_LARGEFILE:
                opened = os.open(f"/dev/pts/{self.index}", flags | os.O_CLOEXEC)
            else:  # O_CLOEXEC would stay among the open file's own flags, where fdinfo shows it
                opened = fcntl.ioctl(self._master, _TIOCGPTPEER, flags)
            found[slave.id] = self._kept(opened, slave.flags)
        fcntl.ioctl(self._master, TIOCSPTLCK, struct.pack("<i", self._locked))
        return found

    def _kept(self, opened: int, flags: int) -> int:
        try:
            number = fcntl.fcntl(opened, fcntl.F_DUPFD_CLOEXEC, ABOVE)
        finally:
            os.close(opened)
        self._keep.append(number)
        fcntl.fcntl(number, fcntl.F_SETFL, flags & _LASTING)
        return number


def _open_master(path: str, wanted: int) -> int:
    below: list[int] = []
    try:
        while len(below) < _AT_MOST:
            made = os.open(path, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
            if _index(made) == wanted:
                return made
            below.append(made)
            if _index(made) > wanted:
                break  # it is taken
        return below.pop(0)
    finally:
        for number in below:
            os.close(number)


def _index(master: int) -> int:
    return int(struct.unpack("<i", fcntl.ioctl(master, _TIOCGPTN, bytes(4)))[0])
