"""Pages out of the file, in windows: the window's frames are read in the file's order, while the kernel already brings in the next.

Pages of a late generation lie scattered over the packs of all earlier ones. Each pack is sorted by page, so a window of
addresses is a slice of each pack, and every slice is read once (FORMAT.md, "Cost of reading").
"""

from __future__ import annotations

import sqlite3
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from store._pages import ffi, lib
from store.database import PAGE_SIZE
from store.layouts import Layout, check
from store.records import StoreError

__all__ = ["DamagedPageError", "PageReader", "rescue_reader"]

PAGE = 4096
PIECE = 1 << 20
WINDOW = 32 << 20
_BAD = 4096


class PageReader:
    """Reads pages of one layout. Knows the packs that the layout names; holds no lock while it reads."""

    def __init__(self, connection: sqlite3.Connection, descriptor: int, key: bytes, layout: Layout) -> None:
        self._connection = connection
        root = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = 'pack_data'").fetchone()[0]
        out = ffi.new("st_reader **")
        check(lib.st_reader_new(descriptor, ffi.from_buffer("uint8_t[]", key), PAGE_SIZE, root, out), "reader")
        self._reader = ffi.gc(out[0], lib.st_reader_free)
        self._layout = layout
        for pack in layout.packs():
            row = connection.execute("SELECT lengths, frames FROM packs WHERE pack = ?", (pack,)).fetchone()
            if row is not None and len(row[0]) == 2 * row[1]:  # a pack that is not there, or not right, gives no page: damaged
                check(lib.st_reader_pack(self._reader, pack, ffi.from_buffer("uint16_t[]", row[0]), row[1]), "reader")

    def pieces(self) -> Iterator[memoryview]:
        """All pages of the layout in order, in pieces of at most 1 MiB. A piece stays what it is after the next one was asked for.

        Raises StoreError(damaged) with the first page that cannot be had as its `page`.
        """
        windows = self._layout.windows(WINDOW // PAGE)
        if len(windows) < 2:
            for first, count, pages in windows:
                yield from self._window(first, count, pages, bytearray(pages * PAGE))
            return
        buffers: list[bytearray] = []
        with ThreadPoolExecutor(1) as pool:
            ahead: Future[Any] | None = pool.submit(self._prefetch, windows[0])
            for number, (first, count, pages) in enumerate(windows):
                if ahead is not None:
                    ahead.result()
                ahead = pool.submit(self._prefetch, windows[number + 1]) if number + 1 < len(windows) else None
                yield from self._window(first, count, pages, _free_buffer(buffers))

    def _prefetch(self, window: tuple[Any, int, int]) -> None:
        lib.st_reader_prefetch(self._reader, window[0], window[1])

    def _window(self, extents: Any, count: int, pages: int, buffer: bytearray) -> Iterator[memoryview]:
        bad, found = ffi.new("uint64_t[]", _BAD), ffi.new("size_t *")
        lent = ffi.from_buffer("uint8_t[]", buffer)
        check(lib.st_reader_read(self._reader, extents, count, lent, bad, _BAD, found), "reading pages")
        if found[0]:
            self._rescue(extents, count, sorted(ffi.unpack(bad, min(found[0], _BAD))), lent)
        del lent
        for at in range(0, pages * PAGE, PIECE):
            yield memoryview(buffer)[at : min(at + PIECE, pages * PAGE)]

    def _rescue(self, extents: Any, count: int, bad: list[int], buffer: Any) -> None:
        """Pages that did not come out right past SQLite are asked for through it; what is wrong there too is damage."""
        loaded: tuple[int, bytes] = (0, b"")
        hash_ = ffi.new("uint8_t[]", 16)
        at, number = 0, 0
        for place in bad:
            while at + extents[number].count <= place:
                at += extents[number].count
                number += 1
            content = extents[number].id + (place - at)
            pack = content >> 16
            if loaded[0] != pack:
                row = self._connection.execute("SELECT data FROM pack_data WHERE pack = ?", (pack,)).fetchone()
                loaded = (pack, row[0] if row else b"")
            blob = ffi.from_buffer("uint8_t[]", loaded[1])
            if not loaded[1] or lib.st_frame_page(self._reader, blob, len(loaded[1]), content, buffer + place * PAGE, hash_) < 0:
                raise DamagedPageError(extents[number].page + (place - at), pack, content & 0xFFFF)


class DamagedPageError(StoreError):
    """One page that cannot be had."""

    def __init__(self, page: int, pack: int, slot: int) -> None:
        super().__init__("damaged", f"page {page:#x} cannot be read (pack {pack}, frame {slot})")
        self.page = page


def _free_buffer(buffers: list[bytearray]) -> bytearray:
    """A window's buffer that no piece is using any more (each piece holds one reference), else a new one."""
    for buffer in buffers:
        if sys.getrefcount(buffer) == 3:  # the list's, the loop's, and the call's own
            return buffer
    buffers.append(bytearray(WINDOW))
    return buffers[-1]


def rescue_reader(key: bytes, pack: int, lengths: memoryview) -> Any:
    """A C reader that knows this one pack, for st_frame_page on a BLOB that SQL gave."""
    out = ffi.new("st_reader **")
    check(lib.st_reader_new(-1, ffi.from_buffer("uint8_t[]", key), PAGE_SIZE, 0, out), "reader")
    reader = ffi.gc(out[0], lib.st_reader_free)
    check(lib.st_reader_pack(reader, pack, ffi.from_buffer("uint16_t[]", lengths), len(lengths)), "reader")
    return reader
