"""Remove generations; tagged ones are refused."""

from __future__ import annotations

from typing import Annotated

import typer

from ckpt.cli import output
from ckpt.cli.options import JsonOption, LineageOption, PidOption, StoreOption


def command(
    gens: Annotated[
        list[str] | None,
        typer.Argument(metavar="GEN", help="Numbers, tags, latest~2, NAME@latest; A..B is all from A to B.", show_default=False),
    ] = None,
    keep: Annotated[
        str | None,
        typer.Option(
            "--keep", metavar="POLICY", help='Remove what a policy does not keep: "last=10,hourly=24,tagged".', show_default=False
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    lineage: LineageOption = None,
    pid: PidOption = None,
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    from ckpt.errors import UsageError
    from ckpt.history import names, upkeep
    from ckpt.history.open import Mode, open_store

    if bool(gens) == bool(keep):
        raise UsageError("name the generations to remove, or --keep POLICY: see ckpt rm --help")
    policy = upkeep.parse_policy(keep) if keep else None
    with open_store(store, Mode.READ if dry_run else Mode.WRITE) as history:
        if policy:
            chosen = names.select(history.generations(), pid=pid, lineage=lineage)
            numbers = upkeep.superfluous(policy, chosen, history.store.tags().values())
        else:
            numbers = names.expand(gens or [], history.generations(), history.store.tags(), pid=pid, lineage=lineage)
        removed = numbers if dry_run else upkeep.remove(history, numbers)
    if json:
        output.print_json({"removed": [] if dry_run else removed, "would_remove": removed if dry_run else []})
        return
    what = ", ".join(map(str, removed)) if removed else "nothing"
    output.say(f"would remove {what}" if dry_run else f"removed {what}" + ("; ckpt gc gives the space back" if removed else ""))
