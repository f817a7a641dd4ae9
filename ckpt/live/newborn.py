"""Empty processes for a restore to fill: born with the wanted numbers, seized, and killed unless they are released.

1. `Newborns` is entered: the root is forked (native/src/newborn.c), opened as a tree whose death follows ours, and frozen.
   Its descendants are cloned from it by remote calls, each by its own parent, before anything else is changed.
2. Sessions are inherited: a child that is not of its parent's own session is cloned before its parent leaves for that. Groups
   are joined when all members are there, leaders first.
3. The caller turns them into what is wanted.
4. `release()` lets them go. Leaving without it kills and reaps every one: no half-made process survives.

Their clocks go on from the generation's where a time namespace can be had (live/clock.py): the root is born into it, and all that it
bears. What passes from then until they are released is the only time that they miss.

Their numbers are the generation's (SAME), whatever is free (NEW), or the generation's in a pid namespace of its own (APART). A
task of the generation is called by its number there; `inner` says what it is called by itself now, `tree.ours` what by us.
"""

from __future__ import annotations

import errno
import os
import resource
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from enum import StrEnum
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self

from ckpt.errors import CkptError, PermissionDeniedError, RefusedError
from ckpt.live import act, clock, core, numbers, surgeon
from ckpt.live.ending import kill
from ckpt.live.numbers import is_dead, patience
from ckpt.live.runtime import start_ticks
from ckpt.model import PidRef, Snapshot
from ckpt.plan.family import Family, Step
from ckpt.plan.renumber import renumbered

_POLL_S = 0.005
KILLED_WHY = "(kill -9, or no memory was left: the kernel's log says)"


class Place(StrEnum):
    SAME = "same"
    NEW = "new"
    APART = "apart"


class Newborns:
    """The tree that is being made, in the shape of `wanted`."""

    def __init__(
        self,
        wanted: Snapshot,
        place: Place,
        keep: Sequence[int] = (),
        *,
        namespaces: int = 0,
        own_session: bool = True,
        then: clock.Clocks | None = None,
    ) -> None:
        """`keep`: descriptors of ours that the root has too. `namespaces`: APART, CLONE_NEW* beside the pid namespace.
        `own_session`: False leaves the root in ours, with our terminal. `then`: what its clocks go on from; None: it has ours."""
        self.wanted, self.place, self.keep, self.own_session, self.then = wanted, place, keep, own_session, then
        self.init, self._keep = 0, -1  #: APART: the first process of the namespace, and what keeps it
        self.inner: dict[int, int] = {}  #: NEW: a number of the generation -> the number here, threads included
        self._released = False
        self._steps = list(Family(wanted).steps())
        self._clocks: clock.Clocks | None = None
        pid = self._born(wanted.root.pid, namespaces)
        self.clocks_go_on = self._clocks is not None and clock.borne(pid) == self._clocks
        self.ref = PidRef(pid, start_ticks(pid))
        _soft, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (hard, hard))  # descriptors are placed before the wanted limits
        try:
            self.tree = core.Tree(self.ref.pid, self.ref.start_ticks)
        except BaseException:
            self._end()
            raise
        self._named(wanted.root.pid, pid)

    def _born(self, pid: int, namespaces: int) -> int:
        if self.place is Place.APART:
            code, made, self.init, self._keep = core.newborn_apart(namespaces, pid, self.keep, clocks=self._now())
            if code < 0:
                raise _refused(code, pid)
            return made
        if self.place is Place.SAME:
            for step in self._steps:
                _await_free(step.child)  # their clocks run from the birth of the root on
        number = 0 if self.place is Place.NEW else pid
        return _when_free(pid, lambda: core.newborn(number, self.keep, own_session=self.own_session, clocks=self._now()))

    def _now(self) -> clock.Clocks | None:
        """What is to be added to the machine's clocks for whoever is born now."""
        self._clocks = clock.continuing(self.then) if self.then is not None else None
        return self._clocks

    def _named(self, wanted: int, ours: int) -> None:
        """Takes in the number of a newborn."""
        if self.place is Place.NEW:
            self.inner[wanted] = ours
        elif ours != wanted:
            self.tree.numbers[wanted] = ours

    def __enter__(self) -> Self:
        try:
            self.tree.doom()
            self.tree.freeze()
            self._pin()
            core.mark("born")
            for step in self._steps:
                self._take(step)
            if self.place is Place.NEW:
                self._make_threads()
        except BaseException as error:
            self.__exit__(type(error), error, None)
            raise
        return self

    def _pin(self) -> None:
        """They stay on the processor where we stand while they stand still (native/src/pace.c): a call in a thread on another one takes
        five times as long. Each gets the processors that it had back by the plan, so it must be known which."""
        known = all(thread.attributes.get("scheduling", {}).get("cpus") for task in self.wanted.tasks for thread in task.threads)
        here = os.sched_getaffinity(0)
        if known and len(here) == 1:
            os.sched_setaffinity(self.ref.pid, here)

    def _take(self, step: Step) -> None:
        here = replace(step, **{name: self.inner.get(getattr(step, name), getattr(step, name)) for name in ("pid", "group", "reap")})
        if not step.child:
            surgeon.take(self.tree, here)
            return
        number = 0 if self.place is Place.NEW else step.child
        make = partial(act.task_spawn, self.tree, here.pid, number, step.flags, step.exit_signal)
        self._named(step.child, _when_free(step.child, make))

    def _make_threads(self) -> None:
        """Threads that get any number must be there before anybody plans with their numbers."""
        for task in self.wanted.tasks:
            others = [thread.tid for thread in task.threads if thread.tid != task.pid]
            made = act.threads_spawn(self.tree, self.inner[task.pid], [0] * len(others)) if others else []
            self.inner.update(zip(others, sorted(made), strict=True))

    def seen(self, now: Snapshot) -> Snapshot:
        """What we see of them, by the numbers that they know themselves."""
        return renumbered(now, {ours: inner for inner, ours in self.tree.numbers.items()})

    @property
    def child(self) -> int:
        """Our child: the root, or the first process of its namespace, which ends as the root ends."""
        return self.init or self.ref.pid

    def release(self) -> None:
        """They are what they should be: from here on they live on without us."""
        self._released = True
        self.tree.thaw()
        self._go_on()

    def run(self) -> None:
        """They run, but die with us: something of theirs is still to be brought. `tree.leave` lets them go."""
        self._released = True
        self.tree.run()
        self._go_on()

    def killed(self) -> CkptError | None:
        """Says so, where somebody else has ended the root before it was whole."""
        if not is_dead(self.ref.pid):
            return None
        return CkptError(f"task {self.ref.pid}: was killed before it was whole {KILLED_WHY}: nothing of it is left; try again")

    def end(self) -> None:
        """They run, and are not to: their memory cannot be completed."""
        for pid in dict.fromkeys(thread.pid for thread in self.tree.threads()):
            with suppress(CkptError):
                self.tree.signal(pid, signal.SIGKILL)

    def _go_on(self) -> None:
        if self._keep >= 0:
            os.write(self._keep, b"g")
            os.close(self._keep)
            self._keep = -1

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if not self._released:
            kill(self.tree)
        self.tree.close()
        if not self._released:
            self._end()

    def _end(self) -> None:
        """Kills and reaps our child: the root, or the first process of its namespace, which takes everybody along."""
        if self._keep >= 0:
            os.close(self._keep)
            self._keep = -1
        with suppress(ProcessLookupError):
            os.kill(self.child, signal.SIGKILL)  # a child of ours: its number is ours until we wait for it
        with suppress(ChildProcessError):
            os.waitpid(self.child, 0)


def _await_free(pid: int) -> None:
    """Until no dead process has the number any more, as long as that is worth while."""
    begin = time.monotonic()
    while pid and is_dead(pid) and time.monotonic() - begin <= patience(pid):
        time.sleep(_POLL_S)


def _when_free(pid: int, make: Callable[[], tuple[int, int]]) -> int:
    """`make` returns (0, the new pid) or (negative errno, 0). A number that only the dead still have is waited for."""
    begin = time.monotonic()
    while True:
        code, made = make()
        if code == 0:
            return made
        if code != -errno.EEXIST or time.monotonic() - begin > patience(pid):
            raise _refused(code, pid)
        time.sleep(_POLL_S)


def _refused(code: int, pid: int) -> CkptError:
    if code == -errno.EEXIST:
        return numbers.refused(pid)
    if code in (-errno.EPERM, -errno.EACCES):
        return PermissionDeniedError(f"pid {pid}: choosing it needs CAP_CHECKPOINT_RESTORE or CAP_SYS_ADMIN: run as root, or use --new-pid")
    if code == -errno.EINVAL and all(line.split()[4] != "/" for line in Path("/proc/self/mountinfo").read_text().splitlines()):
        chroot = "the root directory is no mount (a chroot), so no mount namespace can be made private"
        return RefusedError(f"pid {pid}: {chroot}: run ckpt outside the chroot, or enter the folder by pivot_root")
    return CkptError(f"no process can be made for pid {pid}: {os.strerror(-code)}")
