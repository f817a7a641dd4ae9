"""Layouts: which content a space holds at which page. A thin, owning wrapper of struct st_map (store/src/map.c)."""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterator
from typing import Any

from store._pages import ffi, lib
from store.records import StoreError

__all__ = ["ABSENT", "EMPTY", "EXTENT", "RUN", "Layout", "check", "runs_buffer"]

RUN = struct.Struct("<QII")
EXTENT = struct.Struct("<QQII")
ABSENT = (1 << 64) - 1


def check(result: int, what: str) -> int:
    """What a C function returned; a negative errno raises."""
    if result >= 0:
        return result
    if result == -errno.ENOMEM:
        raise MemoryError(what)
    kind = "damaged" if result in (-errno.EBADMSG, -errno.ERANGE) else "io"
    raise StoreError(kind, f"{what}: {errno.errorcode.get(-result, result)}")


def runs_buffer(runs: Any) -> tuple[Any, int]:
    """struct st_run[] lent from any buffer; ValueError where its size is not a multiple of 16."""
    view = memoryview(runs).cast("B") if not isinstance(runs, bytes) else runs
    if len(view) % RUN.size:
        raise ValueError(f"runs: {len(view)} bytes are not a whole number of runs")
    return ffi.from_buffer("struct st_run[]", view), len(view) // RUN.size


class Layout:
    """An immutable layout."""

    def __init__(self, pointer: Any) -> None:
        self.pointer = ffi.gc(pointer, lib.st_map_free)

    @classmethod
    def _made(cls, function: Any, what: str, *arguments: Any) -> Layout:
        out = ffi.new("st_map **")
        check(function(*arguments, out), what)
        return cls(out[0])

    @classmethod
    def empty(cls) -> Layout:
        return cls._made(lib.st_map_new, "layout")

    @classmethod
    def decode(cls, data: bytes) -> Layout:
        return cls._made(lib.st_map_decode, "layout", ffi.from_buffer("uint8_t[]", data), len(data))

    def encode(self) -> bytes:
        out, size = ffi.new("uint8_t **"), ffi.new("size_t *")
        check(lib.st_map_encode(self.pointer, out, size), "layout")
        try:
            return bytes(ffi.buffer(out[0], size[0]))
        finally:
            lib.st_free(out[0])

    def overlay(self, top: Layout) -> Layout:
        return self._made(lib.st_map_overlay, "layout", self.pointer, top.pointer)

    def diff(self, wanted: Layout) -> Layout:
        """What overlaid on self gives wanted."""
        return self._made(lib.st_map_diff, "layout", self.pointer, wanted.pointer)

    def select(self, runs: Any, top: Layout | None = None) -> Layout:
        """The pages that runs name, as `top` has them or else self. Raises StoreError(io) and names the page where neither knows one."""
        array, count = runs_buffer(runs)
        out, page = ffi.new("st_map **"), ffi.new("uint64_t *")
        result = lib.st_map_select(self.pointer, (top or EMPTY).pointer, array, count, out, page)
        if result == -errno.ENODATA:
            raise StoreError("io", f"page {page[0]:#x} is named by the layout, but neither added nor in the parent generation")
        if result == -errno.EINVAL:
            raise ValueError(f"runs are not sorted at page {page[0]:#x}")
        check(result, "layout")
        return Layout(out[0])

    def shared(self, other: Layout) -> int:
        out = ffi.new("uint64_t *")
        check(lib.st_map_shared(self.pointer, other.pointer, out), "layout")
        return int(out[0])

    def blocks(self) -> list[int]:
        """Sorted numbers of the blocks whose contents it names."""
        count = check(lib.st_map_blocks(self.pointer, ffi.NULL, 0), "layout")
        blocks = ffi.new("uint32_t[]", max(count, 1))
        lib.st_map_blocks(self.pointer, blocks, count)
        return list(ffi.unpack(blocks, count)) if count else []

    def pages(self) -> tuple[int, int]:
        """(pages, of these zero)."""
        zero = ffi.new("uint64_t *")
        return int(lib.st_map_pages(self.pointer, zero)), int(zero[0])

    def raw(self) -> tuple[Any, int]:
        """struct st_extent[] lent from the layout, and how many."""
        out = ffi.new("struct st_extent **")
        count = lib.st_map_extents(self.pointer, ffi.cast("struct st_extent **", out))
        return out[0], int(count)

    def extents(self) -> Iterator[tuple[int, int, int]]:
        """(page, id, count)."""
        pointer, count = self.raw()
        data = bytes(ffi.buffer(pointer, count * EXTENT.size)) if count else b""
        return ((page, content, pages) for page, content, pages, _ in EXTENT.iter_unpack(data))

    def __len__(self) -> int:
        return self.raw()[1]

    def runs(self) -> bytes:
        """struct st_run[]: DATA and ZERO, and ABSENT where the layout is a difference; neighbours joined."""
        runs = ffi.new("struct st_run[]", max(len(self), 1))
        return bytes(ffi.buffer(runs, lib.st_map_runs(self.pointer, runs) * RUN.size))

    def windows(self, limit: int) -> list[tuple[Any, int, int]]:
        """(struct st_extent *, how many, pages), each of `limit` pages but the last.

        They lend from an array that the layout keeps until asked again.
        """
        extents, starts, count = ffi.new("struct st_extent **"), ffi.new("uint64_t **"), ffi.new("size_t *")
        check(lib.st_map_windows(self.pointer, limit, extents, starts, count), "layout")
        self._windows = ffi.gc(extents[0], lib.st_free)
        edges = ffi.unpack(ffi.gc(starts[0], lib.st_free), count[0] + 1)
        pages = self.pages()[0]
        return [
            (self._windows + edges[number], edges[number + 1] - edges[number], min(limit, pages - number * limit))
            for number in range(count[0])
        ]


EMPTY = Layout.empty()
