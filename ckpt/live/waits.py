"""When the waits of a tree are to end: looked up before a freeze, kept after it, remembered for the next ckpt.

A freeze makes some finite waits begin anew (epoll_wait, semtimedop, receives with a time-out...); others keep their deadline in the
kernel, but in a place that no rollback and no restore can set (poll, nanosleep, futex). So before each freeze the sleepers are looked
at (native/src/waits.c), at it eBPF sees their timers where it may (deadlines.py), after it their deadlines are worked out (known.py), and

 - a keeper (native/src/keeper.c) ends those of the first kind when their time is over;
 - the record says all of them, so that another freeze or another ckpt does not take a wait that was begun anew for a new one;
 - the generation says what remained, for a rollback or a restore to go on with.

Nothing of this is inside the frozen window but the count of a thread's switches, in C.

    known     thread -> its wait and deadline, as far as that is still the wait
    look()    before each freeze          settle()  after it          hand_over()  when no freeze of ours follows at once
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from ckpt.live import clock
from ckpt.live.deadlines import Deadlines, Ended
from ckpt.live.known import Known, Wait, among, left, load, placed, save, seen
from native._native import ffi, lib

CONFIRMATIONS = 5
AT_ONCE = 1024  #: waits that are asked for: to be asked again, the core looks at every thread again
STALE = 1_000_000  #: so much after a look it is taken anew
_TIMER = re.compile(rb"hrtimer_wakeup, S:01\n # expires at (\d+)-")


def _wait(raw: Any) -> Wait:
    args = tuple(int(arg) for arg in raw.arg)
    return Wait(
        int(raw.pid),
        int(raw.tid),
        int(raw.start_ticks),
        int(raw.nr),
        args,
        int(raw.sp),
        int(raw.pc),
        int(raw.limit),
        int(raw.slept_at),
        int(raw.switches),
        int(raw.expired),
        bool(raw.expires),
        bool(raw.block),
        bool(raw.same),
        int(raw.cpu),
        bool(raw.timer),
    )


def _raw(known: Known) -> list[Any]:
    wait, deadline = known.wait, known.deadline or 0
    place = [wait.pid, wait.tid, wait.start_ticks, wait.nr, list(wait.args), wait.sp, wait.pc]
    return [*place, wait.limit, 0, wait.switches, deadline, wait.expired, int(wait.expires), int(wait.block), 1, 0, 0]


class _Kernel:
    """This one, at this moment."""

    def __init__(self) -> None:
        self._gaps: dict[int, int | None] = {}

    def gap(self, cpu: int) -> int | None:
        if cpu not in self._gaps:
            gap = ffi.new("int64_t *")
            self._gaps[cpu] = int(gap[0]) if lib.ckpt_clock_gap(cpu, gap) == 0 else None
        return self._gaps[cpu]

    @cached_property
    def _timers(self) -> Sequence[int]:
        try:
            return sorted(map(int, _TIMER.findall(Path("/proc/timer_list").read_bytes())))
        except OSError:
            return ()

    def timers(self) -> Sequence[int]:
        return self._timers


@dataclass(slots=True)
class Waits:
    """Of one open tree. `names(ending)`: the target's file of that kind in the run-time folder."""

    handle: Any
    names: Callable[[str], Path]
    known: dict[int, Known] = field(default_factory=dict)
    last: Mapping[int, Known] = field(default_factory=dict)  #: as the last freeze found them
    placed: dict[int, int | None] = field(default_factory=dict)  #: thread -> what remains of the wait that it is put into
    ebpf: Deadlines | None = None
    _ended: Mapping[int, Ended] = field(default_factory=dict)
    _sure: set[int] = field(default_factory=set)  #: threads whose deadline the last freeze has told
    _read: bool = False
    _changed: bool = False

    def look(self) -> None:
        """The tree runs, and is about to be stopped."""
        self._look()
        self.watch()

    def _look(self) -> None:
        if not self._read:
            self.known, self._read = load(self.names("waits")), True
        kernel, now = _Kernel(), clock.now_ns()
        self.known = {wait.tid: seen(wait, self.known.get(wait.tid), kernel, now) for wait in self._ask(lib.ckpt_waits_look)}

    def watch(self) -> None:
        """With eBPF, where it has something to tell. It takes a while sometimes, in which waits end and others begin."""
        self._ended = {}
        unknown = {one.wait.pid for one in self.known.values() if not one.settled}
        if self.ebpf is None or self.ebpf.missing or not unknown:
            return
        begun = time.monotonic_ns()
        self.ebpf.begin(unknown)
        if time.monotonic_ns() - begun > STALE:
            self._look()

    def look_once(self, *, stops: bool) -> None:
        """As look(), where several parts of the tree are stopped one after the other, each once, if they are. Until `unwatch`."""
        if not self._read:
            self._look()
        if stops and self.ebpf is not None and not self.ebpf.attached:
            self.watch()

    @property
    def no_ebpf(self) -> str:
        return self.ebpf.missing if self.ebpf is not None else ""

    def unwatch(self) -> None:
        if self.ebpf is not None:
            self.ebpf.detach()

    def _take(self, stopped_at: int) -> None:
        """What eBPF has told of those that stood still then."""
        if self.ebpf is not None:
            self._ended = {**self._ended, **self.ebpf.ended(stopped_at)}

    def settle(self, stopped_at: int, *, watching: bool = False) -> None:
        """The tree, or a part of it, has just been let go; `watching`: others follow."""
        thawed_at = clock.now_ns()
        if not watching:
            self.unwatch()
        self._take(stopped_at)
        found = self._ask(lib.ckpt_waits_left)
        if self.placed:
            self.last = {wait.tid: placed(wait, self.placed.get(wait.tid), thawed_at) for wait in found}
            self.known, self.placed = {}, {}
            self._changed = True  # and the deadlines are ours: nobody has begun another wait meanwhile
        else:
            self.last = self._left(found, stopped_at)
            self._changed = self._changed or bool(self.known or self.last)
            self._confirm()
        self.known = {**self.known, **self.last}  # who was not stopped waits on; who is elsewhere by now has another count

    @property
    def kept(self) -> tuple[Known, ...]:
        """Those whose end is ours to give: that sleep in the very wait, and would end late by themselves."""
        return tuple(one for one in self.known.values() if one.wait.expires and one.deadline is not None and one.kept and not one.fresh)

    def _confirm(self) -> None:
        """Those that the kernel keeps have their deadline now as before. A thread whose timer says something else has, between the look
        and the freeze, begun another wait; nobody has counted those in the frozen window."""
        kept = {tid: one for tid, one in self.last.items() if one.wait.block and not one.fresh and one.deadline is not None}
        kept = {tid: one for tid, one in kept.items() if tid not in self._sure}
        for _try in range(CONFIRMATIONS):
            ends, now = _Kernel().timers(), clock.now_ns()
            kept = {tid: one for tid, one in kept.items() if (one.deadline or 0) > now and not among(one.deadline or 0, ends)}
            if not kept or not ends:
                return
            time.sleep(0.002)  # not asleep again yet
        another = {
            tid: replace(one, deadline=None, remaining=None, fresh=True, source="another one has begun", told=None)
            for tid, one in kept.items()
        }
        self.last = {**self.last, **another}

    def peek(self, stopped_at: int) -> None:
        """The tree stands still, and will for a while yet."""
        self.unwatch()
        self._take(stopped_at)
        self.last = self._left(self._ask(lib.ckpt_waits_left), stopped_at)

    def _left(self, found: Sequence[Wait], stopped_at: int) -> dict[int, Known]:
        known = {wait.tid: left(wait, self.known.get(wait.tid), stopped_at, self._ended.get(wait.tid)) for wait in found}
        self._sure = {tid for tid, one in known.items() if one.told and (tid not in self.known or one.told is not self.known[tid].told)}
        return known

    def hand_over(self) -> None:
        """The keeper begins. The target's lock is ours: it will wait for it."""
        if not self._changed:
            return
        self._changed = False
        with suppress(OSError):  # no room for a record: the next ckpt takes what is begun anew for new
            save(self.names("waits"), self.known)
        due = [_raw(one) for one in self.kept]
        if not due:
            return
        lock = os.fsencode(self.names("lock"))
        code = int(lib.ckpt_keep(ffi.new("struct ckpt_wait[]", due), len(due), lock))
        if code < 0:  # they end late; the snapshot is none the worse for it
            source = f"no keeper could be started: {os.strerror(-code)}"
            self.last = {tid: replace(one, lost=source) if one.wait.expires else one for tid, one in self.last.items()}

    def _ask(self, ask: Callable[[Any, Any, int], Any]) -> Sequence[Wait]:
        cap = AT_ONCE
        while True:
            raw = ffi.new("struct ckpt_wait[]", cap)
            count = int(ask(self.handle, raw, cap))
            if count <= cap:
                return [_wait(raw[index]) for index in range(max(count, 0))]
            cap = count + 16
