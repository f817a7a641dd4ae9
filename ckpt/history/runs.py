"""Arithmetic on arrays of `struct ckpt_run` (u64 page, u32 count, u32 content; sorted by page): how pages cross as raw buffers."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from struct import Struct

from ckpt.model import Content

RUN = Struct("<QII")
Buffer = bytes | bytearray | memoryview  #: what crosses between the rooms
_COUNT_BITS = 28  #: a run of 1 TiB; longer ones are cut. Leaves 36 bits for the page, as 48-bit addresses need


def unpack(runs: Buffer) -> Iterator[tuple[int, int, int]]:
    """(page, count, content) of each run."""
    return RUN.iter_unpack(memoryview(runs).cast("B"))


def pack(runs: Iterable[tuple[int, int, int]]) -> bytes:
    return b"".join(RUN.pack(*run) for run in runs)


def pages_of(runs: Buffer) -> int:
    """How many pages the runs that are not ABSENT hold."""
    return sum(count for _, count, content in unpack(runs) if content != Content.ABSENT)


class PageSet:
    """Pages of one space: runs added in any order, overlapping or not; then counted by interval. 8 bytes per run."""

    def __init__(self) -> None:
        self._keys = array("Q")
        self._starts: list[int] | None = None
        self._ends: list[int] = []
        self._before: list[int] = []  #: pages in the runs before the i-th

    def add(self, runs: Buffer) -> None:
        self._starts = None
        limit = (1 << _COUNT_BITS) - 1
        for page, count, content in unpack(runs):
            if content == Content.ABSENT:
                continue
            while count > limit:
                self._keys.append(page << _COUNT_BITS | limit)
                page, count = page + limit, count - limit
            self._keys.append(page << _COUNT_BITS | count)

    def _index(self) -> list[int]:
        if self._starts is not None:
            return self._starts
        starts: list[int] = []
        ends: list[int] = []
        for key in sorted(self._keys):
            page = key >> _COUNT_BITS
            end = page + (key & ((1 << _COUNT_BITS) - 1))
            if ends and page <= ends[-1]:
                ends[-1] = max(ends[-1], end)
            else:
                starts.append(page)
                ends.append(end)
        self._before, total = [], 0
        for start, end in zip(starts, ends, strict=True):
            self._before.append(total)
            total += end - start
        self._before.append(total)
        self._starts, self._ends = starts, ends
        return starts

    def __len__(self) -> int:
        self._index()
        return self._before[-1]

    def count(self, first: int, end: int) -> int:
        """Pages of the set with first <= page < end."""
        return self._below(end) - self._below(first)

    def _below(self, page: int) -> int:
        starts = self._index()
        at = bisect_right(starts, page) - 1
        if at < 0:
            return 0
        return self._before[at] + min(page, self._ends[at]) - starts[at]
