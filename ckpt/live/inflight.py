"""The call that each thread of a tree is in: from the BPF program, and for one that was in it before the program came, from /proc.

/proc is read first. If the program has still seen nothing of a thread after that, the thread has neither entered nor left a call
since the program was attached, so what /proc said is a call that began before.

Of a process that is traced by a debugger the program sees nothing (bpf/src/syscalls.bpf.c, 3), and /proc says what its threads are in now.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from bpf import Call, Syscalls
from ckpt.live import clock
from ckpt.live.blocked import USER, blocked_call
from ckpt.procfs import parse_status


@dataclass(frozen=True, slots=True)
class InFlight:
    """Times are the machine's CLOCK_MONOTONIC."""

    pid: int
    tid: int
    command: str
    nr: int | None  #: USER; None: it cannot be told (no right to read, no call seen yet)
    args: tuple[int, ...]
    since_ns: int | None  #: when the call began; None: before `Observer.since_ns`
    last_nr: int  #: the last that has ended, USER where none has
    last_result: int
    count: int  #: calls that have ended since we look


class Observer:
    """Asks for all threads of some processes at one moment."""

    def __init__(self, syscalls: Syscalls) -> None:
        self.syscalls = syscalls
        self.since_ns = clock.now_ns()
        self._known: set[int] = set()  #: threads that the program has seen

    def look(self, pids: Iterable[int]) -> list[InFlight]:
        """In order of pid and tid. Who ends meanwhile is left out."""
        threads = {tid: pid for pid in sorted(pids) for tid in _threads(pid)}
        traced = {pid for pid in set(threads.values()) if _tracer(pid)}
        before = {tid: blocked_call(pid, tid) for tid, pid in threads.items() if tid not in self._known or pid in traced}
        calls = {tid: call for tid, call in self.syscalls.calls().items() if threads.get(tid) not in traced}
        self.syscalls.forget(calls.keys() - threads.keys())
        self._known = calls.keys() & threads.keys()
        found = []
        for tid, pid in threads.items():
            with suppress(FileNotFoundError, ProcessLookupError):
                command = Path(f"/proc/{pid}/task/{tid}/comm").read_text().rstrip("\n")
                found.append(_in_flight(pid, tid, command, calls.get(tid), before.get(tid)))
        return found


def _threads(pid: int) -> list[int]:
    try:
        return sorted(map(int, os.listdir(f"/proc/{pid}/task")))
    except (FileNotFoundError, ProcessLookupError):
        return []


def _tracer(pid: int) -> int:
    try:
        return parse_status(Path(f"/proc/{pid}/status").read_bytes()).tracer_pid
    except (FileNotFoundError, ProcessLookupError):
        return 0


def _in_flight(pid: int, tid: int, command: str, call: Call | None, before: tuple[int | None, tuple[int, ...]] | None) -> InFlight:
    if call is None:
        nr, args = before if before is not None else (None, ())
        return InFlight(pid, tid, command, nr, args, None, USER, 0, 0)
    return InFlight(pid, tid, command, call.nr, call.args, call.entry_ns or None, call.last_nr, call.last_result, call.count)
