"""First writes to pages that tracking has protected: who, when, by which instruction (src/writes.bpf.c)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from bpf.lifecycle import Filter
from bpf.program import Program
from bpf.ring import Ring
from bpf.told import Told

RECORD = 48  #: bytes of one event in what `take_raw` gives
RING_BYTES = 16 << 20  #: 350,000 first writes between two readings


class Write(NamedTuple):
    """One fault. A tuple: there may be hundreds of thousands."""

    ns: int  #: CLOCK_MONOTONIC
    place: int  #: the page's address; bit 0: written by the kernel on the thread's behalf
    ip: int  #: address of the instruction; of the call's, where the kernel wrote
    tid: int
    pid: int  #: whose memory it is; that of the thread's process, but for one that was born by vfork and has not executed yet
    nr: int  #: number of the call in which the kernel wrote, -1: none
    pad: int


class Writes(Told):
    def __init__(self, tree: Filter, ring_bytes: int = RING_BYTES) -> None:
        self._program = Program("writes", {"by_user": "page_fault_user", "by_kernel": "page_fault_kernel"}, tree.shared, ring_bytes)
        self._ring = Ring(self._program.maps["events"], ring_bytes, "QQQIIiI")

    def take(self) -> list[Write]:
        """In the order of their recording; of a page that faulted more than once, all."""
        return list(self.unpack(self.take_raw()))

    def take_raw(self) -> bytes:
        """The same, 48 bytes each, for `unpack`."""
        return self._ring.take_raw()

    def unpack(self, raw: bytes | bytearray | memoryview) -> Iterator[Write]:
        return map(Write._make, self._ring.unpack(raw))

    def event(self, raw: bytes | bytearray | memoryview, index: int) -> Write:
        return Write._make(self._ring.record(raw, index))

    def lost(self) -> int:
        """Events that found no room, all in all."""
        return self._program.counter("lost")
