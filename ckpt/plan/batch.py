"""Sequences of RemoteCalls that name each other's results, and the numbers that the plan itself needs.

Invariants
 1. A kind writes its calls with results counted from 0; `Batch.extend` shifts them, so sequences compose.
 2. A result is visible only inside its batch: one batch becomes one Stage.
"""

from __future__ import annotations

from collections.abc import Sequence

from ckpt.kinds.base import call, result, shift
from ckpt.model import PAGE, RemoteArg, RemoteCall

# x86-64 system calls (arch/x86/entry/syscalls/syscall_64.tbl)
NR_OPEN = 2
NR_CLOSE = 3
NR_MMAP = 9
NR_MPROTECT = 10
NR_MUNMAP = 11
NR_BRK = 12
NR_MREMAP = 25
NR_MADVISE = 28
NR_SOCKET = 41
NR_SHUTDOWN = 48
NR_SETSOCKOPT = 54
NR_FCNTL = 72
NR_RT_SIGTIMEDWAIT = 128
NR_RT_SIGQUEUEINFO = 129
NR_DUP3 = 292
NR_RT_TGSIGQUEUEINFO = 297

PROT_READ, PROT_WRITE, PROT_EXEC = 1, 2, 4
MAP_SHARED, MAP_PRIVATE, MAP_FIXED, MAP_ANONYMOUS, MAP_GROWSDOWN, MAP_NORESERVE, MAP_DROPPABLE = 1, 2, 0x10, 0x20, 0x100, 0x4000, 8
MREMAP_MAYMOVE, MREMAP_FIXED = 1, 2
MADV_DONTNEED, MADV_POPULATE_WRITE = 4, 23
PAGE_SIZE = PAGE
O_RDONLY, O_WRONLY, O_RDWR, O_ACCMODE, O_NONBLOCK, O_CLOEXEC, O_PATH = 0, 1, 2, 3, 0o4000, 0o2000000, 0o10000000
F_SETFD, F_DUPFD_CLOEXEC, FD_CLOEXEC = 2, 1030, 1


class Batch:
    """Calls of one stage, in order."""

    def __init__(self) -> None:
        self.calls: list[RemoteCall] = []

    def add(self, nr: int, *args: int | bytes | RemoteArg, note: str, expect: int | None = 0) -> RemoteArg:
        """Appends one call (results counted from the batch's start); returns its result as an argument."""
        self.calls.append(call(nr, *args, note=note, expect=expect))
        return result(len(self.calls) - 1)

    def extend(self, calls: Sequence[RemoteCall], tid: int = 0) -> RemoteArg:
        """Appends a kind's sequence, shifting its results; returns the last call's result."""
        base = len(self.calls)
        for item in calls:
            item = shift(item, base)
            self.calls.append(RemoteCall(item.nr, item.args, item.note, item.expect, tid) if tid else item)
        return result(len(self.calls) - 1)


def page_up(address: int) -> int:
    return (address + PAGE - 1) & ~(PAGE - 1)
