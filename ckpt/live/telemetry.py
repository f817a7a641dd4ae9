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
from bpf.writes import RECORD
from ckpt.errors import CkptError, NotFoundError, PermissionDeniedError
from ckpt.live import clock
from ckpt.live.inflight import InFlight, Observer
from ckpt.live.symbols import Layout, Symbols
from ckpt.model import PAGE, Evidence, PageWrite, PidRef, Snapshot, Writer
from ckpt.procfs import parse_stat
from ckpt.syscalls import names

_PASSES = 4  #: over the tree, until nobody new is found: from then on the kernel follows


#: (pid, address of the page) -> its first write since it was protected
FirstWrites = dict[tuple[int, int], Write]
KEPT_CHANGES = 100_000
KEPT_BYTES = 32 << 20  #: of what has been taken from the ring: 700,000 events (fewer than 1 << 24 with a full ring besides)


@dataclass(frozen=True, slots=True)
class Written:
    first: FirstWrites
    lost: int  #: events that found no room: their pages are missing, or have a later write


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
        self._raw = bytearray()
        self._changes: list[Change] = []
        self._lost = self._lost_here = self._untold = self._lost_changes = 0
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
        """The machine's CLOCK_MONOTONIC: calls that began before are not known better."""
        return self._observer.since_ns if self._observer else 0

    def _follow(self) -> None:
        """Everybody who is there already. Who is born meanwhile is added by the kernel, if its parent was."""
        known: set[int] = set()
        for _ in range(_PASSES):
            found = set(_tree(self.ref.pid))
            if found <= known:
                return
            self._filter.add(found - known)
            # Who had ended before it was added would stay, and so would whoever gets its number.
            self._filter.remove(pid for pid in found - known if not _runs(pid))
            known |= found

    def pids(self) -> set[int]:
        """Living processes of the tree, and children that the programs outlived."""
        return self._filter.pids()

    def calls(self) -> list[InFlight]:
        return self._observer.look(self.pids()) if self._observer else []

    def changes(self) -> tuple[list[Change], int]:
        """Since it was last asked, and how many found no room."""
        self._take_changes()
        found, self._changes = self._changes, []
        lost = self._filter.lost() + self._lost_changes
        untold, self._untold = lost - self._untold, lost
        return found, untold

    def _take_changes(self) -> None:
        """Kept where somebody asks for them, and the latest only."""
        new = self._filter.take()
        if self._observer is not None:
            self._changes += new
            over = max(0, len(self._changes) - KEPT_CHANGES)
            self._lost_changes += over
            del self._changes[:over]

    def drain(self) -> None:
        """Takes in what has come; to be called so often that the rings do not run over."""
        self._take_changes()
        self._raw += self._writes.take_raw()
        if len(self._raw) > KEPT_BYTES:
            self._thin_out()

    def _thin_out(self) -> None:
        """Keeps the first event of each page: one that is dropped and touched again and again tells of itself each time."""
        seen: set[tuple[int, int]] = set()
        kept = bytearray()
        for at, write in enumerate(self._writes.unpack(self._raw)):
            key = write.pid, write.place & -PAGE
            if key not in seen:
                seen.add(key)
                kept += self._raw[at * RECORD : (at + 1) * RECORD]
        room = KEPT_BYTES // 2 // RECORD * RECORD  # so that this is done now and then, not at each turn
        self._lost_here += max(0, len(kept) - room) // RECORD
        self._raw = kept[:room]

    def _until(self, at_ns: int | None) -> tuple[bytearray, int]:
        """(raw events until this instant, which must lie after the last drain, how many were lost). What came later stays for the
        next interval."""
        until, self._raw = self._raw, bytearray()
        new = self._writes.take_raw()
        for at, write in enumerate(self._writes.unpack(new) if at_ns is not None else ()):
            if at_ns is not None and write.ns >= at_ns:
                self._raw += new[at * RECORD : (at + 1) * RECORD]
            else:
                until += new[at * RECORD : (at + 1) * RECORD]
        lost, self._lost = self._writes.lost() + self._lost_here - self._lost, self._writes.lost() + self._lost_here
        return until if at_ns is not None else until + new, lost

    def written(self) -> Written:
        """The first writes since it was last asked."""
        raw, lost = self._until(None)
        first: FirstWrites = {}
        for write in self._writes.unpack(raw):
            first.setdefault((write.pid, write.place & -PAGE), write)
        return Written(first, lost)

    def evidence(self, snapshot: Snapshot, at_ns: int) -> Evidence:
        """Who wrote until `at_ns`, an instant at which the tree stood still and `snapshot` saw its mappings."""
        raw, lost = self._until(at_ns)
        maps = {task.pid: Layout(task.pid, task.mappings) for task in snapshot.tasks}
        numbers: dict[tuple[int, int, int], int] = {}
        writers: list[Writer] = []
        order: list[int] = []  # by page: inserted as they came, they take the store four times as long
        for index, write in enumerate(self._writes.unpack(raw)):
            if write.pid not in maps:
                continue  # has ended, and its memory with it
            order.append(write.place >> 12 << 24 | index)
            key = write.pid, write.ip, write.nr
            if key not in numbers:
                numbers[key] = len(writers)
                where = self._symbols.where(maps[write.pid], write.ip)
                writers.append(Writer(write.ip, where.file, where.symbol, where.offset, call_of(write)))
        shift = time.time_ns() - clock.now_ns()

        def told() -> Iterator[PageWrite]:
            for key in sorted(order):
                write = self._writes.event(raw, key & 0xFFFFFF)
                yield PageWrite(write.pid, write.place & -PAGE, write.ns + shift, write.tid, numbers[write.pid, write.ip, write.nr])

        return Evidence(tuple(writers), told(), lost)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stack.close()


def _runs(pid: int) -> bool:
    try:
        return not parse_stat(Path(f"/proc/{pid}/stat").read_bytes()).zombie
    except (FileNotFoundError, ProcessLookupError):
        return False


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
