"""The capture core as Python objects. This file, those whose names it passes on (fault, options, sink) and act.py are the only
ones that touch cffi's `lib` and `ffi`.

Handles are context managers; `check` turns a negative errno and the tree's last fault into one of `ckpt.errors`.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from ckpt.errors import CkptError, NotFoundError
from ckpt.live import clock, runtime
from ckpt.live.deadlines import Deadlines
from ckpt.live.fault import Fault, raise_fault
from ckpt.live.options import CaptureOptions as CaptureOptions
from ckpt.live.options import QuestionRow as QuestionRow
from ckpt.live.options import WantRow as WantRow
from ckpt.live.sink import Sink as Sink
from ckpt.live.sink import SpaceRuns as SpaceRuns
from ckpt.live.waits import Waits
from ckpt.model import PidRef
from native._native import ffi, lib

T = TypeVar("T")
UFFD = int(lib.CKPT_TRACK_UFFD)
COMPARE = int(lib.CKPT_TRACK_COMPARE)
SOFT_DIRTY = int(lib.CKPT_TRACK_SOFT_DIRTY)
NONE = int(lib.CKPT_TRACK_NONE)
CURSOR_END = 2**64 - 1
FEATURES: tuple[str, ...] = (
    "pagemap_scan",
    "uffd_wp_async",
    "soft_dirty",
    "pidfd_getfd",
    "process_vm",
    "kcmp",
    "clone3_set_tid",
    "tcp_repair",
    "sched_fifo",
    "suspend_seccomp",
    "rseq_configuration",
    "vdso_tail",
    "time_namespace",
)


def mark(phase: str) -> None:
    """A named point of the flow; does nothing (tests interpose it to kill here, or to fail: CkptError)."""
    code = lib.ckpt_mark(phase.encode())
    if code < 0:
        raise CkptError(f"after {phase}: {os.strerror(-code)}")


def one_heap() -> None:
    """One malloc arena for the whole process; to be called before threads are made. Keeps a snapshot's memory bounded."""
    lib.ckpt_one_heap()


def _raw_clocks(clocks: clock.Clocks | None) -> Any:
    return ffi.NULL if clocks is None else ffi.new("struct ckpt_clocks *", list(clocks))


def newborn(pid: int, keep: Sequence[int] = (), *, own_session: bool = True, clocks: clock.Clocks | None = None) -> tuple[int, int]:
    """Forks an empty child (native/src/newborn.c): (0, its pid), or (negative errno, 0). `pid` 0: any number. `keep`: descriptors
    of ours that it has too. `clocks`: what is added to the machine's for it, where that is possible; None: it has ours."""
    made = ffi.new("int32_t *")
    code = int(lib.ckpt_newborn(pid, int(own_session), ffi.new("int32_t[]", sorted(keep)), len(keep), _raw_clocks(clocks), made))
    return code, int(made[0])


def newborn_apart(namespaces: int, pid: int, keep: Sequence[int] = (), *, clocks: clock.Clocks | None = None) -> tuple[int, int, int, int]:
    """The same in namespaces of its own (native/src/init.c): (0, its pid, pid of the namespace's init, the descriptor that keeps
    it) as we see them, or (negative errno, 0, 0, -1)."""
    init, made, house = ffi.new("int32_t *"), ffi.new("int32_t *"), ffi.new("int32_t *", -1)
    fds = ffi.new("int32_t[]", sorted(keep))
    code = int(lib.ckpt_newborn_apart(namespaces, pid, fds, len(keep), _raw_clocks(clocks), init, made, house))
    return code, int(made[0]), int(init[0]), int(house[0])


def guards(pid: int, ranges: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """(start, end) of the guard pages in these ranges; none where the process is gone or may not be asked."""
    asked = ffi.new("struct ckpt_range[]", [[start, end, 0, 0] for start, end in ranges])
    cap = 256
    while True:
        found = ffi.new("struct ckpt_range[]", cap)
        count = int(lib.ckpt_guards(pid, asked, len(ranges), found, cap))
        if count != -errno.ENOSPC:
            return [(int(found[index].start), int(found[index].end)) for index in range(max(count, 0))]
        cap *= 8


@contextmanager
def in_network_of(pid: int) -> Iterator[None]:
    """This thread in the network namespace of a process: sock_diag answers only for its own."""
    with open("/proc/thread-self/ns/net", "rb") as ours, open(f"/proc/{pid}/ns/net", "rb") as theirs:  # noqa: PTH123
        code = int(lib.ckpt_enter(theirs.fileno()))
        if code < 0:
            raise CkptError(f"task {pid}: its network namespace cannot be entered: {os.strerror(-code)}")
        try:
            yield
        finally:
            lib.ckpt_enter(ours.fileno())


def probe() -> dict[str, int]:
    """Feature -> 0 where it works, else the errno that the probe met (positive)."""
    errors = ffi.new("int32_t[]", int(lib.CKPT_F_COUNT))
    code = int(lib.ckpt_probe(errors, int(lib.CKPT_F_COUNT)))
    if code < 0:
        raise CkptError(f"probing the kernel's features failed: {os.strerror(-code)}")
    return {name: -int(errors[index]) for index, name in enumerate(FEATURES)}


@dataclass(frozen=True, slots=True)
class Track:
    """How the writes of one memory are tracked; `raw` is the struct that the core wants back."""

    pid: int
    tracker: int
    remote_fd: int
    remote_ino: int
    fresh: bool

    def raw(self) -> Any:
        return ffi.new("struct ckpt_track *", [self.pid, self.tracker, self.remote_fd, int(self.fresh), self.remote_ino])


@dataclass(frozen=True, slots=True)
class ScanResult:
    resident: int
    written: int
    absent: int
    ns: int


@dataclass(frozen=True, slots=True)
class ThreadId:
    pid: int
    tid: int
    start_ticks: int
    mm: int


def _file(pid: int, start_ticks: int, ending: str) -> Path:
    return runtime.path_of(PidRef(pid, start_ticks or runtime.start_ticks(pid)), ending)


class Tree:
    """A process and its descendants. Opening stops nobody; leaving the context thaws whatever is still stopped. `ebpf`: to be asked when
    the waits end that a freeze interrupts."""

    def __init__(self, pid: int, start_ticks: int = 0, ebpf: Deadlines | None = None) -> None:
        handle = ffi.new("ckpt_tree **")
        code = int(lib.ckpt_tree_open(pid, start_ticks, handle))
        self.pid = pid
        self.numbers: dict[int, int] = {}  #: where the tree has a pid namespace of its own: its numbers -> ours
        self.handle: Any = handle[0]
        if code < 0:
            fault = self.fault() if self.handle != ffi.NULL else Fault(code, pid, 0, -1, 0, "open", "")
            self.close()
            if code == -errno.ESRCH and fault.step == "open":
                raise NotFoundError(f"no process {pid}: give the pid of a living process")
            raise_fault(fault, code, "open", pid)
        self.frozen = self._doomed = self._parting = False
        self._frozen_at = 0
        self.waits = Waits(self.handle, partial(_file, pid, start_ticks), ebpf=ebpf)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        if self.handle != ffi.NULL:
            if getattr(self, "frozen", False) and not self._doomed:
                with suppress(CkptError):
                    self.thaw()
            elif hasattr(self, "waits"):
                self.waits.hand_over()
            if hasattr(self, "waits"):
                self.waits.unwatch()
            lib.ckpt_tree_close(self.handle)
            self.handle = ffi.NULL

    def fault(self) -> Fault:
        raw = ffi.new("struct ckpt_fault *")
        lib.ckpt_tree_last_fault(self.handle, raw)
        step, name = ffi.string(raw.step).decode(), ffi.string(raw.name).decode(errors="replace")
        return Fault(int(raw.error), int(raw.pid), int(raw.tid), int(raw.fd), int(raw.addr), step, name)

    def check(self, code: int, what: str = "the capture core") -> int:
        """`what` names the call where the core's own fault says nothing."""
        if code < 0:
            raise_fault(self.fault(), code, what, self.pid)
        return code

    def ours(self, number: int) -> int:
        """Our number of a process or thread that the tree itself knows by `number`."""
        return self.numbers.get(number, number)

    def doom(self) -> None:
        """Before the first freeze: from then on our death is theirs."""
        self.check(int(lib.ckpt_tree_doom(self.handle)), "doom")
        self._doomed = True

    def run(self) -> None:
        """A doomed tree runs on, traced by us until `leave`."""
        self.check(int(lib.ckpt_tree_run(self.handle)), "run")
        self.frozen = False

    def attend(self) -> bool:
        """Answers its stops until a signal comes (True) or nobody is left (False)."""
        return bool(self.check(int(lib.ckpt_tree_attend(self.handle)), "attend"))

    def leave(self) -> None:
        self.check(int(lib.ckpt_tree_leave(self.handle)), "leave")

    def freeze(self) -> None:
        if not self.frozen and not self._doomed:
            self.waits.look()
        self.check(int(lib.ckpt_tree_freeze(self.handle)), "freeze")
        self.frozen, self._frozen_at = True, clock.now_ns()

    def thaw(self) -> None:
        self.check(int(lib.ckpt_tree_thaw(self.handle)), "thaw")
        if not self.frozen:
            return
        self.frozen = False
        if self._parting:
            lib.ckpt_tree_parting(self.handle, 0)
        self.waits.settle(self._frozen_at)
        if not self._parting:
            self.waits.hand_over()

    def by_own_tracer(self, work: Callable[[], T]) -> T:
        """`work`, which freezes and thaws the tree, by a thread that ends then (native/src/parting.c)."""
        done: list[T] = []
        failed: list[BaseException] = []

        def run() -> None:
            self._parting = True
            lib.ckpt_tree_parting(self.handle, 1)
            try:
                done.append(work())
            except BaseException as error:
                failed.append(error)
                if not self._doomed:
                    with suppress(CkptError):
                        self.thaw()  # by whoever has stopped it
            finally:
                if self.handle != ffi.NULL:  # newborns that were refused have been discarded
                    lib.ckpt_tree_parting(self.handle, 0)
                self._parting = False

        tracer = threading.Thread(target=run)
        tracer.start()
        tracer.join()
        if self.handle != ffi.NULL:
            lib.ckpt_tree_parted(self.handle)
            self.waits.hand_over()
        if failed:
            raise failed[0]
        return done[0]

    def hold(self, descriptor: int, *, theirs: bool) -> None:
        """From now on the whole tree is stopped by this cgroup.freeze, which stays open for longer than the tree; `theirs`: it was frozen
        before, and is when we go."""
        lib.ckpt_tree_freezer(self.handle, descriptor, int(theirs))

    def aside(self) -> None:
        """Until the tree is closed: off the CPUs where it runs just now, but for the freeze."""
        lib.ckpt_tree_aside(self.handle)

    def threads(self) -> list[ThreadId]:
        cap = 64
        while True:
            raw = ffi.new("struct ckpt_thread_id[]", cap)
            count = self.check(int(lib.ckpt_tree_threads(self.handle, raw, cap)), "list threads")
            if count <= cap:
                return [ThreadId(int(t.pid), int(t.tid), int(t.start_ticks), int(t.mm)) for t in raw[0:count]]
            cap = count + 16

    def arm(self, pid: int, hint_fd: int = -1, hint_ino: int = 0) -> Track:
        """To be followed by armed() when all are."""
        raw = ffi.new("struct ckpt_track *")
        self.waits.look_once(stops=hint_fd < 0)  # each process is stopped by itself
        self.check(int(lib.ckpt_track_arm(self.handle, pid, hint_fd, hint_ino, raw)), "arm the tracker")
        self.waits.settle(clock.now_ns(), watching=True)
        return Track(int(raw.pid), int(raw.tracker), int(raw.remote_fd), int(raw.remote_ino), bool(raw.fresh))

    def armed(self) -> None:
        self.waits.unwatch()

    def disarm(self, track: Track) -> None:
        self.check(int(lib.ckpt_track_disarm(self.handle, track.raw())), "disarm the tracker")

    def scan_count(self, track: Track) -> ScanResult:
        raw = ffi.new("struct ckpt_scan_result *")
        self.check(int(lib.ckpt_scan_count(self.handle, track.raw(), raw)), "count pages")
        return ScanResult(int(raw.resident), int(raw.written), int(raw.absent), int(raw.ns))

    def precopy(self, track: Track, sink: Sink, cursor: int) -> tuple[int, ScanResult]:
        """One piece of a round: returns the cursor to go on at (CURSOR_END = the round is complete) and what was seen."""
        position, raw = ffi.new("uint64_t *", cursor), ffi.new("struct ckpt_scan_result *")
        self.check(int(lib.ckpt_precopy(self.handle, track.raw(), sink.handle, position, raw)), "pre-copy")
        return int(position[0]), ScanResult(int(raw.resident), int(raw.written), int(raw.absent), int(raw.ns))

    def protect(self, track: Track) -> int:
        """Protects what was written, while it runs, and copies nothing: how many pages. Consumes the dirty state."""
        position, raw, written = ffi.new("uint64_t *", 0), ffi.new("struct ckpt_scan_result *"), 0
        while int(position[0]) != CURSOR_END:
            self.check(int(lib.ckpt_precopy(self.handle, track.raw(), ffi.NULL, position, raw)), "protect pages")
            written += int(raw.written)
        return written

    def signal(self, pid: int, number: int) -> None:
        """A signal to a process of the tree, by pidfd: never to a stranger with a recycled number."""
        self.check(int(lib.ckpt_tree_signal(self.handle, pid, number)), "signal")

    def capture(self, options: CaptureOptions, sink: Sink) -> dict[str, int]:
        """Freeze, raw bytes, scan, copy, thaw. Returns nanoseconds by phase; `stop` is the whole frozen time, `at` an instant in it."""
        raw = ffi.new("struct ckpt_timing *")
        if not self.frozen:
            self.waits.look()
        self.check(int(lib.ckpt_capture(self.handle, options.raw, sink.handle, raw)), "capture")
        if self.frozen:
            self.waits.peek(self._frozen_at)
        else:
            self.waits.settle(int(raw.at))
            self.waits.hand_over()
        names = ("stop", "freeze", "files", "descriptors", "questions", "scan", "copy", "thaw", "at")
        return {name: int(getattr(raw, name)) for name in names}

    def look(self, options: CaptureOptions, sink: Sink) -> None:
        """Records of the descriptors alone; the tree runs on. Fails when one is closed meanwhile."""
        self.check(int(lib.ckpt_look(self.handle, options.raw, sink.handle)), "look at descriptors")
