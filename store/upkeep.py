"""Removing generations and giving back what nobody needs any more.

Order of gc, so that a kill at any point harms nothing: first the index forgets what is not alive; then packs go or are
rewritten, a few in a transaction; then the file shrinks.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

from store import index
from store._pages import ffi, lib
from store.database import PAGE_SIZE, transaction
from store.layouts import Layout, check
from store.manifests import change_rows, changes, drop_unused_manifests, load_layouts
from store.records import GcResult, Progress, StoreError

__all__ = ["OF_GENERATION", "Live", "collect", "drop_unused_manifests", "live_frames", "remove", "rewrite"]

OF_GENERATION = ("page_runs", "spaces", "processes", "threads", "mappings", "descriptors", "phases", "snapshots", "generations")
_REWRITE_DEAD = 0.25  #: of a pack's bytes: what makes rewriting worth it
_BATCH = 8


def remove(connection: sqlite3.Connection, number: int) -> None:
    """Within the caller's transaction."""
    found = connection.execute("SELECT parent FROM generations WHERE generation = ?", (number,)).fetchone()
    if not found:
        raise StoreError("no-generation", f"no generation {number}")
    if tags := [row[0] for row in connection.execute("SELECT tag FROM tags WHERE generation = ? ORDER BY tag", (number,))]:
        raise StoreError("tagged", f"generation {number} is tagged {', '.join(tags)}: it stays until the tag is gone")
    parent = found[0]
    children = [row[0] for row in connection.execute("SELECT generation FROM generations WHERE parent = ?", (number,))]
    old: dict[int, Layout] = load_layouts(connection, parent) if parent is not None and children else {}
    connection.execute("UPDATE generations SET parent = ? WHERE parent = ?", (parent, number))
    for child in children:
        connection.execute("DELETE FROM page_runs WHERE generation = ?", (child,))
        connection.executemany(
            "INSERT INTO page_runs VALUES (?, ?, ?, ?, ?, ?, ?)", change_rows(child, changes(old, load_layouts(connection, child)))
        )
    for table in OF_GENERATION:
        connection.execute(f"DELETE FROM {table} WHERE generation = ?", (number,))
    connection.execute("DELETE FROM lineages WHERE lineage NOT IN (SELECT lineage FROM generations)")
    drop_unused_manifests(connection)


class Live:
    """Which frames of which packs some generation names."""

    def __init__(self, packs: list[tuple[int, int]]) -> None:
        self.packs = packs
        self.bits = [bytearray((frames + 7) // 8) for _, frames in packs]
        self._lent = [ffi.from_buffer("uint8_t[]", bits) for bits in self.bits]
        self.numbers = ffi.new("uint32_t[]", [pack for pack, _ in packs])
        self.pointers = ffi.new("uint8_t *[]", self._lent)
        self._frames = ffi.new("uint32_t[]", [frames for _, frames in packs])

    def mark(self, layout: Layout) -> bool:
        """False where the layout names a frame that no pack has."""
        return bool(lib.st_map_mark(layout.pointer, self.numbers, self.pointers, self._frames, len(self.packs)) == 0)


def live_frames(connection: sqlite3.Connection, progress: Progress | None) -> Live:
    live = Live(connection.execute("SELECT pack, frames FROM packs ORDER BY pack").fetchall())
    numbers = [row[0] for row in connection.execute("SELECT generation FROM generations ORDER BY generation")]
    for done, number in enumerate(numbers):
        for space, layout in load_layouts(connection, number).items():
            if not live.mark(layout):
                raise StoreError("damaged", f"generation {number}, space {space} names a frame that is not there: run fsck")
        if progress:
            progress("marking", done + 1, len(numbers))
    return live


def collect(connection: sqlite3.Connection, path: str, progress: Progress | None) -> GcResult:
    before = Path(path).stat().st_size
    live = live_frames(connection, progress)
    with transaction(connection):
        drop_unused_manifests(connection)
    work: list[tuple[int, int, bytearray, int]] = []
    for (pack, frames), bits in zip(live.packs, live.bits, strict=True):
        lengths = memoryview(connection.execute("SELECT lengths FROM packs WHERE pack = ?", (pack,)).fetchone()[0]).cast("H")
        alive = int.from_bytes(bits, "little").bit_count()
        total = sum(length + 16 for length in lengths if length)
        dead = sum(length + 16 for slot, length in enumerate(lengths) if length and not bits[slot >> 3] >> (slot & 7) & 1)
        if not alive or dead >= _REWRITE_DEAD * total:
            work.append((pack, frames, bits, alive))
    if work:
        _shrink_index(connection, live)
    dropped = 0
    for start in range(0, len(work), _BATCH):
        with transaction(connection):
            for pack, _, bits, alive in work[start : start + _BATCH]:
                dropped += rewrite(connection, pack, bits, alive)
        if progress:
            progress("packs", min(start + _BATCH, len(work)), len(work))
    _give_back(connection, progress)
    removed = sum(1 for item in work if not item[3])
    return GcResult(removed, len(work) - removed, dropped, max(0, before - Path(path).stat().st_size))


def _shrink_index(connection: sqlite3.Connection, live: Live) -> None:
    data = bytearray(index.load_all(connection))
    if not data:
        return
    entries = ffi.from_buffer("struct st_entry[]", data)
    count = len(data) // index.ENTRY_BYTES
    kept = lib.st_entries_keep(entries, count, live.numbers, ffi.cast("uint8_t **", live.pointers), len(live.packs))
    if kept == count:
        return
    lib.st_entries_sort(entries, kept)
    with transaction(connection):
        connection.execute("DELETE FROM index_buckets")
        connection.execute("DELETE FROM index_segments")
        if kept:
            index.write_segment(connection, entries, kept)


def rewrite(connection: sqlite3.Connection, pack: int, bits: bytearray, alive: int) -> int:
    """Drops the dead frames of a pack; returns how many. Numbers and slots of the others stay."""
    lengths, data, had = connection.execute(
        "SELECT lengths, data, frames FROM packs JOIN pack_data USING (pack) WHERE pack = ?", (pack,)
    ).fetchone()
    present = sum(1 for length in memoryview(lengths).cast("H") if length)
    if not alive:
        connection.execute("DELETE FROM pack_data WHERE pack = ?", (pack,))
        connection.execute("DELETE FROM packs WHERE pack = ?", (pack,))
        return present
    fresh = bytearray(len(lengths))
    blob, size = ffi.new("uint8_t **"), ffi.new("size_t *")
    result = lib.st_pack_rewrite(
        PAGE_SIZE, ffi.from_buffer("uint8_t[]", data), len(data), ffi.from_buffer("uint16_t[]", lengths), had,
        ffi.from_buffer("uint8_t[]", bits), ffi.from_buffer("uint16_t[]", fresh), blob, size,
    )  # fmt: skip
    check(result, f"pack {pack}")
    try:
        content: Any = ffi.buffer(blob[0], size[0])
        connection.execute("UPDATE packs SET live = ?, bytes = ?, lengths = ? WHERE pack = ?", (alive, size[0], bytes(fresh), pack))
        connection.execute("UPDATE pack_data SET data = ? WHERE pack = ?", (content, pack))
    finally:
        lib.st_free(blob[0])
    return present - alive


def _give_back(connection: sqlite3.Connection, progress: Progress | None) -> None:
    """Moves the file's last pages into its holes, a few at a time, and cuts the end off."""
    total = free = connection.execute("PRAGMA freelist_count").fetchone()[0]
    while free:
        connection.execute("PRAGMA incremental_vacuum(512)").fetchall()
        left = connection.execute("PRAGMA freelist_count").fetchone()[0]
        if progress:
            progress("giving back", total - left, total)
        if left >= free:
            break
        free = left
