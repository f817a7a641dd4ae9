"""Processes of a frozen tree ended, collected, made: the steps of plan/family.py and plan/kin.py carried out.

Invariants of a rollback's surgery
 1. Everybody is in a group stop, in force, before the first step: whoever loses its tracer stays stopped (journal.py).
 2. A new process dies with us until its own group stop is in force; then it is kept, as the others are. What is made only to die dies
    with us all along. Either way the next ckpt finds a tree that it can plan from: fewer tasks, or unfinished ones.
 3. An end may orphan a group that is stopped: the kernel then sends SIGHUP and SIGCONT (kernel/exit.c, kill_orphaned_pgrp). So after the
    last step everybody is stopped once more; the signals are drained with all others.
"""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Collection, Iterable
from pathlib import Path

from ckpt.errors import CkptError, RefusedError
from ckpt.kinds.base import call
from ckpt.live import act
from ckpt.live.core import Tree, mark
from ckpt.live.numbers import refused, strangers
from ckpt.model import Snapshot
from ckpt.plan.family import Step, everyone
from ckpt.plan.kin import Surgery, emptied
from ckpt.syscalls.names import nr


def take(tree: Tree, step: Step) -> tuple[int, int]:
    """One step. (0, the new task's number as we see it or 0), or (-EEXIST, 0): the number of the child is taken."""
    if step.child:
        return act.task_spawn(tree, step.pid, step.child, step.flags, step.exit_signal)
    calls = [step.call] if step.call is not None else []
    if step.session:
        calls.append(call(nr("setsid"), note="a session of its own", expect=None))
    elif step.group:
        calls.append(call(nr("setpgid"), 0, step.group, note=f"process group {step.group}"))
    if calls:
        act.Batch(calls).run(tree, step.pid)
    elif step.reap:
        act.task_reap(tree, step.pid, step.reap)
    elif step.status is not None:
        act.task_end(tree, step.pid, step.status)
    return 0, 0


def halt(tree: Tree, pids: Collection[int]) -> None:
    """SIGSTOP, and in force: a call that each makes meets it."""
    for pid in pids:
        tree.signal(tree.ours(pid), signal.SIGSTOP)
    mark("stopping")
    for pid in pids:
        act.Batch([call(nr("getppid"), note="stand still")]).run(tree, pid)


def operate(tree: Tree, now: Snapshot, work: Surgery, stop: Collection[int]) -> None:
    """`stop`: tasks that nobody has stopped yet."""
    halt(tree, stop)
    mark("stopped")
    for pid, tids in (work.threads_end or {}).items():
        act.threads_end(tree, pid, tids)
    living = {task.pid: task for task in now.tasks}
    for step in work.steps:
        code, _ = take(tree, step)
        if code == -errno.EEXIST:
            raise CkptError(f"the number {step.child} has been taken by another task just now")
        if step.status is not None:
            living.pop(step.pid, None)
            mark("task-ended")
        if step.child:
            mark("task-made")
            parent = living.get(step.pid)
            if step.child in work.made:
                tree.signal(tree.ours(step.child), signal.SIGSTOP)
            calls = emptied(parent, step.flags) if parent else []
            act.Batch([*calls, call(nr("getppid"), note="stand still")]).run(tree, step.child)
            if step.child in work.made:
                act.task_keep(tree, step.child)
                mark("task-kept")
    halt(tree, [pid for pid in living if pid in stop])


def refuse_strangers(work: Surgery, now: Snapshot) -> None:
    """RefusedError names who has a number that is needed, where that is nobody of the tree."""
    for number, holder in strangers(work.numbers, _own(now)):
        raise refused(number, holder=holder)


def refuse_newcomers(work: Surgery, now: Snapshot) -> None:
    """The same by one look at each number: inside the freeze."""
    for number in work.numbers - _own(now):
        if Path(f"/proc/{number}").exists():
            raise RefusedError(f"pid {number}: has been taken by another process just now: try again")


def outside_groups(now: Snapshot, wanted: Snapshot) -> set[int]:
    """Process groups of the generation that tasks outside the tree populate."""
    own = {task.pgid for task in now.tasks} | {dead.pgid for dead in now.zombies} | {one.pid for one in everyone(wanted)}
    return {group for group in {task.pgid for task in wanted.tasks} - own if _populated(group)}


def _populated(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _own(now: Snapshot) -> set[int]:
    """Numbers that the tree itself has: as tasks, threads or dead children."""
    threads: Iterable[int] = (thread.tid for task in now.tasks for thread in task.threads)
    return {*threads, *(task.pid for task in now.tasks), *(dead.pid for dead in now.zombies)}
