"""kill -9 of ckpt in each named phase, with victims that would notice: the target goes on and computes the right result, the
store is sound and holds every generation that was reported, the next incremental is exact.

That the kill happened, and in which phase, is proven by the counters of the interposer. 2 kills per phase in `make test`,
20 in `make soak`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.faults import Faults, kill_at, kill_in
from tests.harness import Ckpt, Victim, times

Start = Callable[..., Victim]
KILLS = times(2, 20)
#: All registers live; in nanosleep; in epoll_wait; 16 threads.
VICTIMS = ("registers", "sleeper", "epoll", "busy16")

#: What is killed where: name -> does the target already have a tracker, the rules to try in turn.
#: A rule of the form "the n-th system call after a mark" walks through the phase, kill by kill.
SNAPSHOT_KILLS: dict[str, tuple[bool, Callable[[int], str]]] = {
    "before the first injection": (False, lambda turn: kill_in("arm", 1 + turn * 3)),
    "inside the first injection": (False, lambda turn: kill_in("inject", 1 + turn)),
    "after the first injection": (False, lambda turn: kill_in("injected", 1 + turn)),
    "in a batch": (False, lambda turn: kill_in("batch", 1 + turn) if turn % 2 == 0 else kill_at("batch-done")),
    "armed and not committed": (False, lambda turn: kill_at("armed") if turn % 2 == 0 else kill_at("consumed")),
    "while frozen": (True, lambda turn: kill_in("prepared", 1 + turn * 7)),
    "captured and not stored": (True, lambda turn: kill_at("captured") if turn % 2 == 0 else kill_at("parsed")),
    "between orphans and publication": (True, lambda _turn: kill_at("stored")),
    "between publication and record": (True, lambda _turn: kill_at("published")),
}


def unharmed(target: Victim) -> None:
    target.verify()
    assert target.tracer() == 0
    assert not target.states() & {"t", "T"}, "a thread is still stopped"
    target.verify()


def proven(faults: Faults, rule: str) -> None:
    """The counters say that the kill was in the phase that the rule names."""
    assert faults.fired() == {rule: 1}, (faults.fired(), faults.hits())
    phase = rule.split("@")[1].split("#")[0] if "@" in rule else rule.split("#")[0]
    assert any(name == phase or name.startswith(f"{phase}/") for name in faults.hits())


@pytest.mark.parametrize("phase", SNAPSHOT_KILLS)
@pytest.mark.parametrize("first_victim", [0, 2])
def test_killed_snapshot(phase: str, first_victim: int, ckpt: Ckpt, victim: Start, tmp_path: Path) -> None:
    armed, rule_of = SNAPSHOT_KILLS[phase]
    running = {name: victim(name) for name in VICTIMS[first_victim : first_victim + 2]}
    held: list[int] = []
    if armed:
        held += [ckpt.snapshot(target.pid)["generation"] for target in running.values()]
    for turn in range(KILLS):
        name = list(running)[turn % 2]
        if not armed and turn >= 2:  # the first injection happens once in a life
            running[name].end()
            running[name] = victim(name)
        target, rule = running[name], rule_of(turn)
        faults = Faults(tmp_path, rule)
        done = ckpt.run("snapshot", target.pid, "--json", faults=faults)
        assert done.killed, f"{rule}: exit {done.code}, passages {faults.hits()}: {done.err}"
        proven(faults, rule)
        unharmed(target)
        made = ckpt.exact(target.pid)
        unharmed(target)
        assert set(held) <= set(ckpt.generations())
        held.append(made["generation"])
    ckpt.sound()
    assert set(held) <= set(ckpt.generations())


@pytest.mark.parametrize("name", VICTIMS)
def test_killed_rollback(name: str, ckpt: Ckpt, victim: Start, tmp_path: Path) -> None:
    """Old state, new state, or stopped and finished by the next ckpt; the target's own check passes in the end."""
    target = victim(name)
    first = ckpt.snapshot(target.pid)["generation"]
    target.verify()
    second = ckpt.snapshot(target.pid, "--incremental")["generation"]
    plain = Faults(tmp_path)
    assert ckpt.run("rollback", first, "--pid", target.pid, "--json", faults=plain).code == 0
    target.verify()
    passages = [hits for passage, hits in plain.hits().items() if passage.startswith("rollback") and "/" in passage]
    assert passages, f"no call of the seam in a phase that is called rollback...: {plain.hits()}"
    phases = sorted({passage.split("/")[0] for passage in plain.hits() if passage.startswith("rollback") and "/" in passage})
    for turn in range(times(4, 20)):
        phase = phases[turn % len(phases)]
        calls = sum(hits for passage, hits in plain.hits().items() if passage.startswith(f"{phase}/"))
        rule = kill_in(phase, 1 + turn * max(1, calls // 5) % calls)
        faults = Faults(tmp_path, rule)
        done = ckpt.run("rollback", (first, second)[turn % 2], "--pid", target.pid, "--json", faults=faults)
        if not done.killed:
            assert done.code == 0, done  # this time the plan had fewer calls
            assert faults.fired() == {}
        finish = ckpt.run("snapshot", target.pid, "--paranoid", "--json")
        assert finish.code == 0, finish.err
        unharmed(target)
    ckpt.exact(target.pid)
    ckpt.sound()
