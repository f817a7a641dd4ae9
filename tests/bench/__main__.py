"""`make bench`: the speed table, as text and as bench-results.json. Names as arguments choose rows."""

from __future__ import annotations

import json
import platform
import sys
import time
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.bench.row import Row
from tests.bench.rows import ROWS

RESULTS = Path("bench-results.json")


def line(row: Row) -> list[str]:
    floor = f"{row.floor:,.1f} {row.unit}" if row.floor else "-"
    figure = f"{row.figure:.2f}x" if row.floor else f"{row.ours:,.1f} {row.unit}"
    limit = f"{row.limit:g}x" if row.floor else f"{row.limit:g} {row.unit}"
    return [row.name, f"{row.ours:,.1f} {row.unit}", floor, figure, limit, "yes" if row.met else "NO", row.note]


def main(names: list[str]) -> int:
    unknown = [name for name in names if name not in ROWS]
    if unknown:
        print(f"bench: no row {unknown[0]}: there are {', '.join(ROWS)}", file=sys.stderr)
        return 2
    console = Console(width=None if sys.stdout.isatty() else 170)
    rows = []
    for name in names or ROWS:
        console.print(f"measuring: {name}", style="dim")
        rows.append(ROWS[name]())
    table = Table("work", "ours", "floor", "figure", "at most", "met", "note")
    for row in rows:
        table.add_row(*line(row))
    console.print(table)
    machine = {"kernel": platform.release(), "taken_at": time.strftime("%Y-%m-%dT%H:%M:%S%z")}
    rows_json = [{**asdict(row), "figure": row.figure, "met": row.met} for row in rows]
    RESULTS.write_text(json.dumps({"machine": machine, "rows": rows_json}, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
