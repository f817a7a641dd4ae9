"""When the calls that a freeze interrupts would have ended, as the kernel has it (src/deadlines.bpf.c).

Loaded once, attached just before a freeze and detached just after it: it hooks each call's exit on the whole machine. Attaching takes
0.3 ms; within some 20 ms of a detach up to 16, for then the kernel waits until nobody can be inside the old hook any more.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import NamedTuple, Self

from bpf import calls
from bpf.kernel_symbols import restarts
from bpf.program import Program
from bpf.ring import Ring

_POINTS = {"hrtimer_taken": "hrtimer_cancel", "timer_taken": "timer_cancel", "left": "sys_exit"}
_RING_BYTES = 1 << 20  #: 6,500 interrupted calls
_FIELDS = "QIIqqQQQqQQ6Q"
_ENTRIES = 16384
_HRTIMER, _JIFFIES = 1, 2
_POLL, _NANOSLEEP, _FUTEX, _RESTART_SYSCALL, _CLOCK_NANOSLEEP = 7, 35, 202, 219, 230
_RESTART_BLOCK = -516
_CLOCKS = 4096  #: numbers of clocks are below, addresses are not
_BILLION = 1_000_000_000
_CLOCK_MONOTONIC = 1
_CLOCK_MONOTONIC_COARSE = 6
TICK_NS = round(time.clock_getres(_CLOCK_MONOTONIC_COARSE) * _BILLION)  #: a jiffy is what this clock steps by


class Interrupted(NamedTuple):
    """A call that has ended as interrupted, and the timer that it took back on its way. Times in ns of CLOCK_MONOTONIC, where nothing else
    is said."""

    ns: int  #: when it ended
    pid: int
    tid: int
    nr: int
    result: int  #: -4 or -51x
    ip: int
    sp: int
    expires: int  #: of a high-resolution timer: ns of its clock; of another: jiffies
    distance: int  #: its clock minus CLOCK_MONOTONIC; jiffies at `taken_ns`
    taken_ns: int
    timer: int  #: 0: it had none
    restart: int  #: address of the kernel's function that is to restart it, where the result is -516
    sleep_clock: int  #: of the restart block, which is one of sleep, futex and poll
    sleep_expires: int
    futex_time: int
    poll_end_s: int
    poll_end_ns: int

    def deadline(self, call: int = 0) -> tuple[int, int] | None:
        """It would have ended between these two; they are equal but for a timer that counts jiffies. None: the kernel does not say.
        `call`: which it is, where its number is restart_syscall's. Of a call without a limit a restart block says nothing that holds."""
        if self.timer == _HRTIMER:
            at = self.expires - self.distance
            return at, at
        if self.timer == _JIFFIES:  # where in its jiffy each of the two instants was is not told; no such timer goes off before its time
            at = self.taken_ns + (self.expires - self.distance) * TICK_NS
            return at - TICK_NS, at + TICK_NS
        at = self._by_block(call or self.nr)
        return (at, at) if at else None

    @property
    def source(self) -> str:
        """Where that comes from."""
        return {_HRTIMER: "its timer", _JIFFIES: "its timer, which counts jiffies"}.get(self.timer, "the kernel's restart block")

    def call(self, args: Sequence[int]) -> int:
        """Its number; where that is restart_syscall's, of what is gone on with, by the kernel's function for that. 0: not known."""
        if self.nr != _RESTART_SYSCALL:
            return self.nr
        match restarts().get(self.restart):
            case "do_restart_poll":
                return _POLL
            case "futex_wait_restart":
                return _FUTEX
            case "hrtimer_nanosleep_restart":  # the first argument is a clock, or an address
                return _CLOCK_NANOSLEEP if args[0] < _CLOCKS else _NANOSLEEP
        return 0

    def _by_block(self, call: int) -> int:
        if self.result != _RESTART_BLOCK:
            return 0
        if call == _POLL:
            return self.poll_end_s * _BILLION + self.poll_end_ns
        if call == _FUTEX:
            return self.futex_time
        return self.sleep_expires if call in (_NANOSLEEP, _CLOCK_NANOSLEEP) and self.sleep_clock == _CLOCK_MONOTONIC else 0


class Deadlines:
    """Raises BpfError, when it is made and when it is attached."""

    def __init__(self) -> None:
        self._program = Program("deadlines", _POINTS, ring_bytes=_RING_BYTES, idle=True)
        self._ring = Ring(self._program.maps["interruptions"], _RING_BYTES, _FIELDS)
        self._pids: set[int] = set()

    @property
    def maps(self) -> Mapping[str, int]:
        return self._program.maps

    def attach(self, pids: Iterable[int]) -> None:
        """For the threads of these processes; whatever was told before is forgotten."""
        wanted, tree = set(pids), self._program.maps["tree"]
        for pid in self._pids - wanted:
            calls.map_delete_if_there(tree, pid.to_bytes(4, "little"))
        for pid in wanted - self._pids:
            calls.map_update(tree, pid.to_bytes(4, "little"), bytes(self._program.specs["tree"].value))
        self._pids = wanted
        self._ring.take_raw()
        self._program.attach()

    def detach(self) -> None:
        self._program.detach()

    def take(self) -> list[Interrupted]:
        """In the order in which they ended."""
        return list(map(Interrupted._make, self._ring.take()))

    def lost(self) -> int:
        """Calls that found no room."""
        return self._program.counter("lost")

    def close(self) -> None:
        self._ring.close()
        self._program.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
