"""Layouts in the file: manifests, and the rows of what each generation changed.

A manifest is a layout, or the difference from one other manifest, its base, which has none itself: so a generation is read from
one or two BLOBs however long its history is. A new base is written when the differences from the old one have together grown
as large as a base: that keeps the sum near its least.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping

from store.layouts import ABSENT, EMPTY, Layout
from store.records import StoreError

__all__ = ["change_rows", "drop_unused_manifests", "load_layout", "load_layouts", "store_layout"]

_LAYOUT = (
    "SELECT s.space, m.layout, b.layout FROM spaces s LEFT JOIN manifests m ON m.manifest = s.manifest "
    "LEFT JOIN manifests b ON b.manifest = m.base WHERE s.generation = ?"
)


def _decode(number: int, space: int, layout: bytes | None, base: bytes | None) -> Layout:
    try:
        if layout is None:
            raise StoreError("damaged", "manifest is missing")
        decoded = Layout.decode(layout)
        return Layout.decode(base).overlay(decoded) if base is not None else decoded
    except StoreError as error:
        raise StoreError("damaged", f"generation {number}, space {space}: its manifest is damaged ({error})") from None


def load_layouts(connection: sqlite3.Connection, number: int) -> dict[int, Layout]:
    """The layout of every space of the generation."""
    return {space: _decode(number, space, layout, base) for space, layout, base in connection.execute(_LAYOUT, (number,))}


def load_layout(connection: sqlite3.Connection, number: int, space: int) -> Layout:
    """Raises StoreError no-generation where there is none; a space that the generation does not have is empty."""
    row = connection.execute(f"{_LAYOUT} AND s.space = ?", (number, space)).fetchone()
    if row is not None:
        return _decode(number, *row)
    if not connection.execute("SELECT 1 FROM generations WHERE generation = ?", (number,)).fetchone():
        raise StoreError("no-generation", f"no generation {number}")
    return EMPTY


def store_layout(connection: sqlite3.Connection, number: int, space: int, layout: Layout, parent: int | None, old: Layout | None) -> None:
    """Gives the space of the new generation its manifest: the parent's where nothing changed, a difference, or a base."""
    manifest = None
    row = connection.execute("SELECT manifest FROM spaces WHERE generation = ? AND space = ?", (parent, space)).fetchone()
    if old is not None and row is not None:
        manifest = row[0] if not len(old.diff(layout)) else _store_difference(connection, row[0], layout)
    if manifest is None:
        manifest = connection.execute("INSERT INTO manifests (base, layout) VALUES (NULL, ?)", (layout.encode(),)).lastrowid
    connection.execute("INSERT INTO spaces VALUES (?, ?, ?, ?, ?)", (number, space, *layout.pages(), manifest))


def _store_difference(connection: sqlite3.Connection, manifest: int, layout: Layout) -> int | None:
    base, data = connection.execute(
        "SELECT b.manifest, b.layout FROM manifests m JOIN manifests b ON b.manifest = coalesce(m.base, m.manifest) WHERE m.manifest = ?",
        (manifest,),
    ).fetchone()
    encoded = Layout.decode(data).diff(layout).encode()
    spent = connection.execute("SELECT coalesce(sum(length(layout)), 0) FROM manifests WHERE base = ?", (base,)).fetchone()[0]
    if spent + len(encoded) > max(len(data), 4096):
        return None
    return connection.execute("INSERT INTO manifests (base, layout) VALUES (?, ?)", (base, encoded)).lastrowid


def drop_unused_manifests(connection: sqlite3.Connection) -> None:
    """Differences first, then bases that nobody is based on any more."""
    for _ in range(2):
        connection.execute(
            "DELETE FROM manifests WHERE manifest NOT IN (SELECT manifest FROM spaces) "
            "AND manifest NOT IN (SELECT base FROM manifests WHERE base IS NOT NULL)"
        )


def change_rows(number: int, old: Mapping[int, Layout], new: Mapping[int, Layout]) -> Iterator[tuple[int | str | None, ...]]:
    """Rows of page_runs: what `new` changes against `old`, space by space."""
    for space in sorted(set(old) | set(new)):
        changes = old[space].diff(new.get(space, EMPTY)) if space in old else new[space]
        for page, content, count in changes.extents():
            if content == 0 or content == ABSENT:
                yield (number, space, page, count, "zero" if content == 0 else "absent", None, None)
            else:
                yield (number, space, page, count, "data", content >> 16, content & 0xFFFF)
