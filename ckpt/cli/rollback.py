"""Take a living process back to a generation, in place."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from ckpt.cli import output
from ckpt.cli.options import JsonOption, StoreOption


def command(
    generation: Annotated[str, typer.Argument(metavar="GEN", help="A number, a tag, latest, latest~2, NAME@latest.", show_default=False)],
    pid: Annotated[int | None, typer.Option("--pid", metavar="PID", help="The root of the tree.", show_default=False)] = None,
    tcp: Annotated[str, typer.Option("--tcp", metavar="HOW", help="Connections that have moved since: reset, keep or refuse.")] = "reset",
    dry_run: Annotated[bool, typer.Option("--dry-run", "-n", help="Print the plan, touch nothing.")] = False,
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    from ckpt.errors import UsageError
    from ckpt.ops.rollback import Request, rollback
    from ckpt.plan import as_json, as_lines

    if tcp not in ("reset", "keep", "refuse"):
        raise UsageError(f"--tcp {tcp}: must be reset, keep or refuse")
    result = rollback(Request(generation, pid, store, tcp, dry_run))
    if dry_run:
        if json:
            output.print_json({"generation": result.generation, "pid": result.pid, "dry_run": True, **as_json(result.plan)})
        else:
            typer.echo("\n".join(as_lines(result.plan)) or "nothing but pages and registers differs")
        raise typer.Exit(3 if result.plan.refusals else 0)
    if json:
        output.print_json(result.json())
    else:
        describe(result.json())


def describe(done: dict[str, Any]) -> None:
    """What a person wants to know of a rollback."""
    threads = done["threads"]
    output.heading(f"task {done['pid']}", f"is at generation {done['generation']} again")
    output.facts(
        [
            ("stopped", output.duration(done["stop_us"] * 1000)),
            ("total", output.duration(int(done["total_ms"] * 1e6))),
            ("pages", f"{output.pages(done['pages_written'])} written, {output.pages(done['pages_dropped'])} dropped"),
            ("threads", f"{threads['set']} set, {threads['ended']} ended, {threads['spawned']} made again"),
        ],
        indent=2,
    )
    for line in (*done["warnings"], *done["disturbed"]):
        output.note(f"ckpt: note: {line}")
