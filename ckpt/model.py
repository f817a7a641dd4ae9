"""The types that everything speaks of. Frozen, comparable, free of handles; this module imports nothing of ours.

A Snapshot is what one freeze saw of a process tree, page contents aside. Contents cross between the wing of the living
(`ckpt.live`) and the wing of the past (`ckpt.history`) as raw buffers behind `PageSource`.

Units: addresses are bytes, pages are 4096 bytes, times are nanoseconds, `start_ticks` is field 22 of /proc/PID/stat.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from collections.abc import Mapping as MappingABC
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from typing import Any, NamedTuple, Protocol

PAGE = 4096
SIGCHLD = 17

#: What a kind of resource remembers of one resource: plain JSON values (bytes are hex text). The kind gives it meaning.
State = MappingABC[str, Any]


@dataclass(frozen=True, slots=True)
class PidRef:
    """A process or thread that cannot be mistaken for a later one with the same number."""

    pid: int
    start_ticks: int


class Content(IntEnum):
    """How a run's pages cross (native/ckpt_native.h, enum ckpt_content)."""

    DATA = 0
    ZERO = 1
    SAME = 2
    ABSENT = 3


@dataclass(frozen=True, slots=True)
class PageRun:
    """Consecutive pages of one space. `page` is address >> 12 (or offset >> 12 in an object)."""

    space: int
    page: int
    count: int
    content: Content


class Action(StrEnum):
    """How an interrupted call continues (mechanisms: RESTART by rax = -51x, REBUILD of a restart block, LINGER)."""

    KEEP = "keep"
    RESTART = "restart"
    REBUILD = "rebuild"
    LINGER = "linger"
    GO_ON = "go-on"  #: a transfer that was cut short is begun again where it was (native/src/transfer.c)


@dataclass(frozen=True, slots=True)
class RetvalDecision:
    action: Action
    value: int  #: rax that the thread continues with
    reason: str  #: in words, shown by `ckpt show`
    disturbed: bool = False  #: the caller may notice: a later deadline, an EINTR, a short count


@dataclass(frozen=True, slots=True)
class SyscallState:
    """What a thread was doing in the kernel when it was stopped."""

    phase: str  #: "user" or "call"
    nr: int  #: -1 in user space
    args: tuple[int, ...]
    raw_retval: int
    remaining_ns: int | None
    evidence: State


@dataclass(frozen=True, slots=True)
class Thread:
    tid: int
    start_ticks: int
    regs: bytes  #: struct user_regs_struct, 27 little-endian u64, as shown at the stop
    xstate: bytes  #: NT_X86_XSTATE
    sigmask: int
    pending: tuple[bytes, ...]  #: siginfo_t (128 bytes each), queued to this thread alone
    syscall: SyscallState
    decision: RetvalDecision
    attributes: MappingABC[str, State] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Backing:
    """What stands behind a mapping: nothing, a file, a shared object, or the kernel."""

    kind: str  #: "anonymous" | "file" | "object" | "kernel"
    path: str = ""
    dev: int = 0
    ino: int = 0
    offset: int = 0
    size: int = 0  #: of the file at the snapshot
    mtime_ns: int = 0
    deleted: bool = False


@dataclass(frozen=True, slots=True)
class Mapping:
    start: int
    end: int
    prot: int  #: PROT_* bits
    flags: int  #: MAP_SHARED or MAP_PRIVATE, with MAP_ANONYMOUS, MAP_GROWSDOWN, MAP_NORESERVE
    backing: Backing
    name: str = ""  #: "[heap]", "[stack]", "[vdso]" ... or ""
    advice: tuple[str, ...] | None = None  #: VmFlags of smaps that a call of the program made (procfs/smaps.py); None = not known
    guards: tuple[tuple[int, int], ...] = ()  #: (start, end) of guard pages in it (MADV_GUARD_INSTALL)


@dataclass(frozen=True, slots=True)
class OpenFile:
    """An open file description. `id` is its identity within the snapshot: descriptors that share it share the id."""

    id: int
    kind: str  #: name of a module of ckpt.kinds.fd
    flags: int  #: O_* as fdinfo shows them, without O_CLOEXEC
    pos: int
    state: State


@dataclass(frozen=True, slots=True)
class Descriptor:
    fd: int
    cloexec: bool
    file: int  #: OpenFile.id


@dataclass(frozen=True, slots=True)
class Task:
    pid: int
    start_ticks: int
    ppid: int
    pgid: int
    sid: int
    comm: str
    mm: int  #: the space of its private memory
    threads: tuple[Thread, ...]  #: leader first
    mappings: tuple[Mapping, ...]  #: sorted by start
    descriptors: tuple[Descriptor, ...]  #: sorted by fd
    pending: tuple[bytes, ...]  #: siginfo_t, queued to the whole process
    attributes: MappingABC[str, State] = field(default_factory=dict)  #: kind of ckpt.kinds.task -> state
    exit_signal: int = SIGCHLD  #: what its parent gets when it ends
    stopped: int = 0  #: the signal by which somebody (not us) has stopped it; 0: it runs
    #: "files", "fs", "sighand" -> the first task of the tree with the same descriptor table, cwd and root and umask, handlers;
    #: only where that is another one. Memory is shared where `mm` is equal.
    shares: MappingABC[str, int] = field(default_factory=dict)

    @property
    def ref(self) -> PidRef:
        return PidRef(self.pid, self.start_ticks)


@dataclass(frozen=True, slots=True)
class Zombie:
    """A child that has ended and that its parent has not collected yet."""

    pid: int
    start_ticks: int
    ppid: int
    pgid: int
    sid: int
    comm: str
    status: int  #: wait status: exit code << 8, or a signal, 0x80 set where it dumped core
    exit_signal: int = SIGCHLD
    uid: int = 0  #: its real user: what waitid shows


@dataclass(frozen=True, slots=True)
class SharedObject:
    """Memory that several mappings, descriptors or processes may share; stored once. Pages are by offset in it."""

    space: int
    dev: int
    ino: int
    size: int
    state: State = field(default_factory=dict)  #: what it takes to make it anew: seals of a memfd; id, key, mode, owner of a segment


@dataclass(frozen=True, slots=True)
class Snapshot:
    root: PidRef
    tasks: tuple[Task, ...]
    files: tuple[OpenFile, ...]
    objects: tuple[SharedObject, ...]
    features: State  #: what the machine was: kernel release, boot id, cpu; and "clocks": what the program's showed at the freeze, ns
    taken_at: int  #: CLOCK_REALTIME, ns
    zombies: tuple[Zombie, ...] = ()

    def task(self, pid: int) -> Task:
        return next(task for task in self.tasks if task.pid == pid)

    def file(self, identity: int) -> OpenFile:
        return next(file for file in self.files if file.id == identity)


@dataclass(frozen=True, slots=True)
class Writer:
    """An instruction that wrote pages. Without a symbol `offset` is the address in the file's own numbering."""

    ip: int
    file: str
    symbol: str | None
    offset: int
    call: str | None  #: name of the call in which the kernel wrote for it; None: it wrote itself


class PageWrite(NamedTuple):
    """A write of a page that was protected. A tuple: there may be hundreds of thousands."""

    pid: int
    address: int
    written_ns: int  #: CLOCK_REALTIME
    tid: int
    writer: int  #: place in Evidence.writers


@dataclass(frozen=True, slots=True)
class Evidence:
    """Who wrote in the interval before a snapshot. Beside the pages, never instead of them: what was written the scan says."""

    writers: tuple[Writer, ...] = ()
    writes: Iterable[PageWrite] = ()  #: by page, and of a page the first comes first; may be gone through once
    lost: int = 0  #: writes of which only their number is known


class PageSource(Protocol):
    """Where page contents come from: a living capture, or a generation of the store."""

    def spaces(self) -> Sequence[int]:
        """Spaces that have pages, in order."""
        ...

    def runs(self, space: int) -> Sequence[PageRun]:
        """What the space holds: DATA and ZERO runs, sorted by page. ABSENT is what is not named."""
        ...

    def read(self, space: int, page: int, count: int) -> Iterator[memoryview]:
        """Contents of populated pages in pieces of whole pages; zero pages are given as zeros."""
        ...


class Arg(StrEnum):
    VALUE = "value"
    RESULT = "result"  #: the result of an earlier call of the same stage
    BUFFER = "buffer"  #: address of bytes that travel with the call


class RemoteArg(NamedTuple):  # a tuple, as RemoteCall: hundreds of threads mean tens of thousands of these
    form: Arg
    value: int = 0  #: the value, or the index of the earlier call in its stage
    data: bytes = b""  #: for BUFFER: bytes in, and the room for bytes out
    pointers: tuple[tuple[int, bytes], ...] = ()  #: for BUFFER: (offset in data, bytes): there their address is put


class RemoteCall(NamedTuple):
    """A system call to be run inside a task. `note` is what --dry-run prints."""

    nr: int
    args: tuple[RemoteArg, ...]
    note: str
    expect: int | None = 0  #: None: any result will do; an int: at least this
    tid: int = 0  #: 0 = any thread of the process


@dataclass(frozen=True, slots=True)
class Stage:
    """Calls of one process that run in one batch; results are visible inside the stage only."""

    name: str
    pid: int
    calls: tuple[RemoteCall, ...]


@dataclass(frozen=True, slots=True)
class MadeObject:
    """A shared object that the plan makes anew (or finds by its id): until the pages stand the task `pid` has a mapping of it."""

    space: int
    dev: int  #: identity in the generation
    ino: int
    pid: int  #: the task that makes it
    entry: str  #: map_files/START-END under its /proc/PID: all of the object
    seals: int = 0  #: to be set when its contents stand
    contents: bool = True  #: False: others have it mapped, it stays as it is


@dataclass(frozen=True, slots=True)
class Plan:
    stages: tuple[Stage, ...]
    threads_end: MappingABC[int, tuple[int, ...]]  #: pid -> tids that are now and were not then
    threads_spawn: MappingABC[int, tuple[int, ...]]  #: pid -> tids that were then and are not now
    objects: tuple[MadeObject, ...] = ()  #: shared memory that nobody holds any more
    refusals: tuple[str, ...] = ()  #: what cannot be undone, by name; a plan with any is not executed
    warnings: tuple[str, ...] = ()
    family: tuple[str, ...] = ()  #: in words: tasks that end and tasks that are made, before all else
    ended: tuple[int, ...] = ()  #: ids of wanted open files that come back as ended connections
