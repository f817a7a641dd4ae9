"""What an open file that is brought back is surely ready for, so that an entry of an epoll set can be made to fire (epoll.py)."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping

from ckpt.model import OpenFile, State

IN, OUT = 1, 4
_FEW_BYTES, _FEW_MESSAGES = 4096, 4  #: what lies unread leaves room for more, whatever the buffer
_COUNT_MAX = 2**64 - 2


def ready(file: OpenFile) -> int:
    """Events that poll(2) shows of it, hang-ups aside; IN | OUT: one of them at least. 0: perhaps none."""
    known = _KINDS.get(file.kind)
    return known(file, file.state) if known else 0


def can_be_fed(file: OpenFile) -> bool:
    """The end of an empty pipe that reads, both ends of the tree: what is written there is read again by nobody else."""
    return file.kind == "pipe" and not file.state.get("outside") and file.flags & os.O_ACCMODE == os.O_RDONLY


def _pipe(file: OpenFile, state: State) -> int:
    length = len(state["contents"]) // 2
    if file.flags & os.O_ACCMODE == os.O_RDONLY:
        return IN if length or state["alone"] else 0
    return OUT if length * 2 <= state["capacity"] or state["alone"] else 0


def _unix(_file: OpenFile, state: State) -> int:
    if state["backlog"] >= 0:
        return IN if state.get("waiting") else 0
    away = state.get("away", ())
    room = len(away) <= _FEW_MESSAGES and sum(map(len, away)) <= _FEW_BYTES * 2
    return (OUT if room else 0) | (IN if state["queue"] else 0)


def _tcp(_file: OpenFile, state: State) -> int:
    if state["state"] == "LISTEN":
        return IN if state.get("waiting") else 0
    return OUT if len(state.get("away", "")) <= _FEW_BYTES * 2 else 0


_KINDS: Mapping[str, Callable[[OpenFile, State], int]] = {
    "eventfd": lambda _file, state: (OUT if state["count"] < _COUNT_MAX else 0) | (IN if state["count"] else 0),
    "pty": lambda _file, _state: OUT,
    "netlink": lambda _file, _state: OUT,
    "udp": lambda _file, _state: OUT,
    "mqueue": lambda _file, _state: IN | OUT,
    "pipe": _pipe,
    "fifo": _pipe,
    "unix": _unix,
    "tcp": _tcp,
}
