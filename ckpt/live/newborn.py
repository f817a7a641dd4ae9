"""Empty processes for a restore to fill: born with the wanted numbers, seized, and killed unless they are released.

1. `Newborns` is entered: the root is forked (native/src/newborn.c), opened as a tree whose death follows ours, and frozen.
   Its descendants are cloned from it by remote calls, each by its own parent, before anything else is changed.
2. Sessions are inherited: a child that is not of its parent's own session is cloned before its parent leaves for that. Groups
   are joined when all members are there, leaders first.
3. The caller turns them into what is wanted.
4. `release()` lets them go. Leaving without it kills and reaps every one: no half-made process survives.
"""

from __future__ import annotations

import errno
import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Self

from ckpt.errors import CkptError, PermissionDeniedError, RefusedError
from ckpt.live import act, core
from ckpt.live.numbers import holders
from ckpt.live.runtime import start_ticks
from ckpt.model import PidRef, Snapshot
from ckpt.plan.family import Family, Step

_REAP_WAIT_S, _REAP_POLL_S = 10.0, 0.005  #: init may reap late


class Newborns:
    """The tree that is being made, in the shape of `wanted`."""

    def __init__(self, wanted: Snapshot) -> None:
        self.wanted = wanted
        self.ref = PidRef(*_born(wanted.root.pid))
        self._released = False
        try:
            self.tree = core.Tree(self.ref.pid, self.ref.start_ticks)
        except BaseException:
            _end(self.ref.pid)
            raise

    def __enter__(self) -> Self:
        try:
            self.tree.doom()
            self.tree.freeze()
            core.mark("born")
            family = Family(self.wanted)
            for step in family.steps():
                self._take(step)
        except BaseException as error:
            self.__exit__(type(error), error, None)
            raise
        return self

    def _take(self, step: Step) -> None:
        if step.call is not None:
            act.Batch([step.call]).run(self.tree, step.pid)
            return
        _when_free(step.child, lambda: act.task_spawn(self.tree, step.pid, step.child))

    def release(self) -> None:
        """They are what they should be: from here on they live on without us."""
        self._released = True
        self.tree.thaw()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if not self._released:
            for pid in {thread.pid for thread in self.tree.threads()} | {self.ref.pid}:
                with suppress(CkptError):
                    self.tree.signal(pid, signal.SIGKILL)
        self.tree.close()
        if not self._released:
            _end(self.ref.pid)


def _born(pid: int) -> tuple[int, int]:
    made = _when_free(pid, lambda: core.newborn(pid))
    return made, start_ticks(made)


def _when_free(pid: int, make: Callable[[], tuple[int, int]]) -> int:
    """`make` returns (0, the new pid) or (negative errno, 0). A number that only the dead still have is waited for."""
    deadline = time.monotonic() + _REAP_WAIT_S
    while True:
        code, made = make()
        if code == 0:
            return made
        if code != -errno.EEXIST or time.monotonic() > deadline or not all(one.dying for one in holders(pid)):
            raise _refused(code, pid)
        time.sleep(_REAP_POLL_S)


def _refused(code: int, pid: int) -> CkptError:
    if code == -errno.EEXIST:
        found = holders(pid)
        why = next((one.text for one in found if not one.dying), found[0].text if found else "is taken")
        return RefusedError(f"pid {pid}: {why}: end it, or restore with --new-pid or --pid-namespace")
    if code in (-errno.EPERM, -errno.EACCES):
        return PermissionDeniedError(f"pid {pid}: choosing it needs CAP_CHECKPOINT_RESTORE or CAP_SYS_ADMIN: run as root, or use --new-pid")
    return CkptError(f"no process can be made for pid {pid}: {os.strerror(-code)}")


def _end(pid: int) -> None:
    """Kills and reaps a child of ours; its number is ours until we wait for it."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    with suppress(ChildProcessError):
        os.waitpid(pid, 0)
