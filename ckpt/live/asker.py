"""The thread that has asked for the checkpoint of its own process (ckpt/myself.py, native/self): it waits in read(), and a generation
says that this read has given 0. In the process that goes on it gives the generation's number, when whoever ran ckpt writes that."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

from ckpt.errors import CkptError, UsageError
from ckpt.model import Action, RetvalDecision, Snapshot, Task, Thread
from ckpt.syscalls.names import nr
from ckpt.syscalls.table import RESTART_CODES

PATIENCE_S = 10.0
_READ = nr("read")
_DECISION = RetvalDecision(Action.KEEP, 0, "has asked for this checkpoint: brought back to here its read gives 0")


def await_asker(pid: int, tid: int) -> None:
    """Returns when the thread sleeps in read()."""
    deadline = time.monotonic() + PATIENCE_S
    while not _reads(pid, tid):
        if time.monotonic() > deadline:
            raise CkptError(f"thread {tid} of task {pid}: does not wait for its checkpoint in read(): call ckpt_checkpoint_self()")
        time.sleep(0.002)


def _reads(pid: int, tid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/task/{tid}/syscall").read_text().startswith(f"{_READ} ")
    except (FileNotFoundError, ProcessLookupError):
        raise UsageError(f"--self {tid}: no thread of task {pid}: it is the number of the thread that asks") from None


def asked(found: Snapshot, tid: int) -> Snapshot:
    """The snapshot in which the read of this thread has its result. CkptError where the thread is somewhere else."""
    tasks = tuple(replace(task, threads=tuple(_answered(task, thread, tid) for thread in task.threads)) for task in found.tasks)
    return replace(found, tasks=tasks)


def _answered(task: Task, thread: Thread, tid: int) -> Thread:
    if thread.tid != tid:
        return thread
    if thread.syscall.nr != _READ or thread.syscall.raw_retval not in RESTART_CODES:
        raise CkptError(f"thread {tid} of task {task.pid}: was not in its read() any more: nothing was kept")
    return replace(thread, decision=_DECISION)
