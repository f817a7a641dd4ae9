"""Rollback in place of whole trees: members that came, went, died, were collected, were stopped."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable

from tests.harness import Ckpt, Victim, times
from tests.harness.victim import stat_fields

Start = Callable[..., Victim]


def roll(ckpt: Ckpt, target: Victim, generation: int) -> None:
    done = ckpt.run("rollback", generation, "--pid", target.pid, "--json")
    assert done.code == 0, f"exit {done.code}: {done.err}{done.out}"


def members(target: Victim) -> dict[int, tuple[str, ...]]:
    """pid -> parent, group, session, and whether it is dead or stopped. Not those that come and go all the time."""

    def look() -> dict[int, tuple[str, ...]]:
        found = {}
        for pid in target.tree():
            with contextlib.suppress(OSError):
                state, *places = stat_fields(pid)[:4]
                found[pid] = (state if state in "ZT" else "", *places)
        return found

    first = look()
    time.sleep(0.05)
    return {pid: what for pid, what in look().items() if first.get(pid) == what}


def test_a_clan_that_broke_up_is_back(ckpt: Ckpt, victim: Start) -> None:
    target = victim("clan")
    start = target.start_ticks()
    first = ckpt.snapshot(target.pid)["generation"]
    then = members(target)
    assert target.ask("change") == "CHANGED"
    later = members(target)
    second = ckpt.snapshot(target.pid, "--incremental")["generation"]
    for turn in range(times(4, 20)):
        generation, expected = ((first, then), (second, later))[turn % 2]
        roll(ckpt, target, generation)
        assert members(target) == expected
        target.verify()
        assert target.tracer() == 0
        assert target.start_ticks() == start
    ckpt.exact(target.pid)
    ckpt.sound()
