"""Keeping together what is read together: after a publication, now and then, packs whose contents have parted ways are split.

A pack is written by one generation, sorted by page. Later generations rewrite some of its pages: then part of the pack lives
on in the newest generation, and part is only read by older ones. Once the dead part of a pack has become a fifth of it, both are
moved: what lives goes together with what lives of its neighbours, what died with what died since the last time. So a pack
holds contents that came at about the same time and, in the end, went at about the same time; whichever generation is read
needs most of each pack that it touches, the first as well as the last. Contents keep their ids: only their places change.

The work is bounded by what was stored since it was last done, so on average a content is moved a few times in all.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping

from store import packs
from store.database import transaction
from store.layouts import Layout
from store.manifests import load_layouts
from store.records import StoreError

__all__ = ["tend"]

_EVERY, _LEAST = 16, 512  #: part of the resident pages that must have been stored anew before it pays to look, and how many at least
_SPAN = 8  #: dead contents are kept apart when between their coming this part of the resident pages was stored
_SPLIT = 0.2  #: of a pack's bytes are dead: it is split. Smaller: denser packs, more moved (each content about 1 / _SPLIT - 1 times)
_SMALL, _MERGE = 4, 8  #: packs of less than 1 / _SMALL of the wanted size are merged when there are so many
_BUDGET, _BUDGET_LEAST = 4, 16 << 20  #: bytes moved for each byte stored since the last time, and what is always allowed
_BUDGET_MOST = 32 << 20  #: in one publication, so that none takes much longer than others; the rest is for the next ones
_FRAMES_LEAST = 128
_CHECK = 16


def tend(connection: sqlite3.Connection, number: int) -> bool:
    """After generation `number` was published; whether anything was due. What goes wrong here harms nothing and is not reported."""
    try:
        due = _due(connection, number)
        if due is None:
            return False
        lineage, resident, stored, size, last = due
        with transaction(connection):
            most = min(max(resident // _EVERY, _FRAMES_LEAST), packs.FRAMES_MAX)
            now = packs.next_number(connection)
            span = max(1, resident * (now - last) // (stored * _SPAN))
            budget = max(_BUDGET * size, _BUDGET_LEAST)
            finished = _split(connection, load_layouts(connection, number), most, span, min(budget, _BUDGET_MOST))
            if finished or budget <= _BUDGET_MOST:
                connection.execute(
                    "UPDATE lineages SET untended = 0, untended_bytes = 0, tended_pack = ? WHERE lineage = ?",
                    (packs.next_number(connection), lineage),
                )
    except (sqlite3.Error, StoreError, MemoryError):
        pass  # a full disk, a damaged pack: everything is where it was, and fsck tells
    return True


def _due(connection: sqlite3.Connection, number: int) -> tuple[str, int, int, int, int] | None:
    """(lineage, resident pages, pages and bytes stored since the last time, the next pack then), where it pays to look."""
    row = connection.execute(
        "SELECT lineage, (SELECT coalesce(sum(pages - zero_pages), 0) FROM spaces s WHERE s.generation = g.generation), "
        "untended, untended_bytes, tended_pack FROM generations g JOIN lineages USING (lineage) WHERE generation = ?",
        (number,),
    ).fetchone()
    return row if row is not None and row[2] >= max(row[1] // _EVERY, _LEAST) else None


def _split(connection: sqlite3.Connection, head: Mapping[int, Layout], most: int, span: int, budget: int) -> bool:
    """Whether all that is due was done."""
    live = packs.Live(sorted({block for layout in head.values() for block in layout.blocks()}))
    for layout in head.values():
        live.mark(layout)
    old, fresh = packs.Packer(connection, most), packs.Packer(connection, most)
    first = 0
    # Deleted at the end: what is written into pages that the same transaction freed is journalled, which doubles the bytes.
    moved: list[int] = []
    chosen, finished = _chosen(connection, live, most, budget)
    for block, number in chosen:
        pack = packs.load(connection, number, data=True)
        if pack is None:
            continue
        if block > first + span:
            old.flush()
            first = block
        fresh.take(pack, live, True)
        old.take(pack, live, False)
        moved.append(number)
    fresh.flush()
    old.flush()
    packs.delete(connection, moved)
    return finished


def _chosen(connection: sqlite3.Connection, live: packs.Live, most: int, budget: int) -> tuple[list[tuple[int, int]], bool]:
    """(first block, pack) to split or merge: the deadest first as far as the budget goes, then sorted; and whether that is all of them."""
    found: list[tuple[float, int, int, int]] = []
    small: list[tuple[float, int, int, int]] = []
    for number in packs.of_blocks(connection, live.blocks):
        pack = packs.load(connection, number)
        if pack is None:
            continue
        alive, alive_bytes = live.of(pack)
        size = sum(memoryview(pack.lengths).cast("H")) + _CHECK * pack.frames
        dead = 1 - alive_bytes / max(size, 1)
        entry = (-dead, packs.blocks_of(pack.contents)[0], number, size)
        if alive and dead >= _SPLIT:
            found.append(entry)
        elif alive and pack.frames * _SMALL < most:
            small.append(entry)
    if len(small) >= _MERGE:
        found += small
    chosen: list[tuple[int, int]] = []
    for _, block, number, size in sorted(found):
        budget -= size
        if budget < 0:
            break
        chosen.append((block, number))
    return sorted(chosen), len(chosen) == len(found)
