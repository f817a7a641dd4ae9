"""What a store holds and how well it deduplicates, as a whole and by lineage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ckpt.model import PAGE

if TYPE_CHECKING:
    from ckpt.history.open import Generation, History


@dataclass(frozen=True, slots=True)
class LineageStats:
    """Sums over the generations that are there. Pages are 4096 bytes."""

    lineage: str
    command: str
    pid: int
    generations: int
    first_ns: int
    last_ns: int
    bytes_held: int  #: what the generations would take as plain copies
    bytes_stored: int  #: what they added to the store
    pages_read: int
    pages_zero: int
    pages_deduplicated: int
    pages_stored: int


def store_stats(history: History) -> dict[str, Any]:
    """The keys of `ckpt stats --json`."""
    lineages = lineage_stats(history.generations())
    file_bytes = sum(path.stat().st_size for path in _files(history.path))
    held = sum(item.bytes_held for item in lineages)
    return {
        "store": str(history.path),
        "format": history.store.format,
        "bytes_file": file_bytes,
        "bytes_held": held,
        "bytes_stored": sum(item.bytes_stored for item in lineages),
        "ratio": round(held / file_bytes, 3) if file_bytes else 0.0,
        "generations": sum(item.generations for item in lineages),
        "tags": len(history.store.tags()),
        "pages": {what: sum(getattr(item, f"pages_{what}") for item in lineages) for what in ("read", "zero", "deduplicated", "stored")},
        "lineages": lineages,
    }


def _files(path: Path) -> list[Path]:
    """The store and what SQLite keeps beside it."""
    return [each for each in (path.with_name(path.name + end) for end in ("", "-wal", "-shm", "-journal")) if each.exists()]


def lineage_stats(generations: Sequence[Generation]) -> list[LineageStats]:
    from ckpt.history.names import lineages

    return [_lineage(name, group) for name, group in lineages(generations).items()]


def _lineage(name: str, group: Sequence[Generation]) -> LineageStats:
    def total(what: str) -> int:
        return sum(item.pages[what] for item in group)

    return LineageStats(
        lineage=name,
        command=group[-1].command,
        pid=group[-1].pid,
        generations=len(group),
        first_ns=group[0].created_ns,
        last_ns=group[-1].created_ns,
        bytes_held=total("resident") * PAGE,
        bytes_stored=sum(item.bytes_stored for item in group),
        pages_read=total("read"),
        pages_zero=total("zero"),
        pages_deduplicated=total("deduplicated"),
        pages_stored=total("stored"),
    )
