"""The process that keeps deadlines: nobody's tracer, gone with the last wait, and never in the way of anybody."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tests.e2e.asked import Asked
from tests.faults.faults import Faults
from tests.harness import Ckpt, Victim, build, did, times
from tests.harness.victim import BIN

pytestmark = pytest.mark.alone

LIMIT_S = 3.0
SETUP = "pool = select.epoll(); ends = os.pipe(); pool.register(ends[0], 1); took = []"
WAIT = f"""
def wait(seconds={LIMIT_S}):
    begun = time.monotonic()
    found = pool.poll(seconds)
    took.append((found, time.monotonic() - begun))
"""


@pytest.fixture
def waiter() -> Callable[[], Asked]:
    started: list[Asked] = []

    def start(limit_s: float = LIMIT_S) -> Asked:
        program = Asked()
        started.append(program)
        program.tell("import select")
        program.tell(SETUP)
        program.tell(f"exec({WAIT!r})")
        program.tell(f"who = threading.Thread(target=wait, args=({limit_s},), daemon=True); who.start(); time.sleep(0.05)")
        return program

    yield start
    for program in started:
        program.end()


def keepers(ckpt: Ckpt) -> set[int]:
    """Those that this test's ckpt has started."""
    return ckpt.processes(name="ckpt-keeper")


def gone(ckpt: Ckpt, within_s: float) -> bool:
    deadline = time.monotonic() + within_s
    while keepers(ckpt) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not keepers(ckpt)


def took(program: Asked) -> tuple[list[object], float]:
    program.tell("who.join(30)")
    found, seconds = program.tell("took[-1]")
    return found, seconds


def test_a_wait_ends_in_time_and_the_keeper_with_it(ckpt: Ckpt, waiter: Callable[..., Asked]) -> None:
    program = waiter()
    ckpt.snapshot(program.pid)
    (keeper,) = keepers(ckpt)
    assert all(os.readlink(f"/proc/{keeper}/fd/{fd}").startswith(("/proc", "anon_inode:[pidfd")) for fd in os.listdir(f"/proc/{keeper}/fd"))
    assert program.untraced()
    found, seconds = took(program)
    assert found == []
    assert LIMIT_S - 0.001 <= seconds <= LIMIT_S + 0.1
    assert gone(ckpt, 3)


def test_what_comes_before_the_deadline_comes_through(ckpt: Ckpt, waiter: Callable[..., Asked]) -> None:
    """And the wait after it, with the same arguments, is another one: it is not ended at the first one's deadline."""
    program = waiter()
    ckpt.snapshot(program.pid)
    program.tell("os.write(ends[1], b'x')")
    found, seconds = took(program)
    assert len(found) == 1
    assert seconds < LIMIT_S
    program.tell("os.read(ends[0], 1)")
    program.tell(f"who = threading.Thread(target=wait, args=({LIMIT_S},), daemon=True); who.start()")
    found, seconds = took(program)
    assert found == []
    assert seconds >= LIMIT_S - 0.001, "ended at another wait's deadline"
    assert gone(ckpt, 3), "the keeper stays though its wait is over"


def test_without_its_keeper_a_wait_ends_late_and_right(ckpt: Ckpt, waiter: Callable[..., Asked]) -> None:
    program = waiter(1.5)
    ckpt.snapshot(program.pid)
    for pid in keepers(ckpt):
        os.kill(pid, signal.SIGKILL)
    found, seconds = took(program)
    assert found == []
    assert 1.5 - 0.001 <= seconds <= 3 + 1.5


def test_killed_while_it_ends_a_wait(ckpt: Ckpt, waiter: Callable[..., Asked], tmp_path: Path) -> None:
    """At the stop the call goes on as after any other stop."""
    program = waiter(1.5)
    faults = Faults(tmp_path, "kept=kill")
    assert ckpt.run("snapshot", program.pid, "--json", faults=faults).code == 0
    found, seconds = took(program)
    assert found == []
    assert faults.fired()
    assert seconds >= 1.5 - 0.001
    assert not program.stands_still()


def test_a_signal_ends_a_wait_as_ever(ckpt: Ckpt, waiter: Callable[..., Asked]) -> None:
    """A handler runs once, at once; the wait goes on (PEP 475) with what remains of its time."""
    program = waiter()
    program.tell("seen = []; old = signal.signal(signal.SIGUSR1, lambda *_: seen.append(1))")
    ckpt.snapshot(program.pid)
    program.tell("signal.pthread_kill(who.ident, signal.SIGUSR1)")
    found, seconds = took(program)
    assert found == []
    assert program.tell("seen") == [1]
    assert LIMIT_S - 0.001 <= seconds <= LIMIT_S + 0.5


def test_after_a_restore_a_wait_ends_in_time(ckpt: Ckpt, waiter: Callable[..., Asked]) -> None:
    """What remained then is what it still waits; nobody traces it meanwhile, and the keeper ends with it."""
    program = waiter()
    made = ckpt.snapshot(program.pid)
    (row,) = [row for row in ckpt.json("show", made["generation"], "--threads")["threads"] if row["call"] == "epoll_wait"]
    program.kill()
    assert gone(ckpt, 5), "its keeper stays though the program is dead"
    time.sleep(0.5)

    def restore(words: Sequence[str]) -> int:
        done = ckpt.json("restore", made["generation"], *words)
        assert done["disturbed"] == []
        return int(done["pid"])

    program.revive(restore)
    begun = time.monotonic()
    assert program.untraced()
    assert len(keepers(ckpt)) == 1
    found, _seconds = took(program)
    left = row["remaining_ns"] / 1e9
    assert found == []
    assert left - 0.15 <= time.monotonic() - begun <= left + 0.15  # the answer to `revive` comes a little after it runs
    assert gone(ckpt, 3)


def test_show_says_how_it_went_on(ckpt: Ckpt, waiter: Callable[..., Asked]) -> None:
    program = waiter()
    made = ckpt.snapshot(program.pid)
    threads = {row["call"]: row for row in ckpt.json("show", made["generation"], "--threads")["threads"]}
    row = threads["epoll_wait"]
    assert row["action"] == "linger"
    assert 0 < row["remaining_ns"] < LIMIT_S * 1e9
    assert "deadline" in row["reason"]
    assert not row["disturbed"]


def test_no_wait_is_ended_before_its_time(ckpt: Ckpt) -> None:
    """Waits with random limits, woken at random, through snapshots and rollbacks: the keeper never takes one wait for another."""
    build()
    with Victim([str(BIN / "deadlines")]) as program:
        program.verify()
        numbers = []
        for _ in range(times(10, 1000)):
            numbers.append(ckpt.snapshot(program.pid)["generation"])
            program.verify()
        for number in numbers[-times(2, 100) :]:
            ckpt.json("rollback", number, "--pid", program.pid)
            program.verify()
        did("snapshots of random waits", len(numbers))
        last = ckpt.snapshot(program.pid)["generation"]
        program.kill()
        program.revive(lambda words: int(ckpt.json("restore", last, *words)["pid"]))
        program.verify()
        time.sleep(0.5)
        program.verify()


SHARED = f"""
import ctypes
sleep = ctypes.CDLL(None).nanosleep
limit = (ctypes.c_long * 2)(*divmod(int({LIMIT_S} * 1e9), 10**9))
ended = {{}}
def nap(name):
    ended[name] = (sleep(limit, None), time.monotonic())
"""


def test_waits_whose_limit_stands_in_one_place_go_on_each_with_its_own_remains(ckpt: Ckpt, waiter: Callable[..., Asked]) -> None:
    """A constant of the program's: what remains of each wait stands there for a moment, one after the other."""
    program = waiter(0.01)
    program.tell(f"exec({SHARED!r})")
    for name in "ab":
        program.tell(f"threading.Thread(target=nap, args=({name!r},), daemon=True).start(); time.sleep(0.5)")
    asked = time.monotonic()
    generation = ckpt.snapshot(program.pid)["generation"]
    begun = time.monotonic()
    ckpt.run("rollback", generation)
    back = time.monotonic()
    deadline = begun + 2 * LIMIT_S
    while program.tell("len(ended)") < 2 and time.monotonic() < deadline:
        time.sleep(0.1)
    first, second = (program.tell(f"ended[{name!r}]") for name in "ab")
    assert first[0] == second[0] == 0
    for (_, at), remained in ((first, LIMIT_S - 1.0), (second, LIMIT_S - 0.5)):
        assert asked + remained - 0.1 <= at <= back + remained + 0.2, (at - begun, remained)
    assert 0.4 <= second[1] - first[1] <= 0.6
    assert program.tell("limit[0] * 10**9 + limit[1]") == int(LIMIT_S * 1e9), "the place does not have its own bytes again"
