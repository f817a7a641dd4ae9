"""A program that is attached and tells by a ring: both end together."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from bpf.program import Program
from bpf.ring import Ring


class Told:
    _program: Program
    _ring: Ring

    def close(self) -> None:
        self._ring.close()
        self._program.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
