"""Give back the space that no generation needs."""

from __future__ import annotations

from ckpt.cli import output
from ckpt.cli.options import JsonOption, StoreOption


def command(store: StoreOption = None, json: JsonOption = False) -> None:
    from ckpt.history import upkeep
    from ckpt.history.open import Mode, open_store

    with open_store(store, Mode.WRITE) as history, output.progress("collecting") as progress:
        before = history.path.stat().st_size
        result = upkeep.gc(history, progress)
        after = history.path.stat().st_size
    document = {"bytes_before": before, "bytes_after": after, "result": result}
    if json:
        output.print_json(document)
    else:
        output.say(f"{output.size(before)} before, {output.size(after)} now: {output.size(max(0, before - after))} given back")
