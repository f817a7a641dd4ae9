"""What the store gives and takes: frozen records, and the one error that it raises. No handles."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Counts", "GcResult", "Generation", "Problem", "Progress", "Rows", "StoreError"]

#: Called as (what is being done, done, of how many) now and then; may be None.
Progress = Callable[[str, int, int], None]


class StoreError(Exception):
    """One clear line. `kind`: missing, not-a-store, newer, damaged, read-only, permission, locked, full, no-generation, tagged, io."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message


@dataclass(frozen=True, slots=True)
class Counts:
    """Pages of one `add` (read = zero + deduplicated + stored), and the bytes of the frames that it stored."""

    read: int = 0
    zero: int = 0
    deduplicated: int = 0
    stored: int = 0
    bytes_stored: int = 0


@dataclass(frozen=True, slots=True)
class Generation:
    """One generation. Times in nanoseconds; `snapshot` is opaque here, and left empty in lists of generations."""

    number: int
    parent: int | None
    lineage: str
    incarnation: str
    kind: str  #: "full" | "incremental"
    tracker: str
    pid: int
    command: str
    created_ns: int
    tags: tuple[str, ...] = ()
    stop_ns: int = 0
    total_ns: int = 0
    pages: Mapping[str, int] = field(default_factory=dict)  #: resident, dirty, read, zero, deduplicated, stored
    bytes_stored: int = 0
    phases: Mapping[str, int] = field(default_factory=dict)
    snapshot: bytes = b""


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows of a plain table that are too many to be a mapping each: gone through once. Of two with one key the first counts."""

    columns: tuple[str, ...]
    values: Iterable[tuple[Any, ...]]


@dataclass(frozen=True, slots=True)
class GcResult:
    """What gc did. `bytes_freed` is what the file became smaller."""

    packs_removed: int
    packs_rewritten: int
    frames_dropped: int
    bytes_freed: int


@dataclass(frozen=True, slots=True)
class Problem:
    """One broken invariant of FORMAT.md (0: SQLite's own), in words, and the generation that it touches (None: the store)."""

    invariant: int
    message: str
    generation: int | None = None
    repaired: bool = False
