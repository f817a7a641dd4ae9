"""What processes share beside their open files is planned once: by the first task of the tree that has it. The others have it by
their birth (family.py), and their own plans pass it over. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from ckpt.kinds.base import TaskKind, task_kinds
from ckpt.model import Snapshot, Task

#: What is shared -> the kinds of attribute that are of it, not of the process.
_OF = {"vm": ("memory",), "fs": ("cwd", "root", "umask"), "sighand": ("sigactions",), "files": ()}


def shared(task: Task, snapshot: Snapshot) -> frozenset[str]:
    """What an earlier task has too: "vm", "files", "fs", "sighand"."""
    first = next(other for other in snapshot.tasks if other.mm == task.mm)
    return frozenset((*task.shares, *(("vm",) if first.pid != task.pid else ())))


def own_kinds(has: frozenset[str]) -> Sequence[TaskKind]:
    """Kinds of attribute that are the task's own business."""
    others = {name for what in has for name in _OF[what]}
    return [kind for kind in task_kinds() if kind.name not in others]
