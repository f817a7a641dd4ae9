"""First writes summed up: by the mapping that was written, and by the function that wrote."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping as MappingABC
from dataclasses import dataclass

from ckpt.live.symbols import Layout, Symbols, Where
from ckpt.live.telemetry import FirstWrites, call_of


@dataclass(frozen=True, slots=True)
class MappingWrites:
    pid: int
    start: int
    end: int
    name: str  #: "[gone]": not mapped any more
    pages: int


@dataclass(frozen=True, slots=True)
class FunctionWrites:
    file: str
    symbol: str | None
    offset: int | None  #: where there is no symbol
    call: str | None  #: the call in which the kernel wrote for it; None: it wrote itself
    pages: int
    tids: tuple[int, ...]


def layouts(first: FirstWrites) -> dict[int, Layout]:
    """The present mappings of every process that has written."""
    return {pid: Layout.read(pid) for pid in {pid for pid, _ in first}}


def by_mapping(first: FirstWrites, maps: MappingABC[int, Layout]) -> list[MappingWrites]:
    """Most pages first."""
    counts: Counter[tuple[int, int, int, str]] = Counter()
    for pid, page in first:
        mapping = maps[pid].at(page)
        if mapping is None:
            counts[pid, 0, 0, "[gone]"] += 1
        else:
            counts[pid, mapping.start, mapping.end, mapping.name or mapping.backing.path or f"[{mapping.backing.kind}]"] += 1
    return [MappingWrites(*key, pages) for key, pages in counts.most_common()]


def by_function(first: FirstWrites, maps: MappingABC[int, Layout], symbols: Symbols) -> list[FunctionWrites]:
    """Most pages first."""
    places: dict[tuple[int, int], Where] = {}
    counts: Counter[tuple[str, str | None, int | None, str | None]] = Counter()
    tids: dict[tuple[str, str | None, int | None, str | None], set[int]] = {}
    for write in first.values():
        where = places.get((write.pid, write.ip))
        if where is None:
            where = places[write.pid, write.ip] = symbols.where(maps[write.pid], write.ip)
        key = where.file, where.symbol, None if where.symbol else where.offset, call_of(write)
        counts[key] += 1
        tids.setdefault(key, set()).add(write.tid)
    return [FunctionWrites(*key, pages, tuple(sorted(tids[key]))) for key, pages in counts.most_common()]
