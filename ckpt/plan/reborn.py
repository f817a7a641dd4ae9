"""The wanted tree as it can be here and now: what the generation remembers of numbers, sessions and parents, put in the words of
the newborns that take its place. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from ckpt.kinds.fd import procfile
from ckpt.model import PidRef, Snapshot, Task, Thread, Zombie
from ckpt.plan.renumber import renumbered


@dataclass(frozen=True, slots=True)
class Reborn:
    wanted: Snapshot
    warnings: tuple[str, ...]


def reborn(wanted: Snapshot, now: Snapshot, numbers: Mapping[int, int]) -> Reborn:
    """`now`: the newborns. `numbers`: of the generation -> theirs, where they could not have the same."""
    warnings: list[str] = []
    if numbers:
        warnings.append(f"task {wanted.root.pid} is task {numbers[wanted.root.pid]} now: numbers that the program has remembered are stale")
    wanted = renumbered(wanted, numbers)
    wanted = replace(wanted, files=tuple(procfile.renumbered(file, numbers) for file in wanted.files))
    tasks = []
    for task in wanted.tasks:
        born = now.task(task.pid)
        moved = replace(task, start_ticks=born.start_ticks, ppid=born.ppid, pgid=born.pgid, sid=born.sid)
        tasks.append(_unbound(moved, warnings) if task.pid == wanted.root.pid else moved)
    root = PidRef(now.root.pid, now.root.start_ticks)
    return Reborn(replace(wanted, root=root, tasks=tuple(tasks), zombies=tuple(_dead(wanted, now))), tuple(warnings))


def _dead(wanted: Snapshot, now: Snapshot) -> Iterator[Zombie]:
    here = {dead.pid: dead for dead in now.zombies}
    for dead in wanted.zombies:
        made = here.get(dead.pid, dead)
        yield replace(dead, start_ticks=made.start_ticks, ppid=made.ppid, pgid=made.pgid, sid=made.sid)


def _unbound(root: Task, warnings: list[str]) -> Task:
    """The root's parent is not of the tree: a signal at that parent's death would come when ckpt ends."""
    if not any(_death_signal(thread.attributes) for thread in root.threads):
        return root
    warnings.append(f"task {root.pid} ({root.comm}): its signal at its parent's death is not set: the parent is not restored")
    return replace(root, threads=tuple(_without_death_signal(thread) for thread in root.threads))


def _death_signal(attributes: Mapping[str, Mapping[str, object]]) -> object:
    return attributes.get("prctl_thread", {}).get("pdeathsig")


def _without_death_signal(thread: Thread) -> Thread:
    if not _death_signal(thread.attributes):
        return thread
    return replace(thread, attributes={**thread.attributes, "prctl_thread": {**thread.attributes["prctl_thread"], "pdeathsig": 0}})
