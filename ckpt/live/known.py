"""What is known of the end of a wait: reckoned before a freeze, told at it by the kernel's own timer (eBPF), remembered for the next
ckpt. Pure, but for the record.

    seen()    before a freeze          left()    after it          placed()  after a rollback or a restore

In this order it is believed: what an earlier freeze has found, if it is still that wait (a call that was begun anew has a timer for its
whole time); what eBPF tells; what is reckoned from when the thread went to sleep.
"""

from __future__ import annotations

import json
import os
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from operator import attrgetter
from pathlib import Path
from typing import Any, Protocol

from ckpt.live.deadlines import Ended
from ckpt.syscalls.told import Told

RESTART_SYSCALL = 219
TIMER_SLACK = 1_000_000
CLOSE = 2_000_000  #: two instants that far apart may be one
JUST = 20_000_000  #: who had waited no longer at the stop had only just begun
LAG_LEAST, LAG_PART = 5_000_000, 4  #: the scheduler's clock may lag by so much, and by this part of what a thread has waited


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
    deadline: int | None  #: ns, by the machine's CLOCK_MONOTONIC
    source: str  #: how it is known, or why it is not
    remaining: int | None = None  #: ns, at the stop
    nr: int = 0  #: of the call, also when the kernel shows 219 for it; 0: not known
    fresh: bool = False  #: it had only just begun: its whole time is what remains
    lost: str = ""  #: why nobody will end it at its deadline
    again: bool = False  #: a freeze has interrupted it before, so its timer is that of a call that was begun anew
    told: Told | None = None  #: by eBPF, at this freeze or at the first that interrupted it

    @property
    def kept(self) -> bool:
        return not self.lost and (self.wait.block or self.wait.switches > 0)

    @property
    def settled(self) -> bool:
        """The kernel has nothing to add: of one that was begun anew it knows the whole time only."""
        return self.again and self.deadline is not None and (self.told is not None or not self.wait.block)

    @property
    def told_remaining(self) -> Told | None:
        """What is told, from the stop on."""
        return self.told.since(self.deadline - (self.remaining or 0)) if self.told and self.deadline is not None else None


class Kernel(Protocol):
    """What tells when a sleeper is to wake."""

    def gap(self, cpu: int) -> int | None:
        """The machine's CLOCK_MONOTONIC minus the scheduler's clock of this CPU, ns; None where that cannot be told."""
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
        return replace(known, wait=replace(wait, limit=known.wait.limit), fresh=False)
    if wait.nr == RESTART_SYSCALL:
        return Known(wait, None, "it was interrupted before, by somebody else: its beginning is not known")
    ahead = kernel.gap(wait.cpu) if wait.limit and wait.slept_at else None
    if ahead is None:
        return Known(wait, None, "the scheduler does not tell when it began" if wait.limit else "its limit cannot be read", nr=wait.nr)
    began = wait.slept_at + ahead
    exact = _by_timer(began + wait.limit, max(now - began, 0), kernel.timers()) if wait.timer else None
    source = "since it went to sleep" if exact is None else "by its timer"
    return Known(wait, exact or began + wait.limit, source, nr=wait.nr)


def left(wait: Wait, before: Known | None, stopped_at: int, ended: Ended | None = None) -> Known:
    """After a freeze: the same wait as before it, or one that had only just begun. `wait`: as the core let it go; `ended`: what eBPF
    saw of the thread's last call."""
    if ended is not None and ended.place == (wait.nr, wait.sp, wait.pc):
        same = before is not None and before.wait.place == wait.place and wait.same
        known = _told(wait, before if same else None, stopped_at, ended)
        if known is not None:
            return known
    return replace(_reckoned(wait, before, stopped_at), again=True)


def _told(wait: Wait, before: Known | None, stopped_at: int, ended: Ended) -> Known | None:
    """By the kernel's own timer. `before`: the same wait, as it was known. None: it adds nothing to that."""
    nr = (before.nr if before is not None else 0) or ended.call(wait.args)
    told = ended.told(nr)
    if told is None:
        return None
    if before is not None and before.settled:
        if not wait.block or abs(told.latest - (before.deadline or 0)) < CLOSE:
            return None
        before = None  # the same call from the same place, but another one
    deadline = told.with_reckoned(before.deadline if before is not None else None)
    remaining = max(deadline - stopped_at, 0)
    if before is not None:
        wait = replace(wait, limit=before.wait.limit)
    fresh = before is None and wait.nr != RESTART_SYSCALL and wait.limit - remaining < JUST
    return Known(wait, deadline, told.words, remaining, nr, fresh, again=True, told=told)


def _reckoned(wait: Wait, before: Known | None, stopped_at: int) -> Known:
    over = before is not None and before.deadline is not None and before.deadline <= stopped_at  # the one before: it would have its result
    if before is not None and before.wait.place == wait.place and wait.same and not over:
        remaining = None if before.deadline is None else max(before.deadline - stopped_at, 0)
        return replace(before, wait=replace(wait, limit=before.wait.limit), remaining=remaining)
    if wait.nr == RESTART_SYSCALL:
        return Known(wait, None, "its beginning is not known")
    deadline = stopped_at + wait.limit if wait.limit else None
    return Known(wait, deadline, "it had begun just before the freeze", wait.limit or None, wait.nr, fresh=True)


def among(deadline: int, ends: Sequence[int]) -> bool:
    at = bisect_right(ends, deadline - CLOSE)
    return at < len(ends) and ends[at] <= deadline + CLOSE


def placed(wait: Wait, remaining: int | None, thawed_at: int) -> Known:
    """A rollback or a restore has put the thread there."""
    deadline = None if remaining is None else thawed_at + remaining
    source = "what remained then" if remaining is not None else "what remained then is not known"
    return Known(wait, deadline, source, remaining, 0 if wait.nr == RESTART_SYSCALL else wait.nr, again=True)


# ---- the record ----


_ARGS, _TOLD = ([item.name for item in fields(row)].index(name) for row, name in ((Wait, "args"), (Known, "told")))
_OF_WAIT, _OF_KNOWN, _OF_TOLD = (attrgetter(*(item.name for item in fields(row))) for row in (Wait, Known, Told))


def load(path: Path) -> dict[int, Known]:
    """Nothing where there is none, or none that can be read."""
    try:
        return {known.wait.tid: known for known in map(_known, json.loads(path.read_text()))}
    except (OSError, ValueError, TypeError, LookupError):
        return {}


def _known(row: list[Any]) -> Known:
    wait, told = row[0], row[_TOLD]
    wait[_ARGS] = tuple(wait[_ARGS])
    return replace(Known(*row), wait=Wait(*wait), told=Told(*told) if told is not None else None)


def save(path: Path, known: Mapping[int, Known]) -> None:
    """Rows of values, in the order of the fields: there are hundreds of them, and the target's lock is held meanwhile."""
    rows = [_row(one) for one in known.values() if one.deadline is not None or one.nr]
    if not rows:
        path.unlink(missing_ok=True)
        return
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        os.write(descriptor, json.dumps(rows, separators=(",", ":"), check_circular=False).encode())
    finally:
        os.close(descriptor)


def _row(one: Known) -> list[Any]:
    row = list(_OF_KNOWN(one))
    row[0] = _OF_WAIT(one.wait)
    row[_TOLD] = None if one.told is None else _OF_TOLD(one.told)
    return row
