"""The capture core as Python objects: the only file that touches cffi's `lib` and `ffi`.

Handles are context managers; `check` turns a negative errno and the tree's last fault into one of `ckpt.errors`.
Buffers that a Sink lends (records, runs, page bytes) are valid until its next reset.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, NoReturn, Self

from ckpt.errors import CkptError, NotFoundError, PermissionDeniedError, RefusedError
from ckpt.model import PAGE
from native._native import ffi, lib

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
)


def mark(phase: str) -> None:
    """A named point of the flow; does nothing (tests interpose it to kill here, or to fail: CkptError)."""
    code = lib.ckpt_mark(phase.encode())
    if code < 0:
        raise CkptError(f"after {phase}: {os.strerror(-code)}")


def one_heap() -> None:
    """One malloc arena for the whole process; to be called before threads are made. Keeps a snapshot's memory bounded."""
    lib.ckpt_one_heap()


def newborn(pid: int, keep: Sequence[int] = (), *, own_session: bool = True) -> tuple[int, int]:
    """Forks an empty child (native/src/newborn.c): (0, its pid), or (negative errno, 0). `pid` 0: any number. `keep`: descriptors
    of ours that it has too."""
    made = ffi.new("int32_t *")
    code = int(lib.ckpt_newborn(pid, int(own_session), ffi.new("int32_t[]", sorted(keep)), len(keep), made))
    return code, int(made[0])


def newborn_apart(namespaces: int, pid: int, keep: Sequence[int] = ()) -> tuple[int, int, int, int]:
    """The same in namespaces of its own (native/src/init.c): (0, its pid, pid of the namespace's init, the descriptor that keeps
    it) as we see them, or (negative errno, 0, 0, -1)."""
    init, made, house = ffi.new("int32_t *"), ffi.new("int32_t *"), ffi.new("int32_t *", -1)
    fds = ffi.new("int32_t[]", sorted(keep))
    code = int(lib.ckpt_newborn_apart(namespaces, pid, fds, len(keep), init, made, house))
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
class Fault:
    """The detail behind a failed call, as the core recorded it."""

    error: int
    pid: int
    tid: int
    fd: int
    addr: int
    step: str
    name: str

    def describe(self) -> str:
        where = f"task {self.pid}" if self.pid else ""
        if self.tid and self.tid != self.pid:
            where += f" thread {self.tid}"
        if self.fd >= 0:
            where += f" fd {self.fd}"
        if self.addr:
            where += f" at {self.addr:#x}"
        what = f"{self.step} {self.name}".strip()
        return f"{where.strip()}: {what}: {os.strerror(-self.error) if self.error else 'failed'}".lstrip(": ")


def raise_fault(fault: Fault, code: int, what: str, root: int) -> NoReturn:
    """One line: what, which resource, what to do. `what` and `root` stand in where the core recorded no fault."""
    pid = fault.pid or root
    text = replace(fault, pid=pid).describe() if fault.error else f"task {pid}: {what}: {os.strerror(-code)}"
    if fault.step == "traced":
        raise RefusedError(f"{text.split(':')[0]}: already traced by {fault.name}: end that tracer first")
    if fault.step in ("32-bit", "kernel thread", "zombie"):
        raise RefusedError(f"task {fault.pid}: {fault.step}: cannot be checkpointed")
    if code == -errno.ESRCH:
        raise NotFoundError(f"{text}: it is gone or never was; give the pid of a living process")
    if code in (-errno.EPERM, -errno.EACCES):
        raise PermissionDeniedError(f"{text}: run as root, or as the target's own user with ptrace allowed")
    if code == -errno.ENOMEM:
        raise CkptError(f"{text}: free some memory and try again")
    raise CkptError(f"{text}: try again; ckpt check {pid} looks for a reason")


class Sink:
    """Where a capture puts what it reads: records, runs, page bytes (a touched buffer, then an unlinked spill file).

    `spill_dir` None: for work on a running tree. Then nothing is touched ahead, and there is only the buffer.
    """

    def __init__(self, pages: int, spill_dir: str | None) -> None:
        handle, size = ffi.new("ckpt_sink **"), pages * PAGE
        code = int(lib.ckpt_sink_new_running(size, handle) if spill_dir is None else lib.ckpt_sink_new(size, spill_dir.encode(), handle))
        if code < 0:
            raise CkptError(f"no memory for a buffer of {pages} pages: {os.strerror(-code)}")
        self.handle: Any = handle[0]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        lib.ckpt_sink_free(self.handle)
        self.handle = ffi.NULL

    def reset(self) -> None:
        lib.ckpt_sink_reset(self.handle)

    def records(self) -> memoryview:
        out = ffi.new("const uint8_t **")
        size = int(lib.ckpt_sink_records(self.handle, out))
        return memoryview(ffi.buffer(out[0], size)) if size else memoryview(b"")

    def spaces(self) -> list[SpaceRuns]:
        out = ffi.new("const struct ckpt_space_runs **")
        count = int(lib.ckpt_sink_spaces(self.handle, out))
        return [self._space(out[0][index]) for index in range(count)]

    @staticmethod
    def _space(raw: Any) -> SpaceRuns:
        def view(runs: Any, count: int) -> memoryview:
            return memoryview(ffi.buffer(ffi.cast("uint8_t *", runs), count * 16)) if count else memoryview(b"")

        return SpaceRuns(
            int(raw.space),
            view(raw.runs, int(raw.run_count)),
            int(raw.data_offset),
            int(raw.data_pages),
            view(raw.paranoid_runs, int(raw.paranoid_count)),
            int(raw.paranoid_offset),
        )

    def data(self, offset: int, size: int) -> Iterator[memoryview]:
        """Page bytes from offset on, in pieces of whole pages: lent by the buffer, then copied from the spill file."""
        in_memory, total = ffi.new("uint64_t *"), ffi.new("uint64_t *")
        base = lib.ckpt_sink_data(self.handle, in_memory, total)
        end = offset + size
        if end > int(total[0]):
            raise CkptError("capture core: page data is shorter than its runs say")
        if offset < int(in_memory[0]):
            stop = min(end, int(in_memory[0]))
            yield memoryview(ffi.buffer(base + offset, stop - offset))
            offset = stop
        while offset < end:
            piece = bytearray(min(end - offset, 4 << 20))
            code = int(lib.ckpt_sink_read_spill(self.handle, offset, ffi.from_buffer(piece), len(piece)))
            if code < 0:
                raise CkptError(f"reading captured pages back from the spill file: {os.strerror(-code)}")
            yield memoryview(piece)
            offset += len(piece)


@dataclass(frozen=True, slots=True)
class SpaceRuns:
    space: int
    runs: memoryview  #: struct ckpt_run[]
    data_offset: int
    data_pages: int
    paranoid_runs: memoryview
    paranoid_offset: int


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


class Tree:
    """A process and its descendants. Opening stops nobody; leaving the context thaws whatever is still stopped."""

    def __init__(self, pid: int, start_ticks: int = 0) -> None:
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

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        if self.handle != ffi.NULL:
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

    def freeze(self) -> None:
        self.check(int(lib.ckpt_tree_freeze(self.handle)), "freeze")

    def thaw(self) -> None:
        self.check(int(lib.ckpt_tree_thaw(self.handle)), "thaw")

    def threads(self) -> list[ThreadId]:
        cap = 64
        while True:
            raw = ffi.new("struct ckpt_thread_id[]", cap)
            count = self.check(int(lib.ckpt_tree_threads(self.handle, raw, cap)), "list threads")
            if count <= cap:
                return [ThreadId(int(t.pid), int(t.tid), int(t.start_ticks), int(t.mm)) for t in raw[0:count]]
            cap = count + 16

    def arm(self, pid: int, hint_fd: int = -1, hint_ino: int = 0) -> Track:
        raw = ffi.new("struct ckpt_track *")
        self.check(int(lib.ckpt_track_arm(self.handle, pid, hint_fd, hint_ino, raw)), "arm the tracker")
        return Track(int(raw.pid), int(raw.tracker), int(raw.remote_fd), int(raw.remote_ino), bool(raw.fresh))

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

    def signal(self, pid: int, number: int) -> None:
        """A signal to a process of the tree, by pidfd: never to a stranger with a recycled number."""
        self.check(int(lib.ckpt_tree_signal(self.handle, pid, number)), "signal")

    def capture(self, options: CaptureOptions, sink: Sink) -> dict[str, int]:
        """Freeze, raw bytes, scan, copy, thaw. Returns nanoseconds by phase; `stop` is the whole frozen time."""
        raw = ffi.new("struct ckpt_timing *")
        self.check(int(lib.ckpt_capture(self.handle, options.raw, sink.handle, raw)), "capture")
        names = ("stop", "freeze", "files", "descriptors", "questions", "scan", "copy", "thaw")
        return {name: int(getattr(raw, name)) for name in names}

    def look(self, options: CaptureOptions, sink: Sink) -> None:
        """Records of the descriptors alone; the tree runs on. Fails when one is closed meanwhile."""
        self.check(int(lib.ckpt_look(self.handle, options.raw, sink.handle)), "look at descriptors")


@dataclass(frozen=True, slots=True)
class WantRow:
    format: int
    prefix: str
    work: int
    options: Sequence[tuple[int, int, int]]


@dataclass(frozen=True, slots=True)
class QuestionRow:
    nr: int
    args: Sequence[int]
    answer_arg: int
    answer_size: int
    per_thread: bool


class CaptureOptions:
    """struct ckpt_capture_options with everything that it points to kept alive. Built before the freeze."""

    def __init__(
        self,
        *,
        proc_files: Sequence[str],
        thread_files: Sequence[str],
        wants: Sequence[WantRow],
        questions: Sequence[QuestionRow],
        tracks: Sequence[Track],
        paranoid: bool = False,
        no_inject: bool = False,
        scan_threads: int = 2,
    ) -> None:
        self._keep: list[Any] = []
        raw = ffi.new("struct ckpt_capture_options *")
        raw.proc_files, raw.thread_files = self._names(proc_files), self._names(thread_files)
        raw.wants, raw.want_count = self._wants(wants), len(wants)
        raw.questions, raw.question_count = self._questions(questions), len(questions)
        raw.tracks = self._array("struct ckpt_track[]", (track.raw()[0] for track in tracks))
        raw.track_count = len(tracks)
        raw.scan_threads, raw.paranoid, raw.no_inject, raw.freeze_retries = scan_threads, int(paranoid), int(no_inject), 50
        self.raw = raw

    def _hold(self, value: Any) -> Any:
        self._keep.append(value)
        return value

    def _array(self, kind: str, items: Iterable[Any]) -> Any:
        return self._hold(ffi.new(kind, list(items)))

    def _names(self, names: Sequence[str]) -> Any:
        strings = [self._hold(ffi.new("char[]", name.encode())) for name in names]
        return self._hold(ffi.new("const char *[]", [*strings, ffi.NULL]))

    def _wants(self, wants: Sequence[WantRow]) -> Any:
        rows = self._hold(ffi.new("struct ckpt_want[]", max(len(wants), 1)))
        for row, want in zip(rows, wants, strict=False):
            row.format, row.work, row.prefix = want.format, want.work, want.prefix.encode()[:47]
            row.options = self._array("struct ckpt_sockopt[]", [list(option) for option in want.options])
            row.option_count = len(want.options)
        return rows

    def _questions(self, questions: Sequence[QuestionRow]) -> Any:
        rows = self._hold(ffi.new("struct ckpt_question[]", max(len(questions), 1)))
        for row, question in zip(rows, questions, strict=False):
            row.nr, row.answer_arg, row.answer_size = question.nr, question.answer_arg, question.answer_size
            row.per_thread = int(question.per_thread)
            for index, argument in enumerate(question.args):
                row.arg[index] = argument & CURSOR_END
        return rows
