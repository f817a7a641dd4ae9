"""Group stops: who is stopped by a signal stays so through snapshot, rollback and restore, until SIGCONT; a stop may come at any moment."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tests.faults.faults import Faults
from tests.faults.test_front import when_held
from tests.harness import Ckpt, Victim
from tests.harness.victim import stat_fields

Start = Callable[..., Victim]
HELD_MS = 250  #: the signal comes in it, also on a busy machine
#: none of them minds SIGCONT: epoll_wait and its kin end by it with EINTR, by the kernel itself (signal(7))
NAMES = ["registers", "threads200", "family", "queued", "rseq"]


def state(pid: int) -> str:
    return stat_fields(pid)[0]


def until(pid: int, wanted: str) -> None:
    deadline = time.monotonic() + 10
    while state(pid) != wanted:
        assert time.monotonic() < deadline, f"task {pid} is {state(pid)}, not {wanted}"
        time.sleep(0.001)


def threads(pid: int) -> set[str]:
    return {(one / "stat").read_text().rpartition(")")[2].split()[0] for one in Path(f"/proc/{pid}/task").iterdir()}


def stop(target: Victim) -> None:
    os.kill(target.pid, signal.SIGSTOP)
    until(target.pid, "T")


def stands(target: Victim) -> None:
    """Stopped, by nobody's trace, with all its threads, and for longer than a moment."""
    for _ in range(2):
        assert threads(target.pid) == {"T"}
        assert target.untraced()
        time.sleep(0.05)


def goes_on(target: Victim) -> None:
    os.kill(target.pid, signal.SIGCONT)
    target.verify()


def told(target: Victim) -> bool:
    """Whether its parent, which is us, hears of a stop or of its end."""
    return os.waitid(os.P_PID, target.pid, os.WSTOPPED | os.WCONTINUED | os.WNOHANG) is not None


def test_its_parent_hears_nothing_of_a_snapshot(ckpt: Ckpt, victim: Start) -> None:
    target = victim("registers")
    ckpt.snapshot(target.pid)
    assert not told(target)
    stop(target)
    assert told(target)
    for _ in range(3):
        assert ckpt.exact(target.pid)["generation"]
        stands(target)
    assert not told(target)
    goes_on(target)
    assert told(target)
    assert not told(target)


@pytest.mark.parametrize("name", NAMES)
def test_it_stays_stopped(name: str, ckpt: Ckpt, victim: Start) -> None:
    """Through snapshots, a verify, a rollback to when it stood from when it runs, and back; and across its death."""
    target = victim(name)
    running = ckpt.snapshot(target.pid)["generation"]
    stop(target)
    assert ckpt.json("check", target.pid)["ok"]
    standing = ckpt.exact(target.pid)["generation"]
    stands(target)
    assert ckpt.json("verify", standing)["faithful"]
    stands(target)
    goes_on(target)
    ckpt.json("rollback", standing, "--pid", target.pid)
    stands(target)
    ckpt.exact(target.pid)
    stands(target)
    goes_on(target)
    ckpt.json("rollback", running, "--pid", target.pid)
    assert "T" not in threads(target.pid)
    target.verify()
    target.kill()

    def restore(words: Sequence[str]) -> int:
        return int(ckpt.json("restore", standing, *words)["pid"])

    target.revive(restore)
    stands(target)
    goes_on(target)
    ckpt.exact(target.pid)


#: where in a snapshot the signals come
MOMENTS = ["consumed", "sys_ptrace:0x4207@prepared#1", "frozen", "raw", "questions", "copied"]


def held(ckpt: Ckpt, target: Victim, faults: Faults, numbers: Sequence[signal.Signals]) -> int:
    """A snapshot in which these come at the moment of the fault; its generation."""
    front = ckpt.start("snapshot", target.pid, "--json", faults=faults)
    when_held(faults, front)
    for number in numbers:
        os.kill(target.pid, number)
    return int(ckpt.finish(front).json["generation"])


@pytest.mark.parametrize("where", MOMENTS)
@pytest.mark.parametrize("name", ["registers", "threads200"])
def test_a_stop_that_comes_in_a_snapshot(name: str, where: str, ckpt: Ckpt, victim: Start, tmp_path: Path) -> None:
    """It is in force afterwards. A generation that holds it, in force or pending, comes back so."""
    target = victim(name)
    ckpt.snapshot(target.pid)
    made = held(ckpt, target, Faults(tmp_path, f"{where}=sleep:{HELD_MS}"), [signal.SIGSTOP])
    until(target.pid, "T")
    stands(target)
    goes_on(target)
    ckpt.exact(target.pid)
    came_before = where in MOMENTS[:3]
    ckpt.json("rollback", made, "--pid", target.pid)
    if came_before:
        until(target.pid, "T")
        stands(target)
        os.kill(target.pid, signal.SIGCONT)
    else:
        assert "T" not in threads(target.pid)
    target.verify()


@pytest.mark.parametrize("where", MOMENTS)
def test_a_stop_and_its_end_in_a_snapshot(where: str, ckpt: Ckpt, victim: Start, tmp_path: Path) -> None:
    target = victim("threads200")
    ckpt.snapshot(target.pid)
    held(ckpt, target, Faults(tmp_path, f"{where}=sleep:{HELD_MS}"), [signal.SIGSTOP, signal.SIGCONT])
    target.verify()
    assert "T" not in threads(target.pid)
    ckpt.exact(target.pid)


@pytest.mark.parametrize("where", MOMENTS)
def test_an_end_of_its_stop_in_a_snapshot(where: str, ckpt: Ckpt, victim: Start, tmp_path: Path) -> None:
    target = victim("registers")
    ckpt.snapshot(target.pid)
    stop(target)
    held(ckpt, target, Faults(tmp_path, f"{where}=sleep:{HELD_MS}"), [signal.SIGCONT])
    target.verify()
    assert "T" not in threads(target.pid)
    ckpt.exact(target.pid)
