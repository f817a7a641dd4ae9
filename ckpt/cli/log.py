"""List generations, newest first; --graph draws their branches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ckpt.cli import output
from ckpt.cli.options import JsonOption, LineageOption, PidOption, StoreOption

if TYPE_CHECKING:
    from ckpt.history.open import Generation

Cell = Callable[["Generation"], Any]

_NARROW: dict[str, Cell] = {
    "GEN>": lambda g: g.number,
    "PARENT>": lambda g: "-" if g.parent is None else g.parent,
    "KIND": lambda g: "incr" if g.kind == "incremental" else g.kind,
    "AGE>": lambda g: output.age(g.created_ns),
    "STOP>": lambda g: output.duration(g.stop_ns),
    "TOTAL>": lambda g: output.duration(g.total_ns),
    "DIRTY>": lambda g: output.pages(g.pages["dirty"]),
    "DEDUP>": lambda g: output.share(g.pages["deduplicated"] + g.pages["zero"], g.pages["read"]),
    "STORED>": lambda g: output.size(g.bytes_stored),
    "TAGS*": lambda g: " ".join(g.tags),
}
_WIDE: dict[str, Cell] = {
    "GEN>": _NARROW["GEN>"],
    "PARENT>": _NARROW["PARENT>"],
    "PID>": lambda g: g.pid,
    "KIND": lambda g: g.kind,
    "TRACKER": lambda g: g.tracker,
    "TIME": lambda g: output.when(g.created_ns)[:19],
    "STOP>": _NARROW["STOP>"],
    "TOTAL>": _NARROW["TOTAL>"],
    "MEMORY>": lambda g: output.size(g.pages["resident"] * 4096),
    **{name: _NARROW[name] for name in ("DIRTY>", "DEDUP>", "STORED>", "TAGS*")},
}
_WIDE_FROM = 132
#: so that the tables of several lineages stand below each other
_WIDTHS = {"AGE>": 6, "STOP>": 7, "TOTAL>": 7, "MEMORY>": 8, "DIRTY>": 7, "STORED>": 8, "PID>": 7, "TRACKER": 8, "KIND": 4}


def command(
    lineage: LineageOption = None,
    pid: PidOption = None,
    graph: Annotated[bool, typer.Option("--graph", help="Draw the branches.")] = False,
    limit: Annotated[int, typer.Option("--limit", "-n", metavar="N", min=0, help="At most the newest N of each lineage; 0 = all.")] = 0,
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    from ckpt.history import names
    from ckpt.history.describe import generation_json
    from ckpt.history.open import open_store

    with open_store(store) as history:
        path = history.path
        chosen = names.select(history.generations(), pid=pid, lineage=lineage)
    groups = {name: group[-limit:] for name, group in names.lineages(chosen).items()}
    if json:
        newest_first = sorted((item for group in groups.values() for item in group), key=lambda g: g.number, reverse=True)
        output.print_json({"store": str(path), "generations": [generation_json(item) for item in newest_first]})
        return
    if not groups:
        output.say(f"{path} holds no generation yet: ckpt snapshot PID makes the first")
    for place, group in enumerate(reversed(groups.values())):
        if place:
            output.say()
        _print(group, graph)


def _print(group: Sequence[Generation], graph: bool) -> None:
    last = group[-1]
    stored = output.size(sum(item.bytes_stored for item in group))
    output.heading(last.command, f"pid {last.pid}, {output.count(len(group), 'generation')}, {stored} stored, lineage {last.lineage}")
    columns = _WIDE if output.width() >= _WIDE_FROM else _NARROW
    drawn = output.table(*(["" if graph else None, *columns]), widths=_WIDTHS)
    for mark, item in _marks(group, graph):
        if item is None:
            output.row(drawn, mark)
        else:
            output.row(drawn, *([mark] if graph else []), *(cell(item) for cell in columns.values()))
    output.show(drawn)


def _marks(group: Sequence[Generation], graph: bool) -> list[tuple[str, Generation | None]]:
    if not graph:
        return [("", item) for item in reversed(group)]
    from ckpt.history.graph import draw

    by_number = {item.number: item for item in group}
    return [(line, None if number is None else by_number[number]) for line, number in draw(group)]
