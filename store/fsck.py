"""fsck: a check for each invariant of FORMAT.md, and the repair that drops what cannot be saved and says so."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator

from store import index, upkeep
from store._pages import ffi, lib
from store.database import APPLICATION_ID, FORMAT, PAGE_SIZE, transaction
from store.layouts import ABSENT, RUN, Layout
from store.manifests import change_rows, changes, load_layouts
from store.reading import rescue_reader
from store.records import Problem, Progress, StoreError

__all__ = ["check", "repair"]

_OWNED = ("snapshots", "phases", "tags", "processes", "threads", "mappings", "descriptors", "spaces", "page_runs")
_Frames = dict[int, memoryview]  # lengths by pack


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
    frames = _frames(connection)
    layouts, problems = _layouts(connection, frames)
    yield from problems
    yield from _packs(connection)
    yield from _page_runs(connection, layouts)
    bad, hashes = _read_frames(connection, key, frames, progress) if full else ({}, {})
    yield from _damage(layouts, bad)
    yield from _index(connection, frames, hashes if full else None)


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


def _frames(connection: sqlite3.Connection) -> _Frames:
    return {
        pack: memoryview(lengths[: len(lengths) // 2 * 2]).cast("H")
        for pack, lengths in connection.execute("SELECT pack, lengths FROM packs")
    }


def _layouts(connection: sqlite3.Connection, frames: _Frames) -> tuple[dict[int, dict[int, Layout]], list[Problem]]:
    """Layouts of the generations whose manifests are whole."""
    found: dict[int, dict[int, Layout]] = {}
    problems = [
        Problem(4, f"manifest {row[0]} is used by nobody, or its base is not there or has a base")
        for row in connection.execute(
            "SELECT manifest FROM manifests m WHERE (manifest NOT IN (SELECT manifest FROM spaces) "
            "AND manifest NOT IN (SELECT base FROM manifests WHERE base IS NOT NULL)) "
            "OR (base IS NOT NULL AND NOT EXISTS (SELECT 1 FROM manifests b WHERE b.manifest = m.base AND b.base IS NULL))"
        )
    ]
    live = upkeep.Live(sorted((pack, len(lengths)) for pack, lengths in frames.items()))
    for (number,) in connection.execute("SELECT generation FROM generations ORDER BY generation").fetchall():
        try:
            found[number] = load_layouts(connection, number)
        except StoreError as error:
            problems.append(Problem(4, str(error), number))
            continue
        counts = {
            row[0]: row[1:] for row in connection.execute("SELECT space, pages, zero_pages FROM spaces WHERE generation = ?", (number,))
        }
        for space, layout in found[number].items():
            if counts[space] != layout.pages() or any(kind == 3 for _, _, kind in RUN.iter_unpack(layout.runs())):
                problems.append(Problem(5, f"generation {number}, space {space}: page counts are not what its manifest says", number))
            if not live.mark(layout):
                problems += _missing_frames(number, space, layout, frames)
    if any(_bit(bits, slot) for (pack, _), bits in zip(live.packs, live.bits, strict=True) for slot in _dropped(frames[pack])):
        seen = {problem.message for problem in problems}
        for number, spaces in found.items():
            for space, layout in spaces.items():
                problems += [problem for problem in _missing_frames(number, space, layout, frames) if problem.message not in seen]
    return found, problems


def _dropped(lengths: memoryview) -> list[int]:
    return [slot for slot, length in enumerate(lengths) if not length] if 0 in lengths else []


def _bit(bits: bytearray, slot: int) -> bool:
    return bool(bits[slot >> 3] >> (slot & 7) & 1)


def _missing_frames(number: int, space: int, layout: Layout, frames: _Frames) -> Iterator[Problem]:
    """The first page of the layout whose frame is not there."""
    for page, content, count in layout.extents():
        lengths, slot = frames.get(content >> 16), content & 0xFFFF
        if content not in (0, ABSENT) and (lengths is None or slot + count > len(lengths) or 0 in lengths[slot : slot + count]):
            pack = content >> 16
            yield Problem(6, f"generation {number}, space {space}, page {page:#x}: pack {pack} does not have its frame", number)
            return


def _packs(connection: sqlite3.Connection) -> Iterator[Problem]:
    rows = connection.execute(
        "SELECT pack, frames, live, bytes, lengths, length(data) FROM packs LEFT JOIN pack_data USING (pack) "
        "UNION ALL SELECT pack, NULL, NULL, NULL, NULL, length(data) FROM pack_data WHERE pack NOT IN (SELECT pack FROM packs)"
    )
    for pack, frames, live, size, lengths, found in rows:
        if lengths is None or found is None:
            yield Problem(8, f"pack {pack} has no BLOB, or a BLOB no pack")
            continue
        sizes = memoryview(lengths).cast("H") if len(lengths) % 2 == 0 else memoryview(b"")
        if len(sizes) != frames or sum(1 for item in sizes if item) != live or size != found or any(item > 4096 for item in sizes):
            yield Problem(8, f"pack {pack}: frames, live or bytes are not what it holds")


def _page_runs(connection: sqlite3.Connection, layouts: dict[int, dict[int, Layout]]) -> Iterator[Problem]:
    for number, parent in connection.execute("SELECT generation, parent FROM generations ORDER BY generation").fetchall():
        if number not in layouts or (parent is not None and parent not in layouts):
            continue
        wanted = list(change_rows(number, changes(layouts.get(parent, {}), layouts[number])))
        if connection.execute("SELECT * FROM page_runs WHERE generation = ? ORDER BY space, start", (number,)).fetchall() != wanted:
            yield Problem(9, f"page_runs of generation {number} are not what it changed against its parent", number)


def _read_frames(
    connection: sqlite3.Connection, key: bytes, frames: _Frames, progress: Progress | None
) -> tuple[dict[int, set[int]], dict[int, bytes]]:
    """Bad slots by pack, and the hash of every good frame by id."""
    bad: dict[int, set[int]] = {}
    hashes: dict[int, bytes] = {}
    page, hash_ = ffi.new("uint8_t[4096]"), ffi.new("uint8_t[16]")
    for done, (pack, lengths) in enumerate(sorted(frames.items())):
        try:
            row = connection.execute("SELECT data FROM pack_data WHERE pack = ?", (pack,)).fetchone()
        except sqlite3.DatabaseError:
            row = None
        data = row[0] if row else b""
        reader = rescue_reader(key, pack, lengths)
        blob = ffi.from_buffer("uint8_t[]", data)
        for slot, length in enumerate(lengths):
            if not length:
                continue
            content = pack << 16 | slot
            if not data or lib.st_frame_page(reader, blob, len(data), content, page, hash_) < 0:
                bad.setdefault(pack, set()).add(slot)
            else:
                hashes[content] = bytes(hash_)
        if progress:
            progress("frames", done + 1, len(frames))
    return bad, hashes


def _damage(layouts: dict[int, dict[int, Layout]], bad: dict[int, set[int]]) -> Iterator[Problem]:
    """Each damaged generation with the first of its pages; then which ones are whole."""
    if not bad:
        return
    hit: list[int] = []
    for number, spaces in layouts.items():
        pages = [(space, page) for space, layout in spaces.items() for page in _bad_pages(layout, bad)]
        if pages:
            hit.append(number)
            yield Problem(10, f"generation {number} lost {len(pages)} pages, the first: space {pages[0][0]}, page {pages[0][1]:#x}", number)
    whole = ", ".join(str(number) for number in layouts if number not in hit) or "none"
    for pack, slots in bad.items():
        yield Problem(10, f"pack {pack}: {len(slots)} frames are damaged; generations that are whole: {whole}")


def _bad_pages(layout: Layout, bad: dict[int, set[int]]) -> Iterator[int]:
    for page, content, count in layout.extents():
        for slot in bad.get(content >> 16, ()):
            if content not in (0, ABSENT) and 0 <= slot - (content & 0xFFFF) < count:
                yield page + slot - (content & 0xFFFF)


def _index(connection: sqlite3.Connection, frames: _Frames, hashes: dict[int, bytes] | None) -> Iterator[Problem]:
    seen: set[bytes] = set()
    for segment, entries, bits in connection.execute("SELECT segment, entries, bits FROM index_segments").fetchall():
        found, last, wrong = 0, b"", 0
        for bucket, data in connection.execute("SELECT bucket, entries FROM index_buckets WHERE segment = ? ORDER BY bucket", (segment,)):
            for at in range(0, len(data) - index.ENTRY_BYTES + 1, index.ENTRY_BYTES):
                hash_, content = data[at : at + 16], int.from_bytes(data[at + 16 : at + 24], "little")
                lengths, slot = frames.get(content >> 16), content & 0xFFFF
                there = lengths is not None and slot < len(lengths) and lengths[slot] > 0
                placed = hash_ > last and (int.from_bytes(hash_[:8], "big") >> (64 - bits) if bits else 0) == bucket
                agrees = hashes is None or hashes.get(content, hash_) == hash_
                wrong += not (there and placed and agrees and hash_ not in seen)
                seen.add(hash_)
                last = hash_
                found += 1
        if wrong or found != entries:
            yield Problem(7, f"index segment {segment}: {wrong} wrong entries, {found} of {entries} there")


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
    connection.execute("INSERT OR IGNORE INTO lineages SELECT lineage, command, created_ns FROM generations")
    connection.execute("DELETE FROM lineages WHERE lineage NOT IN (SELECT lineage FROM generations)")
    upkeep.drop_unused_manifests(connection)
    connection.execute("DELETE FROM pack_data WHERE pack NOT IN (SELECT pack FROM packs)")
    connection.execute("DELETE FROM packs WHERE pack NOT IN (SELECT pack FROM pack_data)")
    bad, hashes = _read_frames(connection, key, _frames(connection), None)
    live = upkeep.live_frames(connection, None)
    for (pack, frames), bits in zip(live.packs, live.bits, strict=True):
        if pack in bad:
            for slot in bad[pack]:
                bits[slot >> 3] &= ~(1 << (slot & 7))
            alive = sum(1 for slot in range(frames) if bits[slot >> 3] >> (slot & 7) & 1)
            upkeep.rewrite(connection, pack, bits, alive)
            hashes = {
                content: hash_
                for content, hash_ in hashes.items()
                if content >> 16 != pack or bits[(content & 0xFFFF) >> 3] >> (content & 7) & 1
            }
    _rebuild_index(connection, hashes)
    for number, parent in connection.execute("SELECT generation, parent FROM generations").fetchall():
        old = load_layouts(connection, parent) if parent is not None else {}
        connection.execute("DELETE FROM page_runs WHERE generation = ?", (number,))
        rows = change_rows(number, changes(old, load_layouts(connection, number)))
        connection.executemany("INSERT INTO page_runs VALUES (?, ?, ?, ?, ?, ?, ?)", rows)


def _rebuild_index(connection: sqlite3.Connection, hashes: dict[int, bytes]) -> None:
    one = {hash_: content for content, hash_ in sorted(hashes.items(), reverse=True)}
    data = b"".join(hash_ + content.to_bytes(8, "little") for hash_, content in sorted(one.items()))
    connection.execute("DELETE FROM index_buckets")
    connection.execute("DELETE FROM index_segments")
    if data:
        index.write_segment(connection, ffi.from_buffer("struct st_entry[]", data), len(one))
