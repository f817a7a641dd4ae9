"""A program that checkpoints itself: the generation's number where it goes on, 0 where it is brought back, an errno where it fails."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.harness import Ckpt, Victim, build
from tests.harness.ckpt import ROOT
from tests.harness.victim import BIN

COMMAND = ROOT / ".venv" / "bin" / "ckpt"

#: A training loop: the weights follow from the steps, whatever has been lost and done again.
TRAINING = """
import ckpt, os, random, sys, threading
def ask():
    line = b""
    while not line.endswith(b"\\n"):
        got = os.read(0, 1)
        if not got:
            sys.exit()
        line += got
    return line.strip()
def say(*words):
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())
quiet = threading.Event()
threading.Thread(target=quiet.wait, daemon=True).start()
draw = random.Random(7)
weights = [0.0] * 50
say("READY")
step = 0
while True:
    step += 1
    for index in range(50):
        weights[index] += draw.random() * (0.5 - weights[index])
    if step % 5 == 0:
        made = ckpt.checkpoint_self()
        say("GENERATION", made, "STEP", step, "SUM", sum(weights))
        ask()
"""


@contextmanager
def started(command: list[str], ckpt: Ckpt) -> Iterator[Victim]:
    build()
    environment = {**ckpt.environment, "CKPT_COMMAND": str(COMMAND)}
    with Victim(command, env=environment) as victim:
        yield victim


def said(line: str) -> tuple[int, str]:
    """(what the call gave, the rest)."""
    words = line.split(maxsplit=2)
    assert words[0] == "GENERATION", line
    return int(words[1]), words[2]


@pytest.mark.parametrize("command", [[str(BIN / "asker")], [sys.executable, "-c", TRAINING]], ids=["C", "CPython"])
def test_it_comes_back_with_a_number_or_with_nothing(command: list[str], ckpt: Ckpt) -> None:
    with started(command, ckpt) as victim:
        rounds = [said(victim.line())]
        rounds += [said(victim.ask("on")) for _ in range(2)]
        numbers = [number for number, _state in rounds]
        assert numbers == ckpt.generations()
        rows = ckpt.json("show", numbers[1], "--threads")["threads"]
        (row,) = [row for row in rows if "asked" in row["reason"]]
        assert (row["call"], row["action"], row["value"]) == ("read", "keep", 0)
        ckpt.json("rollback", numbers[0], "--pid", victim.pid)
        assert said(victim.line()) == (0, rounds[0][1])
        fresh, state = said(victim.ask("on"))
        assert fresh == numbers[-1] + 1
        assert state == rounds[1][1], "the same steps give the same state"
        assert ckpt.run("verify", numbers[1]).code == 0
        victim.kill()
        victim.revive(lambda words: int(ckpt.json("restore", numbers[1], *words)["pid"]))
        assert said(victim.line()) == (0, rounds[1][1])
        again, state = said(victim.ask("on"))
        assert again == fresh + 1
        assert state == rounds[2][1]
        assert ckpt.run("fsck", "--full").code == 0


@pytest.mark.parametrize(
    ("variable", "value", "expected"),
    [("CKPT_COMMAND", "/nonexistent/ckpt", -errno.ENOENT), ("CKPT_STORE", "/proc/no/store.db", -errno.EIO)],
)
def test_what_fails_is_an_errno_and_the_program_goes_on(variable: str, value: str, expected: int, ckpt: Ckpt, tmp_path: Path) -> None:
    build()
    with Victim([str(BIN / "asker")], env={**ckpt.environment, "CKPT_COMMAND": str(COMMAND), variable: value}) as victim:
        assert said(victim.line())[0] == expected
        assert said(victim.ask("on"))[0] == expected
        assert len(os.listdir(f"/proc/{victim.pid}/fd")) == 3, "a descriptor is left"


def test_only_who_waits_can_be_answered(ckpt: Ckpt) -> None:
    with started([sys.executable, "-c", "import time, os; os.write(1, b'READY\\n'); time.sleep(60)"], ckpt) as victim:
        ckpt.run("snapshot", victim.pid, "--self", 1).refused(2, "--self 1", "no thread")
