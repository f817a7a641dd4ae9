"""The process that the user started and its worker: kill -9 of the one reaches nobody who traces; signals end a command between its steps.

The worker is held where it matters by the interposer, so that the kill falls there for certain.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tests.faults.faults import Faults
from tests.faults.test_kill import PTRACE
from tests.harness import Ckpt, Victim, did, times
from tests.harness.victim import children, stat_fields, within

Start = Callable[..., Victim]
HELD_MS = 60
#: Inside the freeze: after the interrupt of the thread, and before its rax is written.
WINDOW = [f"sys_ptrace:{PTRACE[name]}@prepared#1" for name in ("GETREGS", "GETSIGMASK", "POKEUSER")]
#: of a rollback: its freeze, and marks behind its first change
ROLLBACK = [f"sys_ptrace:{PTRACE['POKEUSER']}@ready#1", "stopped", "layout", "written", "registers-set"]


def worker_of(front: subprocess.Popen[str]) -> int:
    deadline = time.monotonic() + 10
    while not (found := children(front.pid)):
        assert time.monotonic() < deadline, "no worker"
        time.sleep(0.001)
    return found[0]


def when_held(faults: Faults, front: subprocess.Popen[str]) -> int:
    """Waits until the fault holds the worker; its pid."""
    worker = worker_of(front)
    deadline = time.monotonic() + 20
    while not faults.fired():
        assert time.monotonic() < deadline, f"not held: {faults.hits()}"
        assert front.poll() is None, f"it ended before: {faults.hits()}"
        time.sleep(0.0005)
    return worker


def held_in_a_stop(where: str, ckpt: Ckpt, target: Victim, folder: Path) -> tuple[subprocess.Popen[str], int]:
    """A snapshot that is held at `where`, and its worker. Where every thread ran, nothing is passed there: another is taken."""
    for _ in range(10):
        faults = Faults(folder, f"{where}=sleep:{HELD_MS}")
        front = ckpt.start("snapshot", target.pid, "--json", faults=faults)
        worker = worker_of(front)
        while not faults.fired() and front.poll() is None:
            time.sleep(0.0005)
        if faults.fired():
            return front, worker
        assert ckpt.finish(front).code == 0
    raise AssertionError(f"never held at {where}: {faults.hits()}")


def until_gone(worker: int) -> None:
    def ended() -> bool:
        try:
            return stat_fields(worker)[0] == "Z"
        except (FileNotFoundError, ProcessLookupError):
            return True

    assert within(20, ended), "the worker stays"


@pytest.mark.parametrize("where", WINDOW)
def test_a_kill_of_the_command_while_it_stops_a_thread(where: str, ckpt: Ckpt, victim: Start, tmp_path: Path) -> None:
    """epoll_wait sees nothing, not even in the window where the death of the tracer itself would show one EINTR."""
    target = victim("epoll")
    ckpt.snapshot(target.pid)
    for _ in range(times(3, 20)):
        front, worker = held_in_a_stop(where, ckpt, target, tmp_path)
        front.kill()
        assert ckpt.finish(front).killed
        until_gone(worker)
        did("kill -9 of the command in the window of a stop")
        target.verify()
        assert target.untraced()
        target.verify()
    ckpt.exact(target.pid)
    ckpt.sound()


@pytest.mark.parametrize("where", ROLLBACK)
def test_a_kill_of_the_command_in_a_rollback(where: str, ckpt: Ckpt, victim: Start, tmp_path: Path) -> None:
    """The worker finishes what it has begun: nobody has to mend it."""
    target = victim("epoll")
    made = ckpt.snapshot(target.pid)["generation"]
    for _ in range(times(1, 20)):
        target.verify()
        faults = Faults(tmp_path, f"{where}=sleep:{HELD_MS}")
        front = ckpt.start("rollback", made, "--pid", target.pid, "--json", faults=faults)
        worker = when_held(faults, front)
        front.kill()
        assert ckpt.finish(front).killed
        until_gone(worker)
        did("kill -9 of the command in a rollback")
        assert target.untraced()
        assert not target.stands_still()
        target.verify()
    ckpt.exact(target.pid)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_it_after_the_freeze(number: signal.Signals, ckpt: Ckpt, victim: Start, tmp_path: Path) -> None:
    target = victim("epoll")
    ckpt.snapshot(target.pid)
    for phase in ("frozen", "captured"):
        faults = Faults(tmp_path, f"{phase}=sleep:{HELD_MS}")
        front = ckpt.start("snapshot", target.pid, faults=faults)
        when_held(faults, front)
        front.send_signal(number)
        ckpt.finish(front).refused(128 + number, "interrupted")
        target.verify()
        assert target.untraced()
    ckpt.exact(target.pid)


def test_a_signal_does_not_leave_a_rollback_in_the_middle(ckpt: Ckpt, victim: Start, tmp_path: Path) -> None:
    target = victim("epoll")
    made = ckpt.snapshot(target.pid)["generation"]
    faults = Faults(tmp_path, f"layout=sleep:{HELD_MS}")
    front = ckpt.start("rollback", made, "--pid", target.pid, faults=faults)
    when_held(faults, front)
    front.terminate()
    ckpt.finish(front).refused(128 + signal.SIGTERM, "interrupted")
    assert not target.stands_still()
    assert "thawed" in faults.hits(), "it was not brought to its end"
    target.verify()


def test_it_ends_as_its_worker_ends(ckpt: Ckpt, victim: Start, tmp_path: Path) -> None:
    target = victim("registers")
    for number in (signal.SIGKILL, signal.SIGSEGV):
        faults = Faults(tmp_path, "preflight=sleep:2000")
        front = ckpt.start("snapshot", target.pid, faults=faults)
        os.kill(when_held(faults, front), number)
        assert ckpt.finish(front).code == -number
    target.verify()


@pytest.mark.parametrize("ignored", [(), (signal.SIGHUP, signal.SIGINT)], ids=["plain", "nohup"])
def test_a_periodic_one_ends_with_its_command(ignored: Sequence[signal.Signals], ckpt: Ckpt, victim: Start) -> None:
    target = victim("registers")
    front = ckpt.start("snapshot", target.pid, "--every", "10ms", ignored=ignored)
    worker = worker_of(front)
    deadline = time.monotonic() + 20
    while ckpt.taken() < 3:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    front.kill()
    front.communicate()
    until_gone(worker)
    taken = ckpt.taken()
    time.sleep(0.2)
    assert ckpt.taken() == taken
    target.verify()
    ckpt.sound()
