"""How a tree of processes is born: who clones whom, who begins a session, who joins which group, in which order. Pure.

What cannot be given is put in words: a session or group whose leader is outside the tree becomes the root's (the root leads a
new session), a group whose leader has died gets a leader for a moment (`Step.passing`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ckpt.model import Snapshot, Task


@dataclass(frozen=True, slots=True)
class Step:
    """Task `pid` clones `child`, or begins a session, or joins the group `group`. Numbers are the generation's."""

    pid: int
    child: int = 0
    session: bool = False
    group: int = 0


class Family:
    """`sid`, `pgid`: pid -> the session and the group that the task will have here. `warnings`: what is not as it was."""

    def __init__(self, wanted: Snapshot) -> None:
        self.root = wanted.root.pid
        self.tasks = {task.pid: task for task in wanted.tasks}
        self.warnings: list[str] = []
        self.children: dict[int, list[Task]] = {pid: [] for pid in self.tasks}
        for task in wanted.tasks:
            if task.pid != self.root:
                self.children[task.ppid if task.ppid in self.tasks else self.root].append(task)
        self.sid = {task.pid: self._session(task) for task in wanted.tasks}
        self.pgid = {task.pid: self._group(task) for task in wanted.tasks}

    def _session(self, task: Task) -> int:
        if task.sid in self.tasks:
            return task.sid
        if task.pid == self.root:
            self.warnings.append(f"{_name(task)}: its session {task.sid} is led by nobody of the tree: it leads a new one")
        return self.root

    def _group(self, task: Task) -> int:
        if task.pgid in self.tasks and self.sid[task.pgid] == self.sid[task.pid]:
            return task.pgid
        if self.sid[task.pid] == task.pid:
            return task.pid
        mine = self.sid[task.pid]
        if task.pgid not in self.tasks and task.pid != self.root and task.pgid != self.tasks[self.root].pgid:
            self.warnings.append(f"{_name(task)}: its process group {task.pgid} is led by nobody of the tree: it is of group {mine} now")
        return mine

    def steps(self) -> Iterator[Step]:
        """The root is there, and leads a session of its own."""
        yield from self._clone(self.root)
        for pid in sorted(self.tasks, key=lambda pid: (self.pgid[pid] != pid, pid)):  # leaders first
            if self.sid[pid] != pid and self.pgid[pid] != self._inherited(pid):
                yield Step(pid, group=self.pgid[pid])

    def _clone(self, pid: int) -> Iterator[Step]:
        own = self.sid[pid] == pid and pid != self.root
        early = [child for child in self.children[pid] if own and self.sid[child.pid] not in (pid, child.pid)]
        for child in early:
            yield Step(pid, child.pid)
        if own:
            yield Step(pid, session=True)
        for child in self.children[pid]:
            if child not in early:
                yield Step(pid, child.pid)
        for child in self.children[pid]:
            yield from self._clone(child.pid)

    def _inherited(self, pid: int) -> int:
        """The group that it has by birth: its parent's at that moment, which is that of the parent's session's leader."""
        task = self.tasks[pid]
        parent = task.ppid if task.ppid in self.tasks else self.root
        if pid == self.root:
            return pid
        return self.sid[pid] if self.sid[parent] == self.sid[pid] else self._born_in(parent)

    def _born_in(self, pid: int) -> int:
        """The session that a task was in before it began its own."""
        task = self.tasks[pid]
        return self.sid[task.ppid if task.ppid in self.tasks else self.root]


def _name(task: Task) -> str:
    return f"task {task.pid} ({task.comm})"
