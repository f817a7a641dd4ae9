"""The pages of a rollback: fetched while the target runs, written while it stands still.

For each memory: what the generation holds, where it differs from the baseline, what was written since. The arithmetic is
done ahead on a scan of the running target and once more on the frozen one (native/src/pagework.c); only what the second adds
has to come from the store while the target is stopped.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field

from ckpt.history.open import Generation, History
from ckpt.history.pages import GenerationPages
from ckpt.live import act, core
from ckpt.live.execute import Executor
from ckpt.model import Plan, Snapshot, Task
from ckpt.ops.baseline import Baseline, Clock
from ckpt.plan.pages import Span, as_runs, as_spans, first_pages, joined, private_ranges, total

PREFETCH_PAGES = 65536  #: 256 MiB held in memory before the freeze; more is read from the store while the target is stopped
WRITE_PIECE = 256  #: pages of zeros written at once
NR_MMAP = 9


@dataclass(slots=True)
class Memory:
    """One memory's pages."""

    task: Task
    track: core.Track | None  #: None: the task is not there yet
    rule: act.PageRule
    hold: bytes
    ahead: bytes = b""  #: runs of what was fetched
    data: bytearray = field(default_factory=bytearray)
    left: int = 0  #: pages that did not fit


class Pages:
    """All memories of the generation. `exact`: the baseline is known, so pages unwritten since are those of the baseline."""

    def __init__(
        self,
        tree: core.Tree,
        history: History,
        generation: Generation,
        wanted: Snapshot,
        baseline: Baseline,
        sink: core.Sink,
        *,
        exact: bool,
    ) -> None:
        self.tree, self.history, self.generation, self.sink = tree, history, generation, sink
        self.source: GenerationPages = history.pages(generation.number)
        self.written = self.dropped = 0
        self.wanted, self.parent = wanted, baseline.parent if exact else None
        self.memories: list[Memory] = []

    # ---- while it runs ----

    def prefetch(self, tracks: Sequence[core.Track], now: Snapshot, planned: Plan, made: Collection[int]) -> tuple[str, ...]:
        """Contents that are likely to be written. `made`: tasks that are to be made. Returns what the user should know."""
        by_mm = {thread.pid: thread.mm for thread in self.tree.threads()}
        track_of = {by_mm[one.pid]: one for one in tracks if one.pid in by_mm}
        before = self.history.load(self.parent)[1] if self.parent is not None else None
        living = {task.pid: task for task in now.tasks if task.pid not in made}
        seen: set[int] = set()
        for task in self.wanted.tasks:
            if task.mm in seen:
                continue
            seen.add(task.mm)
            hold = self.source.raw_runs(task.mm)
            here = living.get(task.pid)
            rule = act.PageRule(hold, self._differs(before, here, task) if here else None, private_ranges(task.mappings))
            memory = Memory(task, track_of.get(by_mm[task.pid]) if here and task.pid in by_mm else None, rule, hold)
            work = rule.work(self._scan(memory) if memory.track else b"")
            self._fetch(memory, joined(sorted([*as_spans(work.write), *_mapped_anew(planned, task, hold)])))
            self.memories.append(memory)
        left = sum(memory.left for memory in self.memories)
        why = "no baseline stands for this process" if self.parent is None else "so much has been written since"
        return (f"{left} pages are read from the store while the process is stopped: {why}",) if left else ()

    def _scan(self, memory: Memory, *, protect: bool = False) -> bytes:
        track = memory.track or core.Track(memory.task.pid, core.COMPARE, -1, 0, fresh=True)
        return bytes(act.pages_scan(self.tree, track, self.sink, protect=protect).runs)

    def _differs(self, before: Snapshot | None, here: Task, task: Task) -> bytes | None:
        """Where the generation differs from the baseline, if the baseline knows this very process."""
        same = next((one for one in before.tasks if one.ref == here.ref), None) if before else None
        if same is None or self.parent is None:
            return None
        return self.history.store.diff(self.parent, same.mm, self.generation.number, task.mm)

    def _fetch(self, memory: Memory, spans: Sequence[Span]) -> None:
        chosen, memory.left = first_pages(spans, PREFETCH_PAGES - sum(len(one.data) >> 12 for one in self.memories))
        memory.ahead = as_runs(chosen)
        for piece in self.source.read_runs(memory.task.mm, memory.ahead):
            memory.data += piece

    # ---- while it is frozen ----

    def put(self, executor: Executor, made: Collection[int], clock: Clock) -> None:
        """`made`: tasks that were made just now, as copies of others: nothing of them is known, all is put right."""
        for memory in self.memories:
            if memory.task.pid in made:
                memory.track = None
                memory.rule = act.PageRule(memory.hold, None, private_ranges(memory.task.mappings))
            self._put(executor, memory, clock)

    def _put(self, executor: Executor, memory: Memory, clock: Clock) -> None:
        pid = memory.task.pid
        seen = self._scan(memory)
        clock.lap("scanned")
        work = memory.rule.work(seen)
        late = act.runs_subtract(work.write, memory.ahead)
        clock.lap("sorted")
        act.pages_write(self.tree, pid, memory.ahead, memory.data)
        self._write_late(memory, as_spans(late))
        clock.lap("written")
        drop, zero = as_spans(work.drop), as_spans(work.zero)
        zero += executor.drop(pid, drop)
        for page, count in _cut(zero, WRITE_PIECE):
            act.pages_write(self.tree, pid, as_runs([(page, page + count)]), bytes(count << 12))
        self.written += (len(memory.data) >> 12) + total(as_spans(late)) + total(zero)
        self.dropped += total(drop)
        clock.lap("dropped")
        if memory.track and memory.track.tracker != core.COMPARE:
            act.pages_scan(self.tree, memory.track, self.sink, protect=True)
        clock.lap("protected")

    def _write_late(self, memory: Memory, late: Sequence[Span]) -> None:
        """Pages that nobody could know of before the freeze, from the store, in pieces."""
        queue = iter(_cut(late, 1))
        for piece in self.source.read_runs(memory.task.mm, as_runs(late)):
            spans = [(page, page + size) for page, size in (next(queue) for _ in range(len(piece) >> 12))]
            act.pages_write(self.tree, memory.task.pid, as_runs(joined(spans)), piece)


def _cut(spans: Sequence[Span], pages: int) -> Iterator[tuple[int, int]]:
    """(page, count) with count <= pages."""
    for page, end in spans:
        for at in range(page, end, pages):
            yield at, min(pages, end - at)


def _mapped_anew(made: Plan, task: Task, hold: bytes) -> list[Span]:
    """What the generation holds where the plan maps something: empty by then, so everything has to be written."""
    fresh = sorted(
        (call.args[0].value >> 12, (call.args[0].value + call.args[1].value) >> 12)
        for stage in made.stages
        if stage.pid == task.pid
        for call in stage.calls
        if call.nr == NR_MMAP
    )
    return as_spans(act.PageRule(hold, None, [(page, end, True) for page, end in joined(fresh)]).work(b"").write)
