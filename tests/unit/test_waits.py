"""When a wait is to end: what is known before a freeze, after it, after a rollback, and what the next ckpt is told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from bpf.deadlines import TICK_NS, Interrupted
from ckpt.live.deadlines import Ended
from ckpt.live.known import RESTART_SYSCALL, Known, Wait, left, load, placed, save, seen
from ckpt.syscalls.told import Told

MS = 1_000_000
EPOLL = Wait(10, 11, 99, 232, (3, 0x7000, 1, 900, 0, 0), 0x7F00, 0x401000, 900 * MS, 5000 * MS, 7, 0, True, False, cpu=1)
SLEEP = Wait(10, 12, 99, 35, (0x7000, 0, 0, 0, 0, 0), 0x7E00, 0x402000, 900 * MS, 5000 * MS, 4, 0, False, True)
AHEAD = 100 * MS  #: of the scheduler's clock
ENDS = 6000 * MS


class Machine:
    """Two CPUs whose clock is behind by AHEAD, and timers."""

    def __init__(self, *timers: int) -> None:
        self.ends = sorted(timers)

    def gap(self, cpu: int) -> int | None:
        return AHEAD if cpu in (0, 1) else None

    def timers(self) -> Sequence[int]:
        return self.ends


def look(wait: Wait, known: Known | None = None, *timers: int) -> Known:
    return seen(wait, known, Machine(*timers), 5500 * MS)


def test_its_timer_says_it_exactly() -> None:
    """The scheduler's clock lags by up to some part of what was waited: 5 ms, and a quarter of 400."""
    for ends in (ENDS, ENDS - 30 * MS, ENDS - 100 * MS, ENDS + 500_000):
        found = look(EPOLL, None, 1, ENDS - 300 * MS, ends, ENDS + 2 * MS, ENDS * 9)
        assert (found.deadline, found.source) == (ends, "by its timer")
    for others in ((), (ENDS - 200 * MS, ENDS + 2 * MS)):
        assert look(EPOLL, None, *others).deadline == ENDS
    assert look(replace(EPOLL, timer=False), None, ENDS - MS).deadline == ENDS, "a socket's time-out is no such timer"


@pytest.mark.parametrize("wait", [EPOLL, SLEEP])
def test_it_began_when_it_went_to_sleep(wait: Wait) -> None:
    found = look(wait)
    assert (found.deadline, found.nr) == (ENDS, wait.nr)


def test_what_cannot_be_known_is_said() -> None:
    for wait in (replace(EPOLL, cpu=7), replace(EPOLL, slept_at=0), replace(EPOLL, limit=0), replace(SLEEP, nr=RESTART_SYSCALL)):
        found = look(wait)
        assert found.deadline is None
        assert found.source


def test_a_wait_that_was_begun_anew_is_not_a_new_one() -> None:
    before = Known(EPOLL, ENDS, "seen", nr=232)
    again = replace(EPOLL, slept_at=5500 * MS)
    assert look(replace(again, switches=12, same=True), before).deadline == ENDS, "frozen meanwhile, and counted in the core"
    assert look(again, before).deadline == ENDS
    for other in (
        replace(again, switches=8),
        replace(again, args=(3, 0x7000, 1, 901, 0, 0)),
        replace(again, sp=0x7E00),
        replace(again, start_ticks=1),
    ):
        assert look(other, before).deadline == 6500 * MS


def test_one_that_the_kernel_keeps_is_known_by_having_been_interrupted() -> None:
    before = Known(SLEEP, ENDS, "seen", nr=35)
    again = replace(SLEEP, nr=RESTART_SYSCALL, limit=0, switches=900)
    found = look(again, before)
    assert (found.deadline, found.nr, found.wait.limit) == (ENDS, 35, SLEEP.limit)
    assert look(replace(SLEEP, slept_at=7000 * MS, switches=9), before).deadline == 8000 * MS, "not interrupted: another one"


def test_after_the_freeze() -> None:
    before = look(EPOLL)
    let_go = replace(EPOLL, switches=9, slept_at=0, same=True)
    same = left(let_go, before, 5400 * MS)
    assert (same.deadline, same.remaining, same.wait.switches) == (ENDS, 600 * MS, 9)
    assert left(let_go, before, 6400 * MS).fresh, "the one before would have had its result"
    for one, known in ((replace(let_go, same=False), before), (let_go, None), (replace(let_go, pc=1), before)):
        begun = left(one, known, 5400 * MS)
        assert (begun.deadline, begun.remaining) == (6300 * MS, 900 * MS)
        assert begun.fresh
    gone = left(replace(let_go, limit=0), None, 5400 * MS)
    assert (gone.deadline, gone.remaining, gone.fresh) == (None, None, True), "its memory tells nothing any more"
    assert left(replace(SLEEP, nr=RESTART_SYSCALL), None, 5400 * MS).deadline is None


# ---- what eBPF has seen at the freeze ----

STOPPED = 5400 * MS


def saw(wait: Wait, deadline: int, **other: int) -> Ended:
    """Its timer, of a clock that is 5 ms ahead."""
    call, timer = (wait.pid, wait.tid, wait.nr, -4, wait.pc, wait.sp), (deadline + 5 * MS, 5 * MS, STOPPED - MS, 1)
    return Ended(Interrupted(STOPPED - MS, *call, *timer, 0, 1, 0, 0, 0, 0)._replace(**other))


@pytest.mark.parametrize("wait", [EPOLL, SLEEP])
@pytest.mark.parametrize("reckoned", [ENDS + 700 * MS, STOPPED - MS, None])
def test_the_kernels_own_timer_is_believed(wait: Wait, reckoned: int | None) -> None:
    """Even against a deadline that seems to be over, or that nobody knows."""
    before = replace(look(wait), deadline=reckoned, source="reckoned")
    now = left(replace(wait, same=True, limit=0), before, STOPPED, saw(wait, ENDS))
    assert (now.deadline, now.remaining, now.fresh, now.source) == (ENDS, ENDS - STOPPED, False, "eBPF saw its timer")
    assert now.wait.limit == wait.limit
    assert now.told_remaining is not None
    assert now.told_remaining.latest == now.remaining


def test_jiffies_leave_the_reckoned_end_its_say() -> None:
    socket = replace(EPOLL, nr=45, timer=False, same=True)
    ended = saw(socket, 0, timer=2, expires=1100, distance=1000)
    latest = STOPPED - MS + 101 * TICK_NS
    for reckoned, ends in ((None, latest), (ENDS + 500 * MS, latest), (latest - MS, latest - MS), (STOPPED, latest - 2 * TICK_NS)):
        now = left(socket, replace(look(socket), deadline=reckoned), STOPPED, ended)
        assert now.deadline == ends
        assert now.told_remaining is not None
        assert now.told_remaining.with_reckoned(now.remaining) == now.remaining, "a decision comes to the same"


def test_a_wait_begun_anew_has_a_timer_for_its_whole_time() -> None:
    """The kernel's word of the first freeze stands; what it says at the second is of the call that the first made begin anew."""
    first = left(replace(EPOLL, same=True), look(EPOLL), STOPPED, saw(EPOLL, ENDS))
    assert not look(EPOLL).settled
    again = look(replace(EPOLL, switches=9, same=True), first)
    assert again.settled
    second = left(replace(EPOLL, same=True), again, STOPPED + 100 * MS, saw(EPOLL, STOPPED + 900 * MS))
    assert (second.deadline, second.remaining, second.source) == (ENDS, 500 * MS, "eBPF saw its timer")
    assert second.told == first.told


def test_one_that_the_kernel_keeps_has_its_own_timer_each_time() -> None:
    reckoned = replace(look(SLEEP), again=True)
    assert not reckoned.settled, "the kernel knows better"
    first = left(replace(SLEEP, same=True), reckoned, STOPPED, saw(SLEEP, ENDS))
    assert first.settled
    again = replace(SLEEP, nr=RESTART_SYSCALL, limit=0, same=True)
    second = left(again, look(again, first), STOPPED + MS, saw(again, ENDS + 50_000))
    assert (second.deadline, second.nr) == (ENDS, 35), "with the timer slack it is still the same"
    other = left(replace(SLEEP, same=True), look(again, first), STOPPED + MS, saw(SLEEP, ENDS + 200 * MS))
    assert (other.deadline, other.fresh) == (ENDS + 200 * MS, False), "another one, from the same place"


def test_one_that_somebody_else_interrupted_is_told_by_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bpf.deadlines.restarts", lambda: {66: "do_restart_poll"})
    again = replace(SLEEP, nr=RESTART_SYSCALL, limit=0)
    now = left(replace(again, same=True), look(again), STOPPED, saw(again, ENDS, restart=66))
    assert (now.deadline, now.nr, now.fresh) == (ENDS, 7, False)
    unseen = left(again, None, STOPPED, saw(again, ENDS, restart=66))
    assert (unseen.deadline, unseen.nr, unseen.fresh) == (ENDS, 7, False)


def test_one_that_began_after_the_look() -> None:
    begun = left(EPOLL, None, STOPPED, saw(EPOLL, STOPPED + 899 * MS))
    assert (begun.remaining, begun.fresh) == (899 * MS, True)
    missed = left(EPOLL, None, STOPPED, saw(EPOLL, STOPPED + 500 * MS))
    assert (missed.remaining, missed.fresh) == (500 * MS, False), "it had waited for a while, and nobody has seen it"


def test_what_was_seen_of_another_call_is_not_of_this_one() -> None:
    for other in ({"nr": 7}, {"sp": 1}, {"ip": 1}):
        assert left(replace(EPOLL, same=True), look(EPOLL), STOPPED, saw(EPOLL, ENDS + MS, **other)).deadline == ENDS
    nothing = saw(EPOLL, ENDS + MS, timer=0)
    assert left(replace(EPOLL, same=True), look(EPOLL), STOPPED, nothing).source == "since it went to sleep"


def test_one_that_had_only_just_begun_is_an_old_one_at_the_next_freeze() -> None:
    """Else it would begin anew with its whole time, and nobody would end it."""
    begun = left(EPOLL, None, STOPPED)
    assert begun.fresh
    assert not look(replace(EPOLL, same=True), begun).fresh


def test_where_it_was_put() -> None:
    assert placed(EPOLL, 300 * MS, 7000 * MS).deadline == 7300 * MS
    assert placed(EPOLL, None, 7000 * MS).deadline is None


def test_the_next_ckpt_is_told(tmp_path: Path) -> None:
    path = tmp_path / "1-2.waits"
    told = Told(ENDS, ENDS, "its timer", {"nr": 232})
    known = {11: Known(EPOLL, ENDS, "seen", 5, 232, again=True, told=told), 12: Known(SLEEP, None, "not known")}
    save(path, known)
    assert load(path) == {11: known[11]}
    save(path, {})
    assert not path.exists()
    assert load(path) == {}
    for text in ("", "[", "[{}]", '[{"wait": {"tid": 1}}]'):
        path.write_text(text)
        assert load(path) == {}
