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
same holds for other mappings that grow down; the text of maps does not name them, so the caller does (`with_growing`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence, Set
from collections.abc import Mapping as MappingABC
from dataclasses import dataclass, field, replace
from itertools import pairwise

from ckpt.kinds.base import value
from ckpt.model import Backing, Mapping, OpenFile, RemoteArg, Task
from ckpt.plan import batch as b
from ckpt.plan.batch import Batch, page_up
from ckpt.plan.newborn import Frame


@dataclass(frozen=True, slots=True)
class FileIdentity:
    """What stands under a path in the target's root, as the caller found it just now."""

    dev: int
    ino: int
    size: int
    mtime_ns: int


#: path in the target's root -> what stands there; a path that is not named is gone.
World = MappingABC[str, FileIdentity]


@dataclass(frozen=True, slots=True)
class Piece:
    """[start, end) with at most one mapping on either side."""

    start: int
    end: int
    now: Mapping | None
    wanted: Mapping | None
    torn: bool = False  #: the wanted mapping is one, and what stands there is not: it is mapped anew as a whole


@dataclass(slots=True)
class LayoutPlan:
    batch: Batch = field(default_factory=Batch)
    refusals: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def plan_layout(now: Task, wanted: Task, now_files: Sequence[OpenFile], world: World, frame: Frame | None = None) -> LayoutPlan:
    """The calls that turn now's layout into wanted's. `frame`: now is a newborn."""
    plan = LayoutPlan()
    who = f"task {wanted.pid} ({wanted.comm})"
    if frame:
        plan.refusals += frame.refusals
        frame.first(plan.batch)
    elif _vdso(now.mappings) != _vdso(wanted.mappings):
        plan.refusals.append(f"{who}: its vdso lies elsewhere: it has executed another program since; ckpt restore --replace")
        return plan
    moved = _BrkMove(None, [], _ours(now.mappings)) if frame else _brk_move(now, wanted)
    pieces = _pieces(moved, wanted)
    sources = _Sources(plan, now, now_files, world, who)
    for piece in pieces:
        if piece.wanted and not _same(piece) and piece.wanted.backing.kind != "anonymous":
            sources.open(piece.wanted)
    if plan.refusals:
        return plan
    if frame:
        frame.aside(plan.batch)
    _put_in_place(plan.batch, moved, pieces, sources)
    if frame:
        frame.last(plan.batch)
        plan.warnings += frame.warnings
    sources.close()
    _warn_changed(plan, pieces, who)
    return plan


def _put_in_place(batch: Batch, moved: _BrkMove, pieces: Sequence[Piece], sources: _Sources) -> None:
    for start, end in moved.in_the_way:
        batch.add(b.NR_MUNMAP, start, end - start, note=f"munmap {start:x}-{end:x} (in the way of the heap)")
    _unmap(batch, pieces)
    if moved.brk is not None:
        batch.add(b.NR_BRK, moved.brk, note=f"brk {moved.brk:x}", expect=moved.brk)
    _map(batch, pieces, sources)
    _protect(batch, pieces)


@dataclass(frozen=True, slots=True)
class _BrkMove:
    brk: int | None  #: None = it stays
    in_the_way: list[tuple[int, int]]
    after: list[Mapping]  #: the layout of now once brk has moved


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
    moved = _BrkMove(None, [], _ours(now.mappings)) if newborn else _brk_move(now, wanted)
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


def starts_moved(now: Task, wanted: Task) -> bool:
    """Whether an anonymous mapping begins elsewhere than it did, as one that grows down may: then the caller has to look (smaps)."""
    starts = {mapping.end: mapping.start for mapping in now.mappings if mapping.backing.kind == "anonymous"}
    return any(starts.get(m.end, m.start) != m.start for m in wanted.mappings if m.backing.kind == "anonymous" and m.name != "[stack]")


def with_growing(task: Task, ends: Set[int]) -> Task:
    """The task whose anonymous mappings that end there are known to grow down."""
    if not any(mapping.end in ends for mapping in task.mappings):
        return task
    marked = (
        replace(mapping, flags=mapping.flags | b.MAP_GROWSDOWN) if mapping.end in ends and mapping.backing.kind == "anonymous" else mapping
        for mapping in task.mappings
    )
    return replace(task, mappings=tuple(marked))


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
    if (now.flags ^ wanted.flags) & _KIND_FLAGS:
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


def _map(batch: Batch, pieces: Sequence[Piece], sources: _Sources) -> None:
    wanted = [(p.start, p.end, p.wanted) for p in pieces if p.wanted and not _same(p)]
    for start, end, item in _merged(wanted):
        mapping = item
        assert isinstance(mapping, Mapping)
        flags = mapping.flags & _KIND_FLAGS | b.MAP_FIXED
        name = mapping.backing.path or mapping.name or mapping.backing.kind
        descriptor, offset = value(-1), 0
        if mapping.backing.kind == "anonymous" or sources.anew(mapping):
            flags |= b.MAP_ANONYMOUS | (b.MAP_NORESERVE if mapping.prot == 0 else 0)
        else:
            descriptor, offset = sources.of(mapping), mapping.backing.offset + start - mapping.start
        note = f"mmap {start:x}-{end:x} {prot_text(mapping.prot)} {name}"
        batch.add(b.NR_MMAP, start, end - start, mapping.prot, flags, descriptor, offset, note=note, expect=start)


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


def _warn_changed(plan: LayoutPlan, pieces: Sequence[Piece], who: str) -> None:
    changed = {
        piece.wanted.backing.path
        for piece in pieces
        if piece.now
        and piece.wanted
        and _same(piece)
        and piece.wanted.backing.kind == "file"
        and _newer(piece.now.backing, piece.wanted.backing)
        and not piece.wanted.flags & b.MAP_SHARED
    }
    for path in sorted(changed):
        plan.warnings.append(f"{who}: {path} has changed since: its unwritten pages show the file of now")
    shared = {
        piece.wanted.backing.path
        for piece in pieces
        if piece.wanted and piece.wanted.backing.kind == "file" and piece.wanted.flags & b.MAP_SHARED and piece.wanted.prot & b.PROT_WRITE
    }
    for path in sorted(shared):
        plan.warnings.append(f"{who}: {path} is mapped shared: the file's contents are not rolled back")


def _newer(now: Backing, wanted: Backing) -> bool:
    return bool(now.mtime_ns and wanted.mtime_ns and (now.mtime_ns, now.size) != (wanted.mtime_ns, wanted.size))


class _Sources:
    """Descriptors from which files and shared objects are mapped: one that the task has, its path, or a mapping that still is."""

    def __init__(self, plan: LayoutPlan, now: Task, now_files: Sequence[OpenFile], world: World, who: str) -> None:
        self._plan, self._now, self._world, self._who = plan, now, world, who
        self._files = {file.id: file for file in now_files}
        self._found: dict[tuple[int, int, bool], RemoteArg] = {}
        self._opened: list[RemoteArg] = []
        self._anew: set[tuple[int, int]] = set()

    def _key(self, mapping: Mapping) -> tuple[int, int, bool]:
        """Writable only where a write goes to the object: the access mode bounds later mprotects, as it did at first."""
        writable = mapping.flags & b.MAP_SHARED and (mapping.prot & b.PROT_WRITE or mapping.backing.kind == "object")
        return mapping.backing.dev, mapping.backing.ino, bool(writable)

    def of(self, mapping: Mapping) -> RemoteArg:
        return self._found[self._key(mapping)]

    def anew(self, mapping: Mapping) -> bool:
        """Its object is gone and is made anew as shared anonymous memory; its pages are written like any others."""
        return (mapping.backing.dev, mapping.backing.ino) in self._anew

    def open(self, mapping: Mapping) -> None:
        key = self._key(mapping)
        if key in self._found or self.anew(mapping):
            return
        found = self._held(mapping, key[2]) or self._by_path(mapping, key[2]) or self._by_mapping(mapping, key[2])
        if found is not None:
            self._found[key] = found
        elif not self._plan.refusals or not self._plan.refusals[-1].startswith(self._name(mapping)):
            self._refuse_or_anew(mapping)

    def _name(self, mapping: Mapping) -> str:
        return f"{self._who}: mapping {mapping.start:x}-{mapping.end:x} of {mapping.backing.path or 'a shared object'}"

    def _held(self, mapping: Mapping, writable: bool) -> RemoteArg | None:
        modes = (b.O_RDWR,) if writable else (b.O_RDWR, b.O_RDONLY)
        for descriptor in self._now.descriptors:
            file = self._files.get(descriptor.file)
            if file is None or file.flags & b.O_PATH or file.flags & b.O_ACCMODE not in modes:
                continue
            if (file.state.get("dev"), file.state.get("ino")) == (mapping.backing.dev, mapping.backing.ino):
                return value(descriptor.fd)
        return None

    def _by_path(self, mapping: Mapping, writable: bool) -> RemoteArg | None:
        backing = mapping.backing
        if backing.kind != "file" or backing.deleted:
            return None
        there = self._world.get(backing.path)
        if there is None or (there.dev, there.ino) != (backing.dev, backing.ino):
            return None
        if backing.mtime_ns and not mapping.flags & b.MAP_SHARED and (there.size, there.mtime_ns) != (backing.size, backing.mtime_ns):
            self._plan.refusals.append(f"{self._name(mapping)}: the file has changed since the generation")
            return None
        return self._open(backing.path, writable)

    def _by_mapping(self, mapping: Mapping, writable: bool) -> RemoteArg | None:
        for other in self._now.mappings:
            same = (other.backing.dev, other.backing.ino) == (mapping.backing.dev, mapping.backing.ino)
            if same and other.backing.kind in ("file", "object"):
                return self._open(f"/proc/self/map_files/{other.start:x}-{other.end:x}", writable)
        return None

    def _open(self, path: str, writable: bool) -> RemoteArg:
        flags = (b.O_RDWR if writable else b.O_RDONLY) | b.O_CLOEXEC
        opened = self._plan.batch.add(b.NR_OPEN, path.encode(errors="surrogateescape") + b"\0", flags, 0, note=f"open {path}")
        self._opened.append(opened)
        return opened

    def _refuse_or_anew(self, mapping: Mapping) -> None:
        backing = mapping.backing
        if backing.kind == "object" and backing.path.startswith("/dev/zero") and backing.offset == 0:
            self._anew.add((backing.dev, backing.ino))
            self._plan.warnings.append(f"{self._name(mapping)}: no task holds the object any more: it is made anew")
            return
        what = "the file is gone or is another one" if backing.kind == "file" else "the object is gone"
        self._plan.refusals.append(f"{self._name(mapping)}: {what}; ckpt restore --replace")

    def close(self) -> None:
        for opened in self._opened:
            self._plan.batch.add(b.NR_CLOSE, opened, note="close what was opened for mapping")


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
