"""A rollback in place: the same process, as it was at a generation.

    resolve GEN -> the living process -> plan while it runs (refusals end it here) -> prefetch pages
    -> freeze -> look again, plan again -> journal, stop -> execute, pages, registers -> continue, thaw -> record

What fails before the first change leaves the target as it was. What fails later leaves it stopped, with the journal: the
next ckpt that meets it (rollback, snapshot, check) finishes it.
"""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ckpt.errors import CkptError, NotFoundError, RefusedError
from ckpt.history.open import Generation, History, Mode, open_store
from ckpt.live import act, core, journal, objects, runtime, track
from ckpt.live.capture import Layout
from ckpt.live.execute import Executor, Unchanged, disturbed
from ckpt.model import PidRef, Plan, Snapshot, Task
from ckpt.ops.baseline import Clock, find_baseline
from ckpt.plan import FileIdentity, paths_of, plan
from ckpt.plan.pages import PageWork, Span, as_runs, page_work, private_ranges, subtract, total
from ckpt.procfs import parse_stat

SINK_PAGES = 256  #: for contents of pipes and the like; runs and records have room of their own
PREFETCH_PAGES = 65536  #: 256 MiB held in memory before the freeze; more is read from the store while the target is stopped
WRITE_PIECE = 256  #: pages of zeros written at once
NR_MMAP = 9


@dataclass(frozen=True, slots=True)
class Request:
    generation: str
    pid: int | None = None
    store: Path | None = None
    tcp: str = "reset"  #: "reset" | "keep" | "refuse": connections that have moved since
    dry_run: bool = False


@dataclass(frozen=True, slots=True)
class Result:
    generation: int
    pid: int
    plan: Plan
    stop_ns: int
    total_ns: int
    pages_written: int
    pages_dropped: int
    calls: int
    threads: dict[str, int]
    warnings: tuple[str, ...]
    disturbed: tuple[str, ...]
    phases: dict[str, int] = field(default_factory=dict)

    def json(self) -> dict[str, Any]:
        return {
            "generation": self.generation,
            "pid": self.pid,
            "stop_us": self.stop_ns // 1000,
            "total_ms": round(self.total_ns / 1e6, 3),
            "pages_written": self.pages_written,
            "pages_dropped": self.pages_dropped,
            "calls": self.calls,
            "threads": dict(self.threads),
            "warnings": list(self.warnings),
            "disturbed": list(self.disturbed),
            "phases": {name: ns // 1000 for name, ns in self.phases.items()},
        }


def rollback(request: Request, progress: Callable[[str], None] = lambda _text: None) -> Result:
    """Rolls a living process back. Raises RefusedError (3), PermissionDeniedError (4), DamagedError (5), NotFoundError (6)."""
    done = _rollback(request, progress, only_unfinished=False)
    assert done is not None
    return done


def _rollback(request: Request, progress: Callable[[str], None], *, only_unfinished: bool) -> Result | None:
    clock = Clock()
    with ExitStack() as stack:
        history = stack.enter_context(open_store(request.store, Mode.READ))
        number = history.resolve(request.generation, pid=request.pid)
        generation, wanted = history.load(number)
        ref = living(generation, wanted, request.pid)
        tree = stack.enter_context(core.Tree(ref.pid, ref.start_ticks))
        stack.enter_context(runtime.target_lock(ref))
        if only_unfinished and journal.load(ref) is None:
            return None  # another ckpt was at work on it, and has finished
        clock.lap("opened")
        run = _Run(request, ref, tree, history, generation, wanted, clock, progress)
        return run.look() if request.dry_run else run.run()


def living(generation: Generation, wanted: Snapshot, pid: int | None) -> PidRef:
    """The process that the generation is of, if it still lives and is still that program."""
    ref = wanted.root
    name = f"task {ref.pid} ({generation.command})"
    if pid is not None and pid != ref.pid:
        raise RefusedError(f"generation {generation.number} is of {name}, not of task {pid}: ckpt restore makes a new process from it")
    try:
        alive = runtime.start_ticks(ref.pid) == ref.start_ticks
        incarnation = runtime.incarnation(ref) if alive else ""
    except (NotFoundError, OSError):
        alive, incarnation = False, ""
    if not alive or not runtime.same_process(incarnation, generation.incarnation):
        raise NotFoundError(f"{name} of generation {generation.number} is gone: ckpt restore brings it back as a new process")
    if incarnation != generation.incarnation:
        raise RefusedError(f"{name} has executed another program since generation {generation.number}: ckpt restore --replace")
    return ref


@dataclass(slots=True)
class _Memory:
    """One memory's pages: what the generation holds, what may differ, what was fetched ahead."""

    task: Task
    track: core.Track
    hold: bytes
    differs: bytes | None
    ranges: list[tuple[int, int, bool]]
    scanned: bytes = b""  #: the last look at the running target, and what followed from it
    work: PageWork = field(default_factory=lambda: PageWork([], [], []))
    ahead: list[Span] = field(default_factory=list)
    data: bytearray = field(default_factory=bytearray)


class _Run:
    def __init__(
        self,
        request: Request,
        ref: PidRef,
        tree: core.Tree,
        history: History,
        generation: Generation,
        wanted: Snapshot,
        clock: Clock,
        progress: Callable[[str], None],
    ) -> None:
        self.request, self.ref, self.tree, self.history = request, ref, tree, history
        self.generation, self.wanted, self.clock, self.progress = generation, wanted, clock, progress
        self.incarnation = runtime.incarnation(ref)
        self.unfinished = journal.load(ref)
        self.baseline = find_baseline(history, ref, self.incarnation)
        self.source = history.pages(generation.number)
        self.written = self.dropped = 0

    # ---- while it runs ----

    def look(self) -> Result:
        """--dry-run: the plan, nothing touched."""
        with core.Sink(SINK_PAGES, "/tmp") as sink:
            now = Layout(self.tree, self.wanted, self.baseline.seats, sink).take()
        made = self._plan(now, {seat.pid: seat.fd for seat in self.baseline.seats})
        return Result(self.generation.number, self.ref.pid, made, 0, self._spent(), 0, 0, 0, _threads(made, self.wanted), made.warnings, ())

    def run(self) -> Result:
        armed = track.arm(self.tree, "auto", self.baseline.seats)
        seats = {seat.pid: seat.fd for seat in armed.seats}
        with core.Sink(SINK_PAGES, "/tmp") as sink:
            layout = Layout(self.tree, self.wanted, armed.seats, sink)
            made = self._plan(layout.take(), seats)
            self._refuse(made)
            self.clock.lap("planned")
            self.progress("fetching pages")
            memories = self._prefetch(armed, made, sink)
            held = objects.fetch(self.wanted.objects, self.source)
            record = runtime.Record(self.incarnation, self.generation.lineage, seats=armed.seats)
            runtime.save(self.ref, record)
            self.clock.lap("prefetched")
            with _quiet():
                made, executor, stop_ns = self._frozen(layout, seats, memories, held)
        runtime.save(self.ref, replace(record, store=self.history.store.uuid, generation=self.generation.number))
        self.clock.lap("recorded")
        upset = tuple(line for task in self.wanted.tasks for line in disturbed(task))
        return Result(
            self.generation.number,
            self.ref.pid,
            made,
            stop_ns,
            self._spent(),
            self.written,
            self.dropped,
            executor.calls,
            _threads(made, self.wanted),
            (*made.warnings, *armed.warnings),
            upset,
            self.clock.phases,
        )

    def _spent(self) -> int:
        return time.monotonic_ns() - self.clock.start

    def _plan(self, now: Snapshot, seats: dict[int, int]) -> Plan:
        world: dict[str, FileIdentity] = {}
        for path in paths_of(now, self.wanted):
            try:
                found = os.stat(f"/proc/{self.ref.pid}/root{path}")
            except OSError:
                continue
            world[path] = FileIdentity(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)
        return plan(now, self.wanted, world, tcp=self.request.tcp, reserved=seats)

    def _refuse(self, made: Plan) -> None:
        if made.refusals:
            more = f" (and {len(made.refusals) - 1} more: --dry-run lists them)" if len(made.refusals) > 1 else ""
            raise RefusedError(made.refusals[0] + more)

    # ---- pages ahead of time ----

    def _prefetch(self, armed: track.Armed, made: Plan, sink: core.Sink) -> list[_Memory]:
        """Contents that are likely to be written: what differs between baseline and generation, what was written since."""
        by_mm = {thread.pid: thread.mm for thread in self.tree.threads()}
        tracks = {by_mm[one.pid]: one for one in armed.tracks}
        exact = self.baseline.exact and armed.exact and self.unfinished is None
        before = self.history.load(self.baseline.parent)[1] if exact and self.baseline.parent is not None else None
        memories: list[_Memory] = []
        seen: set[int] = set()
        for task in self.wanted.tasks:
            if task.mm in seen:
                continue
            seen.add(task.mm)
            memory = _Memory(
                task, tracks[by_mm[task.pid]], self.source.raw_runs(task.mm), self._differs(before, task), private_ranges(task.mappings)
            )
            memory.scanned = bytes(act.pages_scan(self.tree, memory.track, sink, protect=False).runs)
            memory.work = page_work(memory.hold, memory.scanned, memory.differs, memory.ranges)
            self._fetch(memory, sorted({*memory.work.write, *_mapped_anew(made, task, memory.hold)}))
            memories.append(memory)
        return memories

    def _differs(self, before: Snapshot | None, task: Task) -> bytes | None:
        same = next((one for one in before.tasks if one.ref == task.ref), None) if before else None
        if same is None or self.baseline.parent is None:
            return None
        return self.history.store.diff(self.baseline.parent, same.mm, self.generation.number, task.mm)

    def _fetch(self, memory: _Memory, spans: Sequence[Span]) -> None:
        room = PREFETCH_PAGES
        for page, end in _joined(spans):
            if end - page > room:
                break
            memory.ahead.append((page, end))
            room -= end - page
        for piece in self.source.read_runs(memory.task.mm, as_runs(memory.ahead)):
            memory.data += piece

    # ---- while it is frozen ----

    def _frozen(
        self, layout: Layout, seats: dict[int, int], memories: Sequence[_Memory], held: objects.Contents
    ) -> tuple[Plan, Executor, int]:
        begin = time.monotonic_ns()
        stopped = self.unfinished is None and _stopped(self.wanted.tasks)
        self.tree.freeze()
        self.clock.lap("frozen")
        now = layout.take()
        self.clock.lap("captured")
        made = self._plan(now, seats)
        self._refuse(made)
        executor = Executor(self.tree, made, now, self.wanted, stopped=stopped)
        self.clock.lap("replanned")
        note = journal.Journal(str(self.history.path), self.generation.number, self.request.tcp, "changing")
        journal.save(self.ref, note)
        self.clock.lap("journaled")
        try:
            self._change(executor, memories, held, layout.sink)
        except Unchanged as error:
            executor.abandon()
            if self.unfinished is None:
                journal.clear(self.ref)
            raise RefusedError(f"{error}: nothing was changed") from None
        except CkptError as error:
            advice = f"it stays stopped: ckpt rollback {self.generation.number} tries again, kill -9 {self.ref.pid} ends it"
            raise CkptError(f"task {self.ref.pid}: the rollback could not be finished ({error}): {advice}") from error
        journal.save(self.ref, replace(note, phase="done"))
        executor.end()
        journal.clear(self.ref)
        self.clock.lap("continued")
        self.tree.thaw()
        self.clock.lap("thawed")
        return made, executor, time.monotonic_ns() - begin

    def _change(self, executor: Executor, memories: Sequence[_Memory], held: objects.Contents, sink: core.Sink) -> None:
        executor.begin()
        self.clock.lap("stopped")
        executor.before_pages()
        self.clock.lap("layout")
        for memory in memories:
            self._pages(executor, memory, sink)
        self.written += objects.put(held, self.wanted, self.source)
        self.clock.lap("pages")
        executor.after_pages()
        self.clock.lap("registers")

    def _pages(self, executor: Executor, memory: _Memory, sink: core.Sink) -> None:
        pid = memory.task.pid
        scanned = bytes(act.pages_scan(self.tree, memory.track, sink, protect=False).runs)
        self.clock.lap("scanned")
        work = memory.work if scanned == memory.scanned else page_work(memory.hold, scanned, memory.differs, memory.ranges)
        late = subtract(work.write, memory.ahead)
        self.clock.lap("sorted")
        act.pages_write(self.tree, pid, as_runs(memory.ahead), memory.data)
        self._write_late(pid, memory, late)
        refused = executor.drop(pid, work.drop)
        for page, count in _cut([*work.zero, *refused], WRITE_PIECE):
            act.pages_write(self.tree, pid, as_runs([(page, page + count)]), bytes(count << 12))
        self._count(memory, work, late)
        self.clock.lap("written")
        if memory.track.tracker != core.COMPARE:
            act.pages_scan(self.tree, memory.track, sink, protect=True)
        self.clock.lap("protected")

    def _write_late(self, pid: int, memory: _Memory, late: Sequence[Span]) -> None:
        """Pages that nobody could know of before the freeze, from the store, in pieces."""
        queue = iter(_cut(late, 1))
        for piece in self.source.read_runs(memory.task.mm, as_runs(late)):
            count = len(piece) >> 12
            spans = [(page, page + size) for page, size in (next(queue) for _ in range(count))]
            act.pages_write(self.tree, pid, as_runs(_joined(spans)), piece)

    def _count(self, memory: _Memory, work: PageWork, late: Sequence[Span]) -> None:
        self.written += total(memory.ahead) + total(late) + total(work.zero)
        self.dropped += total(work.drop)


def _cut(spans: Sequence[Span], pages: int) -> Iterator[tuple[int, int]]:
    """(page, count) with count <= pages."""
    for page, end in spans:
        for at in range(page, end, pages):
            yield at, min(pages, end - at)


def _joined(spans: Sequence[Span]) -> list[Span]:
    """Sorted spans that may overlap -> disjoint ones."""
    out: list[Span] = []
    for page, end in spans:
        if out and page <= out[-1][1]:
            out[-1] = (out[-1][0], max(out[-1][1], end))
        else:
            out.append((page, end))
    return out


def _mapped_anew(made: Plan, task: Task, hold: bytes) -> list[Span]:
    """What the generation holds where the plan maps something: empty by then, so everything has to be written."""
    fresh = [
        (call.args[0].value >> 12, (call.args[0].value + call.args[1].value) >> 12)
        for stage in made.stages
        if stage.pid == task.pid
        for call in stage.calls
        if call.nr == NR_MMAP
    ]
    ranges = [(page, end, True) for page, end in sorted(fresh)]
    return page_work(hold, b"", None, ranges).write


def _threads(made: Plan, wanted: Snapshot) -> dict[str, int]:
    return {
        "ended": sum(len(tids) for tids in made.threads_end.values()),
        "spawned": sum(len(tids) for tids in made.threads_spawn.values()),
        "set": sum(len(task.threads) for task in wanted.tasks),
    }


def _stopped(tasks: Sequence[Task]) -> bool:
    """Whether somebody else has stopped them (SIGSTOP, a shell's ^Z): then they stay stopped."""
    return any(parse_stat(Path(f"/proc/{task.pid}/stat").read_bytes()).state == "T" for task in tasks)


@contextmanager
def _quiet() -> Iterator[None]:
    """No garbage collection while the target is stopped."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def settle(pid: int) -> Result | None:
    """Finishes a rollback of this process that a killed ckpt left in the middle. What snapshot and check do first."""
    try:
        ref = PidRef(pid, runtime.start_ticks(pid))
    except NotFoundError:
        return None
    unfinished = journal.load(ref)
    if unfinished is None:
        return None
    request = Request(str(unfinished.generation), pid, Path(unfinished.store), unfinished.tcp)
    return _rollback(request, lambda _text: None, only_unfinished=True)
