"""A generation's page contents as a PageSource: how the past gives memory back to the living."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from ckpt.history import runs as raw
from ckpt.history.runs import Buffer
from ckpt.model import Content, PageRun

if TYPE_CHECKING:
    from store import Store


class GenerationPages:
    """The pages of one generation. Valid as long as its store is open.

    `runs`/`read` are the protocol; `raw_runs`/`read_runs` are the same for callers that move whole buffers (rollback).
    """

    def __init__(self, store: Store, number: int) -> None:
        self._store = store
        self.number = number

    def spaces(self) -> Sequence[int]:
        return self._store.spaces(self.number)

    def runs(self, space: int) -> Sequence[PageRun]:
        return [PageRun(space, page, count, Content(content)) for page, count, content in raw.unpack(self.raw_runs(space))]

    def read(self, space: int, page: int, count: int) -> Iterator[memoryview]:
        return self.read_runs(space, raw.pack([(page, count, Content.DATA)]))

    def raw_runs(self, space: int) -> bytes:
        """struct ckpt_run[] of DATA and ZERO: everything that the space holds."""
        return self._store.runs(self.number, space)

    def read_runs(self, space: int, runs: Buffer) -> Iterator[memoryview]:
        """Contents of all pages of these runs, in order, in pieces of at most 1 MiB."""
        return self._store.read(self.number, space, runs)
