"""Make a living process from a generation again, after it has died."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from ckpt.cli import output
from ckpt.cli.options import JsonOption, PidOption, StoreOption


def command(
    generation: Annotated[str, typer.Argument(metavar="GEN", help="A number, a tag, latest, latest~2, NAME@latest.", show_default=False)],
    fd: Annotated[
        list[str] | None,
        typer.Option("--fd", metavar="N=PATH", help="Open PATH as descriptor N instead (PID:N=PATH: of that task).", show_default=False),
    ] = None,
    tcp: Annotated[str, typer.Option("--tcp", metavar="HOW", help="Connections to others: reset or refuse.")] = "reset",
    clock: Annotated[
        str, typer.Option("--clock", metavar="VIEW", help="Its CLOCK_MONOTONIC and CLOCK_BOOTTIME: continue (from the snapshot) or host.")
    ] = "continue",
    new_pid: Annotated[bool, typer.Option("--new-pid", help="With any free pid; the program may remember the old one.")] = False,
    pid_namespace: Annotated[bool, typer.Option("--pid-namespace", help="With its old pids, in a pid namespace of its own.")] = False,
    replace: Annotated[bool, typer.Option("--replace", help="End the living incarnation first.")] = False,
    foreground: Annotated[bool, typer.Option("--foreground", help="Stay as its parent: pass terminal and exit status on.")] = False,
    lazy: Annotated[bool, typer.Option("--lazy", help="Let it run at once; its pages are brought behind it.")] = False,
    stopped: Annotated[bool, typer.Option("--stopped", help="Leave it stopped; SIGCONT lets it go.")] = False,
    pid: PidOption = None,
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    from ckpt.errors import UsageError
    from ckpt.ops.restore import Place, Request, View, restore

    if tcp not in ("reset", "refuse"):
        raise UsageError(f"--tcp {tcp}: must be reset or refuse")
    if clock not in tuple(View):
        raise UsageError(f"--clock {clock}: must be continue or host")
    if new_pid and pid_namespace:
        raise UsageError("--new-pid and --pid-namespace exclude each other: give one")
    place = Place.NEW if new_pid else Place.APART if pid_namespace else Place.SAME
    if lazy and (foreground or stopped):
        raise UsageError("--lazy lets the program run and stays behind it: not with --foreground or --stopped")
    request = Request(
        generation,
        store,
        pid,
        place,
        replace=replace,
        foreground=foreground,
        lazy=lazy,
        stopped=stopped,
        streams=_streams(fd or []),
        tcp=tcp,
        clock=View(clock),
    )
    if lazy:
        from ckpt.ops.lazy import in_background

        done = in_background(lambda tell: restore(request, running=lambda result: tell(result.json())))
    else:
        result = restore(request)
        if foreground:
            from ckpt.cli.front import part
            from ckpt.ops.foreground import wait_for

            part()
            raise typer.Exit(wait_for(result.child))
        done = result.json()
    if json:
        output.print_json(done)
    else:
        describe(done)


def _streams(words: list[str]) -> dict[tuple[int, int], str]:
    from ckpt.errors import UsageError

    found = {}
    for word in words:
        place, _, path = word.partition("=")
        pid, colon, number = place.rpartition(":")
        if not path or not number.isdecimal() or (colon and not pid.isdecimal()):
            raise UsageError(f"--fd {word}: must be N=PATH, such as --fd 1=out.log, or PID:N=PATH for another task than the root")
        found[int(pid or 0), int(number)] = path
    return found


def describe(done: dict[str, Any]) -> None:
    """What a person wants to know of a restore."""
    later = done["pages_later"]
    output.heading(f"task {done['pid']}", f"({done['command']}) lives again, as of generation {done['generation']}")
    output.facts(
        [
            ("total", output.duration(int(done["total_ms"] * 1e6))),
            ("pages", f"{output.pages(done['pages_written'])} written" + (f", {output.pages(later)} to come" if later else "")),
            ("threads", f"{done['threads']} in {done['tasks']} task{'s'[: done['tasks'] != 1]}"),
        ],
        indent=2,
    )
    for line in (*done["warnings"], *done["disturbed"]):
        output.note(f"ckpt: note: {line}")
