"""One line of the speed table, and a folder to measure in."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Row:
    name: str
    ours: float
    unit: str
    floor: float | None  #: same unit; None = the limit is absolute
    limit: float  #: a ratio to the floor, or in the unit
    note: str = ""

    @property
    def figure(self) -> float:
        return self.ours / self.floor if self.floor else self.ours

    @property
    def met(self) -> bool:
        return self.figure <= self.limit


@contextmanager
def scratch() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="ckpt-bench-", dir=os.environ.get("CKPT_BENCH_DIR")) as name:
        yield Path(name)
