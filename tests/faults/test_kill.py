"""kill -9 of ckpt in each named phase, with victims that would notice: the target goes on and computes the right result, the
store is sound and holds every generation that was reported, the next incremental is exact.

That the kill happened, and in which phase, is proven by the counters of the interposer. 2 kills per phase in `make test`;
in `make soak` 20 of every victim in every phase, those of a rollback each by its own name.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from ckpt.plan import STAGES
from tests.faults.faults import PHASES, Faults, kill_at, kill_in
from tests.harness import SOAK, Ckpt, Victim, did, times

Start = Callable[..., Victim]
KILLS = times(1, 20)  #: of each victim in each phase
CERTAIN = 24  #: calls of a phase that every run makes
#: All registers live; in nanosleep; in epoll_wait; 16 threads.
VICTIMS = ("registers", "sleeper", "epoll", "busy16")
#: `make test` shares the time of a store between two of them.
TOGETHER = [(name,) for name in VICTIMS] if SOAK else [VICTIMS[:2], VICTIMS[2:]]

#: What is killed where: name -> does the target already have a tracker; the phases, in turn; at the mark itself, or walking
#: through the system calls between it and the next mark, kill by kill.
AT_MARK, INSIDE = "at", "inside"
SNAPSHOT_KILLS: dict[str, tuple[bool, tuple[str, ...], str]] = {
    "before the first injection": (False, ("arm",), INSIDE),
    "inside the first injection": (False, ("inject",), INSIDE),
    "after the first injection": (False, ("injected",), INSIDE),
    "in a batch": (False, ("batch", "batch-done"), INSIDE),
    "armed and not committed": (False, ("armed", "consumed"), AT_MARK),
    "while it is being stopped": (True, ("prepared",), INSIDE),
    "while frozen": (True, ("frozen", "raw", "questions"), INSIDE),
    "captured and not stored": (True, ("captured", "parsed"), AT_MARK),
    "between orphans and publication": (True, ("stored",), AT_MARK),
    "between publication and record": (True, ("published",), AT_MARK),
}


#: What a rollback passes; threads come and go only in "churn", and "protected" only where there is a tracker. Its injections and looks
#: have the marks of a snapshot's, many times each.
ROLLBACK = (
    *tuple(PHASES)[tuple(PHASES).index("opened") : tuple(PHASES).index("continued") + 1],
    *(f"stage-{name}" for name in STAGES),
    *("frozen", "raw", "copied", "inject", "injected", "batch", "batch-done"),
)
ROLLBACK_VICTIMS = (*VICTIMS, "churn")


def rule_for(turn: int, phases: tuple[str, ...], how: str, passages: dict[str, int]) -> str:
    """The turn-th rule: spread over the calls that an undisturbed run makes in the phase.

    Of a phase that asks again and again (waitpid) only the first calls: how many there are is chance.
    """
    phase = phases[turn % len(phases)]
    calls = min(sum(hits for name, hits in passages.items() if name.startswith(f"{phase}/")), CERTAIN)
    assert phase in passages, f"no passage of the mark {phase}: {passages}"
    if how == AT_MARK or calls == 0:
        return kill_at(phase)
    return kill_in(phase, 1 + (turn * calls // max(KILLS, 2)) % calls)


def unharmed(target: Victim) -> None:
    target.verify()
    assert target.untraced()
    assert not target.stands_still(), "a thread is still stopped"
    target.verify()


#: The one thing that a kill between a stop and the write of its decision may show (ARCHITECTURE.md, "What would close that window").
WINDOW = "FAIL epoll_wait: Interrupted system call"


PTRACE = {"INTERRUPT": 0x4207, "GETREGS": 12, "GETSIGMASK": 0x420A, "POKEUSER": 6}


def rollback_rule(name: str, phase: str, turn: int, passages: dict[str, int]) -> str:
    """At the mark (each passage of it) and at a call behind it, by turns. A freeze of epoll is left alone inside the window."""
    inside = min(sum(hits for one, hits in passages.items() if one.startswith(f"{phase}/")), CERTAIN)
    if turn % 2 == 0 or not inside:
        return kill_at(phase, 1 + turn // 2 % passages[phase])
    if (name, phase) == ("epoll", "ready"):
        return f"sys_ptrace:{PTRACE['INTERRUPT']}@ready#1=kill" if turn % 4 == 1 else f"sys_ptrace:{PTRACE['POKEUSER']}@ready#1=after-kill"
    return kill_in(phase, 1 + turn * 7 % inside)


def unharmed_but_for_the_window(target: Victim) -> bool:
    """Whether the target saw nothing at all; else it saw WINDOW, and goes on."""
    answers = [target.ask("verify") for _ in range(2)]
    assert set(answers) <= {"PASS", WINDOW}, answers
    assert target.untraced()
    assert not target.stands_still(), "a thread is still stopped"
    return answers == ["PASS", "PASS"]


def proven(faults: Faults, rule: str) -> None:
    """The counters say that the kill was in the phase that the rule names."""
    assert faults.fired() == {rule: 1}, (faults.fired(), faults.hits())
    phase = rule.split("@")[1].split("#")[0] if "@" in rule else rule.split("#")[0]
    assert any(name == phase or name.startswith(f"{phase}/") for name in faults.hits())


@pytest.mark.parametrize("phase", SNAPSHOT_KILLS)
@pytest.mark.parametrize("names", TOGETHER, ids="+".join)
def test_killed_snapshot(phase: str, names: tuple[str, ...], ckpt: Ckpt, victim: Start, tmp_path: Path) -> None:
    armed, phases, how = SNAPSHOT_KILLS[phase]
    running = {name: victim(name) for name in names}
    plain = Faults(tmp_path)
    ckpt.snapshot(victim("counter").pid, faults=plain)
    held: list[int] = []
    if armed:
        held += [ckpt.snapshot(target.pid)["generation"] for target in running.values()]
    for turn in range(KILLS * len(names)):
        which, name = turn % len(names), names[turn % len(names)]
        if not armed and turn >= len(names):  # the first injection happens once in a life
            running[name].end()
            running[name] = victim(name)
        target, rule = running[name], rule_for(turn // len(names) + which, phases, how, plain.hits())
        faults = Faults(tmp_path, rule)
        done = ckpt.run("snapshot", target.pid, "--json", faults=faults)
        assert done.killed, f"{rule}: exit {done.code}, passages {faults.hits()}: {done.err}"
        proven(faults, rule)
        did(f"kill -9 of a snapshot, {phase}, {name}")
        if (name, phase) == ("epoll", "while it is being stopped"):
            if not unharmed_but_for_the_window(target):
                target.end()
                target = running[name] = victim(name)
        else:
            unharmed(target)
        made = ckpt.exact(target.pid)
        unharmed(target)
        assert set(held) <= set(ckpt.generations())
        held.append(made["generation"])
    ckpt.sound()
    assert set(held) <= set(ckpt.generations())


@pytest.mark.parametrize(
    ("call", "what", "window"),
    [
        ("INTERRUPT", "kill", False),
        ("INTERRUPT", "after-kill", True),
        ("GETREGS", "kill", True),
        ("GETSIGMASK", "kill", True),
        ("POKEUSER", "kill", True),
        ("POKEUSER", "after-kill", False),
    ],
)
def test_killed_around_a_decision(call: str, what: str, window: bool, ckpt: Ckpt, victim: Start, tmp_path: Path) -> None:
    """Before the interrupt and from the write of rax on: nothing. Between them one EINTR in epoll_wait, and nothing else."""
    target = victim("epoll")
    ckpt.snapshot(target.pid)
    for _ in range(times(2, 20)):
        rule = f"sys_ptrace:{PTRACE[call]}@prepared#1={what}"
        faults = Faults(tmp_path, rule)
        assert ckpt.run("snapshot", target.pid, "--json", faults=faults).killed
        proven(faults, rule)
        did(f"kill -9 of a snapshot, {what.removesuffix('kill')}{call}, epoll")
        if window:
            unharmed_but_for_the_window(target)
        else:
            unharmed(target)
    made = ckpt.snapshot(target.pid, "--paranoid")
    assert made["paranoid"]["wrong"] == 0
    ckpt.sound()


@pytest.mark.parametrize("name", [*VICTIMS, "clan", "sharing"])
def test_killed_rollback(name: str, ckpt: Ckpt, victim: Start, tmp_path: Path) -> None:
    """Old state, new state, or stopped and finished by the next ckpt; the target's own check passes in the end."""
    target = victim(name)
    first = ckpt.snapshot(target.pid)["generation"]
    target.verify()
    second = ckpt.snapshot(target.pid, "--incremental")["generation"]
    plain = Faults(tmp_path)
    assert ckpt.run("rollback", first, "--pid", target.pid, "--json", faults=plain).code == 0
    target.verify()
    order = list(plain.hits())
    begin = order.index("opened")
    calls = {one: hits for one, hits in plain.hits().items() if "/" in one and order.index(one) > begin}
    phases = list(dict.fromkeys(one.split("/")[0] for one in calls))
    assert len(phases) >= 3, f"the phases of a rollback have no names: {plain.hits()}"
    number, killed = times(4, 20), 0
    for turn in range(number):
        phase = phases[turn * len(phases) // number]
        rule = rollback_rule(name, phase, 2 * turn + 1, plain.hits())
        faults = Faults(tmp_path, rule)
        done = ckpt.run("rollback", (first, second)[turn % 2], "--pid", target.pid, "--json", faults=faults)
        if not done.killed:
            assert done.code == 0, done  # this time the plan had fewer calls
            assert faults.fired() == {}
        else:
            proven(faults, rule)
            killed += 1
        finished(ckpt, target)
    assert killed > number // 2
    ckpt.exact(target.pid)
    ckpt.sound()


def finished(ckpt: Ckpt, target: Victim) -> None:
    """The next ckpt finishes what the killed rollback began; the target's own check passes."""
    finish = ckpt.run("snapshot", target.pid, "--paranoid", "--json")
    assert finish.code == 0, finish.err
    assert finish.json["paranoid"]["wrong"] == 0, finish.out
    unharmed(target)


@pytest.mark.soak
@pytest.mark.parametrize("phase", ROLLBACK)
@pytest.mark.parametrize("name", ROLLBACK_VICTIMS)
def test_killed_rollback_in_each_phase(name: str, phase: str, ckpt: Ckpt, victim: Start, tmp_path: Path) -> None:
    """At the mark itself and at each system call behind it, by turns, as the undisturbed rollback passes them."""
    target = victim(name)
    generations = [ckpt.snapshot(target.pid)["generation"]]
    target.verify()
    generations.append(ckpt.snapshot(target.pid, "--incremental")["generation"])
    plain = Faults(tmp_path)
    assert ckpt.run("rollback", generations[0], "--pid", target.pid, "--json", faults=plain).code == 0
    target.verify()
    if phase not in plain.hits():
        pytest.skip(f"a rollback of {name} does not pass {phase}")
    killed = turn = 0
    while killed < KILLS:
        assert turn < 3 * KILLS, f"{killed} kills in {turn} turns"
        rule = rollback_rule(name, phase, turn, plain.hits())
        faults = Faults(tmp_path, rule)
        done = ckpt.run("rollback", generations[(turn + 1) % 2], "--pid", target.pid, "--json", faults=faults)
        turn += 1
        if done.killed:
            proven(faults, rule)
            killed += 1
            did(f"kill -9 of a rollback, {phase}, {name}")
        else:
            assert done.code == 0, done  # this time the plan had fewer calls
            assert faults.fired() == {}
        finished(ckpt, target)
    ckpt.exact(target.pid)
    ckpt.sound()
