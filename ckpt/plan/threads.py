"""Which threads are ended, which are made again, and what each is told about itself."""

from __future__ import annotations

from dataclasses import dataclass

from ckpt.model import Task

_MAY_CHOOSE = 1 << 40 | 1 << 21  #: CAP_CHECKPOINT_RESTORE, CAP_SYS_ADMIN
#: How a refusal says that a task cannot be given a number.
NEEDS_NUMBERS = "to have its number again, whoever makes it needs CAP_CHECKPOINT_RESTORE; ckpt restore --replace"


@dataclass(frozen=True, slots=True)
class ThreadPlan:
    end: tuple[int, ...]
    spawn: tuple[int, ...]
    refusals: tuple[str, ...]


def chooses_numbers(task: Task) -> bool:
    """Whether what the task clones can have a number of our choice: it is its own right that counts (kernel/pid.c, alloc_pid)."""
    known = task.threads[0].attributes.get("credentials", {}) if task.threads else {}
    return "cap_effective" not in known or bool(int(known["cap_effective"]) & _MAY_CHOOSE)


def plan_threads(now: Task, wanted: Task) -> ThreadPlan:
    """A thread is its number: one that ended and whose number another thread of this process took is simply set anew."""
    here = {thread.tid for thread in now.threads}
    there = {thread.tid for thread in wanted.threads}
    refusals = []
    if wanted.pid not in here:
        who = f"task {wanted.pid} ({wanted.comm})"
        refusals.append(f"{who}: its first thread has exited while others run on: not supported; ckpt restore --replace")
    if there - here and not chooses_numbers(now):
        refusals.append(f"task {wanted.pid} ({wanted.comm}): its thread {min(there - here)} has ended since: {NEEDS_NUMBERS}")
    return ThreadPlan(tuple(sorted(here - there)), tuple(sorted(there - here)), tuple(refusals))
