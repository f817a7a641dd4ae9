"""Ask the store: a canned query by name, or any SELECT."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ckpt.cli import output
from ckpt.cli.options import JsonOption, StoreOption

if TYPE_CHECKING:
    from ckpt.history.sql import Answer

_HEX = ("start", "end", "address")
_WIDE = 120  #: columns of a terminal; on a narrower one long heads take two lines


def command(
    query: Annotated[
        str | None, typer.Argument(metavar="NAME|SQL", help="A canned query or a SELECT over the store's tables.", show_default=False)
    ] = None,
    arguments: Annotated[
        list[str] | None, typer.Argument(metavar="ARGUMENT", help="Its parameters: in order, or name=value.", show_default=False)
    ] = None,
    csv: Annotated[bool, typer.Option("--csv", help="Comma-separated values.")] = False,
    limit: Annotated[int, typer.Option("--limit", "-n", metavar="N", min=0, help="At most N rows; 0 = all.")] = 0,
    time_limit: Annotated[float, typer.Option("--time-limit", metavar="SECONDS", min=0.01, help="Give up after so long.")] = 30.0,
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    from ckpt.errors import UsageError
    from ckpt.history import canned
    from ckpt.history.open import open_store
    from ckpt.history.sql import run_sql

    if csv and json:
        raise UsageError("--csv or --json, not both")
    if query is None:
        _list(json)
        return
    if " " in query.strip():
        sql = query
        values: Any = [canned.plain_value(word) for word in arguments or []]
    else:
        known = canned.find_canned(query)
        sql, values = known.sql, canned.bind(known, arguments or [])
    with open_store(store) as history:
        answer = run_sql(history, sql, values, limit_s=time_limit, max_rows=limit)
    if json:
        rows = [dict(zip(answer.columns, row, strict=True)) for row in answer.rows]
        output.print_json({"columns": answer.columns, "rows": rows, "cut": answer.cut})
    elif csv:
        import csv as writer

        lines = writer.writer(sys.stdout)
        lines.writerow(answer.columns)
        lines.writerows(answer.rows)
    else:
        _print(answer)


def _list(json: bool) -> None:
    from ckpt.history.canned import canned_queries, usage

    queries = canned_queries()
    if json:
        output.print_json(
            {"queries": {name: {"description": q.description, "parameters": dict(q.parameters)} for name, q in queries.items()}}
        )
        return
    drawn = output.table("QUERY", "PARAMETERS", "WHAT IT TELLS*")
    for query in queries.values():
        output.row(drawn, query.name, usage(query) if query.parameters else "", query.description)
    output.show(drawn)


def _print(answer: Answer) -> None:
    numeric = [all(isinstance(row[place], int | float | None) for row in answer.rows) for place in range(len(answer.columns))]
    titles = [name.replace("_", "\n") if output.width() < _WIDE else name for name in answer.columns]
    columns = [title + (">" if number and answer.rows else "*") for title, number in zip(titles, numeric, strict=True)]
    digits = [max((_digits(row[place]) for row in answer.rows), default=0) for place in range(len(answer.columns))]
    drawn = output.table(*columns)
    for row in answer.rows:
        output.row(drawn, *(_cell(*each) for each in zip(answer.columns, row, digits, strict=True)))
    output.show(drawn)
    if not answer.rows:
        output.note("no rows")
    elif answer.cut:
        output.note(f"only the first {len(answer.rows)} rows (--limit)")


def _digits(item: Any) -> int:
    """Behind the point, at most three."""
    return len(f"{item:.3f}".rstrip("0").partition(".")[2]) if isinstance(item, float) else 0


def _cell(column: str, item: Any, digits: int) -> str:
    if item is None:
        return ""
    if isinstance(item, int) and column in _HEX:
        return f"{item & (1 << 64) - 1:x}"
    if isinstance(item, bytes):
        return item[:16].hex() + ("…" if len(item) > 16 else "")
    if isinstance(item, float):
        return f"{item:.{digits}f}"
    return str(item)
