"""What a kind of resource is: raw bytes in, a state out, and the remote calls that bring that state about.

One file per kind under `fd/` and `task/`, found by discovery: a module with a `KIND`. A kind declares what raw work it
wants done while the tree is frozen (C does it from a table), parses the answer after the thaw, and emits RemoteCalls.
So each is tested against bytes and against a list of calls, without root and without a kernel.

What C answers to each Work (little endian; n = bytes that follow). An answer that is missing means that C could not get it.

    DUPLICATE   nothing: the number is in the descriptor's own record
    PIPE        u32 capacity (F_GETPIPE_SZ), u32 revents (poll of the duplicate: POLLHUP 0x10 no writer, POLLERR 0x8 no reader;
                taken before C opens an end of its own), u32 n, contents[n], then u32[]: how much each read gave (a packet each)
    SOCKET      i32 domain, type, protocol, listening (SO_ACCEPTCONN), inq (SIOCINQ), outq (SIOCOUTQ), n_local, n_peer (-errno
                where there is none), local[n_local], peer[n_peer]: struct sockaddr
    PEEK        AF_UNIX, UDP, and TCP whose two names have one address. Per message of the receive queue: u32 n, u32 flags (1: it
                carries descriptors or other control data; 2: a pending error forbids to look), u32 n_from, bytes[n],
                from[n_from] (the sender's struct sockaddr, of datagrams); a stream is one message
    TIMERFD     struct itimerspec (interval, value): 4 x i64; then u64 CLOCK_MONOTONIC, CLOCK_REALTIME, CLOCK_BOOTTIME, ns, of that moment
    SEALS       i32, F_GET_SEALS or -errno
    CONTENTS    nothing: the pages are an object space
    TTY         struct termios2 (44 bytes), struct winsize (8 bytes), then i32, each -errno where there is none: TIOCGPTN,
                TIOCGPTLCK, TIOCGPKT, TIOCGEXCL, TIOCGPGRP, TIOCGSID, FIONREAD
    UNNAMED     nothing: as CONTENTS, of a file without a name that is not larger than UNNAMED_BYTES
    QUEUED      i32: FIONREAD or -errno
    MQUEUE      of POSIX message queues alone: i64 flags, room, size of a message, count (mq_getattr), then the text that a read gives
    GROUPS      of UDP sockets that are in multicast groups: native/src/fdgroups.c
    OWNER       i32 type (F_OWNER_*), i32 number, i32 signal: F_GETOWN_EX and F_GETSIG; no answer where none is set
    UNIX_DIAG   AF_UNIX only: the netlink answer's struct unix_diag_msg (16 bytes) and its attributes
    EPOLL       per tfd line, in order: i32 tfd, i32 file: identity of the watched open file description, -1 = no descriptor of
                the tree has it

Two rules for the calls that a kind emits:

1. `recreate` leaves the new descriptor as the result of its last call, at any number; the plan dups it to where it belongs.
   `same(index)` as the last call says "the descriptor that call `index` made" (dup2 of a number onto itself).
2. Kinds whose objects have two ends (pipe) also have `recreate_pair(first, second)`: results 0 and 1 are the two ends.
   An end that is None is one that nobody holds any more: it is closed again. How results can name what a buffer would hold:
   two eventfds take the two lowest free numbers and are closed; the next call that makes a pair gets just these numbers,
   for nothing else of the process runs.
3. Kinds whose objects hang together in other ways (sockets: both ends of a connection, a listener and who was accepted by it)
   name the links; what hangs together is made by one sequence, `recreate_group(members)`.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import IntFlag
from functools import cache, lru_cache
from types import ModuleType
from typing import Protocol, TypeGuard, TypeVar, cast, runtime_checkable

from ckpt.model import Arg, OpenFile, RemoteArg, RemoteCall, State
from ckpt.syscalls.names import nr

F_SETFL = 4
SETTABLE_FLAGS = 0o2000 | 0o4000 | 0o20000 | 0o40000 | 0o1000000  #: fs/fcntl.c, SETFL_MASK, without what is always equal


class Work(IntFlag):
    """Raw work on a descriptor, done by C while frozen (native/ckpt_native.h, enum ckpt_work; formats in descriptors.c)."""

    NOTHING = 0
    DUPLICATE = 1
    PIPE = 2
    SOCKET = 4
    PEEK = 8
    TIMERFD = 16
    SEALS = 32
    CONTENTS = 64
    TTY = 128
    UNIX_DIAG = 256
    EPOLL = 512
    UNNAMED = 1024
    QUEUED = 2048
    MQUEUE = 4096
    OWNER = 8192
    GROUPS = 16384
    SENDING = 32768


UNNAMED_BYTES = 64 << 20  #: CKPT_UNNAMED_BYTES: it is read while the program stands still


@dataclass(frozen=True, slots=True)
class SockOpt:
    """A socket option. One that is all zeros gives no answer (but for IPv6)."""

    level: int
    name: int
    size: int
    domain: int = 0  #: family, and
    type: int = 0  #: type of socket that it is asked of; 0: any


@dataclass(frozen=True, slots=True)
class Wants:
    """A row of the table that C walks; the first row that fits a descriptor wins (order: `KIND.order`)."""

    prefix: str = ""  #: the link text of /proc/PID/fd/N begins so
    format: int = 0  #: S_IFMT bits, 0 = any
    work: Work = Work.NOTHING
    options: tuple[SockOpt, ...] = ()


@dataclass(frozen=True, slots=True)
class RawDescriptor:
    """One descriptor as C saw it. fdinfo is always there."""

    pid: int
    fd: int
    dev: int
    ino: int
    rdev: int
    size: int
    nlink: int
    mode: int
    file: int  #: identity of the open file description over the tree
    link: str
    fdinfo: str
    work: Mapping[int, bytes] = field(default_factory=dict)  #: one Work bit -> bytes
    options: Mapping[int, bytes] = field(default_factory=dict)  #: position in Wants.options -> bytes


class Unsupported(Exception):
    """Raised by parse: this resource cannot be captured. `str()` is the reason, such as "io_uring: not supported"."""


class CannotUndo(Exception):
    """Raised by adjust/recreate/restore: this cannot be put back in place. `str()` names why."""


class Moved(CannotUndo):
    """The connection has gone on since, or is gone: its bytes cannot be taken back. The plan may put a dead one in its place;
    `dead`: calls that make it, the last result is it; none: the plan knows one for the network."""

    def __init__(self, text: str, dead: Sequence[RemoteCall] = ()) -> None:
        super().__init__(text)
        self.dead = tuple(dead)


class FdKind(Protocol):
    name: str
    order: int  #: lower is asked first
    wants: tuple[Wants, ...]

    def recognises(self, raw: RawDescriptor) -> bool: ...

    def parse(self, raw: RawDescriptor) -> OpenFile:
        """The open file description behind the descriptor; raises Unsupported."""
        ...

    def adjust(self, fd: int, now: OpenFile, wanted: OpenFile) -> Sequence[RemoteCall]:
        """The description is still the same one: bring position, flags, counters, contents back. Raises CannotUndo."""
        ...

    def recreate(self, wanted: OpenFile) -> Sequence[RemoteCall]:
        """Makes it anew; the last call's result is the new descriptor (any number). Raises CannotUndo."""
        ...


@runtime_checkable
class SettledKind(Protocol):
    """A kind of which something can be brought back only when every number of the task is right."""

    def settle(self, fd: int, wanted: OpenFile) -> Sequence[RemoteCall]:
        """After `recreate`, at its number."""
        ...


@runtime_checkable
class CautiousKind(Protocol):
    """A kind of which a snapshot may not hold everything."""

    def caution(self, raw: RawDescriptor) -> str | None:
        """For the pre-flight: what it will not hold."""
        ...


@runtime_checkable
class CandidKind(Protocol):
    """A kind that cannot always be brought back whole, and says so."""

    def caveats(self, now: OpenFile | None, wanted: OpenFile) -> Sequence[str]:
        """`now`: the open file that is kept; None: it is made again."""
        ...


@runtime_checkable
class EndedKind(Protocol):
    """A kind whose objects have two ends, each an open file description of its own."""

    name: str

    def other_end(self, file: OpenFile) -> object:
        """What file's other end shows as `this_end`; None: nobody holds the other end any more."""
        ...

    def this_end(self, file: OpenFile) -> object: ...


@runtime_checkable
class PairKind(EndedKind, Protocol):
    """Neither end can be made without the other."""

    def recreate_pair(self, first: OpenFile | None, second: OpenFile | None) -> Sequence[RemoteCall]:
        """Both ends anew, in this order; results 0 and 1 are the descriptors. Raises CannotUndo."""
        ...


@dataclass(frozen=True, slots=True)
class Question:
    """A call that C runs inside the frozen task to learn what /proc does not tell. Its answer is kept raw."""

    nr: int
    args: tuple[int, ...]
    answer_arg: int = 7  #: which argument is the answer buffer; 7 = none
    answer_size: int = 0


@dataclass(frozen=True, slots=True)
class Answer:
    retval: int
    data: bytes


@dataclass(frozen=True, slots=True)
class RawTask:
    """A process, or one thread of it, as C saw it."""

    pid: int
    tid: int
    files: Mapping[str, bytes]  #: by name under /proc/PID (or /proc/PID/task/TID)
    answers: Sequence[Answer]  #: to this kind's own questions, in order; empty if the target may not be asked
    limits: tuple[tuple[int, int], ...] = ()
    extra: Mapping[str, bytes] = field(default_factory=dict)  #: "rseq", "robust": raw records of C


class TaskKind(Protocol):
    """May also have `order` (lower is restored first, 50 where there is none: credentials 90) and, if not per_thread, `late`
    (restored when all its threads are)."""

    name: str
    per_thread: bool
    proc_files: tuple[str, ...]
    questions: tuple[Question, ...]

    def parse(self, raw: RawTask) -> State: ...

    def restore(self, now: State, wanted: State) -> Sequence[RemoteCall]:
        """Calls that turn now into wanted, none where they are equal. Raises CannotUndo."""
        ...


@runtime_checkable
class Inherited(Protocol):
    """A kind of thread attribute of which a new thread has something from the thread that makes it."""

    def in_clone(self, state: State) -> State: ...


@runtime_checkable
class Cleared(Protocol):
    """A kind of task attribute that a change of credentials takes something of (kernel/cred.c, commit_creds)."""

    def cleared(self, state: State) -> State:
        """What is left of it, or no longer known, after the change."""
        ...


@runtime_checkable
class CandidTask(Protocol):
    """A kind of task attribute that cannot always be brought back whole, and says so."""

    def caveats(self, now: State, wanted: State) -> Sequence[str]: ...


# ---- writing remote calls ----


@lru_cache(4096)
def value(number: int) -> RemoteArg:
    return RemoteArg(Arg.VALUE, number & 0xFFFF_FFFF_FFFF_FFFF)


def result(index: int) -> RemoteArg:
    """The result of call `index` of the same sequence (a kind counts from 0; the plan shifts it)."""
    return RemoteArg(Arg.RESULT, index)


def buffer(data: bytes, pointers: tuple[tuple[int, bytes], ...] = ()) -> RemoteArg:
    """`pointers`: (offset, bytes): at that offset of the data the address of these bytes will stand."""
    return RemoteArg(Arg.BUFFER, 0, data, pointers)


def call(nr: int, *args: int | bytes | RemoteArg, note: str, expect: int | None = 0) -> RemoteCall:
    """A RemoteCall; ints become values, bytes become buffers."""
    made = [item if isinstance(item, RemoteArg) else buffer(item) if isinstance(item, bytes) else value(item) for item in args]
    return RemoteCall(nr, tuple(made), note, expect)


def needs_result(item: RemoteCall) -> bool:
    """Of an earlier call."""
    for arg in item.args:  # noqa: SIM110 (any() of a generator takes four times as long, and there are thousands)
        if arg.form is Arg.RESULT:
            return True
    return False


def shift(item: RemoteCall, by: int) -> RemoteCall:
    """The call as part of a longer sequence, in which what it counts from stands at `by`."""
    if not by or not needs_result(item):
        return item
    return item._replace(args=tuple([arg._replace(value=arg.value + by) if arg.form is Arg.RESULT else arg for arg in item.args]))


def same(index: int) -> RemoteCall:
    """As the last call of a sequence: its result is the descriptor that call `index` made."""
    return call(nr("dup2"), result(index), result(index), note="that descriptor")


class Calls:
    """A sequence in the making, for kinds that make several things at once."""

    def __init__(self) -> None:
        self.list: list[RemoteCall] = []

    def add(self, name: str, *args: int | bytes | RemoteArg, note: str, expect: int | None = 0) -> RemoteArg:
        """Appends one call; its result as an argument for later ones."""
        self.list.append(call(nr(name), *args, note=note, expect=expect))
        return result(len(self.list) - 1)

    def extend(self, calls: Iterable[RemoteCall]) -> None:
        """Calls whose results are counted from this sequence's start, or that have none."""
        self.list += calls

    def two_lowest(self) -> tuple[RemoteArg, RemoteArg]:
        """As two_lowest() below, anywhere in a sequence."""
        taken = [self.add("eventfd2", 0, 0, note=f"find a free number ({index})") for index in (1, 2)]
        for number in taken:
            self.add("close", number, note="free it again")
        return taken[0], taken[1]


def two_lowest() -> list[RemoteCall]:
    """Results 0 and 1 become the two numbers that the next call which makes a pair will get, in this order."""
    taken = [call(nr("eventfd2"), 0, 0, note=f"find a free number ({index})") for index in (1, 2)]
    return [*taken, *(call(nr("close"), result(index), note="free it again") for index in (0, 1))]


def swap(spare: int) -> list[RemoteCall]:
    """The descriptors that results 0 and 1 name change places; `spare`: the index that this sequence's first call will have."""
    return [
        call(nr("dup"), result(0), note="swap the ends"),
        call(nr("dup2"), result(1), result(0), note="swap the ends"),
        call(nr("dup2"), result(spare), result(1), note="swap the ends"),
        call(nr("close"), result(spare), note="swap the ends"),
    ]


def set_flags(fd: int | RemoteArg, now: int, wanted: int) -> list[RemoteCall]:
    """fcntl(F_SETFL) where the flags that can be set differ: O_APPEND, O_NONBLOCK, O_ASYNC, O_DIRECT, O_NOATIME."""
    if not (now ^ wanted) & SETTABLE_FLAGS:
        return []
    return [call(nr("fcntl"), fd, F_SETFL, wanted & SETTABLE_FLAGS, note=f"fcntl F_SETFL {wanted & SETTABLE_FLAGS:#o}")]


# ---- the two ends of pipes and pairs ----


@cache
def _ended_kinds() -> dict[str, EndedKind]:
    return {kind.name: kind for kind in fd_kinds() if is_a(kind, EndedKind)}


def peers(files: Iterable[OpenFile]) -> dict[int, tuple[int, ...] | None]:
    """OpenFile.id -> ids of the open files at its other end, for every file of a kind with ends.

    Several: an end was opened more than once. (): the other end is held outside the tree. None: nobody holds it any more.
    """
    kinds = _ended_kinds()
    ended = [(file, kinds[file.kind]) for file in files if file.kind in kinds]
    ends: dict[tuple[str, object], list[int]] = {}
    for file, kind in ended:
        ends.setdefault((file.kind, kind.this_end(file)), []).append(file.id)
    found: dict[int, tuple[int, ...] | None] = {}
    for file, kind in ended:
        other = kind.other_end(file)
        found[file.id] = None if other is None else tuple(ends.get((file.kind, other), ()))
    return found


def with_outside(files: Sequence[OpenFile]) -> tuple[OpenFile, ...]:
    """The same files; those with ends learn `outside`: the other end is held outside the tree, so what is in it stays as it is."""
    known = peers(files)
    return tuple(replace(file, state={**file.state, "outside": known[file.id] == ()}) if file.id in known else file for file in files)


# ---- discovery ----

_Protocol = TypeVar("_Protocol")
_known: dict[tuple[type, type], bool] = {}


def is_a(kind: object, protocol: type[_Protocol]) -> TypeGuard[_Protocol]:
    """What isinstance() says of a protocol, which takes 20 us for each question; kinds do not change."""
    key = type(kind), protocol
    if key not in _known:
        _known[key] = all(hasattr(kind, name) for name in _members(cast(type, protocol)))
    return _known[key]


@cache
def _members(protocol: type) -> frozenset[str]:
    own = [(*vars(base), *inspect.get_annotations(base)) for base in protocol.__mro__ if getattr(base, "_is_protocol", False)]
    return frozenset(name for names in own for name in names if not name.startswith("_"))


def _modules(package: str) -> list[ModuleType]:
    parent = importlib.import_module(package)
    return [importlib.import_module(f"{package}.{info.name}") for info in pkgutil.iter_modules(parent.__path__)]


@cache
def fd_kinds() -> list[FdKind]:
    """Every kind of descriptor, in the order in which they are asked."""
    kinds = [cast(FdKind, module.KIND) for module in _modules("ckpt.kinds.fd") if hasattr(module, "KIND")]
    return sorted(kinds, key=lambda kind: (kind.order, kind.name))


@cache
def task_kinds() -> list[TaskKind]:
    """Every kind of task attribute, by name."""
    kinds = [cast(TaskKind, module.KIND) for module in _modules("ckpt.kinds.task") if hasattr(module, "KIND")]
    return sorted(kinds, key=lambda kind: kind.name)
