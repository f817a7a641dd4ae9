"""A snapshot, from the pre-flight to the published generation.

    pre-flight -> arm -> (record: consumed) -> pre-copy while the target runs -> freeze, raw bytes, scan, copy, thaw
    -> parse -> store -> publish -> (record: generation N)

Whatever fails, the target runs on. What fails before the publication leaves no generation; the record then says
"consumed", so the next snapshot reads everything.
"""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ckpt.errors import CkptError, NotFoundError, UsageError
from ckpt.history.open import Generation, History, Mode, open_store
from ckpt.history.recording import Meta, Recording
from ckpt.kinds.fd import netlink
from ckpt.kinds.table import table
from ckpt.live import core, freezer, runtime, track
from ckpt.live.advice import Adviser
from ckpt.live.asker import asked, await_asker
from ckpt.live.capture import Capture
from ckpt.live.deadlines import Deadlines
from ckpt.live.pages import batches, final_parts, layout
from ckpt.live.preflight import preflight
from ckpt.live.spaces import Spaces
from ckpt.model import PidRef, Snapshot
from ckpt.ops.baseline import Clock, find_baseline
from ckpt.ops.paranoid import compare_pages
from ckpt.ops.settle import settle

if TYPE_CHECKING:  # bpf is loaded where something is watched
    from ckpt.live.telemetry import Telemetry


@dataclass(frozen=True, slots=True)
class Request:
    pid: int
    store: Path | None = None
    mode: str = "auto"  #: "auto" | "incremental" | "full"
    tracker: str = "auto"  #: "auto" | "uffd" | "softdirty" | "compare"
    precopy: int | None = None  #: rounds; None = as many as pay
    tag: str | None = None
    kill: bool = False
    paranoid: bool = False
    start_ticks: int = 0  #: of the process that is meant; 0 = whoever has the number
    freeze: str = "auto"  #: one of freezer.WAYS: by what the whole tree is stopped
    asker: int = 0  #: the thread of it that has asked for this, and waits


@dataclass(frozen=True, slots=True)
class Result:
    generation: Generation
    snapshot: Snapshot
    warnings: tuple[str, ...]
    paranoid: Mapping[str, int] | None
    freeze: str  #: "cgroup" | "ptrace"
    total_ns: int  #: until the generation was published (the one in the store ends where the publication begins)
    writes: Mapping[str, int] | None = None  #: where they were watched: pages with a writer, writers, writes that were lost

    def json(self) -> dict[str, Any]:
        made = self.generation
        answer: dict[str, Any] = {
            "generation": made.number,
            "parent": made.parent,
            "lineage": made.lineage,
            "incarnation": made.incarnation,
            "kind": made.kind,
            "tracker": made.tracker,
            "pid": made.pid,
            "command": made.command,
            "freeze": self.freeze,
            "stop_us": made.stop_ns // 1000,
            "total_ms": round(self.total_ns / 1e6, 3),
            "pages": dict(made.pages),
            "bytes_stored": made.bytes_stored,
            "phases": {name: ns // 1000 for name, ns in made.phases.items()},
            "warnings": list(self.warnings),
        }
        if self.paranoid is not None:
            answer["paranoid"] = dict(self.paranoid)
        if self.writes is not None:
            answer["writes"] = dict(self.writes)
        return answer


#: (what, pages done, pages expected; 0 = unknown)
Progress = Callable[[str, int, int], None]


def quiet(_what: str, _done: int, _total: int) -> None:
    """No progress shown."""


TRIES = 10  #: a tree whose children end while it is looked at is looked at anew


def snapshot(request: Request, progress: Progress = quiet, witness: Telemetry | None = None, ebpf: Deadlines | None = None) -> Result:
    """Takes one snapshot; `witness`: has watched the tree's writes since the last; `ebpf`: knows when waits end, if need be one of our own.
    Raises RefusedError (3), PermissionDeniedError (4),
    NotFoundError (6), DamagedError (5), CkptError (1)."""
    root = runtime.start_ticks(request.pid)
    for attempt in range(1, TRIES + 1):
        try:
            with ExitStack() as stack:
                return _snapshot(request, progress, witness, ebpf or stack.enter_context(Deadlines()))
        except (FileNotFoundError, ProcessLookupError, NotFoundError) as error:
            if isinstance(error, OSError) and re.match(r"/proc/\d", str(error.filename)) is None:
                raise
            if not runtime.lives(request.pid, root):
                raise NotFoundError(f"task {request.pid}: has ended: give the pid of a living process") from None
            if attempt == TRIES:  # a child that ended while we looked, each time another
                raise CkptError(f"task {request.pid}: its children come and go too fast ({error}): nothing was kept; try again") from None
    raise AssertionError("the last attempt returns or raises")


def _snapshot(request: Request, progress: Progress, witness: Telemetry | None, ebpf: Deadlines) -> Result:
    table()  # code is loaded before the clock starts and before the target is locked
    clock = Clock()
    core.one_heap()
    settle(request.pid)
    ref = PidRef(request.pid, request.start_ticks or runtime.start_ticks(request.pid))
    with ExitStack() as stack:
        stack.enter_context(runtime.target_lock(ref))  # first of all: another ckpt at work there would look like a tracer
        held = stack.enter_context(freezer.Held(ref))
        tree = stack.enter_context(core.Tree(ref.pid, ref.start_ticks, ebpf))
        track.stand_aside(tree)
        if request.asker:
            await_asker(ref.pid, request.asker)
        passed = preflight(tree)
        held.take(tree, request.freeze)
        clock.lap("preflight")
        history = stack.enter_context(open_store(request.store, Mode.CREATE))
        if passed.direct_io:
            request = replace(request, precopy=0)  # a page that a device is writing to would be protected behind its back
        return _Run(request, ref, tree, history, clock, progress, witness, held.group).run(passed.warnings)


def _unread(found: Snapshot) -> Iterator[str]:
    """Told at once: a moment later there may be nothing to be in the way."""
    files = {file.id for file in found.files if netlink.has_unread(file)}
    for task in found.tasks:
        for item in task.descriptors:
            if item.file in files:
                what = "netlink socket: messages lie unread in it, so this generation cannot be restored: take another one"
                yield f"fd {item.fd} of task {task.pid} ({task.comm}): {what}"


class _Run:
    """One snapshot's steps, in order; only here so that they need not hand ten things to each other."""

    def __init__(
        self,
        request: Request,
        ref: PidRef,
        tree: core.Tree,
        history: History,
        clock: Clock,
        progress: Progress,
        witness: Telemetry | None,
        group: freezer.Group | None,
    ) -> None:
        self.group = group
        self.request, self.ref, self.tree, self.history, self.clock, self.progress = request, ref, tree, history, clock, progress
        self.witness = witness
        self.writes: dict[str, int] | None = None
        self.incarnation = runtime.incarnation(ref)
        self.baseline = find_baseline(history, ref, self.incarnation)

    def run(self, warnings: tuple[str, ...]) -> Result:
        taken = self.history.store.tags().get(self.request.tag) if self.request.tag else None
        if taken is not None:
            raise UsageError(f"--tag {self.request.tag}: names generation {taken} already: ckpt tag --force moves it")
        # Without a baseline the dirty state means nothing: a tracker armed anew reports every page as written.
        known = self.baseline.exact and self.request.mode != "full"
        still = self.group is not None and self.group.theirs
        armed = track.arm(self.tree, self.request.tracker, self.baseline.seats if known else (), still=still)
        self.clock.lap("armed")
        incremental = known and armed.exact
        if self.request.mode == "incremental" and not incremental:
            warnings = (*warnings, f"{self._lost(known)}: everything was read")
        record = runtime.Record(self.incarnation, self.baseline.lineage, seats=armed.seats)
        runtime.save(self.ref, record)
        self.clock.lap("consumed")
        with self.history.begin(self.baseline.parent) as recording:
            generation, found, verdict = self._record(recording, armed, incremental)
        runtime.save(self.ref, replace(record, store=self.history.store.uuid, generation=generation.number))
        self.clock.lap("recorded")
        if self.request.tag:
            self.history.store.tag(self.request.tag, generation.number)
        if self.baseline.parent is None:
            runtime.sweep()
        warnings = (*warnings, *armed.warnings, *self._unknown_writers(), *_unread(found))
        way = "cgroup" if self.group is not None else "ptrace"
        return Result(generation, found, warnings, verdict, way, time.monotonic_ns() - self.clock.start, self.writes)

    def _lost(self, known: bool) -> str:
        if not known:
            return "no baseline stands for this process in this store"
        if not self.baseline.seats:
            return f"nothing has tracked it since generation {self.baseline.parent} (a restore, or a snapshot by comparison)"
        return "its tracker was lost (the program closed it)"

    def _unknown_writers(self) -> Iterator[str]:
        if self.writes is not None and self.writes["lost"]:
            yield f"{self.writes['lost']} writes came faster than they were read: their pages have no writer, or a later one"

    def _record(self, recording: Recording, armed: track.Armed, incremental: bool) -> tuple[Generation, Snapshot, dict[str, int] | None]:
        before, parent = self.history.load(self.baseline.parent) if self.baseline.parent is not None else (None, None)
        spaces = Spaces(self.tree.threads(), parent)
        with ExitStack() as stack:
            if self.request.kill:
                self.tree.freeze()  # stays frozen to the end, so that nothing happens after the captured instant
            expected = self._expected(armed, before.pages["dirty"] if before is not None and incremental else None)
            precopied, sink = self._precopy(stack, recording, spaces, armed, expected)
            capture = Capture(
                self.tree,
                armed.tracks,
                paranoid=self.request.paranoid,
                no_inject=not armed.injectable,
                last_round=self.request.precopy is None,
                adviser=Adviser(parent if incremental else None),
            )
            self.clock.lap("prepared")
            timing = capture.run(sink)
            self.clock.lap("captured")
            found = capture.parse(sink, spaces)
            if self.request.asker:
                found = asked(found, self.request.asker)
            self.clock.lap("parsed")
            frozen = self._store(recording, sink, spaces)
            self.clock.lap("stored")
            meta = self._meta(found, timing, armed, incremental, precopied + frozen)
            evidence = self.witness.evidence(found, timing["at"]) if self.witness is not None else None
            generation = recording.commit(found, meta, evidence)
            if evidence is not None:
                self.writes = {"pages": recording.writes, "writers": len(evidence.writers), "lost": evidence.lost}
            self.clock.lap("published")
            verdict = self._verdict(generation, sink, spaces) if self.request.paranoid else None
            if self.request.kill:
                for task in found.tasks:
                    self.tree.signal(task.pid, signal.SIGKILL)
        return generation, found, verdict

    def _expected(self, armed: track.Armed, last: int | None) -> int:
        """Pages to read. `last`: of the generation before, None for a full snapshot. A program that wrote much in the last interval is
        taken to do so again: a round costs it little where that is wrong, and counting would cost a scan as long as the round's."""
        if last is not None and last > track.CONVERGED and self.request.precopy != 0 and not self.request.kill:
            return last
        return sum(count.resident if last is None else count.written for count in self._counts(armed))

    def _precopy(self, stack: ExitStack, recording: Recording, spaces: Spaces, armed: track.Armed, expected: int) -> tuple[int, core.Sink]:
        """Streams what is dirty to the store while the target runs. Returns the pages read and the sink for the freeze."""
        compared, spill = track.compared_pages(armed.tracks), str(self.history.path.parent)
        rounds = 0 if self.request.kill else self.request.precopy
        if rounds == 0 or armed.tracker == "compare" or (rounds is None and expected <= track.CONVERGED):
            return 0, stack.enter_context(core.Sink(track.sink_pages(expected) + compared, spill))

        def consume(one: core.Track, full: core.Sink) -> None:
            for part in full.spaces():
                for runs, data in batches(full, part):
                    recording.add(spaces.store(part.space), runs, data)

        with track.Precopy(self.tree, expected, consume, self.progress) as ahead:
            ahead.run(armed.tracks, rounds)
            # While the last piece is being stored. The core learns anew where the fast scan will do: a third of the frozen time.
            left = sum(count.written for count in self._counts(armed))
            sink = stack.enter_context(core.Sink(track.sink_pages(left) + compared, spill))
        self.clock.lap("precopied")
        return ahead.written, sink

    def _counts(self, armed: track.Armed) -> list[core.ScanResult]:
        return [self.tree.scan_count(one) for one in armed.tracks if one.tracker != core.COMPARE]

    def _store(self, recording: Recording, sink: core.Sink, spaces: Spaces) -> int:
        pages = 0
        parts = list(sink.spaces())
        complete = final_parts(parts)
        for part in parts:
            for runs, data in batches(sink, part):
                recording.add(spaces.store(part.space), runs, data)
            if complete[part.space] is part:
                recording.finish(spaces.store(part.space), layout(part))
            pages += part.data_pages
        return pages

    def _meta(self, found: Snapshot, timing: dict[str, int], armed: track.Armed, incremental: bool, dirty: int) -> Meta:
        root = found.task(self.ref.pid)
        phases = {**self.clock.phases, **{f"stop_{name}": ns for name, ns in timing.items() if name not in ("stop", "at")}}
        return Meta(
            lineage=self.baseline.lineage,
            incarnation=self.incarnation,
            kind="incremental" if incremental else "full",
            tracker=armed.tracker,
            pid=self.ref.pid,
            command=root.comm,
            stop_ns=timing["stop"],
            total_ns=time.monotonic_ns() - self.clock.start,
            dirty=dirty,
            phases=phases,
        )

    def _verdict(self, generation: Generation, sink: core.Sink, spaces: Spaces) -> dict[str, int]:
        """--paranoid: what the generation gives back against what the same freeze read. Wrong pages end the generation."""
        source = self.history.pages(generation.number)
        verdict = compare_pages(source, sink, spaces)
        if verdict.wrong:
            self.history.store.remove(generation.number)
            places = ", ".join(f"{space}:{page:#x}" for space, page in verdict.wrong[:5])
            raise CkptError(
                f"{len(verdict.wrong)} of {verdict.compared} pages differ from the living ones ({places}): nothing was kept; a bug of ckpt"
            )
        return {"compared": verdict.compared, "wrong": 0}
