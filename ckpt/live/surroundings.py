"""What a restored tree needs of the machine around it, looked up or made before anything is born: the groups that it was in, the CPUs
that are there, directories, terminals and the like (files.py). What is missing is said by name; the wanted snapshot learns what the
kinds then use.

Nothing here acts on a process. What is made is held open by the caller until the restore is over.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from ckpt.errors import RefusedError
from ckpt.live import cgroups
from ckpt.live.files import Files
from ckpt.model import Snapshot, State, Task, Thread

_ONLINE = Path("/sys/devices/system/cpu/online")


class Surroundings:
    """`wanted`: the snapshot with what was found; `warnings`: what could not be found. `keep`: takes in descriptors of ours that
    newborns are to have. `trial`: nothing may be seen outside: locks are not taken, FIFOs are others."""

    def __init__(self, wanted: Snapshot, keep: list[int], *, trial: bool = False) -> None:
        self.warnings: list[str] = []
        tasks = [self._task(task) for task in wanted.tasks]
        files = Files(replace(wanted, tasks=tuple(tasks)), keep, trial=trial)
        self.warnings += files.warnings
        self.wanted = files.wanted

    # ---- tasks ----

    def _task(self, task: Task) -> Task:
        who = f"task {task.pid} ({task.comm})"
        _need_directories(task, who)
        task = _learn(task, "cgroup", lambda state: self._groups(state, who))
        task = _learn(task, "autogroup", lambda state: {**state, "own": task.sid == task.pid})
        return replace(task, threads=self._threads(task, who))

    def _groups(self, state: State, who: str) -> State:
        here = cgroups.ours()
        if state.get("paths", here) == here:
            return state
        joined = cgroups.join(state["paths"], cgroups.mounted(), here)
        self.warnings += [f"{who}: {text}" for text in joined.missing]
        return {**state, "enter": list(joined.files)}

    def _threads(self, task: Task, who: str) -> tuple[Thread, ...]:
        online = _cpus()
        lost = 0
        threads = []
        for thread in task.threads:
            state = thread.attributes.get("scheduling", {})
            wanted = int.from_bytes(bytes.fromhex(state.get("cpus", "")), "little")
            lost |= wanted & ~online
            if wanted & ~online:
                there = _mask(wanted & online) if wanted & online else ""
                thread = replace(thread, attributes={**thread.attributes, "scheduling": {**state, "cpus": there}})
            threads.append(thread)
        if lost:
            numbers = ", ".join(str(number) for number in range(lost.bit_length()) if lost >> number & 1)
            self.warnings.append(f"{who}: CPU {numbers} is not there: it may use those that are left")
        return tuple(threads)


def _learn(task: Task, kind: str, change: Callable[[State], State]) -> Task:
    state = task.attributes.get(kind)
    return replace(task, attributes={**task.attributes, kind: change(state)}) if state else task


def _need_directories(task: Task, who: str) -> None:
    root = task.attributes.get("root", {}).get("path", "/")
    path = task.attributes.get("cwd", {}).get("path")
    if not Path(root).is_dir():
        raise RefusedError(f"{who}: root: {root} is gone: make that directory again")
    if path is not None and not Path(f"{root}/{path}").is_dir():
        raise RefusedError(f"{who}: cwd: {path} is gone: make that directory again")


def _cpus() -> int:
    """A bit for each CPU that is online ("0-3,8")."""
    bits = 0
    for part in _ONLINE.read_text().strip().split(","):
        first, _, last = part.partition("-")
        for number in range(int(first), int(last or first) + 1):
            bits |= 1 << number
    return bits


def _mask(bits: int) -> str:
    return bits.to_bytes((bits.bit_length() + 7) // 8, "little").hex()
