"""fsck: a check for each invariant of FORMAT.md, and the repair that drops what cannot be saved and says so."""

from __future__ import annotations

import heapq
import sqlite3
import sys
from array import array
from collections.abc import Iterator
from itertools import zip_longest

from store import index, packs, upkeep
from store._pages import ffi, lib
from store.database import APPLICATION_ID, FORMAT, PAGE_SIZE, transaction
from store.layouts import ABSENT, RUN, Layout
from store.manifests import change_rows, changes, insert_changes, load_layouts
from store.reading import rescue_reader
from store.records import Problem, Progress, StoreError

__all__ = ["check", "repair"]

_OWNED = ("snapshots", "phases", "tags", "processes", "threads", "mappings", "descriptors", "spaces", "page_runs")
_Contents = dict[int, int]  # by block: a bit for each slot that some pack holds
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
    there: _Contents = {}
    yield from _packs(connection, there)
    layouts = _Layouts(connection)
    yield from _manifests(connection, layouts, there)
    prints, bad = _read_frames(connection, key, progress) if full else ({}, {})
    yield from _damage(layouts, bad)
    yield from _index(connection, there, prints)


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
    for table in _OWNED:
        for (number,) in connection.execute(
            f"SELECT DISTINCT generation FROM {table} WHERE generation NOT IN (SELECT generation FROM generations)"
        ):
            yield Problem(3, f"table {table} has rows of generation {number}, which is not there", number)
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


def _packs(connection: sqlite3.Connection, there: _Contents) -> Iterator[Problem]:
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


def _manifests(connection: sqlite3.Connection, layouts: _Layouts, there: _Contents) -> Iterator[Problem]:
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


def _missing_frames(number: int, spaces: dict[int, Layout], there: _Contents) -> Iterator[Problem]:
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


def _read_frames(
    connection: sqlite3.Connection, key: bytes, progress: Progress | None
) -> tuple[dict[int, array[int]], dict[int, set[int]]]:
    """By block: 4 bytes of the hash of every content (so millions of them fit; 0 where it is bad), and the slots that are bad."""
    prints: dict[int, array[int]] = {}
    bad: dict[int, set[int]] = {}
    numbers = [row[0] for row in connection.execute("SELECT pack FROM packs ORDER BY pack")]
    for done, number in enumerate(numbers):
        pack, hashes = _hashes(connection, key, number)
        at = 0
        if hashes is None:
            continue
        for block, slot, count in packs.CONTENTS.iter_unpack(pack.contents):
            its = prints.setdefault(block, array("I"))
            its.extend([0] * (slot + count - len(its)))
            for frame in range(count):
                start = (at + frame) * index.ENTRY_BYTES
                if hashes[start + 16 : start + 24] == bytes(8):
                    bad.setdefault(block, set()).add(slot + frame)
                else:
                    its[slot + frame] = int.from_bytes(hashes[start : start + 4], sys.byteorder)
            at += count
        if progress:
            progress("frames", done + 1, len(numbers))
    return prints, bad


def _hashes(connection: sqlite3.Connection, key: bytes, number: int) -> tuple[packs.Pack, memoryview | None]:
    """The pack, and a struct st_entry for each of its frames, id 0 where it is damaged; None where nothing can be said."""
    try:
        pack = packs.load(connection, number, data=True) or packs.Pack(number, 0, b"", b"")
    except sqlite3.DatabaseError:
        pack = packs.load(connection, number) or packs.Pack(number, 0, b"", b"")
    reader = rescue_reader(key, pack)
    if reader is None:
        return pack, None
    entries = ffi.new("struct st_entry[]", max(pack.frames, 1))
    if pack.data:
        lib.st_check_frames(reader, ffi.from_buffer("uint8_t[]", pack.data), len(pack.data), entries)
    return pack, memoryview(ffi.buffer(entries))


def _damage(layouts: _Layouts, bad: dict[int, set[int]]) -> Iterator[Problem]:
    """Each damaged generation with the first of its pages; then which ones are whole."""
    if not bad:
        return
    hit: list[int] = []
    for number in layouts.whole:
        pages = [(space, page) for space, layout in layouts.get(number).items() for page in _bad_pages(layout, bad)]
        if pages:
            hit.append(number)
            yield Problem(10, f"generation {number} lost {len(pages)} pages, the first: space {pages[0][0]}, page {pages[0][1]:#x}", number)
    whole = ", ".join(str(number) for number in layouts.whole if number not in hit) or "none"
    for block, slots in bad.items():
        yield Problem(10, f"block {block}: {len(slots)} contents are damaged; generations that are whole: {whole}")


def _bad_pages(layout: Layout, bad: dict[int, set[int]]) -> Iterator[int]:
    for page, content, count in layout.extents():
        for slot in bad.get(content >> 16, ()):
            if content not in (0, ABSENT) and 0 <= slot - (content & 0xFFFF) < count:
                yield page + slot - (content & 0xFFFF)


def _index(connection: sqlite3.Connection, there: _Contents, prints: dict[int, array[int]]) -> Iterator[Problem]:
    segments = connection.execute("SELECT segment, entries, bits FROM index_segments").fetchall()
    wrong: dict[int, int] = {}
    found: dict[int, int] = {}
    last = b""
    for hash_, segment in heapq.merge(*(_entries(connection, segment, bits, there, prints, wrong) for segment, _, bits in segments)):
        found[segment] = found.get(segment, 0) + 1
        wrong[segment] = wrong.get(segment, 0) + (hash_ == last)
        last = hash_
    for segment, entries, _ in segments:
        if wrong.get(segment) or found.get(segment, 0) != entries:
            yield Problem(7, f"index segment {segment}: {wrong.get(segment, 0)} wrong entries, {found.get(segment, 0)} of {entries} there")


def _entries(
    connection: sqlite3.Connection, segment: int, bits: int, there: _Contents, prints: dict[int, array[int]], wrong: dict[int, int]
) -> Iterator[tuple[bytes, int]]:
    """The segment's hashes; counts in `wrong` what stands at the wrong place or names a content that is not there or another."""
    last = b""
    for bucket, data in connection.execute("SELECT bucket, entries FROM index_buckets WHERE segment = ? ORDER BY bucket", (segment,)):
        for at in range(0, len(data) - index.ENTRY_BYTES + 1, index.ENTRY_BYTES):
            hash_, content = data[at : at + 16], int.from_bytes(data[at + 16 : at + 24], "little")
            block, slot = content >> 16, content & 0xFFFF
            placed = hash_ > last and (int.from_bytes(hash_[:8], "big") >> (64 - bits) if bits else 0) == bucket
            its = prints.get(block)
            agrees = its is None or slot >= len(its) or not its[slot] or its[slot] == int.from_bytes(hash_[:4], sys.byteorder)
            if not (placed and there.get(block, 0) >> slot & 1 and agrees):
                wrong[segment] = wrong.get(segment, 0) + 1
            last = hash_
            yield hash_, segment


def repair(connection: sqlite3.Connection, key: bytes, full: bool, progress: Progress | None) -> list[Problem]:
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
    for table in _OWNED:
        connection.execute(f"DELETE FROM {table} WHERE generation NOT IN ({generations})")
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
        pack, hashes = _hashes(connection, key, number)
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
        pack, hashes = _hashes(connection, key, number)
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
