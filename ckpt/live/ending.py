"""The end of a frozen tree: every task killed, and its end seen by us who trace it.

A zombie that is traced belongs to its tracer first: only when that has waited does its parent, or the end of its pid namespace,
get to it (kernel/exit.c, wait_task_zombie).
"""

from __future__ import annotations

import os
import signal
from contextlib import suppress

from ckpt.errors import CkptError
from ckpt.live.core import Tree

_WALL = 0x40000000


def kill(tree: Tree) -> None:
    """SIGKILL to all of a tree that is frozen; returns when each has ended."""
    threads = tree.threads()
    leaders = dict.fromkeys(thread.pid for thread in threads)
    for pid in leaders:
        with suppress(CkptError):
            tree.signal(pid, signal.SIGKILL)
    others = [thread.tid for thread in threads if thread.tid not in leaders]
    for tid in (*others, *leaders):
        _wait_for_end(tid)


def _wait_for_end(tid: int) -> None:
    with suppress(ChildProcessError):
        while os.WIFSTOPPED(os.waitpid(tid, _WALL)[1]):
            pass
