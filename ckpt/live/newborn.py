"""Empty processes for a restore to fill: born with the wanted numbers, seized, and killed unless they are released.

1. `Newborns` is entered: the root is forked (native/src/newborn.c), opened as a tree whose death follows ours, and frozen.
2. The caller turns them into what is wanted.
3. `release()` lets them go. Leaving without it kills and reaps every one: no half-made process survives.
"""

from __future__ import annotations

import errno
import os
import signal
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from ckpt.errors import CkptError, PermissionDeniedError, RefusedError
from ckpt.live import core
from ckpt.live.runtime import start_ticks
from ckpt.model import PidRef
from ckpt.procfs import parse_stat

_REAP_WAIT_S, _REAP_POLL_S = 0.5, 0.002


class Newborns:
    """The tree that is being made. `pid`: the root's number, 0 = any."""

    def __init__(self, pid: int) -> None:
        self.ref = PidRef(*_born(pid))
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
        except BaseException as error:
            self.__exit__(type(error), error, None)
            raise
        return self

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
    """Forks. A number whose last owner died just now is waited for: init may reap late."""
    deadline = time.monotonic() + _REAP_WAIT_S
    while True:
        code, made = core.newborn(pid)
        if code == 0:
            return made, start_ticks(made)
        if code != -errno.EEXIST or not _is_dying(pid) or time.monotonic() > deadline:
            raise _refused(code, pid)
        time.sleep(_REAP_POLL_S)


def _is_dying(pid: int) -> bool:
    try:
        return parse_stat(Path(f"/proc/{pid}/stat").read_bytes()).state in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return True


def _refused(code: int, pid: int) -> CkptError:
    if code == -errno.EEXIST:
        return RefusedError(f"pid {pid}: {holder(pid)}: end it, or restore with --new-pid or --pid-namespace")
    if code in (-errno.EPERM, -errno.EACCES):
        return PermissionDeniedError(
            f"pid {pid}: choosing a pid needs CAP_CHECKPOINT_RESTORE or CAP_SYS_ADMIN: run as root, or use --new-pid"
        )
    return CkptError(f"no process can be made for pid {pid}: {os.strerror(-code)}")


def holder(pid: int) -> str:
    """Who has a number that is taken: a process, a thread of one, or only a group or session that outlives its leader."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return _group_holder(pid)
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    if fields.get("State", "").startswith("Z"):
        return f"is taken by a zombie ({fields['Name']}) that its parent {fields['PPid'].strip()} has not waited for"
    if int(fields.get("Tgid", pid)) != pid:
        return f"is taken by a thread of task {fields['Tgid'].strip()} ({fields['Name']})"
    return f"is taken by a living process ({fields['Name']})"


def _group_holder(pid: int) -> str:
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with suppress(FileNotFoundError, ProcessLookupError):
            stat = parse_stat((entry / "stat").read_bytes())
            if pid in (stat.pgid, stat.sid):
                what = "process group" if stat.pgid == pid else "session"
                return f"is still the number of a {what} (task {stat.pid}, {stat.comm})"
    return "is taken"


def _end(pid: int) -> None:
    """Kills and reaps a child of ours; its number is ours until we wait for it."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    with suppress(ChildProcessError):
        os.waitpid(pid, 0)
