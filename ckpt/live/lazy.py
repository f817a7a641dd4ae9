"""Memory that is filled while its program runs: faults are answered, the rest is brought ahead, and what the program does to
its layout meanwhile is followed (native/src/lazy.c).

Invariants
 1. Events are read and pages are brought under one lock. A call that drops, moves or unmaps pages waits until its event was
    read, and the kernel refuses copies until then (EAGAIN): so no page is brought to where it does not belong any more.
 2. A fault on a page that no segment names is a page that the program has not: zeros, and so are its neighbours that no segment names.
 3. A forked child misses just what its parent missed at that moment.
 4. Done means that no segment is left in any memory; only then are the descriptors closed, and missing pages are the kernel's again.
"""

from __future__ import annotations

import os
import select
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from ckpt.errors import CkptError
from ckpt.live.core import Tree
from ckpt.model import PAGE
from ckpt.plan.segments import Segment, Segments
from native._native import ffi, lib

EAGAIN, ENOENT, ESRCH, EFAULT = -11, -2, -3, -14
CLUSTER = 16 * PAGE  #: what is touched lies together: an aligned piece of so many bytes comes with a page that was missed
WIDEST = 256 * PAGE  #: and four times as much each time that the next miss is beside it, up to this
PIECE = 64  #: pages brought at once under the lock: a fault waits no longer than their copy takes
AHEAD = 256  #: pages read from the store at once
_PAUSE_S = 0.001
STAND_BACK_S = 0.01  #: after a miss nothing is brought ahead for so long: processor, lock and interpreter are for the next miss

#: (space, (first page in the generation, the page behind the last).. sorted) -> their bytes
Fetch = Callable[[int, Sequence[tuple[int, int]]], bytes]


@dataclass(slots=True)
class Memory:
    fd: int  #: its userfaultfd
    space: int
    segments: Segments
    cursor: int = 0  #: where bringing ahead goes on
    faults: list[int] = field(default_factory=list)  #: addresses that could not be answered yet
    low: int = 0  #: what came with the last miss
    high: int = 0

    def around(self, address: int) -> tuple[int, int]:
        """What comes with a missed page: the more, the longer the misses follow each other."""
        width, last = CLUSTER, self.high - self.low
        if last and self.low - last <= address < self.high + last:
            width = min(4 * last, WIDEST)
        self.low = address // width * width
        self.high = self.low + width
        return self.low, self.high


def open_userfaultfd(tree: Tree, pid: int) -> int:
    """Made by the process itself, for its memory; ours alone. While it still has our rights: those that a program of another user has do
    not suffice for one that answers the kernel's own accesses."""
    made = ffi.new("int32_t *", -1)
    tree.check(int(lib.ckpt_lazy_open(tree.handle, tree.ours(pid), made)), "make a userfaultfd")
    return int(made[0])


def register(fd: int, pid: int, space: int, ranges: Sequence[tuple[int, int]], segments: Segments) -> Memory:
    """The ranges (start, end) of a frozen process: from here on whoever touches a missing page waits for us."""
    for start, end in ranges:
        code = int(lib.ckpt_lazy_register(fd, start, end))
        if code < 0:
            os.close(fd)
            raise CkptError(f"task {pid}: mapping {start:x}-{end:x} cannot be filled later: {os.strerror(-code)}: restore without --lazy")
    return Memory(fd, space, segments)


class Filler:
    """`forked`: told the descriptor of a child's memory. `advanced`: told how many bytes are left."""

    def __init__(self, memories: Sequence[Memory], forked: Callable[[int], None]) -> None:
        self.memories = list(memories)
        self.forked = forked
        self.lock = threading.Lock()
        self.brought = self.missed = 0  #: pages
        self.done = threading.Event()
        self.failed: BaseException | None = None
        self.asked = time.monotonic()  #: when the program last missed something that the generation has

    # ---- answering ----

    def answer(self, fetch: Fetch) -> None:
        """Until everything is there. By a thread of its own."""
        try:
            while not self.done.is_set():
                waiting = any(memory.faults for memory in self.memories)
                poller = select.poll()
                for memory in self.memories:
                    poller.register(memory.fd, select.POLLIN)
                poller.poll(1 if waiting else 20)
                with self.lock:
                    if not self.done.is_set():
                        self._answer_all(fetch)
        except BaseException as error:
            self.failed = error
            self.done.set()

    def _answer_all(self, fetch: Fetch) -> None:
        for memory in list(self.memories):
            self._read_events(memory)
        for memory in self.memories:
            waiting, memory.faults = memory.faults, []
            for address in dict.fromkeys(waiting):
                self._fault(memory, address, fetch)

    def _read_events(self, memory: Memory) -> None:
        event = ffi.new("struct ckpt_lazy_event *")
        while int(lib.ckpt_lazy_event(memory.fd, event)) == 1:
            kind, start, end = int(event.kind), int(event.start), int(event.end)
            if kind == lib.CKPT_LAZY_FAULT:
                memory.faults.append(start)
            elif kind == lib.CKPT_LAZY_FORK:
                child = Memory(int(event.fd), memory.space, memory.segments.copy())
                self.memories.append(child)
                self.forked(child.fd)
                self._read_events(child)
            elif kind == lib.CKPT_LAZY_MOVE:
                memory.segments.move(start, end, int(event.to))
            else:
                memory.segments.remove(start, end)

    def _fault(self, memory: Memory, address: int, fetch: Fetch) -> None:
        self.missed += 1
        low, high = memory.around(address)
        behind, before = memory.segments.within(address, high), memory.segments.within(low, address)
        if behind or before:
            self.asked = time.monotonic()
        first = behind[0].start if behind else high
        if address < first and not self._zero(memory, address, first):
            memory.faults.append(address)
            return
        for part, data in _fetched(memory.space, (*behind, *before), fetch):
            if self._bring(memory, part, data) == 0:
                memory.faults.append(address)
                return
        for start, end in _between((*before, *behind), low, high):
            self._zero(memory, start, end)

    def _zero(self, memory: Memory, start: int, end: int) -> bool:
        """Pages that the generation has not: where one of them is missed, its neighbours will be. False: not now."""
        return int(lib.ckpt_lazy_zero(memory.fd, start, (end - start) // PAGE)) != EAGAIN

    def _bring(self, memory: Memory, part: Segment, data: bytes | memoryview) -> int:
        """Pages that stand there now. The segments are right, since the lock is held and no event is unread that was acted on."""
        pages = (part.end - part.start) // PAGE
        done = int(lib.ckpt_lazy_copy(memory.fd, part.start, ffi.from_buffer(data), pages))
        if done == EAGAIN:
            return 0
        if done in (ENOENT, ESRCH, EFAULT):  # unmapped, or the process is gone: nobody misses it
            memory.segments.remove(part.start, part.end if done == ESRCH else part.start + PAGE)
            return 0 if done == ESRCH else 1
        if done < 0:
            raise CkptError(f"page {part.start:#x} cannot be brought: {os.strerror(-done)}")
        memory.segments.remove(part.start, part.start + done * PAGE)
        self.brought += done
        return done

    # ---- bringing ahead ----

    def bring_all(self, fetch: Fetch) -> None:
        """Everything that nobody has asked for yet; sets `done` when nothing is left. By a thread of its own."""
        try:
            while not self.done.is_set() and self._bring_some(fetch):
                self.stand_back()
        except BaseException as error:
            self.failed = error
            self.done.set()

    def stand_back(self) -> None:
        """While the program is missing things. Each miss brings some, so it ends."""
        while time.monotonic() - self.asked < STAND_BACK_S and not self.done.wait(STAND_BACK_S / 4):
            pass

    def _bring_some(self, fetch: Fetch) -> bool:
        with self.lock:
            memory = next((one for one in self.memories if one.segments), None)
            segment = memory.segments.after(memory.cursor) if memory is not None else None
            if memory is None or segment is None:
                self.done.set()
                return False
        count = min(AHEAD, (segment.end - segment.start) // PAGE)
        first = segment.source // PAGE
        data = fetch(memory.space, [(first, first + count)])
        for at in range(0, count, PIECE):
            self._bring_ahead(memory, segment, at, min(PIECE, count - at), data)
        memory.cursor = segment.start + count * PAGE
        return True

    def _bring_ahead(self, memory: Memory, segment: Segment, first: int, count: int, data: bytes) -> None:
        """What of the piece still belongs where it was when it was fetched."""
        address, end = segment.start + first * PAGE, segment.start + (first + count) * PAGE
        while address < end and not self.done.is_set():
            with self.lock:
                now = memory.segments.at(address)
                if now is None or now.source != segment.source + address - segment.start:
                    address += PAGE  # brought by a fault, dropped or moved
                    continue
                part = now.part(address, min(now.end, end))
                offset = address - segment.start
                done = self._bring(memory, part, data[offset : offset + part.end - part.start])
            if done == 0:
                time.sleep(_PAUSE_S)  # an event waits to be read: by the other thread
            address += done * PAGE

    def close(self) -> None:
        for memory in self.memories:
            os.close(memory.fd)


def _fetched(space: int, parts: Sequence[Segment], fetch: Fetch) -> list[tuple[Segment, memoryview]]:
    """Each part with its bytes, all read at once."""
    places, spans, size = {}, [], 0
    for one in sorted(parts, key=lambda one: one.source):
        places[one] = size
        spans.append((one.source // PAGE, (one.source + one.end - one.start) // PAGE))
        size += one.end - one.start
    data = memoryview(fetch(space, spans)) if spans else memoryview(b"")
    return [(one, data[places[one] : places[one] + one.end - one.start]) for one in parts]


def _between(parts: Sequence[Segment], low: int, high: int) -> list[tuple[int, int]]:
    """What of the range no part names."""
    found, at = [], low
    for one in parts:
        if one.start > at:
            found.append((at, one.start))
        at = one.end
    if at < high:
        found.append((at, high))
    return found
