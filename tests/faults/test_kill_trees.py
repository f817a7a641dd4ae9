"""kill -9 of ckpt while a rollback ends and makes processes: old state, new state, or stopped and finished by the next ckpt, and the
clan's own check passes: no member is missing, none is left over, no dead child that it does not know of, no signal."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.faults import Faults, kill_at, kill_in
from tests.faults.test_kill import proven, unharmed
from tests.harness import Ckpt, Victim, times

Start = Callable[..., Victim]
#: At a mark, which time; or inside, which call.
MARKS = [("stopped", 1), ("task-ended", 1), ("task-made", 1), ("task-made", 4), ("task-kept", 1), ("task-kept", 5), ("operated", 1)]
INSIDE = ["task-ended", "task-made", "task-kept", "operated", "stopping"]


def broken_up(ckpt: Ckpt, victim: Start) -> tuple[Victim, int, int]:
    """The clan as it is after its change, and the generations before and after."""
    target = victim("clan")
    first = ckpt.snapshot(target.pid)["generation"]
    assert target.ask("change") == "CHANGED"
    return target, first, ckpt.snapshot(target.pid, "--incremental")["generation"]


def kill_and_finish(ckpt: Ckpt, target: Victim, generation: int, rule: str, folder: Path) -> bool:
    """Whether the kill took place."""
    faults = Faults(folder, rule)
    done = ckpt.run("rollback", generation, "--pid", target.pid, "--json", faults=faults)
    if done.killed:
        proven(faults, rule)
    else:
        assert done.code == 0, done
        assert faults.fired() == {}
    finish = ckpt.run("snapshot", target.pid, "--paranoid", "--json")
    assert finish.code == 0, finish.err
    unharmed(target)
    return done.killed


@pytest.mark.parametrize(("phase", "number"), MARKS)
def test_killed_at_a_mark(phase: str, number: int, ckpt: Ckpt, victim: Start, tmp_path: Path) -> None:
    target, first, second = broken_up(ckpt, victim)
    assert kill_and_finish(ckpt, target, first, kill_at(phase, number), tmp_path)
    kill_and_finish(ckpt, target, second, kill_at(phase, number), tmp_path)
    kill_and_finish(ckpt, target, first, kill_at(phase, number), tmp_path)
    ckpt.sound()


@pytest.mark.parametrize("phase", INSIDE)
def test_killed_between_two_calls(phase: str, ckpt: Ckpt, victim: Start, tmp_path: Path) -> None:
    target, first, second = broken_up(ckpt, victim)
    plain = Faults(tmp_path)
    assert ckpt.run("rollback", first, "--pid", target.pid, faults=plain).code == 0
    unharmed(target)
    calls = sum(hits for name, hits in plain.hits().items() if name.startswith(f"{phase}/"))
    assert calls, f"no calls in {phase}: {plain.hits()}"
    number, killed = times(3, 20), 0
    for turn in range(number):
        rule = kill_in(phase, 1 + (turn * calls // number + turn) % calls)
        killed += kill_and_finish(ckpt, target, (second, first)[turn % 2], rule, tmp_path)
    assert killed
    ckpt.sound()
