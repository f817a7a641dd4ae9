"""Which pages a rollback writes and which it drops: pure arithmetic on runs.

For one memory, page by page, inside the mappings that are wanted:

    the generation holds   the memory holds      and then
    DATA                   the same, unwritten   nothing, unless the generation differs from the baseline there: write
    DATA                   written, or nothing   write
    ZERO                   written, or differs   anonymous: drop (reads as zeros); a private file's page: write zeros
    nothing                something             drop (anonymous reads as zeros, a file's page shows the file again)

"Unwritten" speaks of the baseline: the generation that this memory descends from. Without one (`differs` is None)
everything that the generation holds counts as different.

Invariant: what is returned is sorted, disjoint, and lies inside the wanted private mappings; so neither the bridge nor a
kernel's mapping is ever touched.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from struct import Struct

from ckpt.model import PAGE, Content, Mapping
from ckpt.plan.batch import MAP_PRIVATE

RUN = Struct("<QII")
Buffer = bytes | bytearray | memoryview
Span = tuple[int, int]  #: page, end (exclusive)
_FOREVER = 1 << 60
_NOTHING = -1


@dataclass(frozen=True, slots=True)
class PageWork:
    write: list[Span]  #: contents from the generation
    zero: list[Span]  #: zeros must really be written
    drop: list[Span]

    def pages(self) -> tuple[int, int]:
        """(written, dropped)"""
        return sum(end - page for page, end in (*self.write, *self.zero)), sum(end - page for page, end in self.drop)


def private_ranges(mappings: Iterable[Mapping]) -> list[tuple[int, int, bool]]:
    """(page, end, anonymous) of the mappings whose pages are the memory's own, sorted; neighbours of one sort are joined."""
    out: list[tuple[int, int, bool]] = []
    for mapping in mappings:
        if not mapping.flags & MAP_PRIVATE or mapping.backing.kind == "kernel":
            continue
        page, end, anonymous = mapping.start // PAGE, mapping.end // PAGE, mapping.backing.kind == "anonymous"
        if out and out[-1][1] == page and out[-1][2] == anonymous:
            out[-1] = (out[-1][0], end, anonymous)
        else:
            out.append((page, end, anonymous))
    return out


class _Cursor:
    """Content at a page, and where it changes next; asked with rising pages."""

    __slots__ = ("_content", "_runs", "end", "start")

    def __init__(self, runs: Iterator[tuple[int, int, int]]) -> None:
        self._runs = runs
        self.start, self.end, self._content = 0, 0, _NOTHING
        self._advance()

    def _advance(self) -> None:
        run = next(self._runs, None)
        if run is None:
            self.start, self.end, self._content = _FOREVER, _FOREVER, _NOTHING
        else:
            self.start, self.end, self._content = run[0], run[0] + run[1], run[2]

    def at(self, page: int) -> tuple[int, int]:
        while self.end <= page:
            self._advance()
        if self.start > page:
            return _NOTHING, self.start
        return self._content, self.end


def page_work(wanted: Buffer, seen: Buffer, differs: Buffer | None, ranges: Sequence[tuple[int, int, bool]]) -> PageWork:
    """wanted: runs of the generation (DATA, ZERO). seen: runs of the scan (DATA = written, SAME). differs: runs that are not
    equal in baseline and generation, None = all may be."""
    write: list[Span] = []
    zero: list[Span] = []
    drop: list[Span] = []
    hold, have = _Cursor(RUN.iter_unpack(wanted)), _Cursor(RUN.iter_unpack(seen))
    other = _Cursor(iter(()) if differs is None else RUN.iter_unpack(differs))
    absent, same, data, nothing = Content.ABSENT.value, Content.SAME.value, Content.DATA.value, _NOTHING
    for first, last, anonymous in ranges:
        page = first
        while page < last:
            target, end = hold.at(page)
            current, have_end = have.at(page)
            different, other_end = other.at(page)
            end = min(end, have_end, other_end, last)
            if current == absent:
                current = nothing
            if current != same or differs is None or different != nothing:
                if target == data:
                    _add(write, page, end)
                elif target == nothing or anonymous:
                    if current != nothing:
                        _add(drop, page, end)
                else:
                    _add(zero, page, end)
            elif target == nothing:
                _add(drop, page, end)
            page = end
    return PageWork(write, zero, drop)


def _add(spans: list[Span], page: int, end: int) -> None:
    if spans and spans[-1][1] == page:
        spans[-1] = (spans[-1][0], end)
    else:
        spans.append((page, end))


def as_runs(spans: Iterable[Span], content: Content = Content.DATA) -> bytes:
    return b"".join(RUN.pack(page, end - page, content) for page, end in spans)


def subtract(spans: Sequence[Span], other: Sequence[Span]) -> list[Span]:
    """Parts of spans that other does not have; both sorted and disjoint."""
    out: list[Span] = []
    index = 0
    for page, end in spans:
        while index < len(other) and other[index][1] <= page:
            index += 1
        at = index
        while page < end:
            if at >= len(other) or other[at][0] >= end:
                out.append((page, end))
                break
            if other[at][0] > page:
                out.append((page, other[at][0]))
            page = other[at][1]
            at += 1
    return out


def total(spans: Iterable[Span]) -> int:
    return sum(end - page for page, end in spans)
