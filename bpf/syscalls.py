"""The call that every thread of the tree is in (src/syscalls.bpf.c)."""

from __future__ import annotations

import struct
import time
from collections.abc import Iterable
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from bpf import calls
from bpf.lifecycle import Filter
from bpf.program import Program

_CALL = struct.Struct("<QqQ6QqqQQQQ")
_WORDS = struct.Struct(f"<{_CALL.size // 8}Q")
_WEIGHT = 0x9E3779B97F4A7C15  #: src/syscalls.bpf.c
_MASK = 2**64 - 1
_ENTRIES = 16384
_TRIES = 100
_PAUSE_S = 0.0001  #: between them: who writes may have lost its CPU over it


@dataclass(frozen=True, slots=True)
class Call:
    """What is known of one thread since the program was attached. Times are CLOCK_MONOTONIC."""

    pid: int
    tid: int
    nr: int  #: the call that it is in; -1: in user space, or in a call that began before
    entry_ns: int
    args: tuple[int, ...]
    last_nr: int  #: the last one that ended; -1: none has
    last_result: int
    last_exit_ns: int
    count: int  #: calls that have ended


def _whole(record: bytes) -> bool:
    """Whether all its words are of one state: its thread writes it while it is copied."""
    words: tuple[int, ...] = _WORDS.unpack(record)
    found = 0
    for word in words[1:]:
        found = found * _WEIGHT + word & _MASK
    return found == words[0]


class Syscalls:
    def __init__(self, tree: Filter) -> None:
        self._program = Program("syscalls", {"entered": "sys_enter", "exited": "sys_exit"}, tree.shared)

    def calls(self) -> dict[int, Call]:
        """By tid. A thread that has made no call since we look is not in it, nor one that never stood still for a copy."""
        fd = self._program.maps["calls"]
        keys, values = calls.map_entries(fd, 4, _CALL.size, _ENTRIES)
        found = {}
        for place, (tid,) in enumerate(struct.iter_unpack("<I", keys)):
            record = self._settled(fd, tid, values[place * _CALL.size : (place + 1) * _CALL.size])
            if record is not None:
                _sum, nr, entry_ns, *args_and_last, tgid, _goes_on = _CALL.unpack(record)
                found[tid] = Call(tgid, tid, nr, entry_ns, tuple(args_and_last[:6]), *args_and_last[6:])
        return found

    def _settled(self, fd: int, tid: int, copy: bytes) -> bytes | None:
        """A copy that is whole: this one, or one made anew."""
        record: bytes | None = copy
        for _ in range(_TRIES):
            if record is None or _whole(record):
                return record
            time.sleep(_PAUSE_S)
            record = calls.map_lookup(fd, tid.to_bytes(4, "little"), _CALL.size)
        return None

    def forget(self, tids: Iterable[int]) -> None:
        """Threads that have ended."""
        for tid in tids:
            calls.map_delete_if_there(self._program.maps["calls"], tid.to_bytes(4, "little"))

    def lost(self) -> int:
        """Calls of threads for which there was no room."""
        return self._program.counter("lost")

    def close(self) -> None:
        self._program.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
