"""Where the core puts what it reads. Buffers that a Sink lends (records, runs, page bytes) are valid until its next reset."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from ckpt.errors import CkptError
from ckpt.model import PAGE
from native._native import ffi, lib


@dataclass(frozen=True, slots=True)
class SpaceRuns:
    space: int
    runs: memoryview  #: struct ckpt_run[]
    data_offset: int
    data_pages: int
    paranoid_runs: memoryview
    paranoid_offset: int


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
