"""Show one generation: its processes, threads, mappings, descriptors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from ckpt.cli import output
from ckpt.cli.options import GenArgument, JsonOption, PidOption, StoreOption

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ckpt.history.describe import Details
    from ckpt.history.open import Generation


def command(
    gen: GenArgument,
    threads: Annotated[bool, typer.Option("--threads", help="Each thread: its call, how it continues, and why.")] = False,
    maps: Annotated[bool, typer.Option("--maps", help="Each mapping: permissions, pages, pages written.")] = False,
    fds: Annotated[bool, typer.Option("--fds", help="Each descriptor and what stands behind it.")] = False,
    pid: PidOption = None,
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    from ckpt.history.describe import details, generation_json, snapshot_json
    from ckpt.history.open import open_store

    with open_store(store) as history:
        generation, snapshot = history.load(history.resolve(gen, pid=pid))
        told = details(history, generation, snapshot)
    if json:
        output.print_json({**generation_json(generation), **snapshot_json(snapshot), "mappings": told.mappings})
        return
    _summary(generation, told)
    if threads:
        _threads(told)
    if maps:
        _maps(told)
    if fds:
        _descriptors(told)


def _summary(generation: Generation, told: Details) -> None:
    pages = generation.pages
    parent = "the first" if generation.parent is None else f"after {generation.parent}"
    output.heading(f"generation {generation.number}", f"{parent}, {generation.kind}, of {generation.command} (pid {generation.pid})")
    output.facts(
        [
            ("tags", " ".join(generation.tags)),
            ("taken", f"{output.when(generation.created_ns)} ({output.age(generation.created_ns)} ago)"),
            ("lineage", generation.lineage),
            ("incarnation", generation.incarnation),
            ("stopped for", f"{output.duration(generation.stop_ns)} of {output.duration(generation.total_ns)}"),
            ("phases", ", ".join(f"{name} {output.duration(ns)}" for name, ns in generation.phases.items())),
            ("tracker", generation.tracker),
            ("memory", f"{output.size(pages['resident'] * 4096)}, {output.pages(pages['dirty'])} pages dirty"),
            (
                "pages read",
                f"{output.pages(pages['read'])}: {output.pages(pages['zero'])} zero, "
                f"{output.pages(pages['deduplicated'])} known, {output.pages(pages['stored'])} stored",
            ),
            ("stored", output.size(generation.bytes_stored)),
            ("disturbed", _disturbed(told)),
            ("stopped", ", ".join(f"{row['pid']} (signal {row['stopped']})" for row in told.processes if row["stopped"])),
            ("not collected", ", ".join(f"{row['pid']} ({row['comm']}, {row['ended']})" for row in told.zombies)),
        ]
    )
    output.say()
    drawn = output.table("PID>", "COMMAND*", "THREADS>", "MAPPINGS>", "FDS>", "PAGES>", "DIRTY>")
    for row in told.processes:
        cells = (row["pid"], row["comm"], row["threads"], row["mappings"], row["descriptors"])
        output.row(drawn, *cells, output.pages(row["pages"]), output.pages(row["dirty"]))
    output.show(drawn)


def _disturbed(told: Details) -> str:
    tids = [str(row["tid"]) for row in told.threads if row["disturbed"]]
    return f"thread {', '.join(tids)} may notice (--threads says why)" if tids else ""


def _threads(told: Details) -> None:
    output.say()
    drawn = output.table("PID>", "TID>", "IN", "RETVAL>", "CONTINUES", "!", "WHY*")
    for row in told.threads:
        style = "yellow" if row["disturbed"] else None
        mark = "!" if row["disturbed"] else ""
        retval = "" if row["phase"] == "user" else row["raw_retval"]
        output.row(drawn, row["pid"], row["tid"], row["call"], retval, row["action"], mark, row["reason"], style=style)
    output.show(drawn)


def _maps(told: Details) -> None:
    for pid, rows in _by_pid(told.mappings, told):
        output.say()
        if pid:
            output.heading(pid)
        drawn = output.table("START>", "END>", "PERM", "SIZE>", "PAGES>", "DIRTY>", "NAME*")
        for row in rows:
            start, end = row["start"], row["end"]
            populated, dirty = (output.pages(row[key]) if row[key] else "" for key in ("pages", "dirty"))
            name = f"{row['name']} ({row['advice']})" if row["advice"] else row["name"]
            output.row(drawn, f"{start:x}", f"{end:x}", row["permissions"], output.size(end - start), populated, dirty, name)
        output.show(drawn)


def _descriptors(told: Details) -> None:
    for pid, rows in _by_pid(told.descriptors, told):
        output.say()
        if pid:
            output.heading(pid)
        drawn = output.table("FD>", "KIND", "FLAGS", "POS>", "SHARED", "WHAT*")
        for row in rows:
            output.row(drawn, row["fd"], row["kind"], row["flags_text"], row["position"] or "", row["shared_with"], row["summary"])
        output.show(drawn)


def _by_pid(rows: Sequence[dict[str, Any]], told: Details) -> list[tuple[str, list[dict[str, Any]]]]:
    """Rows of each process, with a heading where there are several."""
    several = len(told.processes) > 1
    return [
        (f"process {process['pid']} ({process['comm']})" if several else "", [row for row in rows if row["pid"] == process["pid"]])
        for process in told.processes
    ]
