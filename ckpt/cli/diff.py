"""What changed between two generations, pages included."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from ckpt.cli import output
from ckpt.cli.options import JsonOption, PidOption, StoreOption

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ckpt.compare import Difference, Field
    from ckpt.history.changes import PageChanges

_MARKS = {"added": ("+", "green"), "removed": ("-", "red"), "changed": ("~", None)}
_TITLES = {
    "process": "processes",
    "thread": "threads",
    "mapping": "mappings",
    "descriptor": "descriptors",
    "attribute": "attributes",
    "object": "shared memory",
}


def command(
    a: Annotated[str, typer.Argument(metavar="A", help="The earlier generation.", show_default=False)],
    b: Annotated[str, typer.Argument(metavar="B", help="The later one.")] = "latest",
    pages: Annotated[bool, typer.Option("--pages", help="List the addresses of the pages.")] = False,
    full: Annotated[bool, typer.Option("--full", help="Every register and value that changed.")] = False,
    pid: PidOption = None,
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    from ckpt.compare import compare
    from ckpt.history.changes import changed_pages
    from ckpt.history.open import open_store

    with open_store(store) as history:
        first = history.resolve(a, pid=pid)
        lineage = history.generation(first).lineage
        second = history.resolve(b, pid=pid, lineage=lineage if b.startswith("latest") and pid is None else None)
        (old, before), (new, after) = history.load(first), history.load(second)
        differences = compare(before, after)
        changes = changed_pages(history, first, before, second, after)
    if json:
        output.print_json({"a": first, "b": second, "differences": differences, "pages": _pages_json(changes, pages)})
        return
    output.heading(f"{first} -> {second}", f"{old.command}, {output.duration(abs(new.created_ns - old.created_ns))} between them")
    if not differences and not changes:
        output.say("no difference")
    _differences(differences, full)
    _pages(changes, pages)


def _differences(differences: Sequence[Difference], full: bool) -> None:
    for category, title in _TITLES.items():
        mine = [item for item in differences if item.category == category]
        if not mine:
            continue
        output.say()
        output.heading(title, _sum(mine))
        for item in mine:
            mark, style = _MARKS[item.change]
            output.say(f"{mark} {item.subject}{_fields_text(item.fields, full)}", style=style)


def _sum(items: Sequence[Difference]) -> str:
    counts = [(change, sum(item.change == change for item in items)) for change in ("added", "removed", "changed")]
    return ", ".join(f"{count} {change}" for change, count in counts if count)


#: registers that tell a person something; the others are counted
_TELLING = ("rip", "rsp", "orig_rax")


def _fields_text(fields: Sequence[Field], full: bool) -> str:
    from ckpt.compare import REGISTERS

    shown = [item for item in fields if full or item.name not in REGISTERS or item.name in _TELLING]
    parts = [
        f"{item.name} {_value(item.name, item.before)} -> {_value(item.name, item.after)}"
        for item in shown
        if full or item.name != "xstate"
    ]
    hidden = len(fields) - len(shown)
    if hidden:
        parts.append(f"{hidden} more registers")
    if not parts:
        return ": vector registers" if fields else ""
    return ("\n      " if full else ": ") + ("\n      " if full else ", ").join(parts)


_HEX = {"end", "flags", "sigmask", "start", "brk", "syscall.args"}


def _value(name: str, item: Any) -> str:
    from ckpt.compare import REGISTERS
    from ckpt.history.describe import flags_text

    if item is None:
        return "none"
    if name == "prot" and isinstance(item, int):
        return "".join(letter if item & bit else "-" for letter, bit in (("r", 1), ("w", 2), ("x", 4)))
    if name == "flags" and isinstance(item, int):
        return flags_text(item) if item & 3 or not item else f"{item:#x}"
    if isinstance(item, int) and not isinstance(item, bool) and (name in REGISTERS or name in _HEX):
        return f"{item:x}"
    if name == "syscall.args":
        return "(" + ", ".join(f"{value:x}" for value in item) + ")"
    if name == "syscall.nr":
        from ckpt.syscalls import names

        return "none" if item < 0 else names.name(item)
    text = str(item)
    return text if len(text) <= 48 else text[:45] + "..."


def _pages(changes: Sequence[PageChanges], addresses: bool) -> None:
    if not changes:
        return
    changed, gone = sum(item.changed for item in changes), sum(item.gone for item in changes)
    output.say()
    output.heading("pages", f"{output.pages(changed)} changed, {output.pages(gone)} gone ({output.size((changed + gone) * 4096)})")
    drawn = output.table("PID>", "START>", "PERM", "CHANGED>", "GONE>", "MAPPING*")
    for item in sorted(changes, key=lambda each: (each.pid, each.start)):
        cells = (
            item.pid or "",
            f"{item.start:x}",
            item.permissions,
            output.pages(item.changed),
            output.pages(item.gone) if item.gone else "",
        )
        output.row(drawn, *cells, item.name)
        if addresses:
            for address, count in item.ranges:
                output.row(drawn, "", f"{address:x}", "", output.pages(count), "", "")
    output.show(drawn)


def _pages_json(changes: Sequence[PageChanges], addresses: bool) -> dict[str, Any]:
    mappings = []
    for item in changes:
        entry = {name: getattr(item, name) for name in ("pid", "space", "name", "start", "end", "permissions", "changed", "gone")}
        if addresses:
            entry["ranges"] = [{"address": address, "pages": count} for address, count in item.ranges]
        mappings.append(entry)
    return {"changed": sum(item.changed for item in changes), "gone": sum(item.gone for item in changes), "mappings": mappings}
