"""A plan carried out on a frozen tree. The order is the whole point:

   threads that came since end -> mappings -> descriptors -> attributes -> threads that went are made again -> what each
   thread knows of itself -> pages -> what waits for them (guard pages, seals) -> signals drained, timers -> registers
   -> (SIGCONT) -> signals queued again

1. Threads end first: their last acts (robust futexes, clear_child_tid) write into memory that is then put right.
2. Pages come after everything that lets the kernel write into the memory (clone, rseq, robust lists).
3. Registers are last. From the first call to here the tasks are in a group stop (journal.py); whoever loses its tracer
   stays stopped.
4. A call that only opens a file may fail without harm: then everything is as it was (`Unchanged`). Any later failure leaves
   the tasks stopped with the journal in place, for the next ckpt.
"""

from __future__ import annotations

import signal
from collections.abc import Collection, Sequence
from functools import partial

from ckpt.errors import CkptError
from ckpt.live import act
from ckpt.live.continuation import RESTART_BLOCK, continuation
from ckpt.live.core import Tree, mark
from ckpt.live.groups import Group, Together, groups_of
from ckpt.model import Action, Arg, Plan, RemoteArg, RemoteCall, Snapshot, Task, Thread

NR_OPEN, NR_CLOSE, NR_MADVISE, NR_SIGTIMEDWAIT, NR_WAITID = 2, 3, 28, 128, 247
P_PID, WNOHANG, WCONTINUED = 1, 1, 8
MADV_DONTNEED = 4
EAGAIN = 11
DRAIN_AT_ONCE = 8
DATA_BYTES = 16384  #: room in the bridge beside the calls, at least
ALL_SIGNALS = b"\xff" * 8
BEFORE_SPAWN = ("mappings", "descriptors-freed", "descriptors-made", "descriptors-shared", "descriptors", "attributes")
WITH_PAGES, BEFORE_PAGES, AFTER_DRAIN, AFTER_CONT = ("finish",), ("threads",), ("timers",), ("signals",)


class Unchanged(CkptError):
    """Something failed before the first change: the tasks are what they were."""


def _values(*numbers: int) -> tuple[RemoteArg, ...]:
    return tuple(RemoteArg(Arg.VALUE, number) for number in numbers)


def _take_one(wanted: bytes) -> RemoteCall:
    """rt_sigtimedwait that takes one pending signal and never waits."""
    args = (RemoteArg(Arg.BUFFER, 0, wanted), *_values(0), RemoteArg(Arg.BUFFER, 0, bytes(16)), *_values(8))
    return RemoteCall(NR_SIGTIMEDWAIT, args, "take a pending signal", None)


def _hear_of(pid: int) -> RemoteCall:
    """waitid that takes the report of a child that goes on, if there is one, and nothing else."""
    return RemoteCall(NR_WAITID, _values(P_PID, pid, 0, WCONTINUED | WNOHANG, 0), f"task {pid} goes on", None)


class Executor:
    """One plan on one frozen tree; `now` is the tree as it was captured inside this freeze. `stop`: tasks that are put into a
    group stop first; `go`: tasks that are taken out of theirs at the end. `rebuild`: calls may be begun, their memory is there.
    `keeps`: the calling thread ends with the freeze, so others may be ended at their deadlines."""

    def __init__(
        self,
        tree: Tree,
        plan: Plan,
        now: Snapshot,
        wanted: Snapshot,
        *,
        stop: Collection[int] = (),
        go: Collection[int] = (),
        rebuild: bool = True,
        keeps: bool = False,
    ) -> None:
        self.tree, self.plan, self.now, self.wanted, self.stop, self.go = tree, plan, now, wanted, stop, go
        self.calls = 0
        self.changed = False
        self.rebuild, self.keeps = rebuild, keeps
        self.rebuilt: set[int] = set()  #: threads whose wait goes on with what remains of its time
        self.groups = {(stage.name, stage.pid): groups_of(stage) for stage in plan.stages}

    # ---- beginning and end ----

    def begin(self) -> None:
        """Puts the tasks into a group stop and maps the bridges. Nothing that the tasks could notice is changed by that."""
        room = max((group.data_bytes for groups in self.groups.values() for group in groups), default=0)
        for pid in self.stop:
            self.tree.signal(self.tree.ours(pid), signal.SIGSTOP)
        mark("stopping")
        for task in {task.mm: task for task in reversed(self.wanted.tasks)}.values():
            avoid = {(m.start, m.end) for m in (*task.mappings, *self.now.task(task.pid).mappings) if m.start < 1 << 47}
            act.remote_begin(self.tree, task.pid, avoid, max(room, DATA_BYTES))
        mark("stopped")

    def end(self) -> None:
        """Takes the group stop away, queues the signals again, unmaps the bridges. After the last register only."""
        self._continue(self.go)
        self._forget_reports()
        for name in AFTER_CONT:
            self._stage(name)
        for task in self.wanted.tasks:
            act.remote_end(self.tree, task.pid)
        mark("continued")

    def abandon(self) -> None:
        """Before any change: everything back as it was, still frozen."""
        self._continue(self.stop)
        for task in self.wanted.tasks:
            act.remote_end(self.tree, task.pid)

    def _continue(self, pids: Collection[int]) -> None:
        """SIGCONT takes the group stop away; then it is taken back itself, for a program may have a handler for it."""
        for pid in pids:
            self.tree.signal(self.tree.ours(pid), signal.SIGCONT)
            self._drain(pid, _set_of(signal.SIGCONT))

    def _forget_reports(self) -> None:
        """What parents hear of children that go on: a SIGCHLD, and what waitid would tell."""
        members = {task.pid for task in self.wanted.tasks}
        for task in self.wanted.tasks:
            if task.pid in self.go and task.ppid in members:
                act.Batch([_hear_of(task.pid)]).run(self.tree, task.ppid)
        for pid in sorted({task.ppid for task in self.wanted.tasks} & members):
            self._drain(pid, _set_of(signal.SIGCHLD))

    # ---- the stages ----

    def before_pages(self) -> None:
        for pid, tids in self.plan.threads_end.items():
            if tids:
                self.changed = True
                act.threads_end(self.tree, pid, tids)
        mark("threads-ended")
        for name in BEFORE_SPAWN:
            self._stage(name)
        for pid, tids in self.plan.threads_spawn.items():
            if tids:
                made = act.threads_spawn(self.tree, pid, tids)
                self.tree.numbers.update((inner, ours) for inner, ours in zip(tids, made, strict=True) if inner != ours)
        mark("threads-made")
        for name in BEFORE_PAGES:
            self._stage(name)

    def drop(self, pid: int, spans: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
        """madvise(DONTNEED) on [page, end); returns those that refused it (locked memory)."""
        calls = [RemoteCall(NR_MADVISE, _values(page << 12, (end - page) << 12, MADV_DONTNEED), "drop", None) for page, end in spans]
        refused: list[tuple[int, int]] = []
        for start in range(0, len(calls), 4096):
            part = calls[start : start + 4096]
            results = act.Batch(part).run(self.tree, pid)
            self.calls += len(part)
            refused += [span for span, got in zip(spans[start : start + 4096], results, strict=True) if got < 0]
        return refused

    def after_pages(self) -> None:
        for name in WITH_PAGES:
            self._stage(name)
        for task in self.wanted.tasks:
            self._drain(task.pid, ALL_SIGNALS)
            here = {thread.tid for thread in task.threads}
            for thread in self.now.task(task.pid).threads:
                if thread.pending and thread.tid in here and thread.tid != task.pid:
                    self._drain(thread.tid, ALL_SIGNALS)
        for name in AFTER_DRAIN:
            self._stage(name)
        mark("registers")
        self._registers()

    def _registers(self) -> None:
        states, waits, numbers = act.ThreadStates(), dict[int, int](), dict[int, int]()
        for task in self.wanted.tasks:
            read = partial(self._read, task.pid)
            for thread in task.threads:
                regs, nr, decision = continuation(thread, read)
                ours, remaining = self.tree.ours(thread.tid), thread.syscall.remaining_ns
                states.add(ours, thread, regs, nr, decision)
                self.tree.waits.placed[ours] = remaining
                if decision.action is Action.REBUILD and remaining is not None and self.rebuild:
                    waits[ours], numbers[ours] = remaining, thread.tid
        states.set(self.tree)
        mark("registers-set")
        if waits:  # their time runs from here
            self.rebuilt = {numbers[ours] for ours in act.threads_rebuild(self.tree, waits)}

    def _read(self, pid: int, address: int, size: int) -> bytes:
        with open(f"/proc/{self.tree.ours(pid)}/mem", "rb", buffering=0) as memory:  # noqa: PTH123
            memory.seek(address)
            try:
                return memory.read(size)
            except OSError:
                return b""

    def _stage(self, name: str) -> None:
        for (stage, _pid), groups in self.groups.items():
            if stage != name:
                continue
            results: list[int] = []
            for group in groups:
                self._run(group, results)
        mark(f"stage-{name}")

    def _run(self, group: Group | Together, results: list[int]) -> None:
        opens = next((index for index, item in enumerate(group.calls) if item.nr != NR_OPEN), len(group.calls))
        try:
            group.run(self.tree, results)
            self.calls += len(group.calls)
        except act.CallFailed as error:
            if not self.changed and error.index < opens:
                raise Unchanged(str(error)) from None
            raise
        self.changed = True

    def _drain(self, tid: int, wanted: bytes) -> None:
        batch = [_take_one(wanted)] * DRAIN_AT_ONCE
        while act.Batch(batch).run(self.tree, tid)[-1] != -EAGAIN:
            pass
        self.calls += DRAIN_AT_ONCE


def _set_of(number: int) -> bytes:
    return (1 << (number - 1)).to_bytes(8, "little")


def disturbed(task: Task, executor: Executor) -> list[str]:
    """Threads whose interrupted call cannot continue quite as it would have."""
    lines = [f"thread {thread.tid}: {thread.decision.reason}" for thread in task.threads if thread.decision.disturbed]
    lines += [f"thread {thread.tid}: its timed wait begins anew with its whole time" for thread in task.threads if _anew(thread, executor)]
    return lines


def _anew(thread: Thread, executor: Executor) -> bool:
    """Waits that begin with their whole time: that is right for one which had only just begun. After a lazy restore nobody is sure to end
    the very wait, and no other one, at its deadline (native/src/parting.c wants a tracer that ends)."""
    if thread.tid in executor.rebuilt or thread.syscall.evidence.get("fresh") or thread.decision.action is Action.KEEP:
        return False
    return thread.decision.value == RESTART_BLOCK or (thread.decision.action is Action.LINGER and not executor.keeps)
