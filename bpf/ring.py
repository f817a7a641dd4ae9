"""A BPF ring buffer whose records all have one size, read in bulk.

libbcc gives each record to a callback (some microseconds of Python each). Here what lies in the ring is unpacked at one go: the kernel
maps its data twice in a row, so it never wraps. Layout: kernel/bpf/ringbuf.c. A page with our position, a page with the
producer's, the data; a record is u32 length (bit 31: not complete yet), u32 offset, and its bytes, padded to 8. None is ever given up (bit
30): our programs put whole records in, by bpf_ringbuf_output().
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator
from typing import Any

_BUSY = 1 << 31


class Ring:
    """`fields`: struct format of one record's bytes, without alignment and a multiple of 8 long. `size`: bytes of the ring."""

    def __init__(self, fd: int, size: int, fields: str) -> None:
        self._record = struct.Struct(f"<II{fields}")
        self._lengths = struct.Struct(f"<I{self._record.size - 4}x")
        page = mmap.PAGESIZE
        self._ours = mmap.mmap(fd, page, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE, offset=0)
        self._theirs = mmap.mmap(fd, page + 2 * size, mmap.MAP_SHARED, mmap.PROT_READ, offset=page)
        self._consumer = memoryview(self._ours).cast("Q")
        self._producer = memoryview(self._theirs)[:8].cast("Q")
        self._data = memoryview(self._theirs)[page:]
        self._size = size

    def take_raw(self) -> bytes:
        """All complete records in order, for `unpack`; their room is the kernel's again."""
        start, end = self._consumer[0], self._producer[0]
        place = start & (self._size - 1)
        with self._data[place : place + (end - start)] as lent:
            lengths = self._lengths.iter_unpack(lent)
            taken = next((at for at, (length,) in enumerate(lengths) if length & _BUSY), len(lent) // self._record.size)
            found = bytes(lent[: taken * self._record.size])
        self._consumer[0] = start + len(found)
        return found

    def unpack(self, raw: bytes | bytearray | memoryview) -> Iterator[tuple[Any, ...]]:
        """The fields of each record."""
        return (record[2:] for record in self._record.iter_unpack(raw))

    def record(self, raw: bytes | bytearray | memoryview, index: int) -> tuple[Any, ...]:
        """The fields of one."""
        return self._record.unpack_from(raw, index * self._record.size)[2:]

    def take(self) -> list[tuple[Any, ...]]:
        return list(self.unpack(self.take_raw()))

    def close(self) -> None:
        for view in (self._consumer, self._producer, self._data):
            view.release()
        self._ours.close()
        self._theirs.close()
