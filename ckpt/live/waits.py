"""When the waits of a tree are to end: looked up before a freeze, kept after it, remembered for the next ckpt.

A freeze makes some finite waits begin anew (epoll_wait, semtimedop, receives with a time-out...); others keep their deadline in the
kernel, but in a place that no rollback and no restore can set (poll, nanosleep, futex). So before each freeze the sleepers are looked
at (native/src/waits.c), after it their deadlines are worked out, and

 - a keeper (native/src/keeper.c) ends those of the first kind when their time is over;
 - the record says all of them, so that another freeze or another ckpt does not take a wait that was begun anew for a new one;
 - the generation says what remained, for a rollback or a restore to go on with.

Nothing of this is inside the frozen window but the count of a thread's switches, in C.

    known     thread -> its wait and deadline, as far as that is still the wait
    look()    before each freeze          settle()  after it          hand_over()  when no freeze of ours follows at once
"""

from __future__ import annotations

import json
import os
import re
import time
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from native._native import ffi, lib

RESTART_SYSCALL = 219
TIMER_SLACK = 1_000_000
CLOSE, CONFIRMATIONS = 2_000_000, 5
LAG_LEAST, LAG_PART = 5_000_000, 4  #: the scheduler's clock may lag by so much, and by this part of what a thread has waited
_TIMER = re.compile(rb"hrtimer_wakeup, S:01\n # expires at (\d+)-")


@dataclass(frozen=True, slots=True)
class Wait:
    """struct ckpt_wait: a thread in a call with a time limit."""

    pid: int
    tid: int
    start_ticks: int
    nr: int
    args: tuple[int, ...]
    sp: int
    pc: int
    limit: int
    slept_at: int
    switches: int
    expired: int
    expires: bool
    block: bool
    same: bool = False  #: it has slept in nothing else since the last look of this ckpt
    cpu: int = 0
    timer: bool = True  #: a high-resolution one; a socket's time-out has another

    @property
    def place(self) -> tuple[object, ...]:
        """Whose call it is and from where. A call that the kernel has restarted keeps all this, and shows 219 as its number."""
        return self.tid, self.start_ticks, self.args, self.sp, self.pc, self.block


@dataclass(frozen=True, slots=True)
class Known:
    """A wait and what is known of its end. `switches` of the wait: as counted while it sleeps there now."""

    wait: Wait
    deadline: int | None  #: CLOCK_MONOTONIC, ns
    source: str  #: how it is known, or why it is not
    remaining: int | None = None  #: ns, at the stop
    nr: int = 0  #: of the call, also when the kernel shows 219 for it; 0: not known
    fresh: bool = False  #: it had only just begun: its whole time is what remains
    lost: str = ""  #: why nobody will end it at its deadline

    @property
    def kept(self) -> bool:
        return not self.lost and (self.wait.block or self.wait.switches > 0)


class Kernel(Protocol):
    """What tells when a sleeper is to wake."""

    def gap(self, cpu: int) -> int | None:
        """CLOCK_MONOTONIC minus the scheduler's clock of this CPU, ns; None where that cannot be told."""
        ...

    def timers(self) -> Sequence[int]:
        """When high-resolution timers of sleepers end (whose they are is not told), sorted; none where that is not shown."""
        ...


def _by_timer(late: int, waited: int, timers: Sequence[int]) -> int | None:
    """The scheduler's clock lags, so `late` is never too early: its own timer, or a stranger's that is nearer, ends at or before it."""
    at = bisect_right(timers, late + TIMER_SLACK)
    return timers[at - 1] if at and late - timers[at - 1] <= LAG_LEAST + waited // LAG_PART else None


def seen(wait: Wait, known: Known | None, kernel: Kernel, now: int) -> Known:
    """Before a freeze: its deadline, from an earlier freeze if it is still that wait, else from when it went to sleep."""
    # One that the kernel keeps shows that it was interrupted, and by whom else? Of the others the count says so.
    same = known is not None and (
        wait.nr == RESTART_SYSCALL or wait.same or (wait.nr, wait.switches) == (known.wait.nr, known.wait.switches)
    )
    if known is not None and same and known.wait.place == wait.place:
        return replace(known, wait=replace(wait, limit=known.wait.limit))
    if wait.nr == RESTART_SYSCALL:
        return Known(wait, None, "it was interrupted before, by somebody else: its beginning is not known")
    ahead = kernel.gap(wait.cpu) if wait.limit and wait.slept_at else None
    if ahead is None:
        return Known(wait, None, "the scheduler does not tell when it began" if wait.limit else "its limit cannot be read", nr=wait.nr)
    began = wait.slept_at + ahead
    exact = _by_timer(began + wait.limit, max(now - began, 0), kernel.timers()) if wait.timer else None
    source = "since it went to sleep" if exact is None else "by its timer"
    return Known(wait, exact or began + wait.limit, source, nr=wait.nr)


def left(wait: Wait, before: Known | None, stopped_at: int) -> Known:
    """After a freeze: the same wait as before it, or one that had only just begun. `wait`: as the core let it go."""
    over = before is not None and before.deadline is not None and before.deadline <= stopped_at  # the one before: it would have its result
    if before is not None and before.wait.place == wait.place and wait.same and not over:
        remaining = None if before.deadline is None else max(before.deadline - stopped_at, 0)
        return replace(before, wait=replace(wait, limit=before.wait.limit), remaining=remaining)
    if wait.nr == RESTART_SYSCALL:
        return Known(wait, None, "its beginning is not known")
    deadline = stopped_at + wait.limit if wait.limit else None
    return Known(wait, deadline, "it had begun just before the freeze", wait.limit or None, wait.nr, fresh=True)


def _among(deadline: int, ends: Sequence[int]) -> bool:
    at = bisect_right(ends, deadline - CLOSE)
    return at < len(ends) and ends[at] <= deadline + CLOSE


def placed(wait: Wait, remaining: int | None, thawed_at: int) -> Known:
    """A rollback or a restore has put the thread there."""
    deadline = None if remaining is None else thawed_at + remaining
    source = "what remained then" if remaining is not None else "what remained then is not known"
    return Known(wait, deadline, source, remaining, 0 if wait.nr == RESTART_SYSCALL else wait.nr)


# ---- the record ----


def load(path: Path) -> dict[int, Known]:
    """Nothing where there is none, or none that can be read."""
    try:
        rows = json.loads(path.read_text())
        return {row["wait"]["tid"]: _known(row) for row in rows}
    except (OSError, ValueError, TypeError, KeyError):
        return {}


def _known(row: dict[str, Any]) -> Known:
    wait = Wait(**{**row["wait"], "args": tuple(row["wait"]["args"])})
    return Known(wait, row["deadline"], row["source"], row["remaining"], row["nr"], row["fresh"], row["lost"])


def save(path: Path, known: Mapping[int, Known]) -> None:
    rows = [asdict(one) for one in known.values() if one.deadline is not None or one.nr]
    if not rows:
        path.unlink(missing_ok=True)
        return
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        os.write(descriptor, json.dumps(rows).encode())
    finally:
        os.close(descriptor)


# ---- with the core ----


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
    _read: bool = False
    _changed: bool = False

    def look(self) -> None:
        """The tree runs, and is about to be stopped."""
        if not self._read:
            self.known, self._read = load(self.names("waits")), True
        kernel, now = _Kernel(), time.monotonic_ns()
        self.known = {wait.tid: seen(wait, self.known.get(wait.tid), kernel, now) for wait in self._ask(lib.ckpt_waits_look)}

    def look_once(self) -> None:
        """The same, where several parts of the tree are stopped one after the other, each once."""
        if not self._read:
            self.look()

    def settle(self, stopped_at: int) -> None:
        """The tree has just been let go."""
        thawed_at = time.monotonic_ns()
        found = self._ask(lib.ckpt_waits_left)
        if self.placed:
            self.last = {wait.tid: placed(wait, self.placed.get(wait.tid), thawed_at) for wait in found}
            self.known, self.placed = {}, {}
        else:
            self.last = {wait.tid: left(wait, self.known.get(wait.tid), stopped_at) for wait in found}
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
        for _try in range(CONFIRMATIONS):
            ends, now = _Kernel().timers(), time.monotonic_ns()
            kept = {tid: one for tid, one in kept.items() if (one.deadline or 0) > now and not _among(one.deadline or 0, ends)}
            if not kept or not ends:
                return
            time.sleep(0.002)  # not asleep again yet
        another = {
            tid: replace(one, deadline=None, remaining=None, fresh=True, source="another one has begun") for tid, one in kept.items()
        }
        self.last = {**self.last, **another}

    def peek(self, stopped_at: int) -> None:
        """The tree stands still, and will for a while yet."""
        self.last = {wait.tid: left(wait, self.known.get(wait.tid), stopped_at) for wait in self._ask(lib.ckpt_waits_left)}

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
        cap = 64
        while True:
            raw = ffi.new("struct ckpt_wait[]", cap)
            count = int(ask(self.handle, raw, cap))
            if count <= cap:
                return [_wait(raw[index]) for index in range(max(count, 0))]
            cap = count + 16
