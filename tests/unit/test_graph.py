"""Branches as git draws them."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from ckpt.history.graph import draw


@dataclass(frozen=True)
class Node:
    number: int
    parent: int | None


def drawn(*pairs: tuple[int, int | None]) -> str:
    return "\n".join(f"{line:<8}{'' if number is None else number}".rstrip() for line, number in draw(Node(*pair) for pair in pairs))


def test_a_line() -> None:
    assert drawn((1, None), (2, 1), (3, 2)) == "*       3\n*       2\n*       1"


def test_a_branch_after_a_rollback() -> None:
    assert drawn((1, None), (2, 1), (3, 2), (4, 2)).splitlines() == ["*       4", "| *     3", "|/", "*       2", "*       1"]


def test_a_join_from_farther_away() -> None:
    lines = drawn((1, None), (2, 1), (3, 1), (4, 2), (5, 1)).splitlines()
    assert lines == ["*       5", "| *     4", "| | *   3", "| * |   2", "|_|/", "|/", "*       1"]


def test_a_removed_parent_ends_its_line_and_frees_the_lane() -> None:
    assert drawn((1, None), (3, 2), (4, 1)).splitlines() == ["*       4", "| *     3", "*       1"]
    assert drawn((1, None), (2, 1), (4, 3), (6, 5), (7, 2)).splitlines() == [
        "*       7",
        "| *     6",
        "| *     4",
        "*       2",
        "*       1",
    ]


@given(st.lists(st.integers(0, 30), max_size=30))
def test_every_generation_is_drawn_once_and_lines_hold_together(choices: list[int]) -> None:
    nodes = [Node(number, None if number == 1 or choice == 0 else 1 + choice % (number - 1)) for number, choice in enumerate(choices, 1)]
    lines = list(draw(nodes))
    assert [number for _, number in lines if number is not None] == [node.number for node in reversed(nodes)]
    for line, number in lines:
        assert line.count("*") == (number is not None)
        assert line.count("/") == (number is None)
        assert set(line) <= set("*|/_ ")
