"""Take a snapshot of a process and its children while it goes on."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from ckpt.cli import output
from ckpt.cli.options import JsonOption, StoreOption


def command(
    pid: Annotated[int, typer.Argument(metavar="PID", help="The root of the tree.", show_default=False)],
    incremental: Annotated[
        bool, typer.Option("--incremental", "-i", help="Only pages written since; everything where no baseline stands.")
    ] = False,
    full: Annotated[bool, typer.Option("--full", help="Read every page, whatever is known.")] = False,
    tag: Annotated[str | None, typer.Option("--tag", metavar="NAME", help="Name the generation.", show_default=False)] = None,
    kill: Annotated[bool, typer.Option("--kill", help="End the tree at the captured instant, once the generation is safe.")] = False,
    paranoid: Annotated[
        bool, typer.Option("--paranoid", help="Read every page in the same freeze and compare it with the generation.")
    ] = False,
    tracker: Annotated[str, typer.Option("--tracker", metavar="NAME", help="auto, uffd, softdirty or compare.")] = "auto",
    precopy: Annotated[
        int | None,
        typer.Option("--precopy", metavar="N", min=0, max=1000, help="Rounds of pre-copy; default: as many as pay.", show_default=False),
    ] = None,
    freeze: Annotated[
        str,
        typer.Option("--freeze", metavar="WAY", help="By what it is stopped: auto, ptrace, or cgroup (v2, its own): all at once."),
    ] = "auto",
    every: Annotated[
        str | None, typer.Option("--every", metavar="TIME", help="Again each 5s, 500ms, 1m until the tree ends.", show_default=False)
    ] = None,
    keep: Annotated[
        str | None, typer.Option("--keep", metavar="POLICY", help="Then drop what the policy does not keep.", show_default=False)
    ] = None,
    trace: Annotated[bool, typer.Option("--trace", help="With --every: keep who wrote each page first (eBPF).")] = False,
    asker: Annotated[
        int,
        typer.Option("--self", metavar="TID", min=0, help="The thread that has asked for it: ckpt_checkpoint_self().", show_default=False),
    ] = 0,
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    from ckpt.errors import UsageError
    from ckpt.history.names import check_tag
    from ckpt.history.upkeep import parse_policy
    from ckpt.live.deadlines import Deadlines
    from ckpt.ops.periodic import parse_interval, prune, repeat, tend
    from ckpt.ops.snapshot import Request, Result, snapshot

    if full and incremental:
        raise UsageError("--full and --incremental exclude each other: leave one out")
    if tracker not in ("auto", "uffd", "softdirty", "compare"):
        raise UsageError(f"--tracker {tracker}: must be auto, uffd, softdirty or compare")
    if freeze not in ("auto", "cgroup", "ptrace"):
        raise UsageError(f"--freeze {freeze}: must be auto, cgroup or ptrace")
    if trace and every is None:
        raise UsageError("--trace watches what is written between snapshots: give --every TIME too")
    if tag is not None:
        check_tag(tag)
    if keep is not None:
        parse_policy(keep)  # before anything is done
    mode = "full" if full else "incremental" if incremental else "auto"
    request = Request(pid, store, mode, tracker, precopy, tag, kill, paranoid, freeze=freeze, asker=asker)

    def show(result: Result) -> None:
        if json:
            output.print_json(result.json())
        else:
            describe(result.json())
        sys.stdout.flush()  # before the store tends itself

    if every is not None:
        repeat(request, parse_interval(every), keep, show, traced=trace)
        return
    with Deadlines() as ebpf:
        with output.progress(f"snapshot of {pid}") as step:
            made = snapshot(request, step, ebpf=ebpf)
        show(made)
        tend(store, made.generation.number)
        if not asker:
            ebpf.compile_ahead()
    if keep is not None:
        prune(store, keep)


def describe(made: dict[str, Any]) -> None:
    """What a person wants to know of a snapshot that was taken."""
    pages = made["pages"]
    parent = f", after {made['parent']}" if made["parent"] is not None else ""
    output.heading(
        f"generation {made['generation']}", f"{made['kind']} of {made['command']} ({made['pid']}){parent}, tracker {made['tracker']}"
    )
    output.facts(
        [
            ("stopped", output.duration(made["stop_us"] * 1000)),
            ("total", output.duration(int(made["total_ms"] * 1e6))),
            ("resident", f"{output.pages(pages['resident'])} pages, {output.size(pages['resident'] * 4096)}"),
            (
                "read",
                f"{output.pages(pages['read'])} pages: {pages['zero']:,} zero, {pages['deduplicated']:,} known, {pages['stored']:,} new",
            ),
            ("stored", output.size(made["bytes_stored"])),
            ("writes", f"{made['writes']['pages']:,} pages with their writer" if "writes" in made else None),
            ("compared", f"{made['paranoid']['compared']:,} pages, {made['paranoid']['wrong']} differ" if "paranoid" in made else None),
        ],
        indent=2,
    )
    for warning in made["warnings"]:
        output.note(f"ckpt: note: {warning}")
