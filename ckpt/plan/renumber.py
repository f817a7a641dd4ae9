"""A snapshot in other numbers of processes and threads: as a pid namespace or a restore with new pids has them. Pure.

What a program keeps in its own memory (a cached getpid, the owner in a mutex) stays as it is; what the kernel keeps is renamed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ckpt.kinds.fd import sigio
from ckpt.model import OpenFile, PidRef, Snapshot, State, Task, Thread, Zombie

_NUMBERS = ("pid", "ppid", "pgid", "sid")


def renumbered(snapshot: Snapshot, numbers: Mapping[int, int]) -> Snapshot:
    """`numbers`: old -> new, for processes and threads alike; others stay."""
    if all(old == new for old, new in numbers.items()):
        return snapshot
    root = PidRef(numbers.get(snapshot.root.pid, snapshot.root.pid), snapshot.root.start_ticks)
    files = tuple(sigio.renumbered(_pidfd(file, numbers) if file.kind == "pidfd" else file, numbers) for file in snapshot.files)
    tasks = tuple(_task(task, numbers) for task in snapshot.tasks)
    zombies = tuple(_zombie(dead, numbers) for dead in snapshot.zombies)
    return replace(snapshot, root=root, tasks=tasks, files=files, zombies=zombies)


def _task(task: Task, numbers: Mapping[int, int]) -> Task:
    names = {name: numbers.get(getattr(task, name), getattr(task, name)) for name in _NUMBERS}
    shares = {what: numbers.get(pid, pid) for what, pid in task.shares.items()}
    threads = sorted((_thread(thread, numbers) for thread in task.threads), key=lambda thread: (thread.tid != names["pid"], thread.tid))
    renamed = {"posix_timers": _timers, "terminal": _foreground}
    attributes = {name: renamed[name](state, numbers) if name in renamed else state for name, state in task.attributes.items()}
    return replace(task, **names, shares=shares, threads=tuple(threads), attributes=attributes)


def _zombie(dead: Zombie, numbers: Mapping[int, int]) -> Zombie:
    return replace(dead, **{name: numbers.get(getattr(dead, name), getattr(dead, name)) for name in _NUMBERS})


def _thread(thread: Thread, numbers: Mapping[int, int]) -> Thread:
    return replace(thread, tid=numbers.get(thread.tid, thread.tid))


def _pidfd(file: OpenFile, numbers: Mapping[int, int]) -> OpenFile:
    return replace(file, state={**file.state, "pid": numbers.get(file.state["pid"], file.state["pid"])})


def _timers(state: State, numbers: Mapping[int, int]) -> State:
    """Timers that signal one thread know it by its number."""
    timers: dict[str, Any] = {
        key: {**timer, "tid": numbers.get(timer["tid"], timer["tid"])} for key, timer in state.get("timers", {}).items()
    }
    return {**state, "timers": timers} if "timers" in state else state


def _foreground(state: State, numbers: Mapping[int, int]) -> State:
    group = state.get("foreground")
    return {**state, "foreground": numbers.get(group, group)} if group else state
