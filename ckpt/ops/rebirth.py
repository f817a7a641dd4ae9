"""Newborns become what a generation says: what restore lets go afterwards, and verify looks at and discards."""

from __future__ import annotations

from collections.abc import Callable, Collection

from ckpt.errors import CkptError, RefusedError
from ckpt.live import act, advice, core, names, objects, world
from ckpt.live.capture import Layout
from ckpt.live.execute import Executor
from ckpt.live.newborn import Newborns
from ckpt.model import Plan, Snapshot
from ckpt.ops.baseline import Clock
from ckpt.ops.restore_pages import Pages
from ckpt.plan import paths_of, plan
from ckpt.plan.reborn import Reborn, reborn

SINK_PAGES = 256


class Rebirth:
    """`wanted`: what is to be, in the generation's numbers."""

    def __init__(self, wanted: Snapshot, born: Newborns, tcp: str, clock: Clock, *, scratch: bool = False) -> None:
        self.wanted, self.born, self.tcp, self.clock, self.scratch = wanted, born, tcp, clock, scratch

    def planned(self, spared: Collection[int] | None = None) -> tuple[Snapshot, Reborn, Plan]:
        """The newborns, what they are to become, and how. Raises RefusedError. `spared`: sockets that will be gone by then."""
        with core.Sink(SINK_PAGES, None) as sink:
            now = self.born.seen(Layout(self.born.tree, None, (), sink, newborn=True).take())
        self.clock.lap("looked")
        again = reborn(self.wanted, now, self.born.inner)
        newborn = {task.pid for task in now.tasks}
        found = world.look(paths_of(now, again.wanted, newborn=newborn), again.wanted)
        segments = advice.segments(self.born.ref.pid)
        made = plan(now, again.wanted, found, tcp=self.tcp, newborn=newborn, segments=segments, scratch=self.scratch)
        refusals = [*made.refusals, *names.taken(self.born.ref.pid, now, again.wanted, spared)]
        if refusals:
            more = f" (and {len(refusals) - 1} more)" if len(refusals) > 1 else ""
            raise RefusedError(refusals[0] + more)
        return now, again, made

    def fill(
        self,
        made: Plan,
        now: Snapshot,
        wanted: Snapshot,
        pages: Pages,
        *,
        stopped: bool = False,
        lazy: bool = False,
        begun: Callable[[], None] = lambda: None,
    ) -> Executor:
        """They are what the generation says, and still stand before their first instruction. `stopped`: and will not run when
        they are let go, until SIGCONT. `lazy`: not all of the memory is there when they run, and their tracer stays: nobody is sure to end
        waits of theirs. `begun` is called when calls can be run in them, and they still have our rights."""
        stop = [task.pid for task in wanted.tasks if stopped or task.stopped]
        runs = not self.scratch
        executor = Executor(self.born.tree, made, now, wanted, stop=stop, rebuild=runs, keeps=runs and not lazy)
        try:
            self._fill(executor, made, wanted, pages, begun)
        except act.CallFailed as failed:
            raise names.met(self.born.ref.pid, self.wanted, failed) or self.born.killed() or failed from None
        except CkptError as error:
            raise self.born.killed() or error from None
        return executor

    def _fill(self, executor: Executor, made: Plan, wanted: Snapshot, pages: Pages, begun: Callable[[], None]) -> None:
        executor.begin()
        begun()
        executor.before_pages()
        self.clock.lap("layout")
        pages.put(self.born.tree, wanted)
        with objects.Contents(wanted, made.objects, pages.source, self.born.tree.ours) as contents:
            pages.written += contents.put()
            self.clock.lap("pages")
            if self.born.inner:
                act.rename_threads(self.born.tree, wanted, {new: old for old, new in self.born.inner.items()})
            executor.after_pages()
            contents.seal()
        self.clock.lap("registers")
        executor.end()
        self.clock.lap("ended")
