"""Layouts in the file: manifests, and the rows of what each generation changed.

A manifest is a layout, or the difference from one other manifest, its base, which has none itself: so a generation is read from
one or two BLOBs however long its history is. A new base is written when the differences from the old one have together grown
as large as a base: that keeps the sum near its least.
"""

from __future__ import annotations

import sqlite3
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from store._pages import ffi
from store.layouts import ABSENT, EMPTY, Layout
from store.records import StoreError

__all__ = [
    "Prepared",
    "Stored",
    "change_rows",
    "changes",
    "decode_stored",
    "drop_unused_manifests",
    "insert_changes",
    "load_layout",
    "load_layouts",
    "prepare",
    "spent",
    "store_layout",
    "stored_rows",
]

_SIGNED = struct.Struct("<qqII")  #: struct st_extent as SQLite's integers are: absent is -1; the last is padding, 0
_LAYOUT = (
    "SELECT s.space, m.manifest, m.base, m.layout, b.layout FROM spaces s LEFT JOIN manifests m ON m.manifest = s.manifest "
    "LEFT JOIN manifests b ON b.manifest = m.base WHERE s.generation = ?"
)


@dataclass(frozen=True, slots=True)
class Stored:
    """A space's layout, and how it stands in the file: by itself, or as a difference from a base."""

    layout: Layout
    manifest: int
    base: int  #: the manifest itself where it has no base
    base_layout: Layout
    base_bytes: int


def _decode(number: int, space: int, manifest: int | None, base: int | None, data: bytes | None, base_data: bytes | None) -> Stored:
    try:
        if manifest is None or data is None or (base is not None and base_data is None):
            raise StoreError("damaged", "it is missing")
        own = Layout.decode(data)
        if base is None or base_data is None:
            return Stored(own, manifest, manifest, own, len(data))
        base_layout = Layout.decode(base_data)
        return Stored(base_layout.overlay(own), manifest, base, base_layout, len(base_data))
    except StoreError as error:
        raise StoreError("damaged", f"generation {number}, space {space}: its manifest is damaged ({error})") from None


_Rows = list[tuple[int, int | None, int | None, bytes | None, bytes | None]]


def stored_rows(connection: sqlite3.Connection, number: int) -> _Rows:
    """What `decode_stored` takes, as the file has it."""
    return connection.execute(_LAYOUT, (number,)).fetchall()


def decode_stored(number: int, rows: _Rows) -> dict[int, Stored]:
    """The layout of every space of the generation, with its manifest. No SQL: another thread may do it."""
    return {row[0]: _decode(number, *row) for row in rows}


def load_layouts(connection: sqlite3.Connection, number: int) -> dict[int, Layout]:
    """The layout of every space of the generation."""
    return {space: stored.layout for space, stored in decode_stored(number, stored_rows(connection, number)).items()}


def load_layout(connection: sqlite3.Connection, number: int, space: int) -> Layout:
    """Raises StoreError no-generation where there is none; a space that the generation does not have is empty."""
    row = connection.execute(f"{_LAYOUT} AND s.space = ?", (number, space)).fetchone()
    if row is not None:
        return _decode(number, *row).layout
    if not connection.execute("SELECT 1 FROM generations WHERE generation = ?", (number,)).fetchone():
        raise StoreError("no-generation", f"no generation {number}")
    return EMPTY


@dataclass(frozen=True, slots=True)
class Prepared:
    """A space of a new generation, ready to be stored."""

    pages: tuple[int, int]
    changed: Layout  #: against the parent
    manifest: int | None  #: the parent's, where nothing changed
    base: int | None  #: of a new manifest; None: it is a base itself
    encoded: bytes


def spent(connection: sqlite3.Connection, old: Stored) -> int:
    """Bytes of all differences from the manifest's base."""
    return int(connection.execute("SELECT coalesce(sum(length(layout)), 0) FROM manifests WHERE base = ?", (old.base,)).fetchone()[0])


def prepare(layout: Layout, old: Stored | None, spent_bytes: int) -> Prepared:
    """Which manifest the layout gets: the parent's where nothing changed, a difference, or a base. No SQL: another thread may do it."""
    if old is None:
        return Prepared(layout.pages(), layout, None, None, layout.encode())
    changed = old.layout.diff(layout)
    if not len(changed):
        return Prepared(layout.pages(), changed, old.manifest, None, b"")
    encoded = old.base_layout.diff(layout).encode()
    if spent_bytes + len(encoded) <= max(old.base_bytes, 4096):
        return Prepared(layout.pages(), changed, None, old.base, encoded)
    return Prepared(layout.pages(), changed, None, None, layout.encode())


def store_layout(connection: sqlite3.Connection, number: int, space: int, ready: Prepared) -> None:
    """Gives the space of the new generation its manifest."""
    manifest = ready.manifest
    if manifest is None:
        manifest = connection.execute("INSERT INTO manifests (base, layout) VALUES (?, ?)", (ready.base, ready.encoded)).lastrowid
    connection.execute("INSERT INTO spaces VALUES (?, ?, ?, ?, ?)", (number, space, *ready.pages, manifest))


def drop_unused_manifests(connection: sqlite3.Connection) -> None:
    """Differences first, then bases that nobody is based on any more."""
    for _ in range(2):
        connection.execute(
            "DELETE FROM manifests WHERE manifest NOT IN (SELECT manifest FROM spaces) "
            "AND manifest NOT IN (SELECT base FROM manifests WHERE base IS NOT NULL)"
        )


def changes(old: Mapping[int, Layout], new: Mapping[int, Layout]) -> dict[int, Layout]:
    """What `new` changes against `old`, by space; spaces that are the same are left out."""
    found = {space: old.get(space, EMPTY).diff(new.get(space, EMPTY)) for space in sorted(set(old) | set(new))}
    return {space: layout for space, layout in found.items() if len(layout)}


def insert_changes(connection: sqlite3.Connection, number: int, changed: Mapping[int, Layout]) -> None:
    """Rows of page_runs, as `change_rows` has them, made by SQLite of the bare extents: there are thousands in each snapshot."""
    for space, layout in changed.items():
        pointer, count = layout.raw()
        rows = _SIGNED.iter_unpack(bytes(ffi.buffer(pointer, count * _SIGNED.size)))
        connection.executemany(
            f"INSERT INTO page_runs VALUES ({number:d}, {space:d}, ?1, ?3 + ?4, "
            "CASE ?2 WHEN 0 THEN 'zero' WHEN -1 THEN 'absent' ELSE 'data' END, "
            "CASE WHEN ?2 > 0 THEN ?2 >> 16 END, CASE WHEN ?2 > 0 THEN ?2 & 65535 END)",
            rows,
        )


def change_rows(number: int, changed: Mapping[int, Layout]) -> Iterator[tuple[int | str | None, ...]]:
    """Rows of page_runs for these changes."""
    for space, layout in changed.items():
        for page, content, count in layout.extents():
            if content == 0 or content == ABSENT:
                yield (number, space, page, count, "zero" if content == 0 else "absent", None, None)
            else:
                yield (number, space, page, count, "data", content >> 16, content & 0xFFFF)
