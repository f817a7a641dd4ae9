"""Which threads are ended, which are made again, and what each is told about itself."""

from __future__ import annotations

from dataclasses import dataclass

from ckpt.model import Task


@dataclass(frozen=True, slots=True)
class ThreadPlan:
    end: tuple[int, ...]
    spawn: tuple[int, ...]
    refusals: tuple[str, ...]


def plan_threads(now: Task, wanted: Task) -> ThreadPlan:
    """A thread is its number: one that ended and whose number another thread of this process took is simply set anew."""
    here = {thread.tid for thread in now.threads}
    there = {thread.tid for thread in wanted.threads}
    refusals = []
    if wanted.pid not in here:
        who = f"task {wanted.pid} ({wanted.comm})"
        refusals.append(f"{who}: its first thread has exited while others run on: not supported; ckpt restore --replace")
    return ThreadPlan(tuple(sorted(here - there)), tuple(sorted(there - here)), tuple(refusals))
