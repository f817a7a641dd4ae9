"""Bad luck of a restore: what it needs is taken, gone or changed. One line names it and says what to do, and nothing half-made is left."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.asked import Asked
from tests.e2e.test_restore import revive
from tests.harness import Ckpt, Victim
from tests.harness.victim import PYTHON, children

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: acts on other processes")

Start = Callable[..., Victim]
TAKER = str(Path(__file__).parents[1] / "harness/taker.py")
STREAMS = ("--fd", "0=/dev/null", "--fd", "1=/dev/null", "--fd", "2=/dev/null")


def refused(ckpt: Ckpt, code: int, generation: int, *words: str, options: tuple[str, ...] = ()) -> str:
    """One line with these words, this exit code, and nobody is left of what was begun."""
    before = numbers()
    line = ckpt.run("restore", generation, *STREAMS, *options).refused(code, *words)
    assert ckpt.processes() == set()
    assert {pid for pid in numbers() - before if "ckpt" in name(pid)} == set()
    return line


def numbers() -> set[int]:
    return {int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()}


def name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text()
    except OSError:
        return ""


def taken(how: str, number: int) -> Victim:
    return Victim([PYTHON, TAKER, how, str(number)])


# ---- numbers ----

WAYS = {
    "process": "a living process (python3): end it",
    "thread": "by a thread of task {holder} (python3): end task {holder}",
    "group": "the number of a process group (task ",
    "session": "the number of a session (task ",
    "zombie": "zombie (python3) that its parent {holder} has not waited for: end task {holder}",
}


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("whose", ["root", "thread", "child"])
def test_a_number_that_another_has_is_named_with_its_holder(whose: str, how: str, ckpt: Ckpt, victim: Start) -> None:
    target = victim("family" if whose == "child" else "threads4")
    number = {"root": target.pid, "thread": max(target.tids()), "child": max([0, *children(target.pid)])}[whose]
    generation = ckpt.snapshot(target.pid)["generation"]
    target.kill()
    with taken(how, number) as taker:
        words = WAYS[how].format(holder=taker.pid)
        refused(ckpt, 3, generation, str(number), words, "--new-pid", "thread " if whose == "thread" else "pid ")
        assert whose == "root" or not Path(f"/proc/{target.pid}").exists()
    revive(ckpt, target, generation)
    target.verify()


def test_the_program_itself_is_told_from_a_stranger(ckpt: Ckpt, victim: Start) -> None:
    target = victim("counter")
    generation = ckpt.snapshot(target.pid)["generation"]
    refused(ckpt, 3, generation, f"pid {target.pid}", "counter", f"the program of generation {generation} itself", "--replace", "--new-pid")
    target.verify()


def test_nobody_is_ended_for_a_restore_whose_numbers_are_taken(ckpt: Ckpt) -> None:
    """A child has died since, and a stranger has its number: that is found before --replace ends the living one."""
    with Asked() as program:
        program.tell("child = os.fork() or signal.pause()")
        child = program.tell("child")
        generation = ckpt.snapshot(program.pid)["generation"]
        program.tell("[os.kill(child, 9), os.waitpid(child, 0)]")
        for how in ("process", "thread", "group"):
            with taken(how, child):
                refused(ckpt, 3, generation, f"pid {child}", options=("--replace",))
                assert program.tell("6 * 7") == 42


def test_a_rollback_whose_threads_number_is_taken_changes_nothing(ckpt: Ckpt) -> None:
    with Asked() as program:
        program.tell("go = threading.Event(); one = threading.Thread(target=go.wait); one.start()")
        tid = program.tell("one.native_id")
        generation = ckpt.snapshot(program.pid)["generation"]
        program.tell("[go.set(), one.join()]")
        for how in ("process", "thread", "group", "session"):
            with taken(how, tid):
                ckpt.run("rollback", generation).refused(3, f"{tid}", "taken" if how in ("process", "thread") else "still the number")
                assert program.tell("one.is_alive()") is False
                assert not program.stands_still()
        assert ckpt.run("rollback", generation).code == 0
        assert program.tell("one.is_alive()") is True
