"""What is not memory, descriptor or register: attributes of a process and of each thread, pending signals, timers.

Invariants
 1. Each kind says which calls turn its state of now into the wanted one; equal states cost nothing.
 2. Signals are queued again by the task itself, each thread's own by that thread: the kernel lets nobody forge a siginfo of
    the kernel's for another (kernel/signal.c, do_rt_sigqueueinfo). What is pending now is drained first, by the executor,
    which sees what really is there.
 3. Timers come after the drain, so that one that expires meanwhile is not lost.
 4. What needs a right comes before the credentials that lack it, what they would clear comes after them: `kind.order`, and
    `kind.late` for attributes of a process that wait for all of its threads.
 5. A thread that is made again has what its leader has now, as far as the kind says so (`in_clone`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import filterfalse

from ckpt.kinds.base import CandidTask, CannotUndo, Cleared, Inherited, TaskKind, is_a, task_kinds
from ckpt.model import RemoteCall, State, Task, Thread
from ckpt.plan import batch as b
from ckpt.plan.batch import Batch

_SIGINFO = 128
_ORDER = 50  #: of a kind that names none


@dataclass(slots=True)
class AttributePlan:
    process: Batch = field(default_factory=Batch)
    threads: Batch = field(default_factory=Batch)
    signals: Batch = field(default_factory=Batch)
    timers: Batch = field(default_factory=Batch)
    refusals: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    @property
    def batches(self) -> tuple[Batch, Batch, Batch, Batch]:
        return self.process, self.threads, self.signals, self.timers


def plan_attributes(now: Task, wanted: Task, kinds: Sequence[TaskKind] | None = None) -> AttributePlan:
    plan = AttributePlan()
    known = sorted(kinds if kinds is not None else task_kinds(), key=order_of)
    who = f"task {wanted.pid} ({wanted.comm})"
    of_process = [kind for kind in known if not kind.per_thread]
    for kind in filterfalse(_is_late, of_process):
        _one(plan, kind, now.attributes.get(kind.name), wanted.attributes.get(kind.name), 0, who)
    changed = _of_threads(plan, [kind for kind in known if kind.per_thread], now, wanted, who)
    for kind in filter(_is_late, of_process):
        mine = now.attributes.get(kind.name)
        before = kind.cleared(mine) if mine and changed and is_a(kind, Cleared) else mine
        _one(plan, kind, before, wanted.attributes.get(kind.name), wanted.pid, who)
    _requeue(plan.signals, wanted)
    _warn_locked(plan, now, wanted)
    return plan


def _of_threads(plan: AttributePlan, kinds: Sequence[TaskKind], now: Task, wanted: Task, who: str) -> bool:
    """Whether credentials are changed in any of them."""
    changed = False
    here = {thread.tid: thread.attributes for thread in now.threads}
    born = _born(kinds, now)
    alike = _Alike(plan)
    for thread in wanted.threads:
        before = here.get(thread.tid, born)
        name, credentials = f"thread {thread.tid} of {who}", False
        for kind in kinds:
            mine, goal = before.get(kind.name), thread.attributes.get(kind.name)
            if mine and credentials and is_a(kind, Cleared):
                mine = kind.cleared(mine)
            if goal is not None and mine != goal:  # there are hundreds of threads, and little to do in each
                calls = alike.again(kind, mine, goal, thread.tid)
                if calls is None:
                    calls = _one(plan, kind, mine, goal, thread.tid, name)
                credentials |= calls and kind.name == "credentials"
        changed |= credentials
    return changed


class _Alike:
    """Most threads of a process differ in the same way from what they are born with: the calls of the one before are theirs too."""

    def __init__(self, plan: AttributePlan) -> None:
        self._plan = plan
        self._last: dict[str, tuple[State, State, Sequence[RemoteCall]]] = {}

    def again(self, kind: TaskKind, now: State | None, wanted: State, tid: int) -> bool | None:
        """Whether there was anything to do; None: somebody else has to say so, for there may be more to it than calls."""
        if now is None or "timer" in kind.name or is_a(kind, CandidTask):
            return None
        last = self._last.get(kind.name)
        if last is None or last[0] is not now or last[1] != wanted:
            try:
                last = self._last[kind.name] = now, wanted, kind.restore(now, wanted)
            except CannotUndo:
                return None
        self._plan.threads.extend(last[2], tid)
        return bool(last[2])


def order_of(kind: TaskKind) -> tuple[int, str]:
    return getattr(kind, "order", _ORDER), kind.name


def _is_late(kind: TaskKind) -> bool:
    return bool(getattr(kind, "late", False))


def _born(kinds: Iterable[TaskKind], now: Task) -> dict[str, State]:
    """What a thread is born with: as its leader has it."""
    leader = now.threads[0].attributes if now.threads else {}
    found: dict[str, State] = {}
    for kind in kinds:
        name, mine = kind.name, leader.get(kind.name)
        found[name] = kind.in_clone(mine) if mine and is_a(kind, Inherited) else {}
    return found


def _warn_locked(plan: AttributePlan, now: Task, wanted: Task) -> None:
    """Generations of older versions do not say what was locked, only how much."""
    if any(mapping.advice is not None for mapping in wanted.mappings):
        return
    here, there = (task.attributes.get("memory", {}).get("locked_kib", 0) for task in (now, wanted))
    if here != there:
        plan.warnings.append(f"task {wanted.pid} ({wanted.comm}): locked memory: not rolled back ({here} KiB now, {there} KiB then)")


def _one(plan: AttributePlan, kind: TaskKind, now: State | None, wanted: State | None, tid: int, who: str) -> bool:
    """Whether there was anything to do."""
    timer = "timer" in kind.name
    if wanted is None or (now == wanted and not timer):
        return False
    target = plan.timers if timer else plan.threads if tid else plan.process
    calls: Sequence[RemoteCall] = ()
    try:
        calls = kind.restore(now if now is not None else {}, wanted)
        target.extend(calls, tid)
        if is_a(kind, CandidTask):
            plan.warnings += [f"{who}: {text}" for text in kind.caveats(now or {}, wanted)]
    except CannotUndo as error:
        plan.refusals.append(f"{who}: {kind.name}: {error}; ckpt restore --replace")
    return bool(calls)


def _requeue(batch: Batch, task: Task) -> None:
    for info in task.pending:
        calls = Batch()
        calls.add(b.NR_RT_SIGQUEUEINFO, task.pid, signal_number(info), info, note=f"queue signal {signal_number(info)} again")
        batch.extend(calls.calls, task.pid)
    for thread in task.threads:
        for info in thread.pending:
            calls = Batch()
            note = f"queue signal {signal_number(info)} again for thread {thread.tid}"
            calls.add(b.NR_RT_TGSIGQUEUEINFO, task.pid, thread.tid, signal_number(info), info, note=note)
            batch.extend(calls.calls, thread.tid)


def signal_number(info: bytes) -> int:
    if len(info) != _SIGINFO:
        raise ValueError(f"siginfo of {len(info)} bytes")
    return int.from_bytes(info[:4], "little")


def disturbed(threads: Iterable[Thread]) -> list[str]:
    """Threads whose interrupted call does not continue quite as it would have."""
    return [f"thread {thread.tid}: {thread.decision.reason}" for thread in threads if thread.decision.disturbed]
