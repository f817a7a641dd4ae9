"""The layout of one memory: what is unmapped, mapped, protected so that `now` becomes `wanted`.

Both layouts are cut at each other's borders. A piece that stands in both with the same backing at the same offset is
left alone but for its protection; everything else is unmapped or mapped with MAP_FIXED.

Invariants
 1. Descriptors for mappings are opened first: the mapping that still holds an object may be the one that goes.
 2. Then what goes is unmapped, then brk moves (its way is free now), then the rest is mapped and protected.
 3. Mappings of the kernel (vdso, vvar, vsyscall, uprobes) are never touched in a living process; a vdso elsewhere means an exec
    since: refused. In a newborn they are moved (newborn.py).
 4. Nothing that is equal is touched, so that its pages stay tracked. An anonymous mapping that was one becomes one again.

[stack]: what it has grown since is unmapped again. It holds only dead frames of the undone time, the kernel grows it again
by itself, and an exact layout keeps `verify` simple. Where it was larger then, a MAP_GROWSDOWN piece is put below it. The
same holds for other mappings that grow down (of which older generations know nothing: `_with_growing`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from ckpt.kinds.base import value
from ckpt.model import Backing, Mapping, OpenFile, Task
from ckpt.plan import batch as b
from ckpt.plan.advice import Advised, advise, may_become, take_keys
from ckpt.plan.batch import Batch, page_up
from ckpt.plan.newborn import Frame
from ckpt.plan.objects import Objects
from ckpt.plan.sources import FileIdentity, LayoutPlan, Sources, World, changes

__all__ = ["FileIdentity", "LayoutPlan", "Piece", "World", "brk_of", "cut", "heap_end", "paths_to_check", "plan_layout", "without"]


@dataclass(frozen=True, slots=True)
class Piece:
    """[start, end) with at most one mapping on either side."""

    start: int
    end: int
    now: Mapping | None
    wanted: Mapping | None
    torn: bool = False  #: the wanted mapping is one, and what stands there is not: it is mapped anew as a whole


def plan_layout(
    now: Task, wanted: Task, now_files: Sequence[OpenFile], world: World, frame: Frame | None = None, objects: Objects | None = None
) -> LayoutPlan:
    """The calls that turn now's layout into wanted's. `frame`: now is a newborn. `objects`: shared memory that is made anew."""
    plan = LayoutPlan()
    who = f"task {wanted.pid} ({wanted.comm})"
    objects = objects or Objects()
    wanted = _with_growing(now, wanted)
    if frame:
        plan.refusals += frame.refusals
        frame.first(plan.batch)
    elif _vdso(now.mappings) != _vdso(wanted.mappings):
        plan.refusals.append(f"{who}: its vdso lies elsewhere: it has executed another program since; ckpt restore --replace")
        return plan
    moved = _emptied(now) if frame else _brk_move(now, wanted)
    pieces = _pieces(moved, wanted)
    plan.refusals += _sealed(pieces, who)
    if wanted.pid in objects.first:
        plan.batch.extend(objects.first[wanted.pid].calls)
    sources = Sources(plan, now, now_files, world, objects, who)
    for piece in pieces:
        if piece.wanted and not _same(piece) and piece.wanted.backing.kind != "anonymous":
            sources.open(piece.wanted)
    if plan.refusals or objects.refused:
        return plan
    if frame:
        frame.aside(plan.batch)
        take_keys(wanted.mappings, plan.finish)
    _Layout(plan, wanted.pid, moved, pieces, sources, objects).put_in_place(now)
    if frame:
        frame.last(plan.batch)
        plan.warnings += frame.warnings
    sources.close()
    if wanted.pid in objects.last:
        plan.finish.calls[:0] = objects.last[wanted.pid].calls
    _warn_changed(plan, pieces, who, objects)
    return plan


@dataclass(frozen=True, slots=True)
class _BrkMove:
    brk: int | None  #: None = it stays
    in_the_way: list[tuple[int, int]]
    after: list[Mapping]  #: the layout of now once brk has moved


def _emptied(newborn: Task) -> _BrkMove:
    """Nothing of a newborn stays, not even what looks alike: its pages are ckpt's."""
    return _BrkMove(None, [(start, end) for start, end, _ in _merged((m.start, m.end, True) for m in _ours(newborn.mappings))], [])


def _brk_move(now: Task, wanted: Task) -> _BrkMove:
    """What moving the program break changes in the layout by itself."""
    ours = _ours(now.mappings)
    heap = next((mapping for mapping in wanted.mappings if mapping.name == "[heap]"), None)
    old = brk_of(now) or (heap.start if heap else 0)
    new = brk_of(wanted) or min((mapping.start for mapping in ours if mapping.name == "[heap]"), default=0)
    if old == new or not old or not new:
        return _BrkMove(None, [], ours)
    low, high = sorted((page_up(old), page_up(new)))
    after = without(ours, low, high)
    if new < old:
        return _BrkMove(new, [], after)
    in_the_way = [(max(m.start, low), min(m.end, high)) for m in ours if m.start < high and m.end > low]
    if high > low:
        grown = Mapping(low, high, b.PROT_READ | b.PROT_WRITE, b.MAP_PRIVATE | b.MAP_ANONYMOUS, Backing("anonymous"), "[heap]")
        after = sorted([*after, grown], key=lambda mapping: mapping.start)
    return _BrkMove(new, in_the_way, after)


def heap_end(mappings: Iterable[Mapping]) -> int:
    """The end of [heap], 0 where there is none."""
    return max((mapping.end for mapping in mappings if mapping.name == "[heap]"), default=0)


def paths_to_check(now: Task, wanted: Task, *, newborn: bool = False) -> set[str]:
    """Paths whose identity the plan needs to know: files that have to be mapped again."""
    moved = _emptied(now) if newborn else _brk_move(now, wanted)
    return {
        piece.wanted.backing.path
        for piece in _pieces(moved, wanted)
        if piece.wanted and piece.wanted.backing.kind == "file" and not piece.wanted.backing.deleted and not _same(piece)
    }


def _pieces(moved: _BrkMove, wanted: Task) -> list[Piece]:
    """The cut layouts. An anonymous mapping that was one and now would be put together of several is torn: a kernel's mapping
    has a page offset and an anon_vma of its own, so pieces do not join, and mremap over their border fails with EFAULT."""
    pieces = list(cut(moved.after, _ours(wanted.mappings)))
    parts: dict[int, set[int]] = {}
    for piece in pieces:
        if piece.wanted and piece.wanted.backing.kind == "anonymous" and piece.wanted.name != "[heap]" and not _grows(piece):
            parts.setdefault(piece.wanted.start, set()).add(piece.now.start if piece.now else -1)
    return [replace(piece, torn=True) if piece.wanted and len(parts.get(piece.wanted.start, ())) > 1 else piece for piece in pieces]


def _grows(piece: Piece) -> bool:
    return bool(piece.wanted and piece.wanted.flags & b.MAP_GROWSDOWN)


def _with_growing(now: Task, wanted: Task) -> Task:
    """Older generations do not know which mappings grow down: those that do now did so then."""
    if all(mapping.advice is not None or mapping.backing.kind == "kernel" for mapping in wanted.mappings):
        return wanted
    ends = {mapping.end for mapping in now.mappings if mapping.flags & b.MAP_GROWSDOWN}
    marked = (
        replace(m, flags=m.flags | b.MAP_GROWSDOWN) if m.advice is None and m.end in ends and m.backing.kind == "anonymous" else m
        for m in wanted.mappings
    )
    return replace(wanted, mappings=tuple(marked))


def _sealed(pieces: Iterable[Piece], who: str) -> list[str]:
    """What mseal() forbids: to unmap, to map over, to protect otherwise. A seal is never taken back."""
    said = []
    for piece in pieces:
        if piece.now is None or "sl" not in (piece.now.advice or ()):
            continue
        wanted = piece.wanted
        if not _same(piece) or wanted is None or wanted.prot != piece.now.prot or (wanted.advice is not None and "sl" not in wanted.advice):
            said.append(f"{who}: mapping {piece.start:x}-{piece.end:x} has been sealed (mseal): it cannot be brought back in place")
    return said[:1]


def cut(now: Sequence[Mapping], wanted: Sequence[Mapping]) -> Iterator[Piece]:
    """Cuts both layouts at each other's borders, in order of address; places where neither has anything are left out."""
    borders = sorted({edge for mapping in (*now, *wanted) for edge in (mapping.start, mapping.end)})
    here, there = iter(now), iter(wanted)
    left, right = next(here, None), next(there, None)
    for start, end in pairwise(borders):
        while left and left.end <= start:
            left = next(here, None)
        while right and right.end <= start:
            right = next(there, None)
        in_now = left if left and left.start <= start else None
        in_wanted = right if right and right.start <= start else None
        if in_now or in_wanted:
            yield Piece(start, end, in_now, in_wanted)


def _vdso(mappings: Iterable[Mapping]) -> int | None:
    return next((mapping.start for mapping in mappings if mapping.name == "[vdso]"), None)


def _ours(mappings: Iterable[Mapping]) -> list[Mapping]:
    return [mapping for mapping in mappings if mapping.backing.kind != "kernel"]


_KIND_FLAGS = b.MAP_SHARED | b.MAP_PRIVATE | b.MAP_GROWSDOWN


def _same(piece: Piece) -> bool:
    """The same backing at the same place: only its protection may differ."""
    now, wanted = piece.now, piece.wanted
    if piece.torn or now is None or wanted is None or now.backing.kind != wanted.backing.kind:
        return False
    if (now.flags ^ wanted.flags) & _KIND_FLAGS or not may_become(now, wanted):
        return False
    if now.backing.kind == "anonymous":
        return True
    return (now.backing.dev, now.backing.ino, now.backing.offset - now.start) == (
        wanted.backing.dev,
        wanted.backing.ino,
        wanted.backing.offset - wanted.start,
    )


def _merged(pieces: Iterable[tuple[int, int, object]]) -> list[tuple[int, int, object]]:
    """Joins neighbours that carry the same key."""
    out: list[tuple[int, int, object]] = []
    for start, end, key in pieces:
        if out and out[-1][1] == start and out[-1][2] == key:
            out[-1] = (out[-1][0], end, key)
        else:
            out.append((start, end, key))
    return out


def _unmap(batch: Batch, pieces: Sequence[Piece]) -> None:
    for start, end, _ in _merged((p.start, p.end, True) for p in pieces if p.now and p.wanted is None):
        batch.add(b.NR_MUNMAP, start, end - start, note=f"munmap {start:x}-{end:x}")


class _Layout:
    """The calls that put the pieces in place, in order."""

    def __init__(self, plan: LayoutPlan, pid: int, moved: _BrkMove, pieces: Sequence[Piece], sources: Sources, objects: Objects) -> None:
        self.plan, self.batch, self.pid, self.moved, self.pieces = plan, plan.batch, pid, moved, pieces
        self.sources, self.objects = sources, objects

    def put_in_place(self, now: Task) -> None:
        why = "" if self.moved.brk is None else " (in the way of the heap)"
        for start, end in self.moved.in_the_way:
            self.batch.add(b.NR_MUNMAP, start, end - start, note=f"munmap {start:x}-{end:x}{why}")
        _unmap(self.batch, self.pieces)
        if self.moved.brk is not None:
            self.batch.add(b.NR_BRK, self.moved.brk, note=f"brk {self.moved.brk:x}", expect=self.moved.brk)
        for start, end, mapping in _merged((p.start, p.end, p.wanted) for p in self.pieces if p.wanted and not _same(p)):
            assert isinstance(mapping, Mapping)
            if not self.objects.put(self.pid, mapping, start, end, self.batch):
                self._map(mapping, start, end)
        _protect(self.batch, self.pieces)
        advise(_advised(self.pieces, now), self.batch, self.plan.finish)

    def _map(self, mapping: Mapping, start: int, end: int) -> None:
        advice = mapping.advice or ()
        flags = mapping.flags & (_KIND_FLAGS | b.MAP_NORESERVE) | b.MAP_FIXED
        if "dp" in advice:
            flags = flags & ~_KIND_FLAGS | b.MAP_DROPPABLE
        name = mapping.backing.path or mapping.name or mapping.backing.kind
        descriptor, offset = value(-1), 0
        if mapping.backing.kind == "anonymous":
            flags |= b.MAP_ANONYMOUS | (b.MAP_NORESERVE if mapping.prot == 0 and mapping.advice is None else 0)
        else:
            descriptor, offset = self.sources.of(mapping), mapping.backing.offset + start - mapping.start
        # Memory that was writable once stays promised: the kernel counts it, and joins no neighbours that differ in that. It takes
        # the promise back for what is protected before there ever was a page (mm/mprotect.c, anon_vma): so one comes and goes, and
        # the protection is set when the pages stand.
        prot = mapping.prot | (b.PROT_WRITE if "ac" in advice else 0)
        note = f"mmap {start:x}-{end:x} {prot_text(prot)} {name}"
        self.batch.add(b.NR_MMAP, start, end - start, prot, flags, descriptor, offset, note=note, expect=start)
        if prot != mapping.prot:
            for how, verb in ((b.MADV_POPULATE_WRITE, "touch"), (b.MADV_DONTNEED, "and empty")):
                self.batch.add(b.NR_MADVISE, start, b.PAGE_SIZE, how, note=f"{verb} {start:x}", expect=None)
            note = f"mprotect {start:x}-{end:x} {prot_text(mapping.prot)}"
            self.plan.finish.add(b.NR_MPROTECT, start, end - start, mapping.prot, note=note)


def _advised(pieces: Sequence[Piece], now: Task) -> list[Advised]:
    """What holds where advice is given. Under mlockall(MCL_FUTURE), which nobody shows, what is mapped anew is locked."""
    ours = [mapping for mapping in now.mappings if mapping.backing.kind == "anonymous" and mapping.prot]
    locked = bool(ours) and all("lo" in (mapping.advice or ()) for mapping in ours)
    parts = []
    for piece in pieces:
        if piece.wanted is None:
            continue
        if piece.now is not None and _same(piece):
            parts.append(Advised(piece.start, piece.end, frozenset(piece.now.advice or ()), piece.now.guards, piece.wanted))
        else:
            parts.append(Advised(piece.start, piece.end, frozenset(("lo",) if locked else ()), (), piece.wanted))
    return parts


def _protect(batch: Batch, pieces: Sequence[Piece]) -> None:
    changed = [
        (piece.start, piece.end, piece.wanted.prot)
        for piece in pieces
        if piece.now and piece.wanted and _same(piece) and piece.now.prot != piece.wanted.prot
    ]
    for start, end, prot in _merged(changed):
        assert isinstance(prot, int)
        batch.add(b.NR_MPROTECT, start, end - start, prot, note=f"mprotect {start:x}-{end:x} {prot_text(prot)}")


def prot_text(prot: int) -> str:
    return "".join(letter if prot & bit else "-" for letter, bit in (("r", 1), ("w", 2), ("x", 4)))


def _identity(backing: Backing) -> FileIdentity:
    return FileIdentity(backing.dev, backing.ino, backing.size, backing.mtime_ns)


def _warn_changed(plan: LayoutPlan, pieces: Sequence[Piece], who: str, objects: Objects) -> None:
    changed = {
        piece.wanted.backing.path
        for piece in pieces
        if piece.now
        and piece.wanted
        and _same(piece)
        and piece.wanted.backing.kind == "file"
        and piece.now.backing.mtime_ns
        and changes(_identity(piece.now.backing), piece.wanted.backing)
        and not piece.wanted.flags & b.MAP_SHARED
    }
    for path in sorted(changed):
        plan.warnings.append(f"{who}: {path} has changed since: its unwritten pages show the file of now")
    shared = {
        piece.wanted.backing.path
        for piece in pieces
        if piece.wanted and piece.wanted.backing.kind == "file" and piece.wanted.flags & b.MAP_SHARED and piece.wanted.prot & b.PROT_WRITE
        if (piece.wanted.backing.dev, piece.wanted.backing.ino) not in objects.captured
    }
    for path in sorted(shared):
        plan.warnings.append(f"{who}: {path} is mapped shared: the file's contents are not rolled back")


def brk_of(task: Task) -> int:
    """The exact program break where the kind `memory` knows it, else the end of [heap]."""
    for state in task.attributes.values():
        if isinstance(state.get("brk"), int):
            return int(state["brk"])
    return heap_end(task.mappings)


def without(mappings: Sequence[Mapping], start: int, end: int) -> list[Mapping]:
    """The layout less one range (the bridge of an abandoned rollback)."""
    out: list[Mapping] = []
    for mapping in mappings:
        if mapping.start < start:
            out.append(replace(mapping, end=min(mapping.end, start)) if mapping.end > start else mapping)
        if mapping.end > end and mapping.start < end:
            out.append(replace(mapping, start=max(mapping.start, end)))
        elif mapping.start >= end:
            out.append(mapping)
    return out
