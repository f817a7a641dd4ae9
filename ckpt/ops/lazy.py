"""A restore whose program runs at once, while its pages are brought behind it (--lazy).

    front: forks the server, waits for its word, prints, ends
    server: restore as ever, but of the large anonymous mappings only what the threads stand on -> userfaultfd on the rest
            -> the program runs, traced -> faults are answered, the rest is brought ahead -> everything there -> let go

The server is the program's tracer until the end, and its death is the program's (EXITKILL): so the program is whole or ended,
never wrong. While it lasts, other ckpt are told that it is traced.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import stat
import struct
import syslog
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ckpt import errors
from ckpt.errors import CkptError
from ckpt.history.open import Mode, open_store, translated
from ckpt.history.pages import GenerationPages
from ckpt.live.continuation import RESTART_BLOCK
from ckpt.live.core import Tree
from ckpt.live.guardian import Guardian
from ckpt.live.lazy import Fetch, Filler, Memory, open_userfaultfd, register
from ckpt.live.newborn import KILLED_WHY, Newborns
from ckpt.model import PAGE, Action, Content, Snapshot, Task
from ckpt.plan.batch import MAP_GROWSDOWN, MAP_PRIVATE
from ckpt.plan.pages import RUN, as_runs
from ckpt.plan.segments import Segment, Segments
from ckpt.syscalls.decide import arguments, unpack
from ckpt.syscalls.names import nr
from ckpt.syscalls.table import BY_NR, GoesOn, Vector

LARGE = 256 << 10  #: mappings below are brought at once
BELOW_STACK, ABOVE_STACK = 2, 8  #: pages around a stack pointer that a thread is about to touch
MSGHDR = struct.Struct("<QQQQ24x")  #: msg_name, msg_namelen, msg_iov, msg_iovlen, and what is not asked for
IOVEC_BYTES, MOST_BUFFERS = 16, 1024
POLLFD_BYTES, MOST_POLLED = 8, 1 << 20
WORDS_BYTES = 16  #: a struct timespec; a futex's word is less
_WAKE_S = 0.05
_KERNEL_WRITES = (("rseq", "pointer"), ("tid_address", "address"), ("robust_list", "head"))


@dataclass(frozen=True, slots=True)
class Later:
    """One memory's part that is brought later: ranges of addresses, and what of them the generation holds."""

    task: Task
    ranges: tuple[tuple[int, int], ...]

    def runs(self) -> bytes:
        return as_runs((start // PAGE, end // PAGE) for start, end in self.ranges)

    def segments(self, held: bytes) -> Segments:
        found = []
        for page, count, content in RUN.iter_unpack(held):
            if content != Content.DATA:
                continue
            start, end = page * PAGE, (page + count) * PAGE
            for low, high in self.ranges:
                if start < high and low < end:
                    found.append(Segment(max(start, low), min(end, high), max(start, low)))
        return Segments(found)


def later_parts(wanted: Snapshot, source: GenerationPages) -> list[Later]:
    """What can wait: large private anonymous mappings, less what the threads and the kernel touch first."""
    parts, seen = [], set[int]()
    for task in wanted.tasks:
        if task.mm in seen:
            continue
        seen.add(task.mm)
        sharing = [one for one in wanted.tasks if one.mm == task.mm]
        now = sorted(_touched(sharing) | _lists(sharing, source) | _waits(sharing))
        ranges: list[tuple[int, int]] = []
        for mapping in task.mappings:
            advice = set(mapping.advice or ())
            anonymous = mapping.backing.kind == "anonymous" and mapping.flags & MAP_PRIVATE and not mapping.flags & MAP_GROWSDOWN
            if anonymous and mapping.prot and mapping.end - mapping.start >= LARGE and not advice & {"lo", "lf", "dp", "sl"}:
                ranges += _without(mapping.start, mapping.end, now)
        parts.append(Later(task, tuple(ranges)))
    return parts


def _touched(tasks: Iterable[Task]) -> set[int]:
    """Page numbers: around stack pointers, thread pointers, and what the kernel writes by itself."""
    pages: set[int] = set()
    for task in tasks:
        for thread in task.threads:
            words = [int.from_bytes(thread.regs[at : at + 8], "little") for at in (19 * 8, 21 * 8)]  # rsp, fs_base
            pages.update(range(words[0] // PAGE - BELOW_STACK, words[0] // PAGE + ABOVE_STACK))
            told = (thread.attributes.get(kind, {}).get(key, 0) for kind, key in _KERNEL_WRITES)
            for address in (words[1], *map(int, told)):
                pages.update(range(address // PAGE - 1, address // PAGE + 2))
    return pages


def _waits(tasks: Iterable[Task]) -> set[int]:
    """Page numbers of what the kernel reads and writes as a wait begins that keeps its deadline (native/src/rebuild.c): nobody brings
    anything yet, and what it found would be zeros, and stay so."""
    pages: set[int] = set()
    for task in tasks:
        for thread in task.threads:
            if thread.decision.value != RESTART_BLOCK:
                continue
            args = arguments(unpack(thread.regs))
            for arg in args:  # those that are no addresses are in no mapping
                pages |= _pages(arg, WORDS_BYTES)
            if nr("poll") in (thread.syscall.nr, thread.syscall.evidence.get("call")):
                pages |= _pages(args[0], min(args[1], MOST_POLLED) * POLLFD_BYTES)
    return pages


def _lists(tasks: Iterable[Task], source: GenerationPages) -> set[int]:
    """Page numbers of lists of buffers of which a transfer goes on: whoever lets the thread go reads them (native/src/lists.c), and is the
    one that would bring them."""
    pages: set[int] = set()
    for task in tasks:
        for thread in task.threads:
            row = BY_NR.get(thread.syscall.nr)
            if thread.decision.action is not Action.GO_ON or row is None or row.goes_on is not GoesOn.LIST:
                continue
            arg = arguments(unpack(thread.regs))
            at, count = arg[1], arg[2]
            if row.vector is Vector.MSGHDR:
                pages |= _pages(at, MSGHDR.size)
                _name, _size, at, count = MSGHDR.unpack(_held(source, task.mm, at, MSGHDR.size))
            pages |= _pages(at, min(count, MOST_BUFFERS) * IOVEC_BYTES)
    return pages


def _held(source: GenerationPages, space: int, at: int, size: int) -> bytes:
    """Zeros for what the generation holds elsewhere, or not at all: in shared memory, in a file."""
    out = b""
    held = [(first, first + count) for first, count, content in RUN.iter_unpack(source.raw_runs(space)) if content == Content.DATA]
    for page in sorted(_pages(at, size)):
        here = any(first <= page < end for first, end in held)
        out += b"".join(source.read(space, page, 1)) if here else bytes(PAGE)
    return out[at % PAGE :][:size]


def _pages(start: int, size: int) -> set[int]:
    return set(range(start // PAGE, (start + size - 1) // PAGE + 1))


def _without(start: int, end: int, pages: Sequence[int]) -> list[tuple[int, int]]:
    """The range less single pages, which are sorted."""
    out, at = [], start
    for page in pages:
        address = page * PAGE
        if at <= address < end:
            if address > at:
                out.append((at, address))
            at = address + PAGE
    if at < end:
        out.append((at, end))
    return out


def opened(tree: Tree, parts: Iterable[Later]) -> dict[int, Later]:
    """Before anything is changed in the newborns: userfaultfd -> what it will be for."""
    return {open_userfaultfd(tree, part.task.pid): part for part in parts if part.ranges}


class LazyServer:
    """Made while the newborns are frozen and whole but for these parts; `begin` as soon as they run; `serve` returns when they have
    everything."""

    def __init__(self, born: Newborns, store: Path, generation: int, source: GenerationPages, parts: Mapping[int, Later]) -> None:
        """`parts`: by the userfaultfd of their memory (`opened`)."""
        self.born, self.store, self.generation, self.source = born, store, generation, source
        memories: list[Memory] = []
        for fd, part in parts.items():
            segments = part.segments(source.raw_runs(part.task.mm))
            memories.append(register(fd, part.task.pid, part.task.mm, part.ranges, segments))
        self._left = threading.Event()
        self._threads: list[threading.Thread] = []
        self.guardian = Guardian([memory.fd for memory in memories])
        self.filler = Filler(memories, self.guardian.hold)

    @property
    def pages_left(self) -> int:
        return sum(memory.segments.bytes_left() for memory in self.filler.memories) // PAGE

    def begin(self) -> None:
        """The program already waits for its first pages. Not before it runs: a thread stands where its maker stands, and who freezes
        stands in the way (native/src/pace.c)."""
        gc.freeze()  # a collection would look through all that was read and planned, with the program waiting
        self._start(self._answer)
        self._start(self._bring_ahead)

    def _start(self, work: Callable[..., None], *args: object) -> None:
        thread = threading.Thread(target=work, args=args, daemon=True)
        thread.start()
        self._threads.append(thread)

    def serve(self) -> None:
        """By the thread that froze the tree. Raises CkptError when the store fails: then the program is ended by our end."""
        signal.signal(signal.SIGUSR2, lambda _number, _frame: None)
        self._start(self._wake, threading.main_thread().ident)
        while self.born.tree.attend() and not self.filler.done.is_set():
            pass
        self.filler.done.set()
        self._left.set()
        for thread in self._threads:
            thread.join()
        if self.filler.failed is not None:
            self.born.end()
            raise self._ended(self.filler.failed)
        self.guardian.release()
        self.filler.close()
        self.born.tree.leave()

    def _ended(self, why: BaseException) -> CkptError:
        """Of the kind that the store's failure has."""
        try:
            with translated(self.store):
                raise why
        except Exception as error:
            kind = type(error) if isinstance(error, CkptError) else CkptError
            return kind(f"task {self.born.ref.pid}: cannot be filled, and is ended: {error}")

    def _answer(self) -> None:
        """By the store that is open already, and that nobody else uses any more."""
        self.filler.answer(_fetcher(self.source))

    def _bring_ahead(self) -> None:
        """With a store of its own: two threads do not share one. Nothing of that costs the first misses anything."""
        self.filler.stand_back()
        try:
            with open_store(self.store, Mode.READ) as history:
                self.filler.bring_all(_fetcher(history.pages(self.generation)))
        except BaseException as error:
            self.filler.failed = error
            self.filler.done.set()

    def _wake(self, main: int) -> None:
        """The main thread waits in the kernel for stops of the program: a signal tells it that everything is there."""
        self.filler.done.wait()
        while not self._left.wait(_WAKE_S) and threading.main_thread().is_alive():
            signal.pthread_kill(main, signal.SIGUSR2)


def _fetcher(source: GenerationPages) -> Fetch:
    def fetch(space: int, spans: Sequence[tuple[int, int]]) -> bytes:
        return b"".join(source.read_runs(space, as_runs(spans)))

    return fetch


# ---- front and server ----

Work = Callable[[Callable[[Mapping[str, Any]], None]], object]


def in_background(work: Work) -> dict[str, Any]:
    """Forks a server that does `work`, which calls what it is given with the answer as soon as there is one; returns that, or
    raises what ended the server before."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        _be_server(work, writing)
    os.close(writing)
    with os.fdopen(reading, "rb") as told:
        answer = told.read()
    if not answer:
        _pid, status = os.waitpid(child, 0)
        why = KILLED_WHY if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL else f"(status {status})"
        raise CkptError(f"its server was ended before the program ran {why}: nothing of it is left; try again")
    said = json.loads(answer)
    if "failed" in said:
        raise _again(said["failed"], said["message"])
    return dict(said)


def _be_server(work: Work, writing: int) -> None:
    """Never returns."""
    said = False

    def tell(answer: Mapping[str, Any]) -> None:
        nonlocal said
        said = True
        _detach()
        os.write(writing, json.dumps(answer).encode())
        os.close(writing)

    status = 0
    try:
        os.setsid()
        work(tell)
    except BaseException as error:
        status = 1
        if said:
            _report(error)
        else:
            failed = type(error).__name__ if isinstance(error, CkptError) else "CkptError"
            os.write(writing, json.dumps({"failed": failed, "message": str(error)}).encode())
    finally:
        os._exit(status)


def _detach() -> None:
    """Whoever reads our streams to their end must not wait for us. Nobody does so with a terminal or a file: there we may still say why a
    program was ended."""
    null = os.open(os.devnull, os.O_RDWR)
    lasting = os.isatty(2) or stat.S_ISREG(os.fstat(2).st_mode)
    for stream in range(2 if lasting else 3):
        os.dup2(null, stream)
    os.close(null)


def _report(error: BaseException) -> None:
    """What went wrong when the command had ended long since: on its standard error, where that is still there, and in the system's log."""
    line = "ckpt: " + " ".join(str(error).split())
    with suppress(OSError):
        os.write(2, line.encode() + b"\n")
    syslog.syslog(syslog.LOG_DAEMON | syslog.LOG_ERR, line)


def _again(name: str, message: str) -> CkptError:
    kind = getattr(errors, name, CkptError)
    made: CkptError = kind(message)
    return made
