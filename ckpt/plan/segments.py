"""Which pages of a memory are still to be brought, while the program moves, drops and unmaps them: pure bookkeeping.

A segment says: what belongs at [start, end) now was at `source` in the generation. Whatever the program does to its layout is
done to the segments as well; what they no longer name must not be brought any more.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice


@dataclass(frozen=True, slots=True)
class Segment:
    start: int  #: bytes, page aligned, as all here
    end: int
    source: int  #: where its first byte was in the generation

    def part(self, start: int, end: int) -> Segment:
        return Segment(start, end, self.source + start - self.start)


class Segments:
    """Disjoint, sorted by start."""

    def __init__(self, segments: Iterable[Segment] = ()) -> None:
        self._all = sorted(segments, key=lambda one: one.start)

    def copy(self) -> Segments:
        """As a forked child has them."""
        return Segments(self._all)

    def __bool__(self) -> bool:
        return bool(self._all)

    def bytes_left(self) -> int:
        return sum(one.end - one.start for one in self._all)

    def at(self, address: int) -> Segment | None:
        """The segment that holds the address, from the address on."""
        place = bisect_right(self._all, address, key=lambda one: one.start) - 1
        if place < 0 or self._all[place].end <= address:
            return None
        return self._all[place].part(address, self._all[place].end)

    def within(self, start: int, end: int) -> list[Segment]:
        """What of the segments lies in the range."""
        found = []
        low = max(bisect_right(self._all, start, key=lambda one: one.start) - 1, 0)
        for one in islice(self._all, low, None):
            if one.start >= end:
                break
            if max(one.start, start) < min(one.end, end):
                found.append(one.part(max(one.start, start), min(one.end, end)))
        return found

    def first(self) -> Segment | None:
        return self._all[0] if self._all else None

    def after(self, address: int) -> Segment | None:
        """The first segment at or behind the address, then from the beginning."""
        found = self.at(address)
        if found is not None:
            return found
        place = bisect_left(self._all, address, key=lambda one: one.start)
        return self._all[place] if place < len(self._all) else self.first()

    def remove(self, start: int, end: int) -> list[Segment]:
        """Takes a range out; returns what was there."""
        low = bisect_right(self._all, start, key=lambda one: one.start)
        if low and self._all[low - 1].end > start:
            low -= 1
        high = bisect_left(self._all, end, key=lambda one: one.start)
        touched = self._all[low:high]
        kept = [one.part(one.start, start) for one in touched if one.start < start]
        kept += [one.part(end, one.end) for one in touched if one.end > end]
        self._all[low:high] = kept
        return [one.part(max(one.start, start), min(one.end, end)) for one in touched]

    def move(self, start: int, end: int, to: int) -> None:
        """mremap: what was at [start, end) belongs at `to` now; what belonged there before is gone."""
        moved = self.remove(start, end)
        self.remove(to, to + end - start)
        for one in moved:
            self._insert(Segment(one.start - start + to, one.end - start + to, one.source))

    def _insert(self, segment: Segment) -> None:
        self._all.insert(bisect_left(self._all, segment.start, key=lambda one: one.start), segment)
