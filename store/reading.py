"""Pages out of the file, in windows: the window's frames are read in the file's order, while the kernel already brings in the next.

Pages of a late generation lie scattered over the packs of all earlier ones. Each pack is sorted by page, so a window of
addresses is a slice of each pack, and every slice is read once (FORMAT.md, "Cost of reading").
"""

from __future__ import annotations

import errno
import sqlite3
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from mmap import MAP_ANONYMOUS, MAP_PRIVATE, mmap
from threading import Lock
from typing import Any

from store import packs
from store._pages import ffi, lib
from store.database import PAGE_SIZE
from store.layouts import Layout, check
from store.records import StoreError

__all__ = ["DamagedPageError", "PageReader", "Places", "rescue_reader"]

PAGE = 4096
PIECE = 1 << 20
WINDOW = 16 << 20  #: read and decompressed at a time: fresh memory is dear, so the buffers are small and used again
_AHEAD = 8  #: windows that the kernel is asked for together: the more, the longer are the stretches of each pack that it reads
_AT_ONCE = 256  #: pages; a thread for the prefetch costs more than it saves
_BAD = 4096
_FRAMES_KEPT = 4 << 20  #: 8 bytes each


class Places:
    """A C reader and the packs that it knows, for as long as the store does not change. Holds no lock while it reads."""

    def __init__(self, connection: sqlite3.Connection, descriptor: int, key: bytes) -> None:
        self.connection = connection
        root = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = 'pack_data'").fetchone()[0]
        self.reader = _reader(descriptor, key, root)
        self._version = self._now()
        self._blocks: set[int] = set()
        self._packs: set[int] = set()
        self._frames = 0
        self.buffers: list[mmap] = []
        self.lock = Lock()  #: held by who changes what the reader knows, and by a prefetch, which another thread does

    def _now(self) -> tuple[int, int]:
        return self.connection.execute("PRAGMA data_version").fetchone()[0], self.connection.total_changes

    def current(self) -> bool:
        """Nobody has written since, and it has not become large."""
        return self._version == self._now() and self._frames < _FRAMES_KEPT

    def learn(self, layout: Layout) -> None:
        """Finds out where the layout's contents lie. A pack that is not there, or not right, gives no page: damaged."""
        blocks = [block for block in layout.blocks() if block not in self._blocks]
        if not blocks:
            return
        with self.lock, _one_view(self.connection):
            for number in packs.of_blocks(self.connection, blocks):
                if number not in self._packs:
                    pack = packs.load(self.connection, number)
                    if pack is not None:
                        _learn(self.reader, pack)
                        self._frames += pack.frames
                    self._packs.add(number)
        self._blocks.update(blocks)


@contextmanager
def _one_view(connection: sqlite3.Connection) -> Iterator[None]:
    """Everything that is asked inside comes from one state of the store."""
    if connection.in_transaction:
        yield
        return
    connection.execute("BEGIN")
    try:
        yield
    finally:
        connection.execute("ROLLBACK")


def _reader(descriptor: int, key: bytes, root: int) -> Any:
    out = ffi.new("st_reader **")
    check(lib.st_reader_new(descriptor, ffi.from_buffer("uint8_t[]", key), PAGE_SIZE, root, out), "reader")
    return ffi.gc(out[0], lib.st_reader_free)


def _learn(reader: Any, pack: packs.Pack) -> bool:
    """False where the pack's row is not right."""
    if len(pack.contents) % packs.CONTENTS.size or len(pack.lengths) != 2 * pack.frames:
        return False
    runs = len(pack.contents) // packs.CONTENTS.size
    contents, lengths = ffi.from_buffer("struct st_contents[]", pack.contents), ffi.from_buffer("uint16_t[]", pack.lengths)
    result = lib.st_reader_pack(reader, pack.number, contents, runs, lengths, pack.frames)
    return result != -errno.EBADMSG and check(result, "reader") == 0


class PageReader:
    """Reads pages of one layout."""

    def __init__(self, places: Places, key: bytes, layout: Layout) -> None:
        places.learn(layout)
        self._connection = places.connection
        self._lock = places.lock
        self._buffers = places.buffers
        self._reader = places.reader
        self._key = key
        self._layout = layout

    def pieces(self) -> Iterator[memoryview]:
        """All pages of the layout in order, in pieces of at most 1 MiB. A piece stays what it is after the next one was asked for.

        Raises StoreError(damaged) with the first page that cannot be had as its `page`.
        """
        windows = self._layout.windows(WINDOW // PAGE)
        if len(windows) == 1 and windows[0][2] <= _AT_ONCE:  # what would be asked for ahead is read right away
            yield from self._window(*windows[0], _free_buffer(self._buffers))
            return
        with ThreadPoolExecutor(1) as pool:
            ahead = self._ask(pool, windows[:_AHEAD])
            for number, (first, count, pages) in enumerate(windows):
                if number % _AHEAD == 0:  # what is read now has been asked for: what comes then
                    if ahead is not None and number:
                        ahead.result()
                    ahead = self._ask(pool, windows[number + _AHEAD : number + 2 * _AHEAD])
                yield from self._window(first, count, pages, _free_buffer(self._buffers))

    def _ask(self, pool: ThreadPoolExecutor, windows: list[tuple[Any, int, int]]) -> Future[Any] | None:
        """The windows' extents follow each other in one array."""
        return pool.submit(self._prefetch, windows[0][0], sum(window[1] for window in windows)) if windows else None

    def _prefetch(self, extents: Any, count: int) -> None:
        with self._lock:
            lib.st_reader_prefetch(self._reader, extents, count)

    def _window(self, extents: Any, count: int, pages: int, buffer: mmap) -> Iterator[memoryview]:
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
        at, number = 0, 0
        rescue = Rescue(self._connection, self._key)
        for place in bad:
            while at + extents[number].count <= place:
                at += extents[number].count
                number += 1
            content = extents[number].id + (place - at)
            if not rescue.page(content, buffer + place * PAGE):
                raise DamagedPageError(extents[number].page + (place - at), content >> 16, content & 0xFFFF)


class Rescue:
    """Contents one by one through SQLite, wherever they lie now."""

    def __init__(self, connection: sqlite3.Connection, key: bytes) -> None:
        self._connection = connection
        self._key = key
        self._block = 0
        self._found: list[tuple[Any, bytes]] = []

    def page(self, content: int, out: Any) -> bool:
        """Fills a page; False where it cannot be had."""
        hash_ = ffi.new("uint8_t[]", 16)
        if self._block != content >> 16:
            self._load(content >> 16)
        return any(
            lib.st_frame_page(reader, ffi.from_buffer("uint8_t[]", data), len(data), content, out, hash_) == 0
            for reader, data in self._found
        )

    def _load(self, block: int) -> None:
        self._block, self._found = block, []
        for number in packs.of_blocks(self._connection, [block]):
            pack = packs.load(self._connection, number, data=True)
            reader = rescue_reader(self._key, pack) if pack is not None and pack.data else None
            if pack is not None and reader is not None:
                self._found.append((reader, pack.data))


class DamagedPageError(StoreError):
    """One page that cannot be had."""

    def __init__(self, page: int, block: int, slot: int) -> None:
        super().__init__("damaged", f"page {page:#x} cannot be read (content {block}:{slot})")
        self.page, self.block, self.slot = page, block, slot


def _free_buffer(buffers: list[mmap]) -> mmap:
    """A window's buffer that no piece is using any more (each piece holds one reference), else a new one."""
    for buffer in buffers:
        if sys.getrefcount(buffer) == 3:  # the list's, the loop's, and the call's own
            return buffer
    buffers.append(mmap(-1, WINDOW, flags=MAP_PRIVATE | MAP_ANONYMOUS))  # unlike a bytearray it costs nothing where it is not used
    return buffers[-1]


def rescue_reader(key: bytes, pack: packs.Pack) -> Any | None:
    """A C reader that knows this one pack, for st_frame_page on a BLOB that SQL gave; None where its row is not right."""
    reader = _reader(-1, key, 0)
    return reader if _learn(reader, pack) else None
