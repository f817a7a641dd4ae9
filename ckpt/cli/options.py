"""Options and arguments that commands share, so that they read and behave alike everywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

StoreOption = Annotated[
    Path | None,
    typer.Option(
        "--store",
        envvar="CKPT_STORE",
        metavar="FILE",
        help="The store; default: $XDG_STATE_HOME/ckpt/store.db.",
        show_default=False,
        readable=False,  # whether it can be read the store says, with its own exit code
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON object on standard output, nothing else there.")]
PidOption = Annotated[int | None, typer.Option("--pid", metavar="PID", help="The process whose history is meant.", show_default=False)]
LineageOption = Annotated[
    str | None,
    typer.Option("--lineage", metavar="NAME", help="Only this lineage: a command's name or the lineage's text.", show_default=False),
]
GenArgument = Annotated[str, typer.Argument(metavar="GEN", help="A number, a tag, latest, latest~2 or NAME@latest.", show_default=False)]
GensArgument = Annotated[list[str], typer.Argument(metavar="GEN", help="Numbers, tags, latest, latest~2, NAME@latest.", show_default=False)]
