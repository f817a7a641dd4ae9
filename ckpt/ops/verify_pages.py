"""Every page of a restored tree against its generation, before the first instruction.

Only the words that the kernel itself writes may differ: the processor that a thread runs on, in its struct rseq
(kernel/rseq.c: cpu_id_start, cpu_id, node_id, mm_cid are written whenever it returns to user space; rseq_cs is cleared then, where it is
left over from a sequence that the thread has behind it).
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field

from ckpt.history.pages import GenerationPages
from ckpt.live import act, core, objects
from ckpt.model import PAGE, Content, SharedObject, Snapshot, Task
from ckpt.ops.restore_pages import Cutter
from ckpt.plan.pages import RUN, as_runs, as_spans, private_ranges

_RSEQ_WRITTEN = ((0, 8), (20, 28))  #: cpu_id_start and cpu_id; node_id and mm_cid
_RSEQ_CS = slice(8, 16)
_PIECE = 256  #: pages compared at once where no store gives the pieces


@dataclass(slots=True)
class PageVerdict:
    compared: int = 0
    wrong: list[str] = field(default_factory=list)


class PageCheck:
    def __init__(self, tree: core.Tree, source: GenerationPages, wanted: Snapshot, sink: core.Sink) -> None:
        self.tree, self.source, self.wanted, self.sink = tree, source, wanted, sink
        self.verdict = PageVerdict()

    def run(self) -> PageVerdict:
        seen: set[int] = set()
        for task in self.wanted.tasks:
            if task.mm not in seen:
                seen.add(task.mm)
                self._memory(task)
        for item in self.wanted.objects:
            self._object(item)
        return self.verdict

    def _memory(self, task: Task) -> None:
        held = self.source.raw_runs(task.mm)
        masks, left_over = self._masks(task.mm), self._rseq(task.mm)
        cutter = Cutter(as_spans(held))
        for piece in self.source.read_runs(task.mm, held):
            self._compare(task, cutter.take(len(piece) // PAGE), piece, masks, left_over)
        track = core.Track(self.tree.ours(task.pid), core.COMPARE, -1, 0, fresh=True)
        there = bytes(act.pages_scan(self.tree, track, self.sink, protect=False).runs)
        self._must_be_zero(task, act.runs_subtract(there, held))

    def _masks(self, mm: int) -> dict[int, list[int]]:
        """page -> offsets in it that the kernel writes."""
        masks: dict[int, list[int]] = {}
        for task in self.wanted.tasks:
            for thread in task.threads if task.mm == mm else ():
                pointer = int(thread.attributes.get("rseq", {}).get("pointer", 0))
                for start, end in _RSEQ_WRITTEN if pointer else ():
                    for address in range(pointer + start, pointer + end):
                        masks.setdefault(address // PAGE, []).append(address % PAGE)
        return masks

    def _rseq(self, mm: int) -> dict[int, list[int]]:
        """page -> where a struct rseq begins in it. It is aligned to its 32 bytes."""
        found: dict[int, list[int]] = {}
        for task in self.wanted.tasks:
            for thread in task.threads if task.mm == mm else ():
                if pointer := int(thread.attributes.get("rseq", {}).get("pointer", 0)):
                    found.setdefault(pointer // PAGE, []).append(pointer % PAGE)
        return found

    def _compare(self, task: Task, runs: bytes, expected: memoryview, masks: dict[int, list[int]], left_over: dict[int, list[int]]) -> None:
        living = bytearray(len(expected))
        act.pages_read(self.tree, task.pid, runs, living)
        self.verdict.compared += len(living) // PAGE
        if living == expected:
            return
        at = 0
        for page, count, _content in RUN.iter_unpack(runs):
            for number in range(page, page + count):
                want, have = bytearray(expected[at : at + PAGE]), living[at : at + PAGE]
                for offset in masks.get(number, ()):
                    want[offset] = have[offset]
                for start in left_over.get(number, ()):
                    word = slice(start + _RSEQ_CS.start, start + _RSEQ_CS.stop)
                    if not any(have[word]):
                        want[word] = have[word]
                if want != have:
                    self.verdict.wrong.append(f"page {number * PAGE:#x} of task {task.pid} ({task.comm})")
                at += PAGE

    def _must_be_zero(self, task: Task, extra: bytes) -> None:
        """Populated, and not of the generation: it may only say what an empty page says."""
        anonymous = [(page, end) for page, end, own in private_ranges(task.mappings) if own]
        for page, end in as_spans(extra):
            for at in range(page, end, _PIECE):
                stop = min(end, at + _PIECE)
                living = bytearray((stop - at) * PAGE)
                act.pages_read(self.tree, task.pid, as_runs([(at, stop)], Content.DATA), living)
                inside = any(low <= at and stop <= high for low, high in anonymous)
                if not inside or living.count(0) != len(living):
                    self.verdict.wrong.append(f"page {at * PAGE:#x} of task {task.pid} ({task.comm}), which the generation does not have")

    def _object(self, item: SharedObject) -> None:
        name = f"shared memory {item.dev:x}:{item.ino}"
        path = objects.reach(item, self.wanted, self.tree.ours)
        if path is None:
            self.verdict.wrong.append(f"{name}: nobody has it")
            return
        held = as_spans(self.source.raw_runs(item.space))
        pages = (item.size + PAGE - 1) // PAGE
        with open(path, "rb", buffering=0) as file:  # noqa: PTH123
            size = os.fstat(file.fileno()).st_size
            if size != item.size:
                self.verdict.wrong.append(f"{name}: {size} bytes in place of {item.size}")
            for first in range(0, pages, _PIECE):
                count = min(_PIECE, pages - first)
                want = objects.wanted_bytes(item.space, first, count, held, self.source)[: item.size - first * PAGE]
                self.verdict.compared += count
                if os.pread(file.fileno(), len(want), first * PAGE) != want:
                    self.verdict.wrong.append(f"pages {first}-{first + count - 1} of {name}")
