"""The BPF programs on one tree, in the words of ckpt: its processes, its calls, its first writes. See bpf/ for what they see."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import bpf
from bpf import BpfError, Write
from bpf import Change as Change
from bpf import Kind as Kind
from ckpt.errors import CkptError, NotFoundError, PermissionDeniedError
from ckpt.live.inflight import InFlight, Observer
from ckpt.live.symbols import Layout, Symbols
from ckpt.model import PAGE, Evidence, PageWrite, PidRef, Snapshot, Writer
from ckpt.syscalls import names

_PASSES = 4  #: over the tree, until nobody new is found: from then on the kernel follows


#: (pid, address of the page) -> its first write since it was protected
FirstWrites = dict[tuple[int, int], Write]


@dataclass(frozen=True, slots=True)
class Written:
    first: FirstWrites
    lost: int  #: events that found no room in the ring: their pages are missing, or have a later write


def _keep_first(first: FirstWrites, write: Write) -> None:
    key = write.pid, write.place & -PAGE
    known = first.get(key)
    if known is None or write.ns < known.ns:
        first[key] = write


def call_of(write: Write) -> str | None:
    """The call in which the kernel wrote on the thread's behalf; None: the thread wrote itself."""
    return names.name(write.nr) if write.place & 1 else None


@contextmanager
def translated() -> Iterator[None]:
    """A BpfError leaves as an error with an exit code."""
    try:
        yield
    except BpfError as error:
        kind = PermissionDeniedError if error.kind == "no-rights" else CkptError
        raise kind(f"eBPF: {error}") from error


class Telemetry:
    """Attached while the `with` lasts. `calls`: also each thread's call, at some nanoseconds for each call on the machine."""

    def __init__(self, ref: PidRef, *, calls: bool) -> None:
        self.ref = ref
        self._stack = ExitStack()
        self._first: FirstWrites = {}
        self._lost = 0
        self._symbols = Symbols()
        with translated(), ExitStack() as stack:
            bpf.prepare()
            self._filter = stack.enter_context(bpf.Filter())
            self._writes = stack.enter_context(bpf.Writes(self._filter))
            self._observer = Observer(stack.enter_context(bpf.Syscalls(self._filter))) if calls else None
            self._follow()
            self._stack = stack.pop_all()

    @property
    def since_ns(self) -> int:
        """CLOCK_MONOTONIC: calls that began before are not known better."""
        return self._observer.since_ns if self._observer else 0

    def _follow(self) -> None:
        """Everybody who is there already. Who is born meanwhile is added by the kernel, if its parent was."""
        known: set[int] = set()
        for _ in range(_PASSES):
            found = set(_tree(self.ref.pid))
            if found <= known:
                return
            self._filter.add(found - known)
            known |= found

    def pids(self) -> set[int]:
        """Living processes of the tree, and children that the programs outlived."""
        return self._filter.pids()

    def calls(self) -> list[InFlight]:
        return self._observer.look(self.pids()) if self._observer else []

    def changes(self) -> list[Change]:
        return self._filter.take()

    def drain(self) -> None:
        """Takes in what has been written; to be called so often that the ring does not run over."""
        for write in self._writes.take():
            _keep_first(self._first, write)

    def evidence(self, snapshot: Snapshot, at_ns: int) -> Evidence:
        """Who wrote until `at_ns`, an instant at which the tree stood still and `snapshot` saw its mappings; what came later is the
        next interval's."""
        written = self.begin(at_ns)
        maps = {task.pid: Layout(task.pid, task.mappings) for task in snapshot.tasks}
        numbers: dict[tuple[int, int, int], int] = {}
        writers: list[Writer] = []
        writes: list[PageWrite] = []
        shift = time.time_ns() - time.monotonic_ns()
        for (pid, page), write in written.first.items():
            if pid not in maps:
                continue  # has ended, and its memory with it
            key = pid, write.ip, write.nr
            number = numbers.setdefault(key, len(writers))
            if number == len(writers):
                where = self._symbols.where(maps[pid], write.ip)
                writers.append(Writer(write.ip, where.file, where.symbol, where.offset, call_of(write)))
            writes.append(PageWrite(pid, page, write.ns + shift, write.tid, number))
        return Evidence(tuple(writers), tuple(writes), written.lost)

    def begin(self, at_ns: int | None = None) -> Written:
        """What was written first until now, or until `at_ns`, which must lie after the last drain; from there on every page is written
        first again."""
        until, self._first = self._first, {}
        for write in self._writes.take():
            _keep_first(until if at_ns is None or write.ns < at_ns else self._first, write)
        lost, self._lost = self._writes.lost() - self._lost, self._writes.lost()
        return Written(until, lost)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stack.close()


def _tree(root: int) -> Iterator[int]:
    """The process and its descendants."""
    waiting = [root]
    if not Path(f"/proc/{root}").exists():
        raise NotFoundError(f"no process {root}: give the pid of a living process")
    while waiting:
        pid = waiting.pop()
        yield pid
        with suppress(FileNotFoundError, ProcessLookupError):
            for thread in Path(f"/proc/{pid}/task").iterdir():
                waiting += map(int, (thread / "children").read_text().split())
