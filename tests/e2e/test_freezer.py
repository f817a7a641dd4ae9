"""Freezers of control groups: targets that somebody has frozen, and the tree that is stopped by its own group."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from ckpt.live.cgroups import mounted
from tests.faults.faults import Faults
from tests.faults.test_front import until_gone, when_held
from tests.harness import Ckpt, Victim
from tests.harness.victim import stat_fields, within

Start = Callable[..., Victim]


class Group:
    """A control group of the test's own; its members are let go, and it is removed, when the test is over."""

    def __init__(self, version: int, *, parent: Path | None = None) -> None:
        self.version = version
        hierarchies = mounted()
        name = next((one for one in hierarchies if one == ("" if version == 2 else "freezer")), None)
        if name is None:
            pytest.skip(f"no freezer of control groups v{version} is mounted here")
        self.top = Path(hierarchies[name][1])
        self.folder = (parent or self.top) / f"ckpt-test-{os.urandom(4).hex()}"
        try:
            self.folder.mkdir()
        except OSError as error:
            pytest.skip(f"no control group can be made here: {error}")

    def take(self, *pids: int) -> None:
        for pid in pids:
            with suppress(ProcessLookupError):  # a child of the moment
                (self.folder / "cgroup.procs").write_text(str(pid))

    def freeze(self) -> None:
        (self.folder / ("cgroup.freeze" if self.version == 2 else "freezer.state")).write_text("1" if self.version == 2 else "FROZEN")
        deadline = time.monotonic() + 5
        while not self.frozen():
            assert time.monotonic() < deadline
            time.sleep(0.001)

    def told(self) -> bool:
        return (self.folder / "cgroup.freeze").read_text().strip() == "1"

    def frozen(self) -> bool:
        if self.version == 1:
            return (self.folder / "freezer.state").read_text().strip() == "FROZEN"
        return "frozen 1" in (self.folder / "cgroup.events").read_text()

    def thaw(self) -> None:
        (self.folder / ("cgroup.freeze" if self.version == 2 else "freezer.state")).write_text("0" if self.version == 2 else "THAWED")

    def end(self) -> None:
        with suppress(OSError):
            self.thaw()
        deadline = time.monotonic() + 5
        while not self._gone():
            assert time.monotonic() < deadline, f"{self.folder} is still in use"
            time.sleep(0.05)

    def _gone(self) -> bool:
        """Not yet where a child was forked meanwhile, or is on its way out."""
        for pid in (self.folder / "cgroup.procs").read_text().split():
            with suppress(OSError):
                (self.top / "cgroup.procs").write_text(pid)
        with suppress(OSError):
            self.folder.rmdir()
        return not self.folder.exists()


Make = Callable[..., Group]


@pytest.fixture
def group() -> Iterator[Make]:
    made: list[Group] = []

    def make(version: int = 2, **options: Path) -> Group:
        made.append(Group(version, **options))
        return made[-1]

    yield make
    for one in reversed(made):
        one.end()


#: Ticks: what the kernel does for us in its name is some microseconds, and where nothing else of its time was the kernel's it counts as its
#: own (kernel/sched/cputime.c, cputime_adjust): enough for a sum that stood just below the next tick.
A_ROUNDING = 1


def spent(target: Victim) -> list[int]:
    """CPU time of each process in ticks: what somebody frozen does not use. Without what the kernel does for us in its name."""
    return [int(stat_fields(pid)[11]) for pid in sorted(target.tree())]


# ---- frozen by somebody ----


@pytest.mark.parametrize("above", [False, True], ids=["own", "above"])
@pytest.mark.parametrize("name", ["family", "epoll", "registers", "threads4", "signals", "int80", "python-asyncio"])
def test_frozen_by_v2(name: str, above: bool, ckpt: Ckpt, victim: Start, group: Make) -> None:
    """It is snapshot, stays frozen, and goes on when it is thawed; what was captured comes back whole, handlers included."""
    target = victim(name)
    held = group()
    inner = group(parent=held.folder) if above else held
    inner.take(*target.tree())
    ckpt.snapshot(target.pid)
    held.freeze()
    looked = ckpt.json("check", target.pid)
    assert looked["ok"]
    assert any("is frozen by control group" in line for line in looked["warnings"]), looked
    before = spent(target)
    made = ckpt.snapshot(target.pid, "--paranoid")
    assert made["freeze"] == "cgroup"
    assert made["paranoid"]["wrong"] == 0
    assert any("stays frozen" in line for line in made["warnings"]), made["warnings"]
    time.sleep(0.1)
    assert held.told()
    assert held.frozen()
    settled = spent(target)
    assert all(now - then <= A_ROUNDING for now, then in zip(settled, before, strict=True)), "it ran"
    time.sleep(0.1)
    assert spent(target) == settled, "it runs"
    assert target.untraced()
    again = ckpt.snapshot(target.pid)
    assert "is frozen: it stays in" in ckpt.run("verify", again["generation"]).err, "a newborn would stand still in that group"
    held.thaw()
    verified = ckpt.run("verify", again["generation"])
    assert verified.code == 0, verified.err + verified.out
    target.verify()
    assert ckpt.exact(target.pid)["freeze"] == ("cgroup" if name == "family" else "ptrace")
    target.verify()


def stopped(pids: list[int]) -> bool:
    deadline = time.monotonic() + 5
    while {stat_fields(pid)[0] for pid in pids} != {"T"}:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.001)
    return True


@pytest.mark.parametrize("at_once", [False, True], ids=["in force", "perhaps pending"])
def test_frozen_and_stopped(at_once: bool, ckpt: Ckpt, victim: Start, group: Make) -> None:
    """By a signal and by its group: each holds until its own end. Who is frozen before it has met its SIGSTOP meets it later."""
    target = victim("family")
    held = group()
    held.take(*target.tree())
    for pid in target.tree():
        os.kill(pid, signal.SIGSTOP)
    assert at_once or stopped(target.tree())
    held.freeze()
    made = ckpt.snapshot(target.pid)["generation"]
    assert at_once or all(one["stopped"] for one in ckpt.json("show", made)["processes"])
    assert held.frozen()
    held.thaw()
    assert stopped(target.tree())
    ckpt.exact(target.pid)
    for pid in target.tree():
        os.kill(pid, signal.SIGCONT)
    target.verify()


@pytest.mark.parametrize("theirs", [False, True], ids=["ours", "theirs"])
def test_ended_at_the_captured_instant(theirs: bool, ckpt: Ckpt, victim: Start, group: Make) -> None:
    target = victim("family")
    own = group()
    own.take(*target.tree())
    if theirs:
        own.freeze()
    made = ckpt.snapshot(target.pid, "--kill", "--freeze", "cgroup")["generation"]
    target.kill()
    assert own.told() == theirs
    own.thaw()
    target.revive(lambda words: int(ckpt.json("restore", made, *words)["pid"]))
    target.verify()


def test_a_restore_stays_out_of_a_frozen_group(ckpt: Ckpt, victim: Start, group: Make) -> None:
    target = victim("signals")
    held = group()
    held.take(target.pid)
    held.freeze()
    made = ckpt.snapshot(target.pid)["generation"]
    target.kill()
    warnings: list[str] = []

    def restore(words: list[str]) -> int:
        done = ckpt.run("restore", made, *words, "--json", timeout_s=30)
        warnings.extend(done.json["warnings"])
        return int(done.json["pid"])

    target.revive(restore)  # type: ignore[arg-type]
    assert any("is frozen: it stays" in line for line in warnings), warnings
    target.verify()


def test_frozen_by_v1_is_refused(ckpt: Ckpt, victim: Start, group: Make) -> None:
    """The kernel answers nobody there."""
    target = victim("family")
    held = group(1)
    made = ckpt.snapshot(target.pid)["generation"]
    held.take(target.tree()[-1])
    held.freeze()
    words = ("is frozen by control group", held.folder.name, "v1", f"task {target.tree()[-1]}", "thaw")
    ckpt.run("snapshot", target.pid).refused(3, *words)
    ckpt.run("rollback", made, "--pid", target.pid).refused(3, *words)
    looked = ckpt.run("check", target.pid)
    assert looked.code == 3
    assert held.folder.name in looked.out
    assert held.frozen()
    held.thaw()
    target.verify()
    ckpt.exact(target.pid)


def test_frozen_by_a_v1_group_above(ckpt: Ckpt, victim: Start, group: Make) -> None:
    target = victim("registers")
    above = group(1)
    inner = group(1, parent=above.folder)
    inner.take(target.pid)
    above.freeze()
    line = ckpt.run("snapshot", target.pid).refused(3, "is frozen by control group", above.folder.name)
    assert inner.folder.name not in line, "the group that was told to freeze is another"
    above.thaw()
    target.verify()


def test_frozen_with_strangers_is_refused(ckpt: Ckpt, victim: Start, group: Make) -> None:
    """To ask the tree what only it can tell, its group is opened for a moment: nobody else may run by that."""
    target, other = victim("registers"), victim("registers")
    held = group()
    held.take(target.pid, other.pid)
    held.freeze()
    ckpt.run("snapshot", target.pid).refused(3, "is frozen by control group", f"task {other.pid}", "not of the tree")
    assert ckpt.run("check", target.pid).code == 3
    assert held.frozen()
    held.thaw()
    target.verify()
    other.verify()


def test_half_a_tree_frozen_is_refused(ckpt: Ckpt, victim: Start, group: Make) -> None:
    target = victim("family")
    held = group()
    held.take(target.tree()[-1])
    held.freeze()
    ckpt.run("snapshot", target.pid).refused(3, "is frozen by control group", f"task {target.pid}", "of the same tree is not")
    held.thaw()
    target.verify()


def test_no_rollback_of_a_frozen_program(ckpt: Ckpt, victim: Start, group: Make) -> None:
    target = victim("registers")
    held = group()
    held.take(target.pid)
    made = ckpt.snapshot(target.pid)["generation"]
    held.freeze()
    ckpt.run("rollback", made, "--pid", target.pid).refused(3, "is frozen by control group", "no rollback", "cgroup.freeze")
    assert held.frozen()
    held.thaw()
    ckpt.json("rollback", made, "--pid", target.pid)
    target.verify()


# ---- stopped by its own group ----


@pytest.mark.parametrize("name", ["family", "clan", "churn", "epoll", "threads200", "waits", "signals"])
def test_stopped_by_its_group(name: str, ckpt: Ckpt, victim: Start, group: Make) -> None:
    target = victim(name)
    own = group()
    own.take(*target.tree())
    made = [ckpt.snapshot(target.pid, "--freeze", "cgroup", "--paranoid") for _ in range(4)]
    assert {one["freeze"] for one in made} == {"cgroup"}
    assert {one["paranoid"]["wrong"] for one in made} == {0}
    assert not own.told()
    target.verify()
    assert ckpt.exact(target.pid)["freeze"] == ("cgroup" if name in ("family", "clan") else "ptrace"), (
        "auto: several processes, few threads"
    )
    assert ckpt.snapshot(target.pid, "--freeze", "ptrace")["freeze"] == "ptrace"
    ckpt.json("rollback", made[0]["generation"], "--pid", target.pid)
    target.verify()


def test_one_that_is_asked_for_and_impossible(ckpt: Ckpt, victim: Start, group: Make) -> None:
    target, other = victim("family"), victim("registers")
    ckpt.run("snapshot", target.pid, "--freeze", "cgroup").refused(3, "root control group", "--freeze ptrace")
    own = group()
    own.take(target.pid)
    ckpt.run("snapshot", target.pid, "--freeze", "cgroup").refused(3, "is not in control group", own.folder.name)
    own.take(*target.tree(), other.pid)
    ckpt.run("snapshot", target.pid, "--freeze", "cgroup").refused(3, f"task {other.pid}", "not of the tree")
    ckpt.run("snapshot", target.pid, "--freeze", "hard").refused(2, "--freeze hard")
    assert not own.told()
    target.verify()
    other.verify()
    assert ckpt.snapshot(target.pid, "--freeze", "ptrace")["freeze"] == "ptrace"


# ---- and what becomes of it when ckpt is killed ----

#: while the group is shut: the interrupts that follow; while it stands at ptrace stops
POINTS = ["sys_ptrace:0x4207@prepared#1", "raw"]
HELD_MS = 60_000  #: until it is killed, however long the machine takes to come to it


@pytest.mark.parametrize("where", POINTS)
@pytest.mark.parametrize("theirs", [False, True], ids=["ours", "theirs"])
def test_the_worker_is_killed(where: str, theirs: bool, ckpt: Ckpt, victim: Start, group: Make, tmp_path: Path) -> None:
    """The front leaves the group as it was."""
    target = victim("registers")
    own = group()
    own.take(target.pid)
    if theirs:
        own.freeze()
    faults = Faults(tmp_path, f"{where}=sleep:{HELD_MS}")
    front = ckpt.start("snapshot", target.pid, "--freeze", "cgroup", faults=faults)
    worker = when_held(faults, front)
    assert own.told() == (where != "raw")
    os.kill(worker, signal.SIGKILL)
    assert ckpt.finish(front).killed
    assert own.told() == theirs
    assert target.untraced()
    own.thaw()
    target.verify()
    ckpt.exact(target.pid)


@pytest.mark.parametrize("where", POINTS)
def test_both_are_killed(where: str, ckpt: Ckpt, victim: Start, group: Make, tmp_path: Path) -> None:
    """The next ckpt thaws what they left, whatever it was started for."""
    target, other = victim("registers"), victim("registers")
    own = group()
    own.take(target.pid)
    faults = Faults(tmp_path, f"{where}=sleep:{HELD_MS}")
    front = ckpt.start("snapshot", target.pid, "--freeze", "cgroup", faults=faults)
    worker = when_held(faults, front)
    os.kill(front.pid, signal.SIGSTOP)  # so that neither acts on the other's death
    assert within(10, lambda: stat_fields(front.pid)[0] == "T")
    os.kill(worker, signal.SIGKILL)
    until_gone(worker)
    os.kill(front.pid, signal.SIGKILL)
    front.communicate()
    assert own.told() == (where != "raw")
    assert ckpt.run("check", other.pid).code == 0
    assert not own.told()
    target.verify()
    ckpt.exact(target.pid)
    assert not list(ckpt.runtime.glob("*.freezer"))
