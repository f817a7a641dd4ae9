"""When a wait is to end: what is known before a freeze, after it, after a rollback, and what the next ckpt is told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from ckpt.live.waits import RESTART_SYSCALL, Known, Wait, left, load, placed, save, seen

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


def test_where_it_was_put() -> None:
    assert placed(EPOLL, 300 * MS, 7000 * MS).deadline == 7300 * MS
    assert placed(EPOLL, None, 7000 * MS).deadline is None


def test_the_next_ckpt_is_told(tmp_path: Path) -> None:
    path = tmp_path / "1-2.waits"
    known = {11: Known(EPOLL, ENDS, "seen", 5, 232), 12: Known(SLEEP, None, "not known")}
    save(path, known)
    assert load(path) == {11: known[11]}
    save(path, {})
    assert not path.exists()
    assert load(path) == {}
    for text in ("", "[", "[{}]", '[{"wait": {"tid": 1}}]'):
        path.write_text(text)
        assert load(path) == {}
