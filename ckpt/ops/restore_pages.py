"""The pages of a restore: everything that the generation holds, into memory that is still empty.

One thread reads the store and decompresses while the other writes into the newborn: neither waits for the other for long,
and no more than a few pieces are held at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from queue import Queue
from threading import Thread

from ckpt.history.pages import GenerationPages
from ckpt.live import act, core
from ckpt.model import Snapshot, Task
from ckpt.plan.pages import RUN, Span, as_runs, as_spans, private_ranges

AHEAD = 4  #: pieces (of at most 1 MiB) that the reader may be ahead
ZEROS = 256  #: pages of zeros written at once


class Pages:
    """`progress`: (pages done, pages in all)."""

    def __init__(self, tree: core.Tree, source: GenerationPages, wanted: Snapshot, later: Mapping[int, bytes] | None = None) -> None:
        """`later`: space -> struct ckpt_run[] of pages that are brought when the program runs."""
        self.tree, self.source, self.wanted, self.later = tree, source, wanted, later or {}
        self.written = 0

    def put(self) -> None:
        seen: set[int] = set()
        for task in self.wanted.tasks:
            if task.mm not in seen:
                seen.add(task.mm)
                self._put(task)

    def _put(self, task: Task) -> None:
        work = act.PageRule(self.source.raw_runs(task.mm), None, private_ranges(task.mappings)).work(b"")
        now = act.runs_subtract(work.write, self.later[task.mm]) if task.mm in self.later else work.write
        for runs, data in self._ahead(task.mm, now):
            act.pages_write(self.tree, task.pid, runs, data)
            self.written += len(data) >> 12
        for page, end in as_spans(work.zero):
            for at in range(page, end, ZEROS):
                count = min(ZEROS, end - at)
                act.pages_write(self.tree, task.pid, as_runs([(at, at + count)]), bytes(count << 12))
                self.written += count

    def _ahead(self, space: int, runs: bytes) -> Iterator[tuple[bytes, memoryview]]:
        """(runs, their bytes) in order, read by a thread of its own."""
        queue: Queue[tuple[bytes, memoryview] | BaseException | None] = Queue(AHEAD)

        def read() -> None:
            try:
                cutter = Cutter(as_spans(runs))
                for piece in self.source.read_runs(space, runs):
                    queue.put((cutter.take(len(piece) >> 12), piece))
                queue.put(None)
            except BaseException as error:
                queue.put(error)

        Thread(target=read, daemon=True).start()
        while (item := queue.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item


class Cutter:
    """Cuts a list of spans into pieces of given sizes, in order: struct ckpt_run[] of DATA."""

    def __init__(self, spans: Sequence[Span]) -> None:
        self._spans = iter(spans)
        self._page = self._end = 0

    def take(self, pages: int) -> bytes:
        out = []
        while pages:
            if self._page == self._end:
                self._page, self._end = next(self._spans)
            count = min(pages, self._end - self._page)
            out.append(RUN.pack(self._page, count, 0))
            self._page += count
            pages -= count
        return b"".join(out)
