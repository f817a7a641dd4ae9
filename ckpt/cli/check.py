"""Would a checkpoint of this tree survive? Which resource would not, and why."""

from __future__ import annotations

from typing import Annotated

import typer

from ckpt.cli import output
from ckpt.cli.options import JsonOption


def command(
    pid: Annotated[int, typer.Argument(metavar="PID", help="The root of the tree.", show_default=False)],
    json: JsonOption = False,
) -> int:
    from ckpt.ops.check import check

    found = check(pid)
    if json:
        output.print_json(found.json())
    else:
        for line in found.refusals:
            output.say(line, style="red")
        for line in found.warnings:
            output.say(f"note: {line}")
        name = f"{found.command} ({pid})"
        count = ", ".join(
            output.count(number, what)
            for number, what in ((found.processes, "process"), (found.threads, "thread"), (found.descriptors, "descriptor"))
        )
        if found.refusals:
            output.say(f"{name}: cannot be checkpointed: {len(found.refusals)} of its resources cannot be captured")
        else:
            output.say(f"{name}: can be checkpointed: {count}")
    return 3 if found.refusals else 0
