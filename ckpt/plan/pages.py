"""Spans and runs of pages, as a rollback counts with them. Which page is written or dropped is decided in C
(native/src/pagework.c), before the freeze and inside it; here is what says where."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from struct import Struct

from ckpt.model import PAGE, Content, Mapping
from ckpt.plan.batch import MAP_PRIVATE

RUN = Struct("<QII")
Buffer = bytes | bytearray | memoryview
Span = tuple[int, int]  #: page, end (exclusive)


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


def as_runs(spans: Iterable[Span], content: Content = Content.DATA) -> bytes:
    return b"".join(RUN.pack(page, end - page, content) for page, end in spans)


def as_spans(runs: Buffer) -> list[Span]:
    return [(page, page + count) for page, count, _content in RUN.iter_unpack(runs)]


def joined(spans: Iterable[Span]) -> list[Span]:
    """Sorted spans that may overlap -> disjoint ones."""
    out: list[Span] = []
    for page, end in spans:
        if out and page <= out[-1][1]:
            out[-1] = (out[-1][0], max(out[-1][1], end))
        else:
            out.append((page, end))
    return out


def first_pages(spans: Sequence[Span], room: int) -> tuple[list[Span], int]:
    """The first `room` pages of disjoint spans, and how many are left over."""
    out: list[Span] = []
    for page, end in spans:
        if room > 0:
            out.append((page, min(end, page + room)))
            room -= out[-1][1] - page
    return out, total(spans) - total(out)


def total(spans: Iterable[Span]) -> int:
    return sum(end - page for page, end in spans)
