"""Captured pages as the store takes them: arrays of struct ckpt_run with the bytes of their DATA pages."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from struct import Struct

from ckpt.live.core import Sink, SpaceRuns
from ckpt.model import PAGE, Content

RUN = Struct("<QII")
PIECE = 4096  #: pages in one piece from the spill file: 16 MiB


def batches(sink: Sink, part: SpaceRuns) -> Iterator[tuple[bytes | memoryview, memoryview]]:
    """(runs, data) of one space: one batch where everything is in memory, pieces of PIECE pages where it was spilled."""
    pieces = sink.data(part.data_offset, part.data_pages * PAGE)
    first = next(pieces, memoryview(b""))
    if len(first) == part.data_pages * PAGE:
        yield _stored(part.runs), first
        return
    yield from _cut(part.runs, first, pieces)


def _stored(runs: memoryview) -> bytes | memoryview:
    """Without what the store need not be told (SAME): the layout names that."""
    kept = [RUN.pack(page, count, content) for page, count, content in RUN.iter_unpack(runs) if content in (Content.DATA, Content.ZERO)]
    return runs if len(kept) * RUN.size == len(runs) else b"".join(kept)


def _cut(runs: memoryview, first: memoryview, rest: Iterator[memoryview]) -> Iterator[tuple[bytes, memoryview]]:
    """Cuts runs where the pieces of data end."""
    queue = [(page, count, content) for page, count, content in RUN.iter_unpack(runs) if content in (Content.DATA, Content.ZERO)]
    queue.reverse()
    piece: memoryview | None = first
    while piece is not None:
        room = len(piece) // PAGE
        taken: list[bytes] = []
        while queue and (room or queue[-1][2] == Content.ZERO):
            page, count, content = queue.pop()
            if content == Content.DATA and count > room:
                queue.append((page + room, count - room, content))
                count = room
            if content == Content.DATA:
                room -= count
            taken.append(RUN.pack(page, count, content))
        yield b"".join(taken), piece
        piece = next(rest, None)


def final_parts(parts: Iterable[SpaceRuns]) -> dict[int, SpaceRuns]:
    """By space, the part that the frozen scan filled. One before it only brings pages of the capture's last round."""
    return {part.space: part for part in parts}


def layout(part: SpaceRuns) -> memoryview:
    """The complete layout of the space, as the scan saw it."""
    return part.runs
