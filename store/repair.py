"""fsck --repair: drops what cannot be saved, says so, and builds again what is derived."""

from __future__ import annotations

import sqlite3

from store import index, packs, upkeep
from store._pages import ffi, lib
from store.database import transaction
from store.fsck import OWNED, WITHOUT_WRITER, check
from store.fsck_frames import hashes_of
from store.manifests import changes, insert_changes, load_layouts
from store.records import Problem, Progress

__all__ = ["rebuild"]


def rebuild(connection: sqlite3.Connection, key: bytes, full: bool, progress: Progress | None) -> list[Problem]:
    """Drops generations that cannot be had whole (tagged or not), and builds again what is derived. Every loss is reported."""
    problems = check(connection, key, full, progress)
    if not problems:
        return []
    lost = sorted({problem.generation for problem in problems if problem.generation is not None and problem.invariant in (4, 5, 6, 10)})
    with transaction(connection):
        _drop(connection, lost)
        _rebuild(connection, key)
    left = check(connection, key, full, progress)
    still = {(problem.invariant, problem.message) for problem in left}
    report = [Problem(p.invariant, p.message, p.generation, (p.invariant, p.message) not in still) for p in problems]
    report += [Problem(10, f"generation {number} was dropped: it could not be saved", number, True) for number in lost]
    return report + [
        problem for problem in left if (problem.invariant, problem.message) not in {(p.invariant, p.message) for p in problems}
    ]


def _drop(connection: sqlite3.Connection, lost: list[int]) -> None:
    for number in lost:
        parent = connection.execute("SELECT parent FROM generations WHERE generation = ?", (number,)).fetchone()
        connection.execute("UPDATE generations SET parent = ? WHERE parent = ?", (parent[0] if parent else None, number))
        connection.execute("DELETE FROM tags WHERE generation = ?", (number,))
        for table in upkeep.OF_GENERATION:
            connection.execute(f"DELETE FROM {table} WHERE generation = ?", (number,))


def _rebuild(connection: sqlite3.Connection, key: bytes) -> None:
    """What is derived, from what is not: packs' damaged frames go, then the index and page_runs are written anew."""
    generations = "SELECT generation FROM generations"
    connection.execute(f"UPDATE generations SET parent = NULL WHERE parent >= generation OR parent NOT IN ({generations})")
    for table in OWNED:
        connection.execute(f"DELETE FROM {table} WHERE generation NOT IN ({generations})")
    connection.execute(f"DELETE FROM page_writes AS p WHERE {WITHOUT_WRITER}")
    connection.execute("INSERT OR IGNORE INTO snapshots SELECT generation, x'' FROM generations")
    connection.execute("INSERT OR IGNORE INTO lineages SELECT lineage, command, created_ns, 0, 0, 0 FROM generations")
    connection.execute("DELETE FROM lineages WHERE lineage NOT IN (SELECT lineage FROM generations)")
    upkeep.drop_unused_manifests(connection)
    connection.execute("DELETE FROM pack_data WHERE pack NOT IN (SELECT pack FROM packs)")
    connection.execute("DELETE FROM packs WHERE pack NOT IN (SELECT pack FROM pack_data)")
    _rebuild_packs(connection, key)
    _rebuild_index(connection, key)
    for number, parent in connection.execute("SELECT generation, parent FROM generations").fetchall():
        old = load_layouts(connection, parent) if parent is not None else {}
        connection.execute("DELETE FROM page_runs WHERE generation = ?", (number,))
        insert_changes(connection, number, changes(old, load_layouts(connection, number)))


def _rebuild_packs(connection: sqlite3.Connection, key: bytes) -> None:
    """Packs whose row is not right go; those with damaged frames are written again without them; pack_blocks is what the others say."""
    hurt: list[int] = []
    bad: list[int] = []
    for (number,) in connection.execute("SELECT pack FROM packs ORDER BY pack").fetchall():
        pack, hashes = hashes_of(connection, key, number)
        if hashes is None:
            packs.delete(connection, [number])
            continue
        slots = [block << 16 | slot + k for block, slot, count in packs.CONTENTS.iter_unpack(pack.contents) for k in range(count)]
        broken = [slots[frame] for frame in range(pack.frames) if hashes[frame * 24 + 16 : frame * 24 + 24] == bytes(8)]
        bad += broken
        size = connection.execute("SELECT bytes FROM packs WHERE pack = ?", (number,)).fetchone()[0]
        if broken or size != len(pack.data):
            hurt.append(number)
    connection.execute("DELETE FROM pack_blocks")
    connection.executemany(
        "INSERT OR IGNORE INTO pack_blocks VALUES (?, ?)",
        [
            (block, number)
            for number, contents in connection.execute("SELECT pack, contents FROM packs")
            for block in packs.blocks_of(contents)
        ],
    )
    live = upkeep.live_contents(connection, None)
    for content in bad:
        live.forget(content)
    for number in hurt:
        upkeep.repack(connection, [number], live)


def _rebuild_index(connection: sqlite3.Connection, key: bytes) -> None:
    """From the frames; 24 bytes of memory for each content."""
    data = bytearray()
    for (number,) in connection.execute("SELECT pack FROM packs ORDER BY pack DESC").fetchall():
        pack, hashes = hashes_of(connection, key, number)
        if hashes is not None:
            data += hashes[: pack.frames * index.ENTRY_BYTES]
    count = len(data) // index.ENTRY_BYTES
    kept, last = 0, b""
    if count:
        lib.st_entries_sort(ffi.from_buffer("struct st_entry[]", data), count)
    for at in range(0, count * index.ENTRY_BYTES, index.ENTRY_BYTES):
        entry = data[at : at + index.ENTRY_BYTES]
        if entry[:16] != last and entry[16:] != bytes(8):
            data[kept : kept + index.ENTRY_BYTES] = entry
            kept += index.ENTRY_BYTES
            last = bytes(entry[:16])
    connection.execute("DELETE FROM index_buckets")
    connection.execute("DELETE FROM index_segments")
    if kept:
        index.write_segment(connection, ffi.from_buffer("struct st_entry[]", data), kept // index.ENTRY_BYTES)
