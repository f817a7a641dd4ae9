"""Numbers for people."""

from __future__ import annotations

import io
import re
import sys

import pytest

from ckpt.cli import output, query
from ckpt.history.sql import Answer


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """Makes standard output a terminal of 80 columns. Called by the test itself: pytest sets its own after the fixtures."""
    made = Terminal()
    monkeypatch.setattr(sys, "stdout", made)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm")
    return made


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0"), (812, "812 B"), (4096, "4.0 KiB"), (340 << 20, "340 MiB"), (1 << 30, "1.0 GiB"), (5 << 40, "5.0 TiB")]
)
def test_size(count: int, text: str) -> None:
    assert output.size(count) == text


@pytest.mark.parametrize(
    ("ns", "text"),
    [(0, "0 us"), (812_000, "812 us"), (1_500_000, "1.5 ms"), (250_000_000, "250 ms"), (2_300_000_000, "2.3 s"), (240 * 10**9, "4 min")],
)
def test_duration(ns: int, text: str) -> None:
    assert output.duration(ns) == text


@pytest.mark.parametrize(("seconds", "text"), [(-5, "0 s"), (12, "12 s"), (300, "5 min"), (3 * 3600, "3 h"), (8 * 86400, "8 d")])
def test_age(seconds: int, text: str) -> None:
    assert output.age(10**18, 10**18 + seconds * 10**9) == text


def test_counts() -> None:
    assert [output.count(1, "tag"), output.count(2, "tag"), output.count(2, "process")] == ["1 tag", "2 tags", "2 processes"]
    assert [output.share(1, 3), output.share(0, 0)] == ["33 %", "-"]


def plain(drawn: Terminal) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", drawn.getvalue())


def test_long_facts_go_on_below_their_beginning(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = terminal(monkeypatch)
    output.facts([("phases", ", ".join(f"phase{number} {number} us" for number in range(20))), ("path", "/" + "x" * 100), ("none", None)])
    first, second, *rest = plain(drawn).splitlines()
    assert first.startswith("phases  phase0 0 us, ")
    assert second.startswith("        phase")
    assert all(len(line) <= 80 for line in (first, second))
    assert rest[-1] == "path    /" + "x" * 100, "what has no spaces stays one word, to be copied"


def test_a_query_fits_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = terminal(monkeypatch)
    columns = ("command", "pid", "mapping", "start", "generations", "dirty", "dirty_each", "pages", "dirty_percent")
    rows = [("redis-server", 9261, "[anonymous]", 0x7F8006400000, 5, 304, 60.8, 391, 15.55), ("x", 1, "[heap]", 4096, 5, 19, 3.0, 28, 7.0)]
    query._print(Answer(columns, rows, cut=False))
    lines = plain(drawn).splitlines()
    assert max(map(len, lines)) <= 80, lines
    assert "redis-server 9261 [anonymous] 7f8006400000" in plain(drawn)
    assert [line.split()[-1] for line in lines[-2:]] == ["15.55", "7.00"], "one column, one number of digits"
