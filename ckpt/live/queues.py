"""What POSIX message queues there are now, under the names that a generation's had: looked up before anything is planned."""

from __future__ import annotations

import ctypes
import os
from dataclasses import replace
from typing import Any

from ckpt.kinds.fd.mqueue import ATTR
from ckpt.model import OpenFile, Snapshot
from ckpt.syscalls.names import nr

_LIBC = ctypes.CDLL(None, use_errno=True)
_ROOM = 64


def located(wanted: Snapshot, *, trial: bool = False) -> Snapshot:
    """The same; each queue knows what is `there` under its name. `trial`: an IPC namespace of its own has none."""
    return replace(wanted, files=tuple(_located(file, trial) if file.kind == "mqueue" else file for file in wanted.files))


def _located(file: OpenFile, trial: bool) -> OpenFile:
    found = {"trial": True} if trial else {"there": _look(os.fsencode(file.state["queue"][1:]))}
    return replace(file, state={**file.state, **found})


def _look(queue: bytes) -> dict[str, Any]:
    opened = _LIBC.syscall(nr("mq_open"), queue, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC, 0, None)
    if opened < 0:
        return {}
    try:
        answer = ctypes.create_string_buffer(_ROOM)
        if _LIBC.syscall(nr("mq_getsetattr"), opened, None, answer):
            return {}
        _flags, room, size, count = ATTR.unpack_from(answer.raw)
        return {"room": room, "size": size, "count": count}
    finally:
        os.close(opened)
