"""How large the store is and what deduplication saves."""

from __future__ import annotations

from ckpt.cli import output
from ckpt.cli.options import JsonOption, StoreOption


def command(store: StoreOption = None, json: JsonOption = False) -> None:
    from ckpt.history.open import open_store
    from ckpt.history.totals import store_stats

    with open_store(store) as history:
        summary = store_stats(history)
    if json:
        output.print_json(summary)
        return
    pages = summary["pages"]
    output.facts(
        [
            ("store", summary["store"]),
            ("size", output.size(summary["bytes_file"])),
            (
                "generations",
                f"{summary['generations']} of {output.count(len(summary['lineages']), 'lineage')}, {output.count(summary['tags'], 'tag')}",
            ),
            ("memory held", f"{output.size(summary['bytes_held'])}, {summary['ratio']:.1f} times the file"),
            ("pages read", output.pages(pages["read"])),
            ("  zero", f"{output.pages(pages['zero'])} ({output.share(pages['zero'], pages['read'])})"),
            ("  known", f"{output.pages(pages['deduplicated'])} ({output.share(pages['deduplicated'], pages['read'])})"),
            ("  stored", f"{output.pages(pages['stored'])} ({output.share(pages['stored'], pages['read'])})"),
            ("compression", f"{output.size(pages['stored'] * 4096)} in {output.size(summary['bytes_stored'])}"),
        ]
    )
    if not summary["lineages"]:
        return
    output.say()
    drawn = output.table("COMMAND*", "PID>", "GENS>", "SINCE", "NEWEST>", "HELD>", "DEDUP>", "STORED>")
    for item in reversed(summary["lineages"]):
        known = item.pages_zero + item.pages_deduplicated
        output.row(
            drawn, item.command, item.pid, item.generations, output.when(item.first_ns)[:16], output.age(item.last_ns),
            output.size(item.bytes_held), output.share(known, item.pages_read), output.size(item.bytes_stored),
        )  # fmt: skip
    output.show(drawn)
