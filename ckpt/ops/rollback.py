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
from collections.abc import Callable, Collection
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ckpt.errors import CkptError, PermissionDeniedError, RefusedError
from ckpt.history.open import Generation, History, Mode, open_store
from ckpt.live import advice, core, freezer, journal, names, objects, queues, runtime, track, watches, world
from ckpt.live.capture import Layout
from ckpt.live.deadlines import Deadlines
from ckpt.live.execute import Executor, Unchanged, disturbed
from ckpt.live.surgeon import operate, outside_groups, refuse_newcomers, refuse_strangers
from ckpt.model import PidRef, Plan, Snapshot
from ckpt.ops.baseline import Clock, find_baseline
from ckpt.ops.damage import with_a_way_out
from ckpt.ops.interrupts import held
from ckpt.ops.living import as_it_lives, living
from ckpt.ops.quiet import quiet
from ckpt.ops.rollback_pages import Pages
from ckpt.plan import FileIdentity, paths_of, plan
from ckpt.plan.kin import Surgery, predicted, surgery
from ckpt.plan.streams import as_now
from ckpt.plan.successors import renamed
from ckpt.plan.threads import NEEDS_NUMBERS

SINK_PAGES = 256  #: for contents of pipes and the like; runs and records have room of their own


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
    with with_a_way_out(request.store, request.generation, request.pid):
        done = _rollback(request, progress, only_unfinished=False)
    assert done is not None
    return done


def _rollback(request: Request, progress: Callable[[str], None], *, only_unfinished: bool) -> Result | None:
    clock = Clock()
    freezer.mend()
    with ExitStack() as stack:
        history = stack.enter_context(open_store(request.store, Mode.READ))
        number = history.resolve(request.generation, pid=request.pid)
        generation, found = history.load(number)
        wanted = queues.located(watches.located(found))
        ref = living(generation, wanted, request.pid)
        stack.enter_context(runtime.target_lock(ref))
        tree = stack.enter_context(core.Tree(ref.pid, ref.start_ticks, stack.enter_context(Deadlines())))
        freezer.refuse_frozen(tree, "rollback")
        track.stand_aside(tree)
        if only_unfinished and journal.load(ref) is None:
            return None  # another ckpt was at work on it, and has finished
        restored = wanted.root != ref
        wanted = as_it_lives(wanted, ref, {thread.pid: thread.start_ticks for thread in tree.threads() if thread.tid == thread.pid})
        clock.lap("opened")
        run = _Run(request, ref, tree, history, generation, wanted, clock, progress, restored=restored)
        return run.look() if request.dry_run else run.run()


@dataclass(frozen=True, slots=True)
class _Planned:
    """A plan, and what it was made of."""

    now: Snapshot
    world: dict[str, FileIdentity]
    made: Plan
    work: Surgery


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
        *,
        restored: bool,
    ) -> None:
        """`restored`: it lives by a restore, and the generation is of an earlier life."""
        self.restored = restored
        self.request, self.ref, self.tree, self.history = request, ref, tree, history
        self.generation, self.wanted, self.clock, self.progress = generation, wanted, clock, progress
        self.incarnation = runtime.incarnation(ref)
        self.unfinished = journal.load(ref)
        self.baseline = find_baseline(history, ref, self.incarnation)

    # ---- while it runs ----

    def look(self) -> Result:
        """--dry-run: the plan, nothing touched."""
        with core.Sink(SINK_PAGES, "/tmp") as sink:
            now = Layout(self.tree, self.wanted, self.baseline.seats, sink).take()
        self._take_in(now)
        made = self._planned(now, {seat.pid: seat.fd for seat in self.baseline.seats}).made
        return Result(self.generation.number, self.ref.pid, made, 0, self._spent(), 0, 0, 0, _threads(made, self.wanted), made.warnings, ())

    def run(self) -> Result:
        armed = track.arm(self.tree, "auto", self.baseline.seats)
        seats = {seat.pid: seat.fd for seat in armed.seats}
        with core.Sink(SINK_PAGES, "/tmp") as sink:
            layout = Layout(self.tree, self.wanted, armed.seats, sink)
            now = layout.take()
            self._take_in(now)
            planned = self._planned(now, seats)
            self._refuse(planned.made)
            if refusals := names.taken(self.ref.pid, now, self.wanted):
                raise RefusedError(refusals[0])
            refuse_strangers(planned.work, now)
            self.clock.lap("planned")
            self.progress("fetching pages")
            exact = self.baseline.exact and armed.exact and self.unfinished is None
            pages = Pages(self.tree, self.history, self.generation, self.wanted, self.baseline, sink, exact=exact)
            warnings = (*armed.warnings, *pages.prefetch(armed.tracks, now, planned.made, planned.work.made))
            record = runtime.Record(self.incarnation, self.generation.lineage, seats=armed.seats)
            runtime.save(self.ref, record)
            self.clock.lap("prefetched")
            gc.collect()
            with quiet(), held():
                made, executor, stop_ns = self.tree.by_own_tracer(lambda: self._frozen(layout, seats, planned, pages))
        # What another process with its number was is not what a later one is: that one is tracked anew.
        same = {(task.pid, task.start_ticks) for task in self.wanted.tasks}
        record = replace(record, seats=tuple(seat for seat in record.seats if (seat.pid, seat.start_ticks) in same))
        runtime.save(self.ref, replace(record, store=self.history.store.uuid, generation=self.generation.number))
        self.clock.lap("recorded")
        upset = tuple(line for task in self.wanted.tasks for line in disturbed(task, executor))
        return Result(
            self.generation.number,
            self.ref.pid,
            made,
            stop_ns,
            self._spent(),
            pages.written,
            pages.dropped,
            executor.calls,
            _threads(made, self.wanted),
            (*made.warnings, *warnings),
            upset,
            self.clock.phases,
        )

    def _take_in(self, now: Snapshot) -> None:
        if self.restored:
            self.wanted = renamed(as_now(self.wanted, now), now)

    def _spent(self) -> int:
        return time.monotonic_ns() - self.clock.start

    def _planned(self, now: Snapshot, seats: dict[int, int]) -> _Planned:
        """`now` as it is, or what the surgery will make of it."""
        work = surgery(now, self.wanted, outside_groups(now, self.wanted))
        if work.refusals:
            return _Planned(now, {}, Plan((), {}, {}, (), work.refusals), work)
        there = predicted(now, self.wanted, work) if work.steps else now
        planned = self._planned_from(there, seats, work.made)
        made = replace(planned.made, family=work.notes, warnings=(*work.warnings, *planned.made.warnings))
        return replace(planned, now=now, made=made, work=work)

    def _planned_from(self, now: Snapshot, seats: dict[int, int], made: Collection[int]) -> _Planned:
        """`now` has just the wanted tasks; `made`: those that are new."""
        found = world.look(paths_of(now, self.wanted, newborn=made), self.wanted, f"/proc/{self.ref.pid}/root")
        segments = advice.segments(self.ref.pid)
        planned = plan(now, self.wanted, found, tcp=self.request.tcp, reserved=seats, newborn=made, segments=segments)
        return _Planned(now, found, planned, Surgery(made=frozenset(made)))

    def _refuse(self, made: Plan) -> None:
        if made.refusals:
            more = f" (and {len(made.refusals) - 1} more: --dry-run lists them)" if len(made.refusals) > 1 else ""
            refused = PermissionDeniedError if NEEDS_NUMBERS in made.refusals[0] and os.geteuid() != 0 else RefusedError
            raise refused(made.refusals[0] + more)

    # ---- while it is frozen ----

    def _frozen(self, layout: Layout, seats: dict[int, int], planned: _Planned, pages: Pages) -> tuple[Plan, Executor, int]:
        begin = time.monotonic_ns()
        self.clock.lap("ready")
        self.tree.freeze()
        self.clock.lap("frozen")
        now = layout.again(planned.now)
        self.clock.lap("captured")
        if now is not planned.now or world.look(planned.world, self.wanted, f"/proc/{self.ref.pid}/root") != planned.world:
            planned = self._planned(now, seats)
            self._refuse(planned.made)
        refuse_newcomers(planned.work, now)
        stops = _Stops(now, self.wanted, self.unfinished)
        self.clock.lap("replanned")
        store = str(self.history.path.absolute())
        note = journal.Journal(store, self.generation.number, self.request.tcp, "changing", stops.by_others)
        journal.save(self.ref, note)
        self.clock.lap("journaled")
        executor = None
        try:
            if planned.work.steps:
                planned, now = self._operate(planned, layout, seats, stops)
            executor = Executor(self.tree, planned.made, now, self.wanted, stop=stops.left(planned.work), go=stops.go, keeps=True)
            executor.changed = bool(planned.work.steps)
            self._change(executor, pages, planned.work.made)
        except Unchanged as error:
            assert executor
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
        return planned.made, executor, time.monotonic_ns() - begin

    def _operate(self, planned: _Planned, layout: Layout, seats: dict[int, int], stops: _Stops) -> tuple[_Planned, Snapshot]:
        """Ends and makes tasks; then the tree is looked at anew, and planned from what really is there."""
        operate(self.tree, planned.now, planned.work, stops.stop)
        self.clock.lap("operated")
        now = Layout(self.tree, self.wanted, layout.seats, layout.sink).take()
        again = self._planned_from(now, seats, planned.work.made)
        self._refuse(again.made)
        made = replace(again.made, family=planned.made.family)
        return replace(again, made=made, work=planned.work), now

    def _change(self, executor: Executor, pages: Pages, made: Collection[int]) -> None:
        executor.begin()
        self.clock.lap("stopped")
        executor.before_pages()
        self.clock.lap("layout")
        pages.put(executor, made, self.clock)
        with objects.Contents(self.wanted, executor.plan.objects, pages.source, self.tree.ours) as contents:
            pages.written += contents.put()
            self.clock.lap("pages")
            executor.after_pages()
            contents.seal()
        self.clock.lap("registers")


class _Stops:
    """Who is in a group stop, before and after. The generation says who; but where somebody has stopped the whole tree (its root),
    that is not the program's doing, and what is stopped stays so.

    `by_others`: tasks that somebody else has stopped; `stop`: those that nobody has; `go`: those that run in the end."""

    def __init__(self, now: Snapshot, wanted: Snapshot, unfinished: journal.Journal | None) -> None:
        standing = {task.pid for task in now.tasks if task.stopped}
        self.by_others = tuple(sorted(standing)) if unfinished is None else unfinished.stopped
        self.stop = [task.pid for task in now.tasks if task.pid not in standing]
        held = set(self.by_others) if wanted.root.pid in self.by_others else set()
        self.go = [task.pid for task in wanted.tasks if not task.stopped and task.pid not in held]

    def left(self, work: Surgery) -> list[int]:
        """Tasks that the executor has to stop: none after a surgery."""
        return [] if work.steps else self.stop


def _threads(made: Plan, wanted: Snapshot) -> dict[str, int]:
    return {
        "ended": sum(len(tids) for tids in made.threads_end.values()),
        "spawned": sum(len(tids) for tids in made.threads_spawn.values()),
        "set": sum(len(task.threads) for task in wanted.tasks),
    }


def finish(pid: int, unfinished: journal.Journal) -> Result | None:
    """Finishes what a killed ckpt left in the middle."""
    request = Request(str(unfinished.generation), pid, Path(unfinished.store), unfinished.tcp)
    return _rollback(request, lambda _text: None, only_unfinished=True)
