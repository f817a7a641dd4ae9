"""Acting on a frozen tree: remote calls, threads, pages. With core.py the only file that touches cffi's `lib` and `ffi`.

Everything here raises one of `ckpt.errors`; a remote call that fails is named by its note. Processes and threads are given by
the numbers that the tree itself knows (core.Tree.ours).
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from struct import Struct
from typing import Any

from ckpt.errors import CkptError
from ckpt.live.core import Sink, SpaceRuns, Track, Tree
from ckpt.live.numbers import refused
from ckpt.model import SIGCHLD, Action, Arg, RemoteArg, RemoteCall, RetvalDecision, Snapshot, Thread
from native._native import ffi, lib

NONE = int(lib.CKPT_TRACK_NONE)
CLONE_PARENT = 0x8000
_ACTIONS = {
    Action.KEEP: int(lib.CKPT_KEEP),
    Action.RESTART: int(lib.CKPT_RESTART),
    Action.REBUILD: int(lib.CKPT_REBUILD),
    Action.LINGER: int(lib.CKPT_LINGER),
    Action.GO_ON: int(lib.CKPT_GO_ON),
}
_FORMS = {Arg.VALUE: lib.CKPT_ARG_VALUE, Arg.RESULT: lib.CKPT_ARG_RESULT, Arg.BUFFER: lib.CKPT_ARG_DATA}


_ARGS, _RET = 6, 7  #: how many; where the result stands among the members
_CALL = Struct("<q6Qq6BBB")  #: struct ckpt_call, packed: setting its members one by one takes ten times as long
assert _CALL.size == ffi.sizeof("struct ckpt_call")


class CallFailed(CkptError):
    """A remote call gave an error, or less than was expected. `index` is its place in the batch, `result` what it gave."""

    def __init__(self, text: str, index: int, call: RemoteCall, result: int = 0) -> None:
        super().__init__(text)
        self.index, self.call, self.result = index, call, result


class _Packed:
    """RemoteCalls as struct ckpt_call[], and the data that goes with them."""

    def __init__(self, sequences: Iterable[Sequence[RemoteCall]], count: int) -> None:
        self.calls = ffi.new("struct ckpt_call[]", max(count, 1))
        self.data = bytearray()
        self.pointers: list[tuple[int, int]] = []  #: (where in data, offset in data that it points to)
        self.ends: list[int] = []  #: of each sequence's data, to which its addresses are relative
        raw, at = ffi.buffer(self.calls), 0
        for sequence in sequences:
            begin = len(self.data)
            for item in sequence:
                self._pack(raw, at, item, begin)
                at += _CALL.size
            self.ends.append(len(self.data))
        self.lent = ffi.from_buffer(self.data) if self.data else ffi.NULL

    def _pack(self, raw: Any, at: int, item: RemoteCall, begin: int) -> None:
        values, forms = [0] * _ARGS, [0] * _ARGS
        for position, arg in enumerate(item.args):
            values[position] = arg.value
            if arg.form is not Arg.VALUE:
                forms[position] = _FORMS[arg.form]
                if arg.form is Arg.BUFFER:
                    values[position] = self._place(arg) - begin
        _CALL.pack_into(raw, at, item.nr, *values, 0, *forms, item.expect is None, 0)

    def _place(self, arg: RemoteArg) -> int:
        at = len(self.data)
        self.data += _padded(arg.data)
        for offset, pointed in arg.pointers:
            self.pointers.append((at + offset, len(self.data)))
            self.data += _padded(pointed)
        return at


class Batch:
    """RemoteCalls as C wants them. Built before the freeze where possible; may be run several times."""

    def __init__(self, calls: Sequence[RemoteCall]) -> None:
        self.source = calls
        self.packed = _Packed((calls,), len(calls))

    @property
    def data_bytes(self) -> int:
        return len(self.packed.data)

    def run(self, tree: Tree, tid: int) -> list[int]:
        """Results in order; CallFailed names the first call that went wrong."""
        self._point(tree, tid)
        calls, data = self.packed.calls, self.packed.data
        ran = int(lib.ckpt_remote(tree.handle, tree.ours(tid), calls, len(self.source), self.packed.lent, len(data)))
        results = [int(raw.ret) for raw in calls[0 : tree.check(ran, "run calls inside")]]
        _check(tid, self.source, results)
        return results

    def _point(self, tree: Tree, tid: int) -> None:
        """Structures that hold pointers: where the data will stand is known once a bridge is open."""
        if not self.packed.pointers:
            return
        data = self.packed.data
        base = tree.check(int(lib.ckpt_remote_data(tree.handle, tree.ours(tid), len(data))), "find the bridge")
        for at, offset in self.packed.pointers:
            data[at : at + 8] = (base + offset).to_bytes(8, "little")


class Lots:
    """Batches of several threads of one process, which run at the same time (native/src/each.c). No data of theirs may hold pointers."""

    def __init__(self, sequences: Mapping[int, Sequence[RemoteCall]]) -> None:
        """`sequences`: by thread."""
        self.sequences = sequences
        self.packed = _Packed(sequences.values(), sum(map(len, sequences.values())))
        begins = [0, *self.packed.ends]
        sizes = [end - begin for begin, end in pairwise(begins)]
        self.lots = ffi.new(
            "struct ckpt_lot[]", [[tid, len(calls), size, 0] for (tid, calls), size in zip(sequences.items(), sizes, strict=True)]
        )

    def run(self, tree: Tree, pid: int) -> list[int]:
        """Results, one thread's after the other's; CallFailed names the first call that went wrong."""
        for lot, tid in zip(self.lots, self.sequences, strict=True):
            lot.tid = tree.ours(tid)
        calls = self.packed.calls
        code = int(lib.ckpt_remote_each(tree.handle, tree.ours(pid), self.lots, len(self.lots), calls, self.packed.lent))
        tree.check(code, "run calls inside")
        results = [row[_RET] for row in _CALL.iter_unpack(ffi.buffer(calls))]
        first = 0
        for lot, (tid, own) in zip(self.lots, self.sequences.items(), strict=True):
            _check(tid, own, results[first : first + int(lot.ran)], first)
            first += len(own)
        return results


def _check(tid: int, calls: Sequence[RemoteCall], results: Sequence[int], first: int = 0) -> None:
    """Raises CallFailed for the first call that went wrong, or that did not run. `first`: the place of calls[0] in its batch."""
    for index, (item, got) in enumerate(zip(calls, results, strict=False), first):
        if item.expect is not None and got < item.expect:
            reason = os.strerror(-got) if -4096 < got < 0 else f"gave {got:#x}"
            raise CallFailed(f"thread {tid}: {item.note}: {reason}", index, item, got)
    if len(results) < len(calls):
        left = calls[len(results)]
        raise CallFailed(f"thread {tid}: {left.note}: did not run", first + len(results), left)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 8)


def remote_begin(tree: Tree, pid: int, avoid: Iterable[tuple[int, int]], data_bytes: int) -> None:
    """Maps the bridge outside all ranges of `avoid` (start, end) with room for data_bytes."""
    ranges = ffi.new("struct ckpt_range[]", [[start, end, 0, 0] for start, end in sorted(avoid)])
    tree.check(int(lib.ckpt_remote_begin(tree.handle, tree.ours(pid), ranges, len(ranges), data_bytes)), "open the bridge")


def remote_end(tree: Tree, pid: int) -> None:
    tree.check(int(lib.ckpt_remote_end(tree.handle, tree.ours(pid))), "close the bridge")


def threads_end(tree: Tree, pid: int, tids: Sequence[int]) -> None:
    numbers = [tree.ours(tid) for tid in tids]
    tree.check(int(lib.ckpt_threads_end(tree.handle, tree.ours(pid), ffi.new("int32_t[]", numbers), len(tids))), "end threads")


def threads_spawn(tree: Tree, pid: int, tids: Sequence[int]) -> list[int]:
    """Threads with these numbers (0 = any); their numbers as we see them. RefusedError: one belongs to somebody else."""
    made = ffi.new("int32_t[]", max(len(tids), 1))
    code = int(lib.ckpt_threads_spawn(tree.handle, tree.ours(pid), ffi.new("int32_t[]", list(tids)), len(tids), made))
    if code == -errno.EEXIST:
        raise refused(taken := tree.fault().tid, f"thread {taken} of task {pid}")
    tree.check(code, "make threads")
    return [int(tid) for tid in made[0 : len(tids)]]


def task_spawn(tree: Tree, parent: int, pid: int, flags: int = 0, exit_signal: int = SIGCHLD) -> tuple[int, int]:
    """A stopped child of `parent` with this number (0 = any): (0, its number as we see it), or (-EEXIST, 0): the number is taken.
    With CLONE_PARENT in `flags` it is a sibling, and has the end signal of `parent`."""
    made = ffi.new("int32_t *")
    flags |= 0 if flags & CLONE_PARENT else exit_signal
    code = int(lib.ckpt_task_spawn(tree.handle, tree.ours(parent), pid, flags, made))
    if code == -errno.EEXIST:
        return code, 0
    tree.check(code, f"make task {pid}")
    return 0, int(made[0])


def task_keep(tree: Tree, pid: int) -> None:
    """A new task in a group stop that is in force: from here on it does not die with us."""
    tree.check(int(lib.ckpt_task_keep(tree.handle, tree.ours(pid))), "keep a task")


def task_end(tree: Tree, pid: int, status: int) -> None:
    """Ends a task with this wait status; its parent has not collected it then."""
    tree.check(int(lib.ckpt_task_end(tree.handle, tree.ours(pid), status)), "end a task")


def task_reap(tree: Tree, parent: int, pid: int) -> None:
    """`parent` collects its dead child."""
    tree.check(int(lib.ckpt_task_reap(tree.handle, tree.ours(parent), tree.ours(pid), pid)), "collect a task")


_STATE = Struct("<iIQQqqqII216s")  #: struct ckpt_thread_state
_RAX = slice(80, 88)
assert _STATE.size == ffi.sizeof("struct ckpt_thread_state")


class ThreadStates:
    """Registers, masks and vector state of threads, which are set in one call. Vector state that many of them share stands there once."""

    def __init__(self) -> None:
        self._rows: list[bytes] = []
        self._xstates = bytearray()
        self._places: dict[bytes, int] = {}

    def add(self, tid: int, thread: Thread, regs: bytes, nr: int, decision: RetvalDecision) -> None:
        """`tid`: our number of it."""
        place = self._places.get(thread.xstate)
        if place is None:
            place = self._places[thread.xstate] = len(self._xstates)
            self._xstates += thread.xstate
        shown = int.from_bytes(regs[_RAX], "little", signed=True)
        how = nr, shown, decision.value, _ACTIONS[decision.action], decision.disturbed
        self._rows.append(_STATE.pack(tid, len(thread.xstate), place, thread.sigmask, *how, regs))

    def set(self, tree: Tree) -> None:
        rows = b"".join(self._rows)
        states = ffi.cast("struct ckpt_thread_state *", ffi.from_buffer(rows))
        xstates = ffi.from_buffer(self._xstates) if self._xstates else ffi.NULL
        tree.check(int(lib.ckpt_threads_set(tree.handle, states, len(self._rows), xstates)), "set registers")


def threads_rebuild(tree: Tree, remaining: Mapping[int, int]) -> set[int]:
    """Waits that the kernel keeps are given so much time (ns; by our numbers of their threads): those that have it; others begin anew."""
    waits = ffi.new("struct ckpt_remaining[]", [[tid, 0, ns] for tid, ns in remaining.items()])
    tree.check(int(lib.ckpt_threads_rebuild(tree.handle, waits, len(remaining))), "begin waits")
    return {int(wait.tid) for wait in waits if wait.done}


def rename_threads(tree: Tree, wanted: Snapshot, was: Mapping[int, int]) -> None:
    """Where a thread's own number stands at its clear_child_tid (the C library keeps it there), the new one is written.
    `was`: number here -> number in the generation."""
    for task in wanted.tasks:
        with open(f"/proc/{tree.ours(task.pid)}/mem", "r+b", buffering=0) as memory:  # noqa: PTH123
            for thread in task.threads:
                address = int(thread.attributes.get("tid_address", {}).get("address", 0))
                if not address:
                    continue
                memory.seek(address)
                if memory.read(4) == was[thread.tid].to_bytes(4, "little"):
                    memory.seek(address)
                    memory.write(thread.tid.to_bytes(4, "little"))


def pages_write(tree: Tree, pid: int, runs: bytes, data: bytes | bytearray | memoryview) -> None:
    """runs: struct ckpt_run[] of DATA; data: their bytes in order."""
    if runs:
        tree.check(int(lib.ckpt_pages_write(tree.handle, tree.ours(pid), *_runs(runs), ffi.from_buffer(data))), "write pages")


def pages_read(tree: Tree, pid: int, runs: bytes, into: bytearray) -> None:
    """runs: struct ckpt_run[] of DATA; into: exactly their bytes."""
    if runs:
        tree.check(int(lib.ckpt_pages_read(tree.handle, tree.ours(pid), *_runs(runs), ffi.from_buffer(into))), "read pages")


@dataclass(frozen=True, slots=True)
class PageWork:
    """struct ckpt_run[] each, sorted and disjoint."""

    write: bytes  #: contents from the generation
    zero: bytes  #: zeros must really be written
    drop: bytes


class PageRule:
    """What has to be done to one memory's pages (native/src/pagework.c). hold: what the generation holds. differs: where
    generation and baseline differ, None = there is no baseline. ranges: (page, end, anonymous), sorted: the wanted mappings."""

    def __init__(self, hold: bytes, differs: bytes | None, ranges: Sequence[tuple[int, int, bool]]) -> None:
        kinds = {True: lib.CKPT_RANGE_ANON, False: lib.CKPT_RANGE_FILE_PRIVATE}
        self._ranges = ffi.new("struct ckpt_range[]", [[page << 12, end << 12, kinds[own], 0] for page, end, own in ranges])
        self._hold, self._differs = hold, differs or b""
        self._rule = ffi.new("struct ckpt_page_work *")
        self._rule.hold, self._rule.hold_count = _runs(self._hold)
        self._rule.differs, self._rule.differs_count = _runs(self._differs)
        self._rule.ranges, self._rule.range_count = self._ranges, len(ranges)
        self._rule.baseline = differs is not None
        self._out = ffi.new("struct ckpt_run[]", 1)

    def work(self, seen: bytes) -> PageWork:
        """seen: what a scan of the memory shows."""
        self._rule.seen, self._rule.seen_count = _runs(seen)
        cap = 2 * (len(self._hold) + len(self._differs) + len(seen)) // 16 + 2 * int(self._rule.range_count) + 2
        if len(self._out) < cap:
            self._out = ffi.new("struct ckpt_run[]", cap)
        found = []
        for content in (lib.CKPT_DATA, lib.CKPT_ZERO, lib.CKPT_ABSENT):
            count = int(lib.ckpt_page_work(self._rule, content, self._out, len(self._out)))
            assert count >= 0, "the bound above"
            found.append(bytes(ffi.buffer(self._out, count * 16)))
        return PageWork(*found)


def runs_subtract(runs: bytes, other: bytes) -> bytes:
    """Parts of runs that other does not cover."""
    out = ffi.new("struct ckpt_run[]", (len(runs) + len(other)) // 16 + 1)
    count = int(lib.ckpt_runs_subtract(*_runs(runs), *_runs(other), out, len(out)))
    assert count >= 0, "each run of other cuts one piece more"
    return bytes(ffi.buffer(out, count * 16))


def _runs(runs: bytes) -> tuple[Any, int]:
    """Borrowed: `runs` must outlive the use."""
    return ffi.cast("struct ckpt_run *", ffi.from_buffer(runs)), len(runs) // 16


def pages_scan(tree: Tree, track: Track, sink: Sink, *, protect: bool) -> SpaceRuns:
    """What is populated: DATA = written since tracking last consumed it, SAME = not. The sink is reset first."""
    sink.reset()
    tree.check(int(lib.ckpt_pages_scan(tree.handle, track.raw(), int(protect), sink.handle)), "scan pages")
    return sink.spaces()[0]
