"""What fsck learns from every frame and every entry of the index (invariants 7 and 10 of FORMAT.md)."""

from __future__ import annotations

import heapq
import sqlite3
import sys
from array import array
from collections.abc import Iterator

from store import index, packs
from store._pages import ffi, lib
from store.reading import rescue_reader
from store.records import Problem, Progress

__all__ = ["Contents", "check_index", "hashes_of", "read_frames"]

Contents = dict[int, int]  #: by block: a bit for each slot that some pack holds


def read_frames(connection: sqlite3.Connection, key: bytes, progress: Progress | None) -> tuple[dict[int, array[int]], dict[int, set[int]]]:
    """By block: 4 bytes of the hash of every content (so millions of them fit; 0 where it is bad), and the slots that are bad."""
    prints: dict[int, array[int]] = {}
    bad: dict[int, set[int]] = {}
    numbers = [row[0] for row in connection.execute("SELECT pack FROM packs ORDER BY pack")]
    for done, number in enumerate(numbers):
        pack, hashes = hashes_of(connection, key, number)
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


def hashes_of(connection: sqlite3.Connection, key: bytes, number: int) -> tuple[packs.Pack, memoryview | None]:
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


def check_index(connection: sqlite3.Connection, there: Contents, prints: dict[int, array[int]]) -> Iterator[Problem]:
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
    connection: sqlite3.Connection, segment: int, bits: int, there: Contents, prints: dict[int, array[int]], wrong: dict[int, int]
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
