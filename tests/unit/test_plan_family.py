"""Trees born and operated on, played against a small model of the kernel's rules for numbers, sessions, groups and the dead.

A random history of forks, setsid, setpgid, ends and collections gives a tree; the steps must give that tree again, from the root
alone (a restore) or from whatever another piece of history has made of it (a rollback), and no step may be one that the kernel refuses.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from hypothesis import assume, given, settings
from hypothesis import strategies as st

from ckpt.model import Snapshot, Task, Zombie
from ckpt.plan.family import CLONE_PARENT, Family, Step
from ckpt.plan.kin import predicted, surgery
from tests.unit import samples

ROOT, OUTSIDE = 100, 50


@dataclass
class Process:
    pid: int
    ppid: int
    pgid: int
    sid: int
    status: int | None = None  #: None: it lives

    @property
    def facts(self) -> tuple[object, ...]:
        return self.ppid, self.pgid, self.sid, self.status


class Kernel:
    """The rules that matter (kernel/sys.c, kernel/fork.c, kernel/exit.c). The root adopts orphans."""

    def __init__(self, *processes: Process) -> None:
        self.all = {one.pid: one for one in processes}

    def used(self, number: int) -> bool:
        return any(number in (one.pid, one.pgid, one.sid) for one in self.all.values())

    def clone(self, maker: int, pid: int, flags: int = 0) -> None:
        parent = self.all[maker]
        assert parent.status is None, "the dead have no children"
        assert not self.used(pid), f"{pid}: EEXIST"
        self.all[pid] = Process(pid, parent.ppid if flags & CLONE_PARENT else maker, parent.pgid, parent.sid)
        assert self.all[pid].ppid in self.all, "a sibling of the root"

    def setsid(self, pid: int) -> bool:
        one = self.all[pid]
        if one.sid == pid or any(other.pgid == pid for other in self.all.values()):
            return False
        one.sid = one.pgid = pid
        return True

    def setpgid(self, pid: int, group: int) -> bool:
        one = self.all[pid]
        there = (
            group == pid or group == one.sid == OUTSIDE or any(other.pgid == group and other.sid == one.sid for other in self.all.values())
        )
        if one.sid == pid or not there or (group == pid and any(o.pgid == pid and o.sid != one.sid for o in self.all.values())):
            return False
        one.pgid = group
        return True

    def end(self, pid: int, status: int) -> None:
        assert self.all[pid].status is None
        self.all[pid].status = status
        for one in self.all.values():
            if one.ppid == pid:
                one.ppid = ROOT

    def reap(self, pid: int, child: int) -> None:
        assert self.all[pid].status is None
        assert self.all[child].ppid == pid
        assert self.all[child].status is not None
        del self.all[child]

    def play(self, steps: Sequence[Step]) -> None:
        for step in steps:
            assert step.pid in self.all, f"{step} in nobody"
            if step.child:
                self.clone(step.pid, step.child, step.flags)
            elif step.reap:
                self.reap(step.pid, step.reap)
            elif step.status is not None:
                self.end(step.pid, step.status)
            elif step.session:
                assert self.setsid(step.pid), f"{step}: EPERM"
            elif step.group:
                assert self.setpgid(step.pid, step.group), f"{step}: EPERM"

    def snapshot(self) -> Snapshot:
        living: list[Task] = []
        dead: list[Zombie] = []
        for one in self.all.values():
            if one.status is None:
                task = samples.task(one.pid, threads=1, mm=one.pid)
                living.append(replace(task, ppid=one.ppid, pgid=one.pgid, sid=one.sid, descriptors=()))
            else:
                dead.append(Zombie(one.pid, 1, one.ppid, one.pgid, one.sid, "worker", one.status))
        return replace(samples.snapshot(*living), zombies=tuple(dead))

    def facts(self) -> dict[int, tuple[object, ...]]:
        return {pid: one.facts for pid, one in self.all.items()}


#: (what, which process, which other one): indices are taken modulo how many there are.
WHAT = ("fork", "fork", "fork", "setsid", "setpgid", "end", "reap")
EVENTS = st.lists(st.tuples(st.sampled_from(WHAT), st.integers(0, 20), st.integers(0, 20)), max_size=25)


def happen(kernel: Kernel, events: Sequence[tuple[str, int, int]], first: int) -> None:
    number = first
    for what, which, other in events:
        living = [pid for pid, one in kernel.all.items() if one.status is None]
        pid = living[which % len(living)]
        if what == "fork":
            kernel.clone(pid, number)
            number += 1
        elif what == "setsid" and pid != ROOT:
            kernel.setsid(pid)
        elif what == "setpgid":
            groups = [one.pgid for one in kernel.all.values() if one.sid == kernel.all[pid].sid]
            kernel.setpgid(pid, [pid, *groups][other % (len(groups) + 1)])
        elif what == "end" and pid != ROOT:
            kernel.end(pid, (7 << 8, 15, 9)[other % 3])
        elif what == "reap":
            dead = [one.pid for one in kernel.all.values() if one.ppid == pid and one.status is not None]
            if dead:
                kernel.reap(pid, dead[other % len(dead)])


def clan(events: Sequence[tuple[str, int, int]], session: int) -> Kernel:
    kernel = Kernel(Process(ROOT, 1, session, session))
    happen(kernel, events, ROOT + 1)
    return kernel


@given(EVENTS, st.sampled_from([ROOT, OUTSIDE]))
@settings(max_examples=400, deadline=None)
def test_a_restored_tree_is_that_tree(events: Sequence[tuple[str, int, int]], session: int) -> None:
    wanted = clan(events, session)
    family = Family(wanted.snapshot())
    assume(not any("not brought back" in line for line in family.warnings))
    kernel = Kernel(Process(ROOT, 1, ROOT, ROOT))
    kernel.play(family.steps())

    root = wanted.all[ROOT]
    outside = {OUTSIDE} if session == ROOT else {OUTSIDE, root.pgid} - (wanted.all.keys() - {ROOT})

    def here(number: int) -> int:
        return ROOT if number in outside else number

    places = {pid: (one.ppid, here(one.pgid), here(one.sid), one.status) for pid, one in wanted.all.items()}
    places[ROOT] = (root.ppid, ROOT, ROOT, None)
    assert kernel.facts() == places


@given(EVENTS, EVENTS, st.sampled_from([ROOT, OUTSIDE]))
@settings(max_examples=400, deadline=None)
def test_a_tree_rolled_back_is_that_tree(then: Sequence[tuple[str, int, int]], since: Sequence[tuple[str, int, int]], session: int) -> None:
    kernel = clan(then, session)
    wanted, facts = kernel.snapshot(), kernel.facts()
    happen(kernel, since, ROOT + 1 + len(then))
    now = kernel.snapshot()
    work = surgery(now, wanted, outside={OUTSIDE})
    if work.refusals:
        assert all(line.startswith("task ") and "ckpt restore --replace" in line for line in work.refusals)
        return
    kernel.play(work.steps)
    assert kernel.facts() == facts
    assert {task.pid for task in predicted(now, wanted, work).tasks} == {task.pid for task in wanted.tasks}


@given(EVENTS)
@settings(max_examples=100, deadline=None)
def test_nothing_is_done_to_a_tree_that_is_as_it_was(events: Sequence[tuple[str, int, int]]) -> None:
    wanted = clan(events, ROOT).snapshot()
    assert surgery(wanted, wanted).steps == ()
    assert surgery(wanted, wanted).made == frozenset()
