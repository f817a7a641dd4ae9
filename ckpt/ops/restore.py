"""A restore: a generation becomes a living process again.

    resolve GEN -> what leads out of the tree is replaced -> newborns with the wanted numbers (frozen, doomed)
    -> plan = diff(newborns, wanted); refusals end it here -> execute, pages, registers -> release -> record

It is the rollback's plan and the rollback's executor on an empty process. Whatever fails before the release, and whoever
kills ckpt, no half-made process survives: the newborns die with it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ckpt.errors import RefusedError
from ckpt.history.open import Generation, History, Mode, open_store
from ckpt.kinds.table import table
from ckpt.live import runtime
from ckpt.live.clock import View as View
from ckpt.live.clock import clocks_of, clocks_then
from ckpt.live.execute import Executor, disturbed
from ckpt.live.newborn import Newborns
from ckpt.live.newborn import Place as Place
from ckpt.live.streams import Streams
from ckpt.live.surroundings import Surroundings
from ckpt.model import PidRef, Plan, Snapshot
from ckpt.ops import replace as replacing
from ckpt.ops.baseline import Clock
from ckpt.ops.damage import with_a_way_out
from ckpt.ops.interrupts import held
from ckpt.ops.lazy import Later, LazyServer, later_parts, opened
from ckpt.ops.quiet import quiet
from ckpt.ops.rebirth import Rebirth
from ckpt.ops.restore_pages import Pages
from ckpt.plan.family import Family
from ckpt.plan.streams import redirect

SINK_PAGES = 256
CLONE_NEWNS = 0x20000  #: for a /proc that shows the numbers of the pid namespace


@dataclass(frozen=True, slots=True)
class Request:
    generation: str
    store: Path | None = None
    pid: int | None = None  #: whose history is meant, where several are in the store
    place: Place = Place.SAME  #: with the numbers that it had, with new ones, or in a pid namespace of its own
    replace: bool = False  #: kill the living incarnation first
    foreground: bool = False  #: ckpt stays as the parent: in our session, with our terminal (Result.child is to be waited for)
    lazy: bool = False  #: let it run at once; this call returns when everything is there (ops/lazy.py)
    stopped: bool = False  #: leave it stopped (SIGCONT lets it go)
    streams: Mapping[tuple[int, int], str] = field(default_factory=dict)  #: (pid in the generation, or 0 for the root; descriptor) -> path
    tcp: str = "reset"  #: "reset" | "refuse": connections that have moved since
    clock: View = View.CONTINUE


@dataclass(frozen=True, slots=True)
class Result:
    generation: int
    pid: int
    child: int  #: our child: the root, or the first process of its namespace
    command: str
    lineage: str
    total_ns: int
    pages_written: int
    pages_later: int  #: brought when it runs already (lazy)
    calls: int
    threads: int
    tasks: int
    clock: View
    warnings: tuple[str, ...]
    disturbed: tuple[str, ...]
    phases: dict[str, int]

    def json(self) -> dict[str, Any]:
        return {
            "generation": self.generation,
            "pid": self.pid,
            "command": self.command,
            "lineage": self.lineage,
            "total_ms": round(self.total_ns / 1e6, 3),
            "pages_written": self.pages_written,
            "pages_later": self.pages_later,
            "calls": self.calls,
            "tasks": self.tasks,
            "threads": self.threads,
            "clock": str(self.clock),
            "warnings": list(self.warnings),
            "disturbed": list(self.disturbed),
            "phases": {name: ns // 1000 for name, ns in self.phases.items()},
        }


def restore(
    request: Request, progress: Callable[[str], None] = lambda _text: None, running: Callable[[Result], None] = lambda _result: None
) -> Result:
    """Brings a generation back as a new process. `running` is told when it runs, which with `lazy` is long before the end.
    Raises RefusedError (3), PermissionDeniedError (4), DamagedError (5), NotFoundError (6), CkptError (1)."""
    table()  # code is loaded before the clock starts
    clock = Clock()
    with with_a_way_out(request.store, request.generation, request.pid), ExitStack() as stack:
        with quiet():
            result, server = _begin(request, clock, stack, progress)
        running(result)
        if server is not None:
            server.serve()
        return result


def _begin(request: Request, clock: Clock, stack: ExitStack, progress: Callable[[str], None]) -> tuple[Result, LazyServer | None]:
    """Until it runs."""
    history = stack.enter_context(open_store(request.store, Mode.READ))
    generation, wanted = history.load(history.resolve(request.generation, pid=request.pid))
    streams = stack.enter_context(Streams())
    redirected = redirect(wanted, request.streams, streams.open, streams.pass_on if request.foreground else None)
    around = Surroundings(redirected.wanted, streams.numbers)
    clock.lap("opened")
    if request.replace and (old := replacing.living(generation, wanted)) is not None:
        _rehearse(request, around.wanted, streams, old)
        stack.enter_context(held())
        replacing.end(old)
        clock.lap("replaced")
    later = {part.task.mm: part.runs() for part in later_parts(around.wanted, history.pages(generation.number))} if request.lazy else {}
    if not any(later.values()):
        request = replace(request, lazy=False)  # nothing of it is large: all of it comes at once
    pages = stack.enter_context(Pages(history.pages(generation.number), around.wanted, later))
    born = _newborns(request, generation, around.wanted, streams)  # by the thread whose children they stay
    run = _Run(request, history, generation, born, pages, Rebirth(around.wanted, born, request.tcp, clock))

    def fill() -> tuple[Result, LazyServer | None]:
        with ExitStack() as inner:
            inner.enter_context(born)
            inner.enter_context(runtime.target_lock(born.ref))
            clock.lap("born")
            done = run.run((*redirected.warnings, *around.warnings, *Family(wanted).warnings, *_of_clocks(request, wanted, born)), progress)
            stack.enter_context(inner.pop_all())
            return done

    return fill() if request.lazy else born.tree.by_own_tracer(fill)  # the server of a lazy one stays its tracer


def _newborns(request: Request, generation: Generation, wanted: Snapshot, streams: Streams) -> Newborns:
    own_session = not request.foreground or bool(wanted.task(wanted.root.pid).attributes.get("terminal"))
    then = clocks_then(wanted.features) if request.clock is View.CONTINUE else None
    try:
        return Newborns(wanted, request.place, streams.numbers, namespaces=CLONE_NEWNS, own_session=own_session, then=then)
    except RefusedError:
        if request.place is Place.SAME and replacing.living(generation, wanted) is not None:
            raise RefusedError(replacing.still_lives(generation)) from None
        raise


def _of_clocks(request: Request, wanted: Snapshot, born: Newborns) -> list[str]:
    """How far they do not go on, where they should."""
    if born.clocks_go_on or request.clock is View.HOST:
        return []
    name = f"task {wanted.root.pid}"
    if born.then is None:
        return [f"{name}: its generation does not say what its clocks were: it sees the machine's CLOCK_MONOTONIC"]
    ahead = (clocks_of(born.ref.pid).monotonic - born.then.monotonic) / 1e9
    jump = f"{abs(ahead):.1f} s {'after' if ahead > 0 else 'before'} that of the snapshot"
    return [f"{name}: sees the machine's CLOCK_MONOTONIC, {jump}: a time namespace needs CAP_SYS_ADMIN and CAP_SYS_TIME (ckpt doctor)"]


def _rehearse(request: Request, wanted: Snapshot, streams: Streams, old: PidRef) -> None:
    """The plan alone, on newborns that nobody knows: what would be refused is refused before the living one is ended."""
    if request.place is Place.SAME:
        replacing.refuse_strangers(old, wanted)
    with Newborns(wanted, Place.NEW, streams.numbers) as born:
        Rebirth(wanted, born, request.tcp, Clock()).planned(spared=replacing.sockets(old))


class _Run:
    def __init__(self, request: Request, history: History, generation: Generation, born: Newborns, pages: Pages, rebirth: Rebirth) -> None:
        self.request, self.history, self.generation, self.pages = request, history, generation, pages
        self.born, self.rebirth, self.clock = born, rebirth, rebirth.clock

    def run(self, warnings: tuple[str, ...], progress: Callable[[str], None]) -> tuple[Result, LazyServer | None]:
        now, again, made = self.rebirth.planned()
        self.clock.lap("planned")
        progress("restoring pages")
        parts: dict[int, Later] = {}

        def open_early() -> None:
            parts.update(opened(self.born.tree, later_parts(again.wanted, self.pages.source) if self.request.lazy else ()))

        options = {"stopped": self.request.stopped, "lazy": self.request.lazy}
        executor = self.rebirth.fill(made, now, again.wanted, self.pages, **options, begun=open_early)
        self._remember()
        server = LazyServer(self.born, self.history.path, self.generation.number, self.pages.source, parts) if parts else None
        if server is None:
            self.born.release()
        else:
            self.born.run()
            server.begin()
        self.clock.lap("released")
        said = (*warnings, *again.warnings, *made.warnings)
        return self._result(made, again.wanted, self.pages, executor, said, server.pages_left if server else 0), server

    def _remember(self) -> None:
        """The next snapshot continues this history; nothing is known of the dirty state, so it reads everything."""
        incarnation = runtime.incarnation(self.born.ref)
        record = runtime.Record(incarnation, self.generation.lineage, self.history.store.uuid, self.generation.number)
        runtime.save(self.born.ref, record)

    def _result(self, made: Plan, wanted: Snapshot, pages: Pages, executor: Executor, warnings: tuple[str, ...], later: int) -> Result:
        return Result(
            self.generation.number,
            self.born.ref.pid,
            self.born.child,
            self.generation.command,
            self.generation.lineage,
            time.monotonic_ns() - self.clock.start,
            pages.written,
            later,
            executor.calls,
            sum(len(task.threads) for task in wanted.tasks),
            len(wanted.tasks),
            View.CONTINUE if self.born.clocks_go_on else View.HOST,
            warnings,
            tuple(line for task in wanted.tasks for line in disturbed(task, executor)),
            self.clock.phases,
        )
