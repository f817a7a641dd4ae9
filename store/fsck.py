"""fsck: a check for each invariant of FORMAT.md. What the frames and the index show stands in fsck_frames.py, the repair in repair.py."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from itertools import zip_longest

from store import packs
from store.database import APPLICATION_ID, FORMAT, PAGE_SIZE
from store.fsck_frames import Contents, check_index, read_frames
from store.layouts import ABSENT, RUN, Layout
from store.manifests import change_rows, changes, load_layouts
from store.records import Problem, Progress, StoreError

__all__ = ["OWNED", "check"]

OWNED = ("snapshots", "phases", "tags", "processes", "threads", "mappings", "descriptors", "writers", "page_writes", "spaces", "page_runs")
WITHOUT_WRITER = "NOT EXISTS (SELECT 1 FROM writers w WHERE w.generation = p.generation AND w.writer = p.writer)"
_KEPT = 4


def check(connection: sqlite3.Connection, key: bytes, full: bool, progress: Progress | None) -> list[Problem]:
    """Every broken invariant that is found. Writes nothing; sees the store as it was when it began."""
    connection.execute("BEGIN")
    try:
        return list(_check(connection, key, full, progress))
    except sqlite3.DatabaseError as error:
        return [Problem(0, f"SQLite: {error}")]
    finally:
        connection.execute("ROLLBACK")


def _check(connection: sqlite3.Connection, key: bytes, full: bool, progress: Progress | None) -> Iterator[Problem]:
    yield from _sqlite(connection, full)
    yield from _identity(connection)
    yield from _generations(connection)
    there: Contents = {}
    yield from _packs(connection, there)
    layouts = _Layouts(connection)
    yield from _manifests(connection, layouts, there)
    prints, bad = read_frames(connection, key, progress) if full else ({}, {})
    yield from _damage(layouts, bad)
    yield from check_index(connection, there, prints)


def _sqlite(connection: sqlite3.Connection, full: bool) -> Iterator[Problem]:
    for (line,) in connection.execute("PRAGMA integrity_check" if full else "PRAGMA quick_check"):
        if line != "ok":
            yield Problem(0, f"SQLite: {line}")


def _identity(connection: sqlite3.Connection) -> Iterator[Problem]:
    info = dict(connection.execute("SELECT key, value FROM store_info"))
    if not info.get("uuid") or len(info.get("hash_key") or b"") != 32:
        yield Problem(1, "store_info has no uuid or no hash key")
    for pragma, wanted in (("application_id", APPLICATION_ID), ("user_version", FORMAT), ("page_size", PAGE_SIZE)):
        found = connection.execute(f"PRAGMA {pragma}").fetchone()[0]
        if found != wanted:
            yield Problem(1, f"{pragma} is {found}, not {wanted}")


def _generations(connection: sqlite3.Connection) -> Iterator[Problem]:
    for number, parent in connection.execute(
        "SELECT generation, parent FROM generations WHERE parent IS NOT NULL "
        "AND (parent >= generation OR parent NOT IN (SELECT generation FROM generations))"
    ):
        yield Problem(2, f"generation {number} has the parent {parent}, which is not there or not older", number)
    last = connection.execute("SELECT coalesce(max(seq), 0) FROM sqlite_sequence WHERE name = 'generations'").fetchone()[0]
    for (number,) in connection.execute("SELECT generation FROM generations WHERE generation > ?", (last,)):
        yield Problem(2, f"generation {number} is beyond the counter, so its number could be used again", number)
    for table in OWNED:
        for (number,) in connection.execute(
            f"SELECT DISTINCT generation FROM {table} WHERE generation NOT IN (SELECT generation FROM generations)"
        ):
            yield Problem(3, f"table {table} has rows of generation {number}, which is not there", number)
    for (number,) in connection.execute(f"SELECT DISTINCT generation FROM page_writes p WHERE {WITHOUT_WRITER}"):
        yield Problem(12, f"generation {number} has writes of a writer that it does not know", number)
    for (number,) in connection.execute(
        "SELECT generation FROM generations WHERE generation NOT IN (SELECT generation FROM snapshots) "
        "OR lineage NOT IN (SELECT lineage FROM lineages)"
    ):
        yield Problem(3, f"generation {number} has no snapshot or no lineage", number)


class _Layouts:
    """Layouts of the generations, the last few kept: a history of any length is checked in bounded memory."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._kept: dict[int, dict[int, Layout]] = {}
        self.numbers = [row[0] for row in connection.execute("SELECT generation FROM generations ORDER BY generation")]
        self.whole: list[int] = []  #: those that could be loaded

    def get(self, number: int) -> dict[int, Layout]:
        """Raises StoreError where a manifest is damaged."""
        if number not in self._kept:
            found = load_layouts(self._connection, number)
            while len(self._kept) >= _KEPT:
                del self._kept[next(iter(self._kept))]
            self._kept[number] = found
        return self._kept[number]


def _packs(connection: sqlite3.Connection, there: Contents) -> Iterator[Problem]:
    """Checks the packs' rows, and fills in which contents they hold."""
    rows = connection.execute(
        "SELECT pack, frames, contents, lengths, bytes, length(data) FROM packs LEFT JOIN pack_data USING (pack) "
        "UNION ALL SELECT pack, 0, NULL, NULL, 0, length(data) FROM pack_data WHERE pack NOT IN (SELECT pack FROM packs)"
    )
    for number, frames, contents, lengths, size, found in rows:
        if contents is None or found is None:
            yield Problem(8, f"pack {number} has no BLOB, or a BLOB no pack")
            continue
        pack = packs.Pack(number, frames, contents, lengths)
        sizes = memoryview(lengths).cast("H") if pack.whole() else memoryview(b"")
        if len(sizes) != frames or size != found or any(not 0 < item <= 4096 for item in sizes):
            yield Problem(8, f"pack {number}: frames, bytes or contents are not what it holds")
            continue
        twice = 0
        for block, slot, count in packs.CONTENTS.iter_unpack(contents):
            bits, mask = there.get(block, 0), ((1 << count) - 1) << slot
            twice += (bits & mask).bit_count()
            there[block] = bits | mask
        if twice:
            yield Problem(11, f"pack {number}: {twice} of its contents are in other packs too")
        wanted = packs.blocks_of(contents)
        if [row[0] for row in connection.execute("SELECT block FROM pack_blocks WHERE pack = ? ORDER BY block", (number,))] != wanted:
            yield Problem(11, f"pack_blocks does not say of pack {number} what it holds")
    for (number,) in connection.execute("SELECT DISTINCT pack FROM pack_blocks WHERE pack NOT IN (SELECT pack FROM packs)"):
        yield Problem(11, f"pack_blocks names pack {number}, which is not there")


def _manifests(connection: sqlite3.Connection, layouts: _Layouts, there: Contents) -> Iterator[Problem]:
    for (manifest,) in connection.execute(
        "SELECT manifest FROM manifests m WHERE (manifest NOT IN (SELECT manifest FROM spaces) "
        "AND manifest NOT IN (SELECT base FROM manifests WHERE base IS NOT NULL)) "
        "OR (base IS NOT NULL AND NOT EXISTS (SELECT 1 FROM manifests b WHERE b.manifest = m.base AND b.base IS NULL))"
    ):
        yield Problem(4, f"manifest {manifest} is used by nobody, or its base is not there or has a base")
    live = packs.Live(sorted(there))
    beyond = False
    for number in layouts.numbers:
        try:
            spaces = layouts.get(number)
        except StoreError as error:
            yield Problem(4, str(error), number)
            continue
        layouts.whole.append(number)
        yield from _counts(connection, number, spaces)
        for layout in spaces.values():
            beyond = not live.mark(layout) or beyond
        yield from _page_runs(connection, layouts, number, spaces)
    if beyond or any(int.from_bytes(live.bits(block), "little") & ~bits for block, bits in there.items()):
        for number in layouts.whole:
            yield from _missing_frames(number, layouts.get(number), there)


def _counts(connection: sqlite3.Connection, number: int, spaces: dict[int, Layout]) -> Iterator[Problem]:
    counts = {row[0]: row[1:] for row in connection.execute("SELECT space, pages, zero_pages FROM spaces WHERE generation = ?", (number,))}
    for space, layout in spaces.items():
        if counts[space] != layout.pages() or any(kind == 3 for _, _, kind in RUN.iter_unpack(layout.runs())):
            yield Problem(5, f"generation {number}, space {space}: page counts are not what its manifest says", number)


def _missing_frames(number: int, spaces: dict[int, Layout], there: Contents) -> Iterator[Problem]:
    """The first page of each space whose content no pack has."""
    for space, layout in spaces.items():
        for page, content, count in layout.extents():
            mask = ((1 << count) - 1) << (content & 0xFFFF)
            if content not in (0, ABSENT) and there.get(content >> 16, 0) & mask != mask:
                yield Problem(
                    6, f"generation {number}, space {space}, page {page:#x}: no pack has content {content >> 16}:{content & 0xFFFF}", number
                )
                break


def _page_runs(connection: sqlite3.Connection, layouts: _Layouts, number: int, spaces: dict[int, Layout]) -> Iterator[Problem]:
    parent = connection.execute("SELECT parent FROM generations WHERE generation = ?", (number,)).fetchone()[0]
    try:
        old = layouts.get(parent) if parent is not None else {}
    except StoreError:
        return
    wanted = change_rows(number, changes(old, spaces))
    rows = connection.execute("SELECT * FROM page_runs WHERE generation = ? ORDER BY space, start", (number,))
    if any(row != want for row, want in zip_longest(rows, wanted)):
        yield Problem(9, f"page_runs of generation {number} are not what it changed against its parent", number)


def _damage(layouts: _Layouts, bad: dict[int, set[int]]) -> Iterator[Problem]:
    """Each damaged generation with the first of its pages; then which ones are whole."""
    if not bad:
        return
    hit: list[int] = []
    for number in layouts.whole:
        pages = [(space, page) for space, layout in layouts.get(number).items() for page in bad_pages(layout, bad)]
        if pages:
            hit.append(number)
            yield Problem(10, f"generation {number} lost {len(pages)} pages, the first: space {pages[0][0]}, page {pages[0][1]:#x}", number)
    whole = ", ".join(str(number) for number in layouts.whole if number not in hit) or "none"
    for block, slots in bad.items():
        yield Problem(10, f"block {block}: {len(slots)} contents are damaged; generations that are whole: {whole}")


def bad_pages(layout: Layout, bad: dict[int, set[int]]) -> Iterator[int]:
    for page, content, count in layout.extents():
        for slot in bad.get(content >> 16, ()):
            if content not in (0, ABSENT) and 0 <= slot - (content & 0xFFFF) < count:
                yield page + slot - (content & 0xFFFF)
