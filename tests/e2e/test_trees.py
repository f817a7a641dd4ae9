"""Rollback in place of whole trees: members that came, went, died, were collected, were stopped."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import pytest

from ckpt.live import core
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
        assert target.untraced()
        assert target.start_ticks() == start
    ckpt.exact(target.pid)
    ckpt.sound()


def test_a_stranger_has_the_number(ckpt: Ckpt, victim: Start) -> None:
    """Refused by name, before anything is touched."""
    target = victim("clan")
    first = ckpt.snapshot(target.pid)["generation"]
    then = members(target)
    assert target.ask("change") == "CHANGED"
    gone = min(pid for pid in then if not Path(f"/proc/{pid}").exists())
    code, stranger = core.newborn(gone)
    assert (code, stranger) == (0, gone)
    try:
        done = ckpt.run("rollback", first, "--pid", target.pid)
        done.refused(3, str(gone), "taken")
        target.verify()
        assert not target.stands_still()
    finally:
        os.kill(stranger, signal.SIGKILL)
        os.waitpid(stranger, 0)
    roll(ckpt, target, first)
    target.verify()
    assert members(target) == then


def test_dry_run_says_who_ends_and_who_is_made(ckpt: Ckpt, victim: Start) -> None:
    target = victim("clan")
    first = ckpt.snapshot(target.pid)["generation"]
    then = members(target)
    assert target.ask("change") == "CHANGED"
    later = members(target)
    done = ckpt.run("rollback", first, "--pid", target.pid, "--dry-run")
    assert done.code == 0, done.err
    for pid in set(later) - set(then):
        assert f"end task {pid} (clan)" in done.out
    for pid in set(then) - set(later):
        assert f"make task {pid} (clan) again" in done.out
    target.verify()
    assert members(target) == later


def stopped_by_itself(target: Victim) -> set[int]:
    return {pid for pid, (state, *_) in members(target).items() if state == "T"}


def states(pids: Iterable[int]) -> set[str]:
    return {stat_fields(pid)[0] for pid in pids}


def alive(target: Victim) -> list[int]:
    return [pid for pid in target.tree() if stat_fields(pid)[0] not in "ZX"]


def go_on(pids: Iterable[int]) -> None:
    for pid in pids:
        os.kill(pid, signal.SIGCONT)


def test_a_tree_that_somebody_stopped_stays_stopped(ckpt: Ckpt, victim: Start) -> None:
    target = victim("family")
    first = ckpt.snapshot(target.pid)["generation"]
    time.sleep(0.1)
    for pid in target.tree():
        os.kill(pid, signal.SIGSTOP)
    roll(ckpt, target, first)
    assert states(target.tree()) == {"T"}
    go_on(target.tree())
    target.verify()


def test_a_child_that_was_stopped_is_stopped_again(ckpt: Ckpt, victim: Start) -> None:
    target = victim("clan")
    own = stopped_by_itself(target)
    assert len(own) == 1
    first = ckpt.snapshot(target.pid)["generation"]
    told = ckpt.json("show", first)
    assert {one["pid"] for one in told["processes"] if one["stopped"]} == own
    assert {one["ended"] for one in told["zombies"]} >= {"exit 7", "killed by signal 15"}
    go_on(own)
    roll(ckpt, target, first)
    assert stopped_by_itself(target) == own
    target.verify()


def test_restored_stopped(ckpt: Ckpt, victim: Start) -> None:
    target = victim("clan")
    own = stopped_by_itself(target)
    first = ckpt.snapshot(target.pid)["generation"]
    target.kill()

    def restore(words: Sequence[str]) -> int:
        done = ckpt.run("restore", first, "--stopped", *words, "--json")
        assert done.code == 0, f"exit {done.code}: {done.err}{done.out}"
        return int(done.json["pid"])

    target.revive(restore)
    assert states(alive(target)) == {"T"}
    time.sleep(0.1)
    assert states(alive(target)) == {"T"}
    go_on(set(alive(target)) - own)
    target.verify()
    assert stopped_by_itself(target) == own


@pytest.mark.parametrize("name", ["clan", "family", "sharing"])
def test_killed_and_restored_again_and_again(name: str, ckpt: Ckpt, victim: Start) -> None:
    target = victim(name)
    expected = None
    for _ in range(times(3, 20)):
        made = ckpt.snapshot(target.pid)["generation"]
        expected = expected or members(target)
        target.kill()

        def restore(words: Sequence[str], generation: int = made) -> int:
            done = ckpt.run("restore", generation, *words, "--json")
            assert done.code == 0, f"exit {done.code}: {done.err}{done.out}"
            return int(done.json["pid"])

        target.revive(restore)
        target.verify()
        now = members(target)
        assert {pid: what[:3] for pid, what in now.items() if pid != target.pid} == {
            pid: what[:3] for pid, what in expected.items() if pid != target.pid
        }
        assert not target.stands_still()
    ckpt.sound()


def test_members_that_were_killed_are_back_and_share_again(ckpt: Ckpt, victim: Start) -> None:
    """Nobody has collected them: their parent waits for an answer that never comes."""
    target = victim("sharing")
    first = ckpt.snapshot(target.pid)["generation"]
    then = members(target)
    for lost in sorted(set(then) - {target.pid}):
        os.kill(lost, signal.SIGKILL)
        roll(ckpt, target, first)
        assert members(target) == then
        target.verify()
    ckpt.exact(target.pid)
    ckpt.sound()
