"""Check the store; --full reads every page, --repair saves the rest."""

from __future__ import annotations

from typing import Annotated

import typer

from ckpt.cli import output
from ckpt.cli.options import JsonOption, StoreOption


def command(
    full: Annotated[bool, typer.Option("--full", help="Read and check every stored page.")] = False,
    repair: Annotated[bool, typer.Option("--repair", help="Drop what is damaged, so that the rest can be used.")] = False,
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    from ckpt.history import upkeep
    from ckpt.history.open import Mode, open_store

    with open_store(store, Mode.WRITE if repair else Mode.READ) as history:
        with output.progress("checking") as progress:
            findings = upkeep.check(history, full=full, repair=repair, progress=progress)
        left = findings
        if repair and findings:
            with output.progress("checking again") as progress:
                left = upkeep.check(history, full=full, repair=False, progress=progress)
        generations = len(history.generations())
    if json:
        output.print_json({"full": full, "generations": generations, "problems": findings, "left": left})
    else:
        for finding in findings:
            output.say(finding.what)
        _sum_up(len(findings), len(left), generations, full, repair)
    if left:
        raise typer.Exit(5)


def _sum_up(found: int, left: int, generations: int, full: bool, repair: bool) -> None:
    depth = "every page read" if full else "structure only, --full reads every page"
    if not found:
        output.say(f"no problems in {output.count(generations, 'generation')} ({depth})")
    elif repair:
        output.say(f"{output.count(found, 'problem')}, {left} left after the repair; {output.count(generations, 'generation')} there")
    else:
        output.say(
            f"{output.count(found, 'problem')} in {output.count(generations, 'generation')} ({depth}); ckpt fsck --repair saves the rest"
        )
