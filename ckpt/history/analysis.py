"""Questions to the past: pages that differ by mapping, how well a store deduplicates, SQL that cannot write.

The canned queries are plain SQL over the store's tables, one file each in queries/; the first comment line is the description,
a line "-- args: name=default ..." names its parameters (":name" in the text). They run unchanged in sqlite3 or
Datasette, but for `sharing`, which needs our function shared_pages().
"""

from __future__ import annotations

import re
import sqlite3
import time
from collections.abc import Callable, Iterable, Sequence
from collections.abc import Mapping as MappingABC
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ckpt.errors import CkptError, NotFoundError, UsageError
from ckpt.history import runs as raw
from ckpt.history.rows import mapping_name, permissions
from ckpt.model import PAGE, Content, Mapping, Snapshot, Task

if TYPE_CHECKING:
    from ckpt.history.open import Generation, History

# ---- pages that differ ----


@dataclass(frozen=True, slots=True)
class PageChanges:
    """Pages of one mapping whose content differs between two generations. Counts are pages."""

    pid: int
    space: int
    name: str
    start: int
    end: int
    permissions: str
    changed: int  #: populated in both or in the later one alone
    gone: int  #: populated in the earlier one alone
    ranges: tuple[tuple[int, int], ...]  #: (address, pages) of all of them


def changed_pages(history: History, a: int, snapshot_a: Snapshot, b: int, snapshot_b: Snapshot) -> list[PageChanges]:
    """By mapping of the later generation (of the earlier one where the mapping is gone). No page is read."""
    found: list[PageChanges] = []
    old_tasks = {task.pid: task for task in snapshot_a.tasks}
    for task in snapshot_b.tasks:
        old = old_tasks.get(task.pid) or (snapshot_a.task(snapshot_a.root.pid) if task.pid == snapshot_b.root.pid else None)
        if old is not None:
            found += _of_task(list(raw.unpack(history.store.diff(a, old.mm, b, task.mm))), old, task)
    then = {(item.dev, item.ino): item.space for item in snapshot_a.objects}
    for item in snapshot_b.objects:
        space = then.get((item.dev, item.ino))
        if space is not None:
            runs = list(raw.unpack(history.store.diff(a, space, b, item.space)))
            found += _changes(0, item.space, f"shared memory {item.dev:x}:{item.ino}", 0, item.size, "rw-s", runs)
    return found


def _of_task(runs: list[tuple[int, int, int]], old: Task, new: Task) -> Iterable[PageChanges]:
    private = [item for item in new.mappings if item.backing.kind != "object"]
    for mapping, inside in _split(runs, private):
        yield from _changes(new.pid, new.mm, mapping_name(mapping), mapping.start, mapping.end, permissions(mapping), inside)
    left = list(_outside(runs, private))
    for mapping, inside in _split(left, [item for item in old.mappings if item.backing.kind != "object"]):
        title = f"{mapping_name(mapping)} (gone)"
        yield from _changes(new.pid, old.mm, title, mapping.start, mapping.end, permissions(mapping), inside)


Run = tuple[int, int, int]


def _split(runs: Sequence[Run], mappings: Sequence[Mapping]) -> Iterable[tuple[Mapping, list[Run]]]:
    """Runs cut at the borders of mappings; both are sorted, one pass over each."""
    place = 0
    for mapping in sorted(mappings, key=lambda item: item.start):
        first, end = mapping.start // PAGE, mapping.end // PAGE
        while place < len(runs) and runs[place][0] + runs[place][1] <= first:
            place += 1
        inside, at = [], place
        while at < len(runs) and runs[at][0] < end:
            page, count, content = runs[at]
            low, high = max(page, first), min(page + count, end)
            inside.append((low, high - low, content))
            at += 1
        if inside:
            yield mapping, inside


def _outside(runs: Sequence[Run], mappings: Sequence[Mapping]) -> Iterable[Run]:
    """The parts of runs that no mapping covers."""
    borders = [(item.start // PAGE, item.end // PAGE) for item in sorted(mappings, key=lambda item: item.start)]
    place = 0
    for page, count, content in runs:
        end = page + count
        while place < len(borders) and borders[place][1] <= page:
            place += 1
        at = place
        while page < end:
            if at == len(borders) or borders[at][0] >= end:
                yield page, end - page, content
                break
            if borders[at][0] > page:
                yield page, borders[at][0] - page, content
            page = max(page, borders[at][1])
            at += 1


def _changes(pid: int, space: int, name: str, start: int, end: int, letters: str, runs: Sequence[Run]) -> Iterable[PageChanges]:
    gone = sum(count for _, count, content in runs if content == Content.ABSENT)
    total = sum(count for _, count, _ in runs)
    if total:
        ranges = tuple((page * PAGE, count) for page, count, _ in runs)
        yield PageChanges(pid, space, name, start, end, letters, total - gone, gone, ranges)


# ---- the store as a whole ----


@dataclass(frozen=True, slots=True)
class LineageStats:
    """Sums over the generations that are there. Pages are 4096 bytes."""

    lineage: str
    command: str
    pid: int
    generations: int
    first_ns: int
    last_ns: int
    bytes_held: int  #: what the generations would take as plain copies
    bytes_stored: int  #: what they added to the store
    pages_read: int
    pages_zero: int
    pages_deduplicated: int
    pages_stored: int


def store_stats(history: History) -> dict[str, Any]:
    """The keys of `ckpt stats --json`."""
    lineages = lineage_stats(history.generations())
    file_bytes = sum(path.stat().st_size for path in _files(history.path))
    held = sum(item.bytes_held for item in lineages)
    return {
        "store": str(history.path),
        "format": history.store.format,
        "bytes_file": file_bytes,
        "bytes_held": held,
        "bytes_stored": sum(item.bytes_stored for item in lineages),
        "ratio": round(held / file_bytes, 3) if file_bytes else 0.0,
        "generations": sum(item.generations for item in lineages),
        "tags": len(history.store.tags()),
        "pages": {what: sum(getattr(item, f"pages_{what}") for item in lineages) for what in ("read", "zero", "deduplicated", "stored")},
        "lineages": lineages,
    }


def _files(path: Path) -> list[Path]:
    """The store and what SQLite keeps beside it."""
    return [each for each in (path.with_name(path.name + end) for end in ("", "-wal", "-shm", "-journal")) if each.exists()]


def lineage_stats(generations: Sequence[Generation]) -> list[LineageStats]:
    from ckpt.history.names import lineages

    return [_lineage(name, group) for name, group in lineages(generations).items()]


def _lineage(name: str, group: Sequence[Generation]) -> LineageStats:
    def total(what: str) -> int:
        return sum(item.pages[what] for item in group)

    return LineageStats(
        lineage=name,
        command=group[-1].command,
        pid=group[-1].pid,
        generations=len(group),
        first_ns=group[0].created_ns,
        last_ns=group[-1].created_ns,
        bytes_held=total("resident") * PAGE,
        bytes_stored=sum(item.bytes_stored for item in group),
        pages_read=total("read"),
        pages_zero=total("zero"),
        pages_deduplicated=total("deduplicated"),
        pages_stored=total("stored"),
    )


# ---- SQL ----


@dataclass(frozen=True, slots=True)
class Canned:
    name: str
    description: str
    parameters: tuple[tuple[str, str | None], ...]  #: (name, default)
    sql: str


@dataclass(frozen=True, slots=True)
class Answer:
    columns: tuple[str, ...]
    rows: list[tuple[Any, ...]]
    cut: bool  #: there were more rows than asked for


_HEADER = re.compile(r"\A-- (?P<description>[^\n]+)\n(?:-- args: (?P<args>[^\n]+)\n)?")


def canned_queries() -> dict[str, Canned]:
    """By name, read from queries/*.sql."""
    found = {}
    for path in sorted((Path(__file__).parent / "queries").glob("*.sql")):
        text = path.read_text(encoding="utf-8")
        match = _HEADER.match(text)
        if match is None:
            raise CkptError(f"{path.name} has no line of description")
        parameters = []
        for part in (match["args"] or "").split():
            name, equals, default = part.partition("=")
            parameters.append((name, default if equals else None))
        found[path.stem] = Canned(path.stem, match["description"], tuple(parameters), text)
    return found


def bind(query: Canned, arguments: Sequence[str]) -> dict[str, Any]:
    """Values of a canned query's parameters from words: in order, or name=value. Numbers may be hex."""
    values: dict[str, Any] = {name: plain_value(default) for name, default in query.parameters if default is not None}
    names = [name for name, _ in query.parameters]
    positional = iter(names)
    for word in arguments:
        name, equals, text = word.partition("=")
        if not (equals and name in names):
            name, text = next(positional, ""), word
        if not name:
            raise UsageError(f"{query.name} takes {usage(query)}: {word!r} is one too many")
        values[name] = plain_value(text)
    if missing := [name for name in names if name not in values]:
        raise UsageError(f"{query.name} needs {' '.join(missing)}: ckpt query {query.name} {usage(query)}")
    return values


def usage(query: Canned) -> str:
    return " ".join(name.upper() if default is None else f"[{name}={default or 'any'}]" for name, default in query.parameters) or "nothing"


def plain_value(text: str) -> Any:
    """A number where it reads as one (0x7f.. too), NULL for nothing, else text."""
    if text == "":
        return None
    try:
        number = int(text, 0)
    except ValueError:
        return text
    return number - (1 << 64) if number >= 1 << 63 else number


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


def find_canned(name: str) -> Canned:
    """Raises NotFoundError that lists what there is."""
    queries = canned_queries()
    if name not in queries:
        raise NotFoundError(f"no canned query {name}: there is {', '.join(queries)}; anything with SELECT in it is run as SQL")
    return queries[name]
