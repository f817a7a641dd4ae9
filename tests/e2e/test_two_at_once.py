"""Two ckpt at once, on one target and on one store: one waits or is refused in one line; neither harms."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tests.faults.faults import Faults
from tests.harness import Ckpt, Outcome, Victim

Start = Callable[..., Victim]


def settled(outcomes: list[Outcome]) -> int:
    """Each did its work or was refused in one line; returns how many did it."""
    for one in outcomes:
        if one.code != 0:
            one.refused(1)
    return sum(one.code == 0 for one in outcomes)


def test_on_one_target(ckpt: Ckpt, victim: Start, tmp_path: Path) -> None:
    target = victim("churn")
    ckpt.snapshot(target.pid)
    for phase in ("armed", "captured", "stored"):
        slow = ckpt.start("snapshot", target.pid, "--json", faults=Faults(tmp_path, f"{phase}=sleep:700"))
        others = [ckpt.start("snapshot", target.pid, "--json") for _ in range(2)]
        assert settled([ckpt.finish(one) for one in (slow, *others)]) >= 1
        ckpt.exact(target.pid)
        target.verify()
    ckpt.sound()


def test_on_one_target_with_two_stores(ckpt: Ckpt, victim: Start, tmp_path: Path) -> None:
    target = victim("churn")
    other = ckpt.at(tmp_path / "other.db")
    running = [one.start("snapshot", target.pid, "--json") for one in (ckpt, other, ckpt, other)]
    assert settled([ckpt.finish(one) for one in running]) >= 1
    ckpt.exact(target.pid)
    other.exact(target.pid)
    ckpt.exact(target.pid)
    ckpt.sound()
    other.sound()
    target.verify()


def test_on_one_store(ckpt: Ckpt, victim: Start, tmp_path: Path) -> None:
    targets = [victim(name) for name in ("churn", "registers", "sleeper", "threads4")]
    slow = ckpt.start("snapshot", targets[0].pid, "--json", faults=Faults(tmp_path, "stored=sleep:1000"))
    running = [slow, *(ckpt.start("snapshot", target.pid, "--json") for target in targets[1:])]
    assert settled([ckpt.finish(one) for one in running]) == len(targets), "writers wait for each other"
    for target in targets:
        ckpt.exact(target.pid)
        target.verify()
    ckpt.sound()


def test_a_rollback_and_a_snapshot(ckpt: Ckpt, victim: Start) -> None:
    target = victim("churn")
    made = ckpt.snapshot(target.pid)["generation"]
    for _ in range(3):
        running = [ckpt.start("rollback", made, "--pid", target.pid, "--json"), ckpt.start("snapshot", target.pid, "--json")]
        assert settled([ckpt.finish(one) for one in running]) >= 1
        target.verify()
        ckpt.exact(target.pid)
    ckpt.sound()


def test_readers_while_a_snapshot_writes(ckpt: Ckpt, victim: Start, tmp_path: Path) -> None:
    target = victim("counter")
    ckpt.snapshot(target.pid)
    slow = ckpt.start("snapshot", target.pid, "--json", faults=Faults(tmp_path, "stored=sleep:1500"))
    for _ in range(3):
        assert ckpt.run("log", timeout_s=5).code == 0
    assert ckpt.finish(slow).code == 0
