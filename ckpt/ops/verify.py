"""Proof that a generation can be brought back: it is, in scratch namespaces, looked at before its first instruction, and discarded.

    newborns in pid, mount, net and ipc namespaces of their own -> the restore's plan and executor -> everything captured
    again and compared: registers, mappings, descriptors, attributes (compare/faithful.py says what may differ), every page
    -> the namespaces end, and with them all that was made

Nothing of it is seen outside: ports are bound and ids are taken in namespaces, files are only opened, not locked,
and FIFOs are others.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ckpt.compare import Difference, clocks_go_on, unfaithful
from ckpt.history.open import Mode, open_store
from ckpt.kinds.fd import tcp
from ckpt.kinds.table import table
from ckpt.live import core
from ckpt.live.capture import Capture
from ckpt.live.clock import clocks_then
from ckpt.live.newborn import Newborns, Place
from ckpt.live.spaces import Spaces
from ckpt.live.streams import Streams
from ckpt.live.surroundings import Surroundings
from ckpt.model import OpenFile, Snapshot
from ckpt.ops.baseline import Clock
from ckpt.ops.damage import with_a_way_out
from ckpt.ops.rebirth import SINK_PAGES, Rebirth
from ckpt.ops.restore_pages import Pages
from ckpt.ops.verify_pages import PageCheck, PageVerdict
from ckpt.plan.streams import redirect

PATIENCE_S, POLL_S = 2.0, 0.01
CLONE_NEWNS, CLONE_NEWIPC, CLONE_NEWNET = 0x20000, 0x8000000, 0x40000000


@dataclass(frozen=True, slots=True)
class Request:
    generation: str
    store: Path | None = None
    pid: int | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    generation: int
    command: str
    differences: tuple[Difference, ...]
    wrong_pages: tuple[str, ...]
    pages: int  #: compared
    tasks: int
    threads: int
    total_ns: int
    left_out: tuple[str, ...]  #: what leads out of the tree and was not compared
    phases: dict[str, int]

    @property
    def faithful(self) -> bool:
        return not self.differences and not self.wrong_pages

    def lines(self) -> list[str]:
        """Every difference in words."""
        found = []
        for one in self.differences:
            if one.change != "changed":
                found.append(f"{one.subject} of task {one.pid}: {one.change}")
            found += [f"{one.subject} of task {one.pid}: {field.name}: {field.before!r} became {field.after!r}" for field in one.fields]
        return [*found, *(f"{page}: other contents" for page in self.wrong_pages)]

    def json(self) -> dict[str, Any]:
        return {
            "generation": self.generation,
            "command": self.command,
            "faithful": self.faithful,
            "differences": self.lines(),
            "pages": self.pages,
            "tasks": self.tasks,
            "threads": self.threads,
            "total_ms": round(self.total_ns / 1e6, 3),
            "left_out": list(self.left_out),
            "phases": {name: ns // 1000 for name, ns in self.phases.items()},
        }


def verify(request: Request, progress: Callable[[str], None] = lambda _text: None) -> Verdict:
    """Raises what restore raises, where it cannot be brought back at all."""
    table()  # code is loaded before the clock starts
    clock = Clock()
    with with_a_way_out(request.store, request.generation, request.pid), ExitStack() as stack:
        history = stack.enter_context(open_store(request.store, Mode.READ))
        generation, kept = history.load(history.resolve(request.generation, pid=request.pid))
        streams = stack.enter_context(Streams())
        redirected = redirect(kept, {}, streams.open, everywhere=True)
        around = Surroundings(redirected.wanted, streams.numbers, trial=True)
        clock.lap("opened")
        spaces = CLONE_NEWNS | CLONE_NEWIPC | CLONE_NEWNET
        source = history.pages(generation.number)
        reading = stack.enter_context(Pages(source, around.wanted))
        then, birth = clocks_then(kept.features), time.monotonic_ns()
        born = stack.enter_context(Newborns(around.wanted, Place.APART, streams.numbers, namespaces=spaces, then=then))
        begin = time.monotonic_ns()
        rebirth = Rebirth(around.wanted, born, "reset", clock, scratch=True)
        now, again, made = rebirth.planned()
        clock.lap("planned")
        progress("restoring")
        rebirth.fill(made, now, again.wanted, reading)
        progress("comparing")
        found = _settled(born, kept)
        clock.lap("captured")
        differences = unfaithful(*_comparable(kept, found, {*redirected.replaced, *made.ended}), time.monotonic_ns() - begin)
        if born.clocks_go_on:
            differences += clocks_go_on(kept, found, time.monotonic_ns() - birth)
        with core.Sink(SINK_PAGES, "/tmp") as sink:
            pages = PageCheck(born.tree, source, again.wanted, sink).run()
        clock.lap("compared")
        return Verdict(
            generation.number,
            generation.command,
            tuple(differences),
            tuple(pages.wrong),
            pages.compared,
            len(kept.tasks),
            sum(len(task.threads) for task in kept.tasks),
            time.monotonic_ns() - clock.start,
            (*redirected.warnings, *around.warnings, *made.warnings),
            clock.phases,
        )


def _settled(born: Newborns, kept: Snapshot) -> Snapshot:
    """As captured when what was sent inside the tree has come to the other end: on a busy machine the network takes its time."""
    end = time.monotonic() + PATIENCE_S
    known = not any(map(tcp.is_under_way, kept.files))
    while any(map(tcp.is_under_way, (found := _captured(born)).files)) and known and time.monotonic() < end:
        time.sleep(POLL_S)
    return found


def _captured(born: Newborns) -> Snapshot:
    """Everything but the pages, as a snapshot would see it."""
    tracks = [core.Track(pid, core.NONE, -1, 0, fresh=False) for pid in dict.fromkeys(thread.pid for thread in born.tree.threads())]
    with core.Sink(SINK_PAGES, "/tmp") as sink:
        capture = Capture(born.tree, tracks)
        with core.in_network_of(born.ref.pid):
            capture.run(sink)
        return born.seen(capture.parse(sink, Spaces(born.tree.threads(), None)))


def _comparable(kept: Snapshot, found: Snapshot, replaced: set[int]) -> tuple[Snapshot, Snapshot]:
    """Without what stands in for open files that lead out of the tree, and without entries of epoll sets that watch it."""
    places = {(task.pid, item.fd) for task in kept.tasks for item in task.descriptors if item.file in replaced}
    numbers = {fd for _pid, fd in places}

    def unwatched(file: OpenFile) -> OpenFile:
        if file.kind != "epoll":
            return file
        return replace(file, state={**file.state, "entries": [entry for entry in file.state["entries"] if entry["fd"] not in numbers]})

    def without(snapshot: Snapshot) -> Snapshot:
        tasks = (
            replace(task, descriptors=tuple(item for item in task.descriptors if (task.pid, item.fd) not in places))
            for task in snapshot.tasks
        )
        return replace(snapshot, tasks=tuple(tasks), files=tuple(map(unwatched, snapshot.files)))

    return without(kept), without(found)


__all__ = ["PageVerdict", "Request", "Verdict", "verify"]
