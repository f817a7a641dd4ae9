"""What the commands print: one JSON object, or text that is a table on a terminal and plain lines in a pipe.

Units here are for people: "1.5 ms", "3.2 MiB", "2 h ago". JSON carries nanoseconds and bytes and never a formatted number.
rich is imported by the first call that draws: --help and --json do without.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

Progress = Callable[[str, int, int], None]  #: (what is being done, done, of how many; 0 = unknown)

_PIPE_WIDTH = 400  #: nothing is cut or wrapped where no terminal is


def print_json(document: dict[str, Any]) -> None:
    """One object on standard output, stable keys; bytes as hex, dataclasses as objects."""
    json.dump(document, sys.stdout, indent=2 if sys.stdout.isatty() else None, default=_plain)
    sys.stdout.write("\n")


def print_line(document: dict[str, Any]) -> None:
    """One of a sequence of objects, each a line of its own; at once, for whoever reads along."""
    json.dump(document, sys.stdout, default=_plain)
    sys.stdout.write("\n")
    sys.stdout.flush()


def _plain(item: Any) -> Any:
    if dataclasses.is_dataclass(item) and not isinstance(item, type):
        return {field.name: getattr(item, field.name) for field in dataclasses.fields(item)}
    if isinstance(item, bytes | bytearray | memoryview):
        return bytes(item).hex()
    if isinstance(item, set | frozenset):
        return sorted(item)
    return str(item)


def console(*, stderr: bool = False) -> Console:
    """A rich console; no colour, no cutting when the stream is a pipe."""
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() else _PIPE_WIDTH
    return Console(file=stream, width=width, highlight=False, soft_wrap=False)


def say(text: str = "", *, style: str | None = None) -> None:
    """A line of text; square brackets are text, not markup. Long lines are left to the terminal to wrap."""
    console().print(text, style=style, markup=False, soft_wrap=True)


def note(text: str) -> None:
    """A remark beside the result, on standard error."""
    print(text, file=sys.stderr)


def width() -> int:
    """Columns of the terminal; many where there is none."""
    return console().width


def heading(name: str, rest: str = "") -> None:
    """A line above a table: the name stands out."""
    from rich.text import Text

    console().print(Text(name, "bold").append(f"  {rest}" if rest else "", "not bold dim"), soft_wrap=True)


def table(*columns: str | None, widths: Mapping[str, int] | None = None) -> Table:
    """An open table: a head, one rule below it, no lines. A column that ends in ">" is set right, one in "*" is
    wrapped where the terminal is too narrow; nothing is ever cut. None stands for no column."""
    from rich import box
    from rich.table import Table

    on_terminal = sys.stdout.isatty()
    drawn = Table(
        box=box.SIMPLE_HEAD if on_terminal else None,
        show_edge=False,
        pad_edge=False,
        padding=(0, 1 if not on_terminal or width() >= 100 else 0, 0, 0),
        header_style="bold",
    )
    for column in columns:
        if column is not None:
            name = column.rstrip(">*")
            least = max(*(len(line) for line in name.split("\n")), (widths or {}).get(column, 0))
            gives_way = column.endswith("*")
            justify: Literal["left", "right"] = "right" if column.endswith(">") else "left"
            drawn.add_column(
                name, justify=justify, no_wrap=not gives_way, overflow="fold", min_width=min(least, 12) if gives_way else least
            )
    return drawn


def row(drawn: Table, *cells: object, style: str | None = None) -> None:
    """Adds plain cells: text is never read as markup."""
    from rich.text import Text

    drawn.add_row(*(cell if isinstance(cell, Text) else Text("" if cell is None else str(cell)) for cell in cells), style=style)


def show(drawn: Table) -> None:
    """Prints it. Columns that do not give way keep their width; where even that is too much, the lines are longer than the terminal."""
    printer = console()
    needed = 0
    for column in drawn.columns:
        if column.no_wrap:
            column.min_width = max([column.min_width or 0, *(len(str(cell)) for cell in column.cells)])
        needed += (column.min_width or 0) + drawn.padding[1] + 1
    if needed > printer.width:
        printer.width = needed
    printer.print(drawn)


def facts(pairs: Sequence[tuple[str, object]], *, indent: int = 0) -> None:
    """Aligned "name  value" lines; on a terminal, what is too long goes on below its beginning."""
    from rich.text import Text

    wide = max((len(name) for name, _ in pairs), default=0)
    printer = console()
    for name, value in pairs:
        if value in (None, ""):
            continue
        left = indent + wide + 2
        for at, line in enumerate(_broken(str(value), printer.width - left)):
            head = Text(" " * indent).append(f"{name:<{wide}}  ", "dim") if at == 0 else Text(" " * left)
            printer.print(head.append(line), soft_wrap=True)


def _broken(text: str, room: int) -> list[str]:
    """Lines of at most `room` where that can be: lists between their members, other text between its words."""
    import textwrap

    if len(text) <= room:
        return [text]
    glued = ", ".join(part.replace(" ", "\0") for part in text.split(", ")) if ", " in text else text
    return [line.replace("\0", " ") for line in textwrap.wrap(glued, max(room, 20), break_long_words=False, break_on_hyphens=False)]


@contextmanager
def progress(title: str) -> Iterator[Progress]:
    """A bar on standard error for work that lasts more than a second; nothing there when that is no terminal."""
    if not sys.stderr.isatty():
        yield lambda what, done, total: None
        return
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    started = time.monotonic()
    bar = Bar(
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(),
        console=console(stderr=True),
        transient=True,
    )
    task = bar.add_task(title, total=None)

    def step(what: str, done: int, total: int) -> None:
        bar.update(task, description=what or title, completed=done, total=total or None)
        if time.monotonic() - started > 1 and not bar.live.is_started:
            bar.start()

    try:
        yield step
    finally:
        bar.stop()


# ---- numbers for people ----


def size(count: int) -> str:
    """Bytes: "0", "812 B", "4.0 KiB", "1.2 GiB"."""
    if count == 0:
        return "0"
    number = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(number) < 1024:
            return f"{count} B" if unit == "B" else f"{number:.1f} {unit}" if number < 100 else f"{number:.0f} {unit}"
        number /= 1024
    return f"{number:.1f} TiB"


def pages(count: int) -> str:
    """A count of pages: "12,345"."""
    return f"{count:,}"


def count(number: int, what: str) -> str:
    """ "1 tag", "2 tags"."""
    plural = what + ("es" if what.endswith("s") else "s")
    return f"{number:,} {what if number == 1 else plural}"


def duration(ns: int) -> str:
    """Nanoseconds: "812 us", "1.5 ms", "2.3 s", "4 min"."""
    if ns < 1_000_000:
        return f"{ns / 1e3:.0f} us"
    if ns < 1_000_000_000:
        return f"{ns / 1e6:.1f} ms" if ns < 100_000_000 else f"{ns / 1e6:.0f} ms"
    return f"{ns / 1e9:.1f} s" if ns < 120_000_000_000 else f"{ns / 60e9:.0f} min"


def age(ns: int, now_ns: int | None = None) -> str:
    """How long ago a CLOCK_REALTIME instant was: "12 s", "5 min", "3 h", "8 d"."""
    seconds = max(0, ((time.time_ns() if now_ns is None else now_ns) - ns) // 1_000_000_000)
    for limit, unit, each in ((120, "s", 1), (7200, "min", 60), (172_800, "h", 3600)):
        if seconds < limit:
            return f"{seconds // each} {unit}"
    return f"{seconds // 86_400} d"


def when(ns: int) -> str:
    """Local time of a CLOCK_REALTIME instant: "2026-03-01 12:34:56.789"."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(ns // 1_000_000_000)) + f".{ns // 1_000_000 % 1000:03d}"


def share(part: int, whole: int) -> str:
    """ "87 %"; "-" of nothing."""
    return "-" if whole == 0 else f"{100 * part / whole:.0f} %"
