"""--paranoid: every page as the same freeze read it, against what the generation gives back."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from struct import Struct

from ckpt.history.pages import GenerationPages
from ckpt.live.core import Sink
from ckpt.live.pages import final_parts
from ckpt.live.spaces import Spaces
from ckpt.model import PAGE, Content

RUN = Struct("<QII")


@dataclass(slots=True)
class Verdict:
    compared: int = 0
    wrong: list[tuple[int, int]] = field(default_factory=list)  #: (space, page)


def compare_pages(source: GenerationPages, sink: Sink, spaces: Spaces) -> Verdict:
    """Compares all DATA pages (copied because written) and all SAME pages (read again only for this)."""
    verdict = Verdict()
    for part in final_parts(sink.spaces()).values():
        space = spaces.store(part.space)
        dirty = [(page, count) for page, count, content in RUN.iter_unpack(part.runs) if content == Content.DATA]
        clean = [(page, count) for page, count, _content in RUN.iter_unpack(part.paranoid_runs)]
        zero = [(page, count) for page, count, content in RUN.iter_unpack(part.runs) if content == Content.ZERO]
        for runs, offset in ((dirty, part.data_offset), (clean, part.paranoid_offset)):
            living = Bytes(sink.data(offset, sum(count for _page, count in runs) * PAGE))
            _compare(verdict, source, space, runs, living)
        _compare(verdict, source, space, zero, None)
    return verdict


def _compare(verdict: Verdict, source: GenerationPages, space: int, runs: list[tuple[int, int]], living: Bytes | None) -> None:
    for start, length in runs:
        page = start
        for piece in source.read(space, start, length):
            count = len(piece) // PAGE
            expected = living.take(len(piece)) if living is not None else bytes(len(piece))
            verdict.compared += count
            if piece != expected:
                verdict.wrong += [
                    (space, page + n) for n in range(count) if piece[n * PAGE : (n + 1) * PAGE] != expected[n * PAGE : (n + 1) * PAGE]
                ]
            page += count


class Bytes:
    """Takes exact amounts from an iterator of pieces."""

    def __init__(self, pieces: Iterator[memoryview]) -> None:
        self._pieces = pieces
        self._rest = memoryview(b"")

    def take(self, size: int) -> bytes:
        parts: list[memoryview] = []
        while size:
            if not self._rest:
                self._rest = next(self._pieces)
            part, self._rest = self._rest[:size], self._rest[size:]
            parts.append(part)
            size -= len(part)
        return b"".join(parts)
