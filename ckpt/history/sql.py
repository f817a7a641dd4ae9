"""Any one reading statement over the store's tables; nothing that writes gets through."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Sequence
from collections.abc import Mapping as MappingABC
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ckpt.errors import CkptError, UsageError

if TYPE_CHECKING:
    from ckpt.history.open import History


@dataclass(frozen=True, slots=True)
class Answer:
    columns: tuple[str, ...]
    rows: list[tuple[Any, ...]]
    cut: bool  #: there were more rows than asked for


def run_sql(
    history: History, sql: str, values: MappingABC[str, Any] | Sequence[Any] = (), *, limit_s: float = 30.0, max_rows: int = 0
) -> Answer:
    """Rows of one reading statement. Raises UsageError for anything else and for SQL that is wrong, CkptError after `limit_s`."""
    connection = history.store.sql()
    deadline = time.monotonic() + limit_s
    try:
        connection.create_function("shared_pages", 4, _shared_pages(history), deterministic=True)
        connection.set_authorizer(_authorize)
        connection.set_progress_handler(lambda: int(time.monotonic() > deadline), 10_000)
        cursor = connection.execute(sql, values)
        if cursor.description is None:
            raise UsageError("ckpt query reads: it takes one SELECT")
        rows = cursor.fetchmany(max_rows + 1) if max_rows else cursor.fetchall()
        cut = bool(max_rows) and len(rows) > max_rows
        return Answer(tuple(column[0] for column in cursor.description), [tuple(row) for row in (rows[:max_rows] if cut else rows)], cut)
    except (sqlite3.Error, sqlite3.Warning) as error:  # Warning: several statements in one text, before Python 3.12
        if str(error) == "interrupted" and time.monotonic() <= deadline:
            raise KeyboardInterrupt from error  # ^C fell into the progress handler, where SQLite swallowed it
        raise _sql_error(error, limit_s, connection) from error
    finally:
        connection.close()


def _shared_pages(history: History) -> Callable[[int, int, int, int], int]:
    """SQL's shared_pages(generation, space, generation2, space2): layouts are compact BLOBs, which SQL alone cannot intersect."""
    known: dict[tuple[int, int, int, int], int] = {}

    def shared(a: int, space_a: int, b: int, space_b: int) -> int:
        key = (a, space_a, b, space_b)
        if key not in known:
            known[key] = history.store.shared(*key)
        return known[key]

    return shared


def _sql_error(error: Exception, limit_s: float, connection: sqlite3.Connection) -> CkptError:
    text = str(error)
    if text == "interrupted":
        return CkptError(f"the query took longer than {limit_s:g} s: --time-limit gives it more")
    if text in ("not authorized", "authorization denied") or "prohibited" in text or "readonly" in text:
        return UsageError("ckpt query reads: it takes one SELECT")
    if text.startswith("no such table"):
        connection.set_authorizer(None)
        tables = connection.execute(
            "SELECT name FROM sqlite_master WHERE type IN ('table', 'view') AND name NOT LIKE 'sqlite_%' ORDER BY name"
        )
        return UsageError(f"{text}: there is {', '.join(row[0] for row in tables)}")
    if isinstance(error, sqlite3.DatabaseError) and ("malformed" in text or "not a database" in text):
        return CkptError(f"{text}: ckpt fsck tells more")
    return UsageError(text)


_READING = {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_RECURSIVE}
_PRAGMAS = {"table_info", "table_xinfo", "table_list", "index_list", "index_info", "database_list", "foreign_key_list"}
_DENIED_FUNCTIONS = {"load_extension", "writefile", "edit", "fts3_tokenizer"}


def _authorize(action: int, first: str | None, second: str | None, _database: str | None, _trigger: str | None) -> int:
    """Only what reads: no ATTACH (it could open other files), no PRAGMA that sets."""
    if action == sqlite3.SQLITE_FUNCTION and second in _DENIED_FUNCTIONS:
        return sqlite3.SQLITE_DENY
    if action in _READING or (action == sqlite3.SQLITE_PRAGMA and first in _PRAGMAS):
        return sqlite3.SQLITE_OK
    return sqlite3.SQLITE_DENY
