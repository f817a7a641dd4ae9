"""Pages whose content differs between two generations, by mapping. Told by identity in the store: no page is read."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ckpt.history import runs as raw
from ckpt.history.rows import mapping_name, permissions
from ckpt.model import PAGE, Content, Mapping, Snapshot, Task

if TYPE_CHECKING:
    from ckpt.history.open import History


@dataclass(frozen=True, slots=True)
class PageChanges:
    """Pages of one mapping whose content differs between two generations. Counts are pages."""

    pid: int
    space: int
    name: str
    start: int
    end: int
    permissions: str
    changed: int  #: populated in both or in the later one alone
    gone: int  #: populated in the earlier one alone
    ranges: tuple[tuple[int, int], ...]  #: (address, pages) of all of them


def changed_pages(history: History, a: int, snapshot_a: Snapshot, b: int, snapshot_b: Snapshot) -> list[PageChanges]:
    """By mapping of the later generation (of the earlier one where the mapping is gone). No page is read."""
    found: list[PageChanges] = []
    old_tasks = {task.pid: task for task in snapshot_a.tasks}
    for task in snapshot_b.tasks:
        old = old_tasks.get(task.pid) or (snapshot_a.task(snapshot_a.root.pid) if task.pid == snapshot_b.root.pid else None)
        if old is not None:
            found += _of_task(list(raw.unpack(history.store.diff(a, old.mm, b, task.mm))), old, task)
    then = {(item.dev, item.ino): item.space for item in snapshot_a.objects}
    for item in snapshot_b.objects:
        space = then.get((item.dev, item.ino))
        if space is not None:
            runs = list(raw.unpack(history.store.diff(a, space, b, item.space)))
            found += _changes(0, item.space, f"shared memory {item.dev:x}:{item.ino}", 0, item.size, "rw-s", runs)
    return found


def _of_task(runs: list[tuple[int, int, int]], old: Task, new: Task) -> Iterable[PageChanges]:
    private = [item for item in new.mappings if item.backing.kind != "object"]
    for mapping, inside in _split(runs, private):
        yield from _changes(new.pid, new.mm, mapping_name(mapping), mapping.start, mapping.end, permissions(mapping), inside)
    left = list(_outside(runs, private))
    for mapping, inside in _split(left, [item for item in old.mappings if item.backing.kind != "object"]):
        title = f"{mapping_name(mapping)} (gone)"
        yield from _changes(new.pid, old.mm, title, mapping.start, mapping.end, permissions(mapping), inside)


Run = tuple[int, int, int]


def _split(runs: Sequence[Run], mappings: Sequence[Mapping]) -> Iterable[tuple[Mapping, list[Run]]]:
    """Runs cut at the borders of mappings; both are sorted, one pass over each."""
    place = 0
    for mapping in sorted(mappings, key=lambda item: item.start):
        first, end = mapping.start // PAGE, mapping.end // PAGE
        while place < len(runs) and runs[place][0] + runs[place][1] <= first:
            place += 1
        inside, at = [], place
        while at < len(runs) and runs[at][0] < end:
            page, count, content = runs[at]
            low, high = max(page, first), min(page + count, end)
            inside.append((low, high - low, content))
            at += 1
        if inside:
            yield mapping, inside


def _outside(runs: Sequence[Run], mappings: Sequence[Mapping]) -> Iterable[Run]:
    """The parts of runs that no mapping covers."""
    borders = [(item.start // PAGE, item.end // PAGE) for item in sorted(mappings, key=lambda item: item.start)]
    place = 0
    for page, count, content in runs:
        end = page + count
        while place < len(borders) and borders[place][1] <= page:
            place += 1
        at = place
        while page < end:
            if at == len(borders) or borders[at][0] >= end:
                yield page, end - page, content
                break
            if borders[at][0] > page:
                yield page, borders[at][0] - page, content
            page = max(page, borders[at][1])
            at += 1


def _changes(pid: int, space: int, name: str, start: int, end: int, letters: str, runs: Sequence[Run]) -> Iterable[PageChanges]:
    gone = sum(count for _, count, content in runs if content == Content.ABSENT)
    total = sum(count for _, count, _ in runs)
    if total:
        ranges = tuple((page * PAGE, count) for page, count, _ in runs)
        yield PageChanges(pid, space, name, start, end, letters, total - gone, gone, ranges)
