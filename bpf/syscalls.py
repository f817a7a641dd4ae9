"""The call that every thread of the tree is in (src/syscalls.bpf.c)."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from bpf import calls
from bpf.lifecycle import Filter
from bpf.program import Program

_CALL = struct.Struct("<QqQ6QqqQQIIQ")
_ENTRIES = 16384
_TRIES = 100


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


class Syscalls:
    def __init__(self, tree: Filter) -> None:
        self._program = Program("syscalls", {"entered": "sys_enter", "exited": "sys_exit"}, tree.shared)

    def calls(self) -> dict[int, Call]:
        """By tid. A thread that has made no call since we look is not in it."""
        fd = self._program.maps["calls"]
        keys, values = calls.map_entries(fd, 4, _CALL.size, _ENTRIES)
        found = {}
        for (tid,), raw in zip(struct.iter_unpack("<I", keys), _CALL.iter_unpack(values), strict=True):
            record: tuple[int, ...] | None = raw
            for _ in range(_TRIES):  # torn: its thread was writing it
                if record is None or record[0] == record[-1]:
                    break
                again = calls.map_lookup(fd, tid.to_bytes(4, "little"), _CALL.size)
                record = _CALL.unpack(again) if again else None
            if record is not None:
                found[tid] = Call(record[13], tid, record[1], record[2], record[3:9], *record[9:13])
        return found

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
