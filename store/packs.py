"""Packs in the file: which contents each holds, and its frames. Where a content lies is said here and nowhere else."""

from __future__ import annotations

import sqlite3
import struct
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from store._pages import ffi, lib
from store.database import PAGE_SIZE
from store.layouts import check

__all__ = [
    "CONTENTS",
    "FRAMES_MAX",
    "Live",
    "Pack",
    "Packer",
    "blocks_of",
    "delete",
    "insert",
    "load",
    "next_number",
    "of_blocks",
    "written_early",
]

CONTENTS = struct.Struct("<IHH")  #: struct st_contents: block, slot, count
FRAMES_MAX = 2048
_MANY = 512  #: blocks: asked for one by one below it
_BITS = 256  #: bytes: one bit for each slot of a block


@dataclass(frozen=True, slots=True)
class Pack:
    """A row of `packs`, and its BLOB where that was asked for."""

    number: int
    frames: int
    contents: bytes
    lengths: bytes
    data: Any = b""  #: bytes, or a buffer lent from
    owner: Any = None  #: this

    def whole(self) -> bool:
        """The row's parts fit each other."""
        runs = len(self.contents) % CONTENTS.size == 0 and sum(run[2] for run in CONTENTS.iter_unpack(self.contents)) == self.frames
        return runs and len(self.lengths) == 2 * self.frames


def blocks_of(contents: bytes) -> list[int]:
    return sorted({block for block, _, _ in CONTENTS.iter_unpack(contents[: len(contents) // CONTENTS.size * CONTENTS.size])})


def next_number(connection: sqlite3.Connection) -> int:
    """The number of the next pack, which is also that of the block of contents that it brings."""
    last = connection.execute("SELECT seq FROM sqlite_sequence WHERE name = 'packs'").fetchone()
    return (last[0] if last else 0) + 1


def insert(connection: sqlite3.Connection, packs: Sequence[Pack]) -> None:
    connection.executemany(
        "INSERT INTO packs VALUES (?, ?, ?, ?, ?)", [(p.number, p.frames, len(p.data), p.contents, p.lengths) for p in packs]
    )
    connection.executemany("INSERT INTO pack_blocks VALUES (?, ?)", [(block, p.number) for p in packs for block in blocks_of(p.contents)])
    # Into the BLOB's pages at once: bound as a parameter, each would be copied once more, into fresh memory.
    for p in packs:
        connection.execute("INSERT INTO pack_data VALUES (?, zeroblob(?))", (p.number, len(p.data)))
        with connection.blobopen("pack_data", "data", p.number) as blob:
            blob.write(p.data)


@contextmanager
def written_early(descriptor: int) -> Iterator[None]:
    """Around a large transaction: the disk works while it is being written (store/src/flush.c). `descriptor`: of the file."""
    out = ffi.new("st_flusher **")
    lib.st_flusher_start(descriptor, out)  # where no thread can be had, none is needed
    try:
        yield
    finally:
        lib.st_flusher_stop(out[0])


def delete(connection: sqlite3.Connection, numbers: Iterable[int]) -> None:
    for number in numbers:
        row = connection.execute("SELECT contents FROM packs WHERE pack = ?", (number,)).fetchone()
        if row:
            connection.executemany("DELETE FROM pack_blocks WHERE block = ? AND pack = ?", [(block, number) for block in blocks_of(row[0])])
        connection.execute("DELETE FROM packs WHERE pack = ?", (number,))
        connection.execute("DELETE FROM pack_data WHERE pack = ?", (number,))


def load(connection: sqlite3.Connection, number: int, data: bool = False) -> Pack | None:
    row = connection.execute("SELECT pack, frames, contents, lengths FROM packs WHERE pack = ?", (number,)).fetchone()
    if row is None:
        return None
    blob = connection.execute("SELECT data FROM pack_data WHERE pack = ?", (number,)).fetchone() if data else None
    return Pack(row[0], row[1], row[2], row[3], blob[0] if blob else b"")


def of_blocks(connection: sqlite3.Connection, blocks: Sequence[int]) -> list[int]:
    """Sorted numbers of the packs that hold contents of these blocks."""
    found: set[int] = set()
    if len(blocks) > _MANY:
        wanted = set(blocks)
        rows = connection.execute("SELECT block, pack FROM pack_blocks WHERE block BETWEEN ? AND ?", (blocks[0], blocks[-1]))
        return sorted({pack for block, pack in rows if block in wanted})
    for block in blocks:
        found.update(row[0] for row in connection.execute("SELECT pack FROM pack_blocks WHERE block = ?", (block,)))
    return sorted(found)


class Live:
    """A set of contents of these sorted blocks: those that the layouts name with which it was marked."""

    def __init__(self, blocks: Sequence[int]) -> None:
        self.blocks = list(blocks)
        self._bits = ffi.new("uint8_t[]", max(len(self.blocks), 1) * _BITS)
        self.count = len(self.blocks)
        self.numbers = ffi.new("uint32_t[]", self.blocks or [0])
        self.pointers = ffi.new("uint8_t *[]", [self._bits + at * _BITS for at in range(max(self.count, 1))])

    def mark(self, layout: Any) -> bool:
        """False where the layout names a block that is not among these."""
        return bool(lib.st_map_mark(layout.pointer, self.numbers, self.pointers, self.count) == 0)

    def marked(self) -> int:
        """How many contents are marked."""
        return int.from_bytes(ffi.buffer(self._bits, self.count * _BITS), "little").bit_count()

    def forget(self, content: int) -> None:
        """Takes one content out."""
        at = bisect_left(self.blocks, content >> 16)
        if at < self.count and self.blocks[at] == content >> 16:
            self._bits[at * _BITS + (content & 0xFFFF) // 8] &= ~(1 << (content & 7)) & 0xFF

    def bits(self, block: int) -> bytes:
        """The block's bits."""
        at = bisect_left(self.blocks, block)
        return bytes(ffi.buffer(self._bits + at * _BITS, _BITS))

    def of(self, pack: Pack) -> tuple[int, int]:
        """(frames of the pack that are in the set, their bytes)."""
        size = ffi.new("uint64_t *")
        frames = lib.st_contents_live(*_parts(pack), self.numbers, ffi.cast("uint8_t **", self.pointers), self.count, size)
        return int(frames), int(size[0])


def _parts(pack: Pack) -> tuple[Any, int, Any, int]:
    contents = ffi.from_buffer("struct st_contents[]", pack.contents)
    return contents, len(pack.contents) // CONTENTS.size, ffi.from_buffer("uint16_t[]", pack.lengths), pack.frames


class Packer:
    """Frames of several packs put together into new packs of up to `most` frames, within the caller's transaction."""

    def __init__(self, connection: sqlite3.Connection, most: int) -> None:
        out = ffi.new("st_packer **")
        check(lib.st_packer_new(PAGE_SIZE, most, out), "packer")
        self._packer = ffi.gc(out[0], lib.st_packer_free)
        self._connection = connection

    def take(self, pack: Pack, live: Live, wanted: bool) -> None:
        """Its frames that are (`wanted`) or are not in the set."""
        at = 0
        while True:
            at = check(
                lib.st_packer_take(
                    *(self._packer, *_parts(pack), ffi.from_buffer("uint8_t[]", pack.data), len(pack.data), at),
                    *(live.numbers, ffi.cast("uint8_t **", live.pointers), live.count, wanted),
                ),
                f"pack {pack.number}",
            )
            if at == pack.frames:
                return
            self.flush()

    def flush(self) -> None:
        """Writes what was taken as a pack."""
        blob, size, lengths = ffi.new("uint8_t **"), ffi.new("size_t *"), ffi.new("uint16_t **")
        contents, runs = ffi.new("struct st_contents **"), ffi.new("size_t *")
        frames = lib.st_packer_pack(self._packer, blob, size, lengths, contents, runs)
        if frames:
            pack = Pack(
                next_number(self._connection),
                frames,
                bytes(ffi.buffer(contents[0], runs[0] * CONTENTS.size)),
                bytes(ffi.buffer(lengths[0], frames * 2)),
                bytes(ffi.buffer(blob[0], size[0])),
            )
            insert(self._connection, [pack])
            lib.st_packer_emptied(self._packer)
