"""Which living process a generation is of: the one that was captured, or one that a restore has made of its history since."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from ckpt.errors import NotFoundError, RefusedError
from ckpt.history.open import Generation
from ckpt.live import runtime
from ckpt.model import PidRef, Snapshot


def living(generation: Generation, wanted: Snapshot, pid: int | None) -> PidRef:
    """Raises NotFoundError when it is gone, RefusedError when it is another program by now."""
    name = f"task {wanted.root.pid} ({generation.command})"
    if pid is not None and pid != wanted.root.pid:
        raise RefusedError(f"generation {generation.number} is of {name}, not of task {pid}: ckpt restore makes a new process from it")
    try:
        ref = PidRef(wanted.root.pid, runtime.start_ticks(wanted.root.pid))
        incarnation = runtime.incarnation(ref)
        record = runtime.load(ref)
    except (NotFoundError, OSError):
        raise _gone(name, generation) from None
    same = ref == wanted.root and runtime.same_process(incarnation, generation.incarnation)
    restored = record is not None and record.lineage == generation.lineage
    if not runtime.lives(ref.pid, ref.start_ticks) or not (same or restored):
        raise _gone(name, generation)
    if _program(incarnation) != _program(generation.incarnation):
        raise RefusedError(f"{name} has executed another program since generation {generation.number}: ckpt restore --replace")
    return ref


def _gone(name: str, generation: Generation) -> NotFoundError:
    return NotFoundError(f"{name} of generation {generation.number} is gone: ckpt restore brings it back as a new process")


def _program(incarnation: str) -> str:
    """The digest of the auxiliary vector: each exec lays it out anew, a restore brings it back."""
    return incarnation.rsplit(":", 1)[-1]


def as_it_lives(wanted: Snapshot, ref: PidRef, born: Mapping[int, int]) -> Snapshot:
    """The generation in terms of a tree that was restored since: its tasks have the same numbers and other start times.
    `born`: pid -> start time of the living tasks."""
    if wanted.root == ref:
        return wanted
    tasks = tuple(replace(task, start_ticks=born.get(task.pid, task.start_ticks)) for task in wanted.tasks)
    return replace(wanted, root=ref, tasks=tasks)
