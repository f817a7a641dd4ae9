"""The tree as the kernel sees it come and go, and the filter that all programs share (src/lifecycle.bpf.c), and the
changes that any of them tells (src/tree.h)."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum

from bpf import calls
from bpf.program import Program
from bpf.ring import Ring
from bpf.told import Told

_RING_BYTES = 1 << 20  #: 18,000 changes
_ENTRIES = 16384
_MEMBER = struct.Struct("<QII")  #: src/tree.h


class Kind(IntEnum):
    FORK = 1
    THREAD = 2
    EXEC = 3
    END = 4
    MAPPING = 5


@dataclass(frozen=True, slots=True)
class Change:
    """One change of the tree. `ns`: CLOCK_MONOTONIC."""

    ns: int
    kind: Kind
    pid: int
    tid: int
    value: int  #: END: wait status; MAPPING: number of the call (mmap, munmap, brk, mremap)
    address: int  #: MAPPING: as asked for
    size: int
    result: int  #: FORK, THREAD: the parent; EXEC: the thread's number before; END: 1 = the process too; MAPPING: what the call gave


class Filter(Told):
    """Processes that are looked at. Follows forks by itself from the moment it is made; who is there already is added. Changes of
    mappings come with `Syscalls`, which sees the calls."""

    def __init__(self) -> None:
        points = {"forked": "sched_process_fork", "executed": "sched_process_exec", "ended": "sched_process_exit"}
        self._program = Program("lifecycle", points, ring_bytes=_RING_BYTES)
        self._ring = Ring(self._program.maps["changes"], _RING_BYTES, "QIIIiQQq")

    @property
    def shared(self) -> dict[str, int]:
        """The maps that other programs are to use."""
        return {name: self._program.maps[name] for name in ("tree", "changes", "untold")}

    def add(self, pids: Iterable[int]) -> None:
        for pid in pids:
            calls.map_update(self._program.maps["tree"], pid.to_bytes(4, "little"), _MEMBER.pack(0, pid, 0))

    def remove(self, pids: Iterable[int]) -> None:
        for pid in pids:
            calls.map_delete_if_there(self._program.maps["tree"], pid.to_bytes(4, "little"))

    def pids(self) -> set[int]:
        keys, _ = calls.map_entries(self._program.maps["tree"], 4, _MEMBER.size, _ENTRIES)
        return {int.from_bytes(keys[at : at + 4], "little") for at in range(0, len(keys), 4)}

    def take(self) -> list[Change]:
        """What has happened since it was last asked."""
        return [
            Change(ns, Kind(kind), pid, tid, value, address, size, result)
            for ns, kind, pid, tid, value, address, size, result in self._ring.take()
        ]

    def lost(self) -> int:
        """Changes that found no room."""
        return self._program.counter("untold")
