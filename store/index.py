"""The index of contents: sorted segments of (hash, id) in the file, merged when too many of a size have come together.

A lookup first asks the segment's filter; buckets are read only where it says maybe (store/src/index.c). Segments of a size class
are merged eight at a time, so a store of n contents has about log8(n) classes and a write is repeated as often.
"""

from __future__ import annotations

import sqlite3
from typing import Any

from store._pages import ffi, lib
from store.layouts import check

__all__ = ["ENTRY_BYTES", "add_segment", "attach", "load_all", "load_needs", "write_segment"]

ENTRY_BYTES = 24
_BUCKET = 1024  #: entries, about
_FAN = 8
_NO_FILTER = 1024  #: a segment this small is one bucket, and asked directly


def attach(connection: sqlite3.Connection, writer: Any) -> list[int]:
    """Tells the writer of every segment; returns their numbers in its order."""
    segments = []
    for segment, entries, bits, filter_ in connection.execute(
        "SELECT segment, entries, bits, filter FROM index_segments ORDER BY segment DESC"
    ):
        check(lib.st_writer_segment(writer, entries, bits, ffi.from_buffer("uint8_t[]", filter_), len(filter_)), "index")
        segments.append(segment)
    return segments


def load_needs(connection: sqlite3.Connection, writer: Any, segments: list[int]) -> None:
    """Brings in the buckets that the writer asks for."""
    out = ffi.new("uint64_t **")
    count = lib.st_writer_needs(writer, ffi.cast("uint64_t **", out))
    for need in ffi.unpack(out[0], count):
        number, bucket = need >> 32, need & 0xFFFFFFFF
        row = connection.execute(
            "SELECT entries FROM index_buckets WHERE segment = ? AND bucket = ?", (segments[number], bucket)
        ).fetchone()
        data = row[0] if row else b""
        check(lib.st_writer_bucket(writer, number, bucket, ffi.from_buffer("uint8_t[]", data), len(data)), "index")


def add_segment(connection: sqlite3.Connection, writer: Any) -> None:
    """Writes what is new in this session, with every segment that it now makes sense to merge with."""
    count = lib.st_writer_new_count(writer)
    if not count:
        return
    entries = lib.st_writer_close(writer)
    merged = _mergeable(connection, count)
    if merged:
        old = b"".join(load_segment(connection, segment) for segment in merged)
        total = count + len(old) // ENTRY_BYTES
        both = ffi.new("struct st_entry[]", total)
        ffi.memmove(both, entries, count * ENTRY_BYTES)
        ffi.memmove(both + count, old, len(old))
        lib.st_entries_sort(both, total)
        drop_segments(connection, merged)
        entries, count = both, total
    write_segment(connection, entries, count)


def _mergeable(connection: sqlite3.Connection, count: int) -> list[int]:
    """Segments to merge with a new one of `count` entries: where a class has become full, and then the next if that fills it."""
    chosen: list[int] = []
    sizes = connection.execute("SELECT segment, entries FROM index_segments").fetchall()
    while True:
        same = [(segment, entries) for segment, entries in sizes if segment not in chosen and _class(entries) <= _class(count)]
        if len(same) < _FAN - 1:
            return chosen
        chosen += [segment for segment, _ in same]
        count += sum(entries for _, entries in same)


def _class(entries: int) -> int:
    return max(0, (max(entries, 1).bit_length() - 10) // 3)


def load_segment(connection: sqlite3.Connection, segment: int) -> bytes:
    return b"".join(row[0] for row in connection.execute("SELECT entries FROM index_buckets WHERE segment = ? ORDER BY bucket", (segment,)))


def load_all(connection: sqlite3.Connection) -> bytes:
    """Every entry of every segment."""
    return b"".join(load_segment(connection, row[0]) for row in connection.execute("SELECT segment FROM index_segments").fetchall())


def drop_segments(connection: sqlite3.Connection, segments: list[int]) -> None:
    for table in ("index_buckets", "index_segments"):
        connection.executemany(f"DELETE FROM {table} WHERE segment = ?", [(segment,) for segment in segments])


def write_segment(connection: sqlite3.Connection, entries: Any, count: int) -> None:
    """Sorted entries as one segment."""
    bits = max(0, (count // _BUCKET).bit_length() - 1)
    filter_ = b""
    if count > _NO_FILTER:
        size = lib.st_filter_size(count)
        buffer = bytearray(size)
        lib.st_filter_build(entries, count, ffi.from_buffer("uint8_t[]", buffer), size)
        filter_ = bytes(buffer)
    segment = connection.execute("INSERT INTO index_segments (entries, bits, filter) VALUES (?, ?, ?)", (count, bits, filter_)).lastrowid
    starts = ffi.new("uint64_t[]", (1 << bits) + 1)
    lib.st_entries_split(entries, count, bits, starts)
    whole = memoryview(ffi.buffer(entries, count * ENTRY_BYTES))
    connection.executemany(
        "INSERT INTO index_buckets VALUES (?, ?, ?)",
        ((segment, bucket, whole[starts[bucket] * ENTRY_BYTES : starts[bucket + 1] * ENTRY_BYTES]) for bucket in range(1 << bits)),
    )
