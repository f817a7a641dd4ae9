"""A BPF ring buffer whose records all have one size, read in bulk.

libbcc gives each record to a callback (some microseconds of Python each). Here what lies in the ring is unpacked at one go: the kernel
maps its data twice in a row, so it never wraps. Layout: kernel/bpf/ringbuf.c. A page with our position, a page with the
producer's, the data; a record is u32 length (bit 31: not complete yet, bit 30: dropped), u32 offset, and its bytes, padded to 8.
"""

from __future__ import annotations

import mmap
import struct
from typing import Any

_BUSY, _DROPPED = 1 << 31, 1 << 30


class Ring:
    """`fields`: struct format of one record's bytes, without alignment and a multiple of 8 long. `size`: bytes of the ring."""

    def __init__(self, fd: int, size: int, fields: str) -> None:
        self._record = struct.Struct(f"<II{fields}")
        page = mmap.PAGESIZE
        self._ours = mmap.mmap(fd, page, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE, offset=0)
        self._theirs = mmap.mmap(fd, page + 2 * size, mmap.MAP_SHARED, mmap.PROT_READ, offset=page)
        self._consumer = memoryview(self._ours).cast("Q")
        self._producer = memoryview(self._theirs)[:8].cast("Q")
        self._data = memoryview(self._theirs)[page:]
        self._size = size

    def take(self) -> list[tuple[Any, ...]]:
        """All complete records in order, as tuples of their fields; their room is the kernel's again."""
        start, end = self._consumer[0], self._producer[0]
        if start == end:
            return []
        place = start & (self._size - 1)
        with self._data[place : place + (end - start)] as lent:
            found: list[tuple[Any, ...]] = []
            taken = 0
            for record in self._record.iter_unpack(lent):
                if record[0] & _BUSY:
                    break
                taken += self._record.size
                if not record[0] & _DROPPED:
                    found.append(record[2:])
        self._consumer[0] = start + taken
        return found

    def close(self) -> None:
        for view in (self._consumer, self._producer, self._data):
            view.release()
        self._ours.close()
        self._theirs.close()
