"""Restore a generation in scratch namespaces, compare all of it, discard it."""

from __future__ import annotations

from typing import Annotated

import typer

from ckpt.cli import output
from ckpt.cli.options import JsonOption, PidOption, StoreOption


def command(
    generation: Annotated[str, typer.Argument(metavar="GEN", help="A number, a tag, latest, latest~2, NAME@latest.", show_default=False)],
    pid: PidOption = None,
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    from ckpt.ops.verify import Request, verify

    verdict = verify(Request(generation, store, pid))
    if json:
        output.print_json(verdict.json())
        raise typer.Exit(0 if verdict.faithful else 1)
    output.heading(
        f"generation {verdict.generation}",
        f"({verdict.command}) {'comes back as it was' if verdict.faithful else 'does not come back as it was'}",
    )
    output.facts(
        [
            ("total", output.duration(verdict.total_ns)),
            ("compared", f"{output.pages(verdict.pages)}, {verdict.threads} threads in {verdict.tasks} tasks"),
        ],
        indent=2,
    )
    for line in verdict.lines():
        typer.echo(f"  differs: {line}")
    for line in verdict.left_out:
        output.note(f"ckpt: note: {line}")
    raise typer.Exit(0 if verdict.faithful else 1)
