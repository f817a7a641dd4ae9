"""Who is told by a signal that a descriptor is ready (F_SETOWN, F_SETOWN_EX) and by which one (F_SETSIG): of every kind alike.

State: `sigio_to`: ["thread" | "process" | "group", number]; `sigio`: the signal's number, where it is not SIGIO. Each only where it is set.
It is set when all threads and groups are there and credentials are put on: the kernel keeps whose they are, and lets the signal pass
by them. What is made anew signals from then on (O_ASYNC), not while it is filled. An owner outside the tree may be a stranger with its
number by now: it is left out, and that is said.

Regular files and directories are not asked: nothing of theirs signals but leases (refused) and dnotify (seen nowhere), and the close of a
duplicate may wait for a file system in user space that stands still itself.
"""

from __future__ import annotations

import stat
import struct
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ckpt.kinds.base import RawDescriptor, Wants, Work, call, set_flags
from ckpt.model import OpenFile, RemoteCall, Snapshot
from ckpt.syscalls.names import nr

F_SETSIG, F_SETOWN_EX = 10, 15
O_ASYNC = 0o20000
_ANSWER = struct.Struct("<3i")  #: type and number of the owner, signal
_OWNER = struct.Struct("<2i")  #: struct f_owner_ex
_TYPES = ("thread", "process", "group")  #: F_OWNER_TID, F_OWNER_PID, F_OWNER_PGRP


def asked(row: Wants) -> Wants:
    """The same row, and the question who is told."""
    return row if row.format in (stat.S_IFREG, stat.S_IFDIR) else replace(row, work=row.work | Work.OWNER)


def with_owner(file: OpenFile, raw: RawDescriptor) -> OpenFile:
    answer = raw.work.get(Work.OWNER, b"")
    if len(answer) < _ANSWER.size:
        return file
    sort, number, signal = _ANSWER.unpack_from(answer)
    told: dict[str, Any] = {"sigio_to": [_TYPES[sort], number]} if number and sort < len(_TYPES) else {}
    return replace(file, state={**file.state, **told, **({"sigio": signal} if signal else {})})


def restore(fd: int, now: OpenFile | None, wanted: OpenFile) -> list[RemoteCall]:
    """`now`: the open file that is kept; None: it is made anew."""
    here, there = now.state if now else {}, wanted.state
    calls = []
    if here.get("sigio_to") != there.get("sigio_to"):
        sort, number = there.get("sigio_to") or (_TYPES[0], 0)
        owner = _OWNER.pack(_TYPES.index(sort), number)
        calls.append(call(nr("fcntl"), fd, F_SETOWN_EX, owner, note=f"fd {fd} signals {f'{sort} {number}' if number else 'nobody'}"))
    if here.get("sigio") != there.get("sigio"):
        calls.append(call(nr("fcntl"), fd, F_SETSIG, there.get("sigio", 0), note=f"fd {fd} signals by {there.get('sigio', 'SIGIO')}"))
    if now is None and wanted.flags & O_ASYNC:
        calls += set_flags(fd, 0, wanted.flags)
    return calls


def members(snapshot: Snapshot) -> frozenset[tuple[str, int]]:
    """All that can be an owner and is of the tree."""
    threads = {("thread", thread.tid) for task in snapshot.tasks for thread in task.threads}
    return frozenset(threads | {pair for task in snapshot.tasks for pair in (("process", task.pid), ("group", task.pgid))})


def renumbered(file: OpenFile, numbers: Mapping[int, int]) -> OpenFile:
    if "sigio_to" not in file.state:
        return file
    sort, number = file.state["sigio_to"]
    return replace(file, state={**file.state, "sigio_to": [sort, numbers.get(number, number)]})
