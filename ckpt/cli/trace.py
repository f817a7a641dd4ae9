"""Watch a living tree: the call that each thread is in, who writes which memory."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from ckpt.cli import output
from ckpt.cli.options import JsonOption
from ckpt.syscalls.names import name

if TYPE_CHECKING:
    from rich.console import RenderableType

    from ckpt.live.inflight import InFlight
    from ckpt.ops.trace import Look

_WRITERS = 12  #: lines of a table that may be long


def command(
    pid: Annotated[int, typer.Argument(metavar="PID", help="The root of the tree.", show_default=False)],
    every: Annotated[str, typer.Option("--every", metavar="TIME", help="How often: 1s, 500ms, 1m.")] = "1s",
    for_: Annotated[
        str | None,
        typer.Option("--for", metavar="TIME", help="End after so long; default: when the process ends, or ^C.", show_default=False),
    ] = None,
    rearm: Annotated[
        bool,
        typer.Option("--rearm", help="Protect pages anew at each look though a baseline stands: the next snapshot then reads everything."),
    ] = False,
    json: JsonOption = False,
) -> None:
    from ckpt.ops.interrupts import Ended
    from ckpt.ops.periodic import parse_interval
    from ckpt.ops.trace import trace

    looks = trace(pid, parse_interval(every, "--every"), parse_interval(for_, "--for") if for_ is not None else None, rearm=rearm)
    try:
        if json:
            for look in looks:
                output.print_line(look.json())
        elif sys.stdout.isatty():
            _live(looks)
        else:
            for look in looks:
                output.console().print(_drawn(look))
    except KeyboardInterrupt as interrupt:  # ^C is how one leaves it
        looks.close()
        if isinstance(interrupt, Ended):
            raise


def _live(looks: Iterator[Look]) -> None:
    from rich.live import Live

    with Live(console=output.console(), auto_refresh=False, screen=False, vertical_overflow="crop") as live:
        for look in looks:
            live.update(_drawn(look), refresh=True)


def _drawn(look: Look) -> RenderableType:
    from rich.console import Group
    from rich.text import Text

    seen = f"{output.pages(look.pages)} pages written first in {output.duration(look.interval_ns)}"
    rest = {"anew": seen, "since the last snapshot": f"{seen} since the last snapshot (--rearm tells them anew)"}.get(
        look.tracking, "writes are not tracked"
    )
    head = Text(f"ckpt trace {look.pid}", "bold").append(f"  {rest}{_lost(look)}", "not bold dim")
    notes = [Text(f"note: {warning}", "yellow") for warning in look.warnings]
    if look.changes or look.calls:
        notes.append(Text(_changes(look), "dim"))
    return Group(head, *notes, _threads(look), "", _mappings(look), "", _functions(look), "")


def _changes(look: Look) -> str:
    """ "2 forks, 2 ends, 12 mmap, 3 munmap" """
    kinds = Counter(one.kind.name.lower() for one in look.changes)
    return ", ".join([*(output.count(number, kind) for kind, number in kinds.items()), *(f"{n} {call}" for call, n in look.calls.items())])


def _lost(look: Look) -> str:
    return f"; {output.pages(look.lost)} more of unknown writers" if look.lost else ""


def _threads(look: Look) -> RenderableType:
    drawn = output.table("PID>", "TID>", "COMMAND", "CALL", "FOR>", "LAST CALL", "CALLS/S>", "ARGUMENTS*")
    for one in look.threads:
        last = f"{name(one.last_nr)} = {one.last_result}" if one.last_nr >= 0 else ""
        arguments = " ".join(f"{argument:x}" for argument in one.args[:3]) if one.nr is not None and one.nr >= 0 else ""
        call = "?" if one.nr is None else "" if one.nr < 0 else name(one.nr)
        output.row(drawn, one.pid, one.tid, one.command, call, _for(look, one), last, f"{look.rate(look.ended[one.tid]):.0f}", arguments)
    return drawn


def _for(look: Look, one: InFlight) -> str:
    if one.nr is None or one.nr < 0:
        return ""
    lasted = look.duration_ns(one)
    return output.duration(lasted) if lasted is not None else f">{output.duration(look.now_ns - look.since_ns)}"


def _mappings(look: Look) -> RenderableType:
    drawn = output.table("PAGES/S>", "PID>", "MAPPING>", "NAME*")
    for one in look.mappings[:_WRITERS]:
        output.row(drawn, f"{look.rate(one.pages):.0f}", one.pid, f"{one.start:x}", one.name)
    return drawn


def _functions(look: Look) -> RenderableType:
    drawn = output.table("PAGES/S>", "FUNCTION", "BY CALL", "THREADS>", "FILE*")
    for one in look.functions[:_WRITERS]:
        place = one.symbol or f"{one.offset or 0:#x}"
        threads = str(one.tids[0]) if len(one.tids) == 1 else f"{len(one.tids)} threads"
        output.row(drawn, f"{look.rate(one.pages):.0f}", place, one.call or "", threads, one.file)
    return drawn
