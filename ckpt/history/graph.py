"""Branches drawn beside a list of generations, as git draws them. Pure.

Every generation has at most one parent, so lines only ever join downwards, from newest to oldest:

    * 6
    | * 3
    |/
    * 2
    * 1

A lane is a column that waits for one generation. Where several lanes wait for the same one, a line of slashes joins them
into the leftmost before it is drawn. A lane that ends stays blank until the next branch needs one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol


class Node(Protocol):
    @property
    def number(self) -> int: ...
    @property
    def parent(self) -> int | None: ...


def draw(nodes: Iterable[Node]) -> Iterator[tuple[str, int | None]]:
    """(line, number of the generation that it belongs to, None for a joining line), newest first."""
    newest_first = sorted(nodes, key=lambda node: node.number, reverse=True)
    known = {node.number for node in newest_first}
    lanes: list[int | None] = []
    for node in newest_first:
        waiting = [place for place, wanted in enumerate(lanes) if wanted == node.number]
        for place in reversed(waiting[1:]):
            yield _join(lanes, waiting[0], place), None
            lanes[place] = None
        if waiting:
            own = waiting[0]
        else:
            own = lanes.index(None) if None in lanes else len(lanes)
            lanes[own : own + 1] = [node.number]
        yield _line(lanes, own), node.number
        lanes[own] = node.parent if node.parent in known else None
        while lanes and lanes[-1] is None:
            lanes.pop()


def _line(lanes: list[int | None], own: int) -> str:
    marks = ["*" if place == own else "|" if wanted is not None else " " for place, wanted in enumerate(lanes)]
    return " ".join(marks).rstrip()


def _join(lanes: list[int | None], left: int, right: int) -> str:
    """The line under lane `right` runs into lane `left`: "|/", or "| |_|/" from farther away."""
    cells = list(" ".join("|" if wanted is not None else " " for wanted in lanes))
    cells[2 * right] = " "
    for column in range(2 * left + 1, 2 * right - 1):
        if cells[column] == " ":
            cells[column] = "_"
    cells[2 * right - 1] = "/"
    return "".join(cells).rstrip()
