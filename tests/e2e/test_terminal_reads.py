"""Reads of a raw terminal with VMIN or VTIME, which no stop leaves whole: `ckpt check` names fd and thread, and what it says happens."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.asked import Asked
from tests.harness import Ckpt

READER = """
def reader(least, tenths, wanted):
    settings = termios.tcgetattr(slave)
    settings[6][termios.VMIN], settings[6][termios.VTIME] = least, tenths
    termios.tcsetattr(slave, termios.TCSANOW, settings)
    begun = time.monotonic()
    found = os.readv(slave, [room]) if wanted is None else os.read(slave, wanted)
    took.append((found, time.monotonic() - begun))
"""
OPENED = "import pty, tty, termios; master, slave = pty.openpty(); tty.setraw(slave); took = []; room = bytearray(8)"


@pytest.fixture
def program() -> Iterator[Asked]:
    with Asked() as asked:
        asked.tell(OPENED)
        asked.tell(f"exec({READER!r}, globals())")
        yield asked


def waits(program: Asked, least: int, tenths: int, wanted: int | None) -> int:
    """Its thread."""
    program.tell(f"who = threading.Thread(target=reader, args=({least}, {tenths}, {wanted}), daemon=True); who.start()")
    tid = int(program.tell("who.native_id"))
    shown, end = Path(f"/proc/{program.pid}/task/{tid}/syscall"), time.monotonic() + 10
    while shown.read_text().split()[:2] != ["0" if wanted else "19", hex(program.tell("slave"))]:
        assert time.monotonic() < end
    return tid


def notes(ckpt: Ckpt, program: Asked) -> list[str]:
    found = ckpt.json("check", program.pid)  # its exit code is 0
    assert found["ok"]
    return [line for line in found["warnings"] if "terminal" in line]


@pytest.mark.parametrize(
    ("least", "tenths", "wanted", "word"),
    [
        (0, 30, 8, "VTIME 3.0 s"),
        (0, 30, 1, "VTIME 3.0 s"),
        (5, 0, 8, "VMIN 5"),
        (5, 20, 8, "VMIN 5 and VTIME 2.0 s"),
        (5, 0, None, "VMIN 5"),
    ],
)
def test_a_read_that_a_stop_changes_is_named(ckpt: Ckpt, program: Asked, least: int, tenths: int, wanted: int | None, word: str) -> None:
    tid = waits(program, least, tenths, wanted)
    (line,) = notes(ckpt, program)
    assert line.startswith(f"fd {program.tell('slave')} of task {program.pid} ")
    assert f"thread {tid} " in line
    assert word in line
    assert program.tell("took") == [], "the look has disturbed it"


@pytest.mark.parametrize(("least", "tenths", "wanted"), [(1, 0, 8), (1, 20, 8), (5, 0, 1)])
def test_of_others_nothing_is_said(ckpt: Ckpt, program: Asked, least: int, tenths: int, wanted: int) -> None:
    waits(program, least, tenths, wanted)
    assert notes(ckpt, program) == []


def test_a_canonical_terminal_has_neither(ckpt: Ckpt, program: Asked) -> None:
    program.tell("settings = termios.tcgetattr(slave); settings[3] |= termios.ICANON; termios.tcsetattr(slave, termios.TCSANOW, settings)")
    waits(program, 5, 0, 8)
    assert notes(ckpt, program) == []


def test_a_master_shows_the_settings_of_its_slave_and_has_none(ckpt: Ckpt, program: Asked) -> None:
    program.tell("settings = termios.tcgetattr(slave); settings[6][termios.VMIN] = 5; termios.tcsetattr(slave, termios.TCSANOW, settings)")
    program.tell("who = threading.Thread(target=os.read, args=(master, 8), daemon=True); who.start(); time.sleep(0.2)")
    assert notes(ckpt, program) == []


def test_what_was_said_happens(ckpt: Ckpt, program: Asked) -> None:
    waits(program, 5, 0, 8)
    program.tell("os.write(master, b'ab')")
    time.sleep(0.2)
    assert len(notes(ckpt, program)) == 1
    ckpt.snapshot(program.pid)
    program.tell("who.join(5)")
    assert program.tell("took[0][0]") == b"ab"
