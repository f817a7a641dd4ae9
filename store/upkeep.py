"""Removing generations and giving back what nobody needs any more.

Order of gc, so that a kill at any point harms nothing: first the index forgets what is not alive; then packs go or are
rewritten, a few in a transaction; then the file shrinks.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path

from store import index, packs
from store._pages import ffi, lib
from store.database import transaction
from store.layouts import Layout
from store.manifests import changes, drop_unused_manifests, insert_changes, load_layouts
from store.records import GcResult, Progress, StoreError

__all__ = ["OF_GENERATION", "collect", "drop_unused_manifests", "live_contents", "remove", "repack"]

OF_GENERATION = (
    *("page_runs", "spaces", "processes", "threads", "mappings", "descriptors", "page_writes", "writers", "phases", "snapshots"),
    "generations",
)
_REWRITE_DEAD = 0.25  #: of a pack's bytes: what makes rewriting worth it
_BATCH = 8
_CHECK = 16  #: bytes of a frame before its page's


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
        insert_changes(connection, child, changes(old, load_layouts(connection, child)))
        _hand_down_writes(connection, number, child)
    for table in OF_GENERATION:
        connection.execute(f"DELETE FROM {table} WHERE generation = ?", (number,))
    connection.execute("DELETE FROM lineages WHERE lineage NOT IN (SELECT lineage FROM generations)")
    drop_unused_manifests(connection)


def _hand_down_writes(connection: sqlite3.Connection, number: int, child: int) -> None:
    """The child's interval takes in that of its parent, which goes: who wrote in both is who wrote later."""
    after = connection.execute("SELECT coalesce(max(writer) + 1, 0) FROM writers WHERE generation = ?", (child,)).fetchone()[0]
    moved = connection.execute(
        "INSERT OR IGNORE INTO page_writes SELECT ?, space, page, written_ns, pid, tid, writer + ? FROM page_writes WHERE generation = ?",
        (child, after, number),
    ).rowcount
    if moved > 0:
        connection.execute(
            "INSERT INTO writers SELECT ?, writer + ?, ip, file, symbol, offset, call FROM writers WHERE generation = ?",
            (child, after, number),
        )


def live_contents(connection: sqlite3.Connection, progress: Progress | None) -> packs.Live:
    """Which contents some generation names."""
    live = packs.Live([row[0] for row in connection.execute("SELECT DISTINCT block FROM pack_blocks ORDER BY block")])
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
    live = live_contents(connection, progress)
    with transaction(connection):
        drop_unused_manifests(connection)
    work: list[tuple[int, int, int]] = []
    there = 0
    for number, frames, contents, lengths in connection.execute("SELECT pack, frames, contents, lengths FROM packs ORDER BY pack"):
        alive, alive_bytes = live.of(packs.Pack(number, frames, contents, lengths))
        total = sum(memoryview(lengths).cast("H")) + _CHECK * frames
        there += alive
        if not alive or total - alive_bytes >= _REWRITE_DEAD * total:
            work.append((number, frames, alive))
    if there != live.marked():
        raise StoreError("damaged", "a generation names a frame that is not there: run fsck")
    if work:
        _shrink_index(connection, live)
    for start in range(0, len(work), _BATCH):
        with transaction(connection):
            repack(connection, [item[0] for item in work[start : start + _BATCH]], live)
        if progress:
            progress("packs", min(start + _BATCH, len(work)), len(work))
    _give_back(connection, progress)
    for mode in ("DELETE", "PERSIST"):  # the journal goes: it has what pages held before
        connection.execute(f"PRAGMA journal_mode={mode}").fetchone()
    removed = sum(1 for item in work if not item[2])
    dropped = sum(frames - alive for _, frames, alive in work)
    return GcResult(removed, len(work) - removed, dropped, max(0, before - Path(path).stat().st_size))


def _shrink_index(connection: sqlite3.Connection, live: packs.Live) -> None:
    data = bytearray(index.load_all(connection))
    if not data:
        return
    entries = ffi.from_buffer("struct st_entry[]", data)
    count = len(data) // index.ENTRY_BYTES
    kept = lib.st_entries_keep(entries, count, live.numbers, ffi.cast("uint8_t **", live.pointers), live.count)
    if kept == count:
        return
    lib.st_entries_sort(entries, kept)
    with transaction(connection):
        connection.execute("DELETE FROM index_buckets")
        connection.execute("DELETE FROM index_segments")
        if kept:
            index.write_segment(connection, entries, kept)


def repack(connection: sqlite3.Connection, numbers: list[int], live: packs.Live) -> None:
    """Puts the live frames of these packs together into new ones; the others are gone."""
    packer = packs.Packer(connection, packs.FRAMES_MAX)
    for number in numbers:
        pack = packs.load(connection, number, data=True)
        if pack is not None:
            packer.take(pack, live, True)
    packer.flush()
    packs.delete(connection, numbers)  # last: pages that the same transaction freed and used again would go through the journal


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
