"""A rollback's surgery on the tree itself: which processes stay, which end, which are made again, in which order. Pure.

A living task serves as the wanted one if what no call can change is right: its number, its parent, its session, the program that
it executes, the signal of its end, what it shares with whom, and nothing of its attributes is lost for good (a limit that it lowered).
Whether it is the very same process or a later one with its number does not matter: all else is planned. Any other task ends; what
is wanted and not there is made anew by its parent, as an empty copy.

Invariants
 1. Who ends is collected by its parent before that ends: no zombie stays, and its number is free.
 2. Who stays has a parent that stays; the root always stays, or the plan is refused.
 3. A number that a session has is not free while a member lives: so members that stay do not stand in the way, they are made again.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace

from ckpt.kinds.base import call
from ckpt.model import RemoteCall, Snapshot, State, Task, Thread
from ckpt.plan.attributes import plan_attributes
from ckpt.plan.family import CLONE_FILES, CLONE_VM, Family, Place, Step, everyone
from ckpt.plan.threads import NEEDS_NUMBERS, chooses_numbers
from ckpt.syscalls.names import nr

KILLED = 9
ADVICE = "ckpt restore --replace"
#: What a child has of its own from its birth on (kernel/fork.c): nothing of these.
_NOT_INHERITED = ("rseq", "robust_list", "tid_address", "posix_timers", "itimers")


@dataclass(frozen=True, slots=True)
class Surgery:
    """`steps` end, collect, make; `made`: tasks that are made; `numbers`: what has to be free of strangers; `threads_end`: pid ->
    threads that end first, because a task is to have their number."""

    steps: tuple[Step, ...] = ()
    made: frozenset[int] = frozenset()
    numbers: frozenset[int] = frozenset()
    threads_end: Mapping[int, tuple[int, ...]] | None = None
    notes: tuple[str, ...] = ()
    refusals: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def surgery(now: Snapshot, wanted: Snapshot, outside: Collection[int] = ()) -> Surgery:
    """`outside`: process groups that tasks outside the tree populate."""
    here = {task.pid: task for task in now.tasks}
    there = {task.pid: task for task in wanted.tasks}
    root, was = here[now.root.pid], there[wanted.root.pid]
    if root.sid != was.sid:
        why = f"it has begun session {root.sid} since; then it was of {was.sid}"
        return Surgery(refusals=(f"task {root.pid} ({root.comm}): {why}; {ADVICE}",))
    kept = _Kept(now, wanted)
    while True:
        family = Family(wanted, kept.places(), outside=outside)
        blocked = {pid for pid, _ in family.stuck} & kept.tasks - {root.pid}
        if not blocked:
            break
        kept.drop(blocked)
    ends = tuple(_ends(now, kept.tasks, kept.zombies))
    made = frozenset(pid for pid in family.born if pid in there)
    numbers = frozenset({*family.born, *family.passing, *_threads_to_make(here, there, made)})
    in_the_way = {
        pid: tuple(thread.tid for thread in here[pid].threads if thread.tid in numbers and thread.tid != pid) for pid in sorted(kept.tasks)
    }
    return Surgery(
        steps=(*ends, *family.steps()),
        made=made,
        numbers=numbers,
        threads_end={pid: tids for pid, tids in in_the_way.items() if tids},
        notes=tuple(_notes(now, wanted, ends, family)),
        refusals=(*(f"{why}; {ADVICE}" for _, why in family.stuck), *_without_right(here, there, family)),
        warnings=tuple(family.warnings),
    )


def _threads_to_make(here: Mapping[int, Task], there: Mapping[int, Task], made: Collection[int]) -> set[int]:
    """Numbers of the threads of new tasks, and of those that have ended in others."""
    had = {pid: {thread.tid for thread in task.threads} for pid, task in here.items() if pid not in made}
    return {thread.tid for pid, task in there.items() for thread in task.threads if thread.tid not in had.get(pid, ())}


def _without_right(here: Mapping[int, Task], there: Mapping[int, Task], family: Family) -> Iterator[str]:
    for step in family.steps():
        if step.child and step.pid in here and not chooses_numbers(here[step.pid]):
            name = f"task {step.child} ({there[step.child].comm})" if step.child in there else f"task {step.child}"
            yield f"{name}: has ended since: {NEEDS_NUMBERS}"


class _Kept:
    """Tasks and dead children of now that stay."""

    def __init__(self, now: Snapshot, wanted: Snapshot) -> None:
        self.now = {task.pid: task for task in now.tasks}
        self.there = {task.pid: task for task in wanted.tasks}
        self.dead = {one.pid: one for one in now.zombies}
        self.wanted_dead = {one.pid: one for one in wanted.zombies}
        self.root = wanted.root.pid
        self.tasks = {pid for pid, task in self.now.items() if pid in self.there and (pid == self.root or self._serves(task))}
        there = self.wanted_dead
        self.zombies = {pid for pid, one in self.dead.items() if pid in there and _buried(one) == _buried(there[pid])}
        self._settle()

    def _serves(self, task: Task) -> bool:
        was = self.there[task.pid]
        return (
            (task.ppid, task.sid, task.exit_signal) == (was.ppid, was.sid, was.exit_signal)
            and _program(task) == _program(was)
            and any(thread.tid == task.pid for thread in task.threads)
            and not plan_attributes(task, was).refusals
        )

    def drop(self, pids: Collection[int]) -> None:
        self.tasks -= set(pids)
        self._settle()

    def _settle(self) -> None:
        """Drops those whose parents go, who are of a session that begins anew, or who share otherwise than then; the dead also where
        they have a number that somebody is to have."""
        while True:
            self.zombies = {pid for pid in self.zombies if self.dead[pid].ppid in self.tasks}
            born = {*self.there, *self.wanted_dead} - self.tasks - self.zombies
            lost = {pid for pid in self.tasks if pid != self.root and self._cannot_stay(self.now[pid], born)}
            freed = {pid for pid in self.zombies if born & {self.dead[pid].pgid, self.dead[pid].sid}}
            if not lost and not freed:
                break
            self.tasks -= lost
            self.zombies -= freed

    def _cannot_stay(self, task: Task, born: set[int]) -> bool:
        orphaned = task.ppid not in self.tasks
        in_the_way = task.sid in born and task.sid != task.pid
        return orphaned or in_the_way or self._ties(self.now, task) != self._ties(self.there, task)

    def _ties(self, tasks: Mapping[int, Task], task: Task) -> set[tuple[str, int]]:
        """With which of those that stay it shares what."""
        mine = tasks[task.pid]
        found = set()
        for pid in self.tasks - {task.pid}:
            other = tasks[pid]
            if other.mm == mine.mm:
                found.add(("vm", pid))
            for what in ("files", "fs", "sighand"):
                if mine.shares.get(what, mine.pid) == other.shares.get(what, pid):
                    found.add((what, pid))
        return found

    def places(self) -> dict[int, Place]:
        places = {pid: Place(self.now[pid].sid, self.now[pid].pgid) for pid in sorted(self.tasks)}
        return places | {pid: Place(self.dead[pid].sid, self.dead[pid].pgid) for pid in sorted(self.zombies)}


def _buried(one: object) -> tuple[object, ...]:
    return tuple(getattr(one, name) for name in ("ppid", "pgid", "sid", "status", "exit_signal", "uid"))


def _program(task: Task) -> tuple[object, ...]:
    """What an exec changes for good: the executed file and where the kernel has put its code."""
    vdso = next((mapping.start for mapping in task.mappings if mapping.name == "[vdso]"), None)
    return task.attributes.get("memory", {}).get("exe"), vdso


def _ends(now: Snapshot, kept: Collection[int], buried: Collection[int]) -> Iterator[Step]:
    children: dict[int, list[Task]] = {}
    for task in now.tasks:
        children.setdefault(task.ppid, []).append(task)

    def end(task: Task) -> Iterator[Step]:
        for child in children.get(task.pid, ()):
            yield from end(child)
        for dead in now.zombies:
            if dead.ppid == task.pid and dead.pid not in buried:
                yield Step(task.pid, reap=dead.pid)
        if task.pid not in kept:
            yield Step(task.pid, status=KILLED)
            yield Step(task.ppid, reap=task.pid)

    yield from end(now.task(now.root.pid))


def _notes(now: Snapshot, wanted: Snapshot, ends: Collection[Step], family: Family) -> Iterator[str]:
    names = {one.pid: one.comm for one in everyone(wanted)}
    before = {one.pid: one.comm for one in everyone(now)}
    for step in ends:
        if step.status is not None:
            yield f"end task {step.pid} ({before[step.pid]})"
        elif step.reap and not any(step.reap == other.pid for other in ends if other.status is not None):
            yield f"collect the dead child {step.reap} ({before[step.reap]}) of task {step.pid}"
    for step in family.steps():
        if step.child in names:
            yield f"make task {step.child} ({names[step.child]}) again in task {step.pid}"
        elif step.child:
            yield f"make task {step.child} for a moment in task {step.pid}"
        elif step.session or step.group:
            yield f"task {step.pid}: " + ("a session of its own" if step.session else f"process group {step.group}")
        elif step.call is not None:
            yield f"task {step.pid}: {step.call.note}"
        elif step.status is not None and step.pid in names:
            yield f"task {step.pid} ({names[step.pid]}) ends with status {step.status:#x}, to be collected"


# ---- the tree as it will be ----


def predicted(now: Snapshot, wanted: Snapshot, work: Surgery) -> Snapshot:
    """now after the surgery, as far as it can be known before: what is made is an empty copy of its parent."""
    ended = {step.pid for step in work.steps if step.status is not None}
    tasks = {task.pid: task for task in now.tasks if task.pid not in ended}
    left = [task for task in wanted.tasks if task.pid in work.made]
    while left:
        ready = [task for task in left if task.ppid in tasks]
        if not ready:  # of a parent that is not of the tree: the root's
            ready = [replace(left[0], ppid=now.root.pid)]
        for task in ready:
            tasks[task.pid] = _copy(tasks[task.ppid], task)
        left = [task for task in left if task.pid not in tasks]
    held = {item.file for task in tasks.values() for item in task.descriptors}
    return replace(now, tasks=tuple(tasks.values()), files=tuple(file for file in now.files if file.id in held), zombies=wanted.zombies)


def _copy(parent: Task, task: Task) -> Task:
    leader = parent.threads[0]
    return replace(
        parent,
        pid=task.pid,
        start_ticks=0,
        ppid=parent.pid,
        pgid=task.pgid,
        sid=task.sid,
        mm=-task.pid,
        threads=(_born(leader, task.pid),),
        descriptors=(),
        pending=(),
        attributes={**_inherited(parent.attributes), **_terminal(task)},
        exit_signal=task.exit_signal,
        stopped=0,
        shares=task.shares,
    )


def _born(leader: Thread, tid: int) -> Thread:
    return replace(leader, tid=tid, start_ticks=0, pending=(), attributes=_inherited(leader.attributes))


def _inherited(attributes: Mapping[str, State]) -> dict[str, State]:
    return {name: {} if name in _NOT_INHERITED else state for name, state in attributes.items()}


def _terminal(task: Task) -> dict[str, State]:
    """The family's steps give it its own (invariant 4 there), with its leader's group in the foreground."""
    state = task.attributes.get("terminal")
    if not state:
        return {"terminal": {}}
    return {"terminal": {**state, "foreground": task.pid} if "foreground" in state else state}


def emptied(parent: Task, flags: int) -> list[RemoteCall]:
    """What a new child of `parent` does first: no descriptors, no restartable sequences (the kernel would write where nothing is
    by then). What it shares with its parent is left alone."""
    calls = [] if flags & CLONE_FILES else [call(nr("close_range"), 0, 0xFFFF_FFFF, 0, note="no descriptors")]
    area = parent.threads[0].attributes.get("rseq", {})
    if area.get("pointer") and not flags & CLONE_VM:
        args = (area["pointer"], area["size"], 1, area["signature"])
        calls.append(call(nr("rseq"), *args, note="leave restartable sequences", expect=None))
    return calls
