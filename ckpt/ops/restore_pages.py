"""The pages of a restore: everything that the generation holds, into memory that is still empty.

One thread reads the store and decompresses from the moment that it is known what will be wanted, while the newborns are born, looked
at and laid out; then the other writes into them, and neither waits for the other for long.

1. The reader is started before the tree is frozen: whoever freezes stands on the target's processor with a priority beside
   which nobody there gets any time (native/src/pace.c), and a thread begins where its maker stands.
2. The reader needs the interpreter for moments, between calls that take long; it gets it at once (SWITCH_S), not after the usual
   5 ms for each of them, which the other would fill with planning.
3. No more than AHEAD pieces are held at a time.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from queue import Queue
from threading import Event, Thread
from types import TracebackType
from typing import Self

from ckpt.history.pages import GenerationPages
from ckpt.live import act, core
from ckpt.model import Snapshot, Task
from ckpt.plan.pages import RUN, Span, as_runs, as_spans, private_ranges

AHEAD = 24  #: pieces (of at most 1 MiB) that the reader may be ahead: more than a window of the store's, which it reads at a time
SWITCH_S = 0.0002
ZEROS = 256  #: pages of zeros written at once

#: runs of one memory with their bytes; None: that memory is complete
_Item = tuple[bytes, memoryview] | BaseException | None


class Pages:
    """A context manager: the reader has ended when it is left."""

    def __init__(self, source: GenerationPages, wanted: Snapshot, later: Mapping[int, bytes] | None = None) -> None:
        """`later`: space -> struct ckpt_run[] of pages that are brought when the program runs."""
        self.source, self._later = source, later or {}
        self.written = 0
        owners = {task.mm: task for task in reversed(wanted.tasks)}
        self._work = {mm: act.PageRule(source.raw_runs(mm), None, private_ranges(owners[mm].mappings)).work(b"") for mm in sorted(owners)}
        self._queue: Queue[_Item] = Queue(AHEAD)
        self._given_up = Event()
        self._switch_s = sys.getswitchinterval()
        self._reader = Thread(target=self._read, daemon=True)

    def __enter__(self) -> Self:
        sys.setswitchinterval(SWITCH_S)
        self._reader.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._given_up.set()
        while self._reader.is_alive():
            while not self._queue.empty():
                self._queue.get()
            self._reader.join(0.001)
        sys.setswitchinterval(self._switch_s)

    # ---- the reader ----

    def _read(self) -> None:
        try:
            for mm, work in self._work.items():
                now = act.runs_subtract(work.write, self._later[mm]) if mm in self._later else work.write
                cutter = Cutter(as_spans(now))
                for piece in self.source.read_runs(mm, now):
                    self._queue.put((cutter.take(len(piece) >> 12), piece))
                    if self._given_up.is_set():
                        return
                self._queue.put(None)
        except BaseException as error:
            self._queue.put(error)

    # ---- the writer ----

    def put(self, tree: core.Tree, wanted: Snapshot) -> None:
        """`wanted`: the same tasks, with the numbers that they have now."""
        owners = {task.mm: task for task in reversed(wanted.tasks)}
        for mm in self._work:
            self._put(tree, owners[mm])

    def _put(self, tree: core.Tree, task: Task) -> None:
        for runs, data in self._pieces():
            act.pages_write(tree, task.pid, runs, data)
            self.written += len(data) >> 12
        for page, end in as_spans(self._work[task.mm].zero):
            for at in range(page, end, ZEROS):
                count = min(ZEROS, end - at)
                act.pages_write(tree, task.pid, as_runs([(at, at + count)]), bytes(count << 12))
                self.written += count

    def _pieces(self) -> Iterator[tuple[bytes, memoryview]]:
        while (item := self._queue.get()) is not None:
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
