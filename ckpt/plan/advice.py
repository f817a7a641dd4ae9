"""What each mapping was advised (procfs/smaps.py), brought back by calls. Pure.

Invariants
 1. In the stage of the mappings, so before the pages: what pages are made of (huge or not), what forks and dumps do, and locks. Locks are
    set while every right is still there; a newborn gives rights up later. Contents written afterwards fall into locked memory.
 2. mlock2(MLOCK_ONFAULT) says whether memory may be locked at all, and fills nothing; the mlock() behind it fills what can be
    filled and may fail for the rest (PROT_NONE, guard pages), as it did for the program.
 3. At the end, when the pages stand: guard pages (what is under them goes), protection keys, seals (they forbid all else).
 4. A key can be used by a memory that has allocated it. A newborn has none: it allocates as many as the mappings name, which the kernel
    gives in order; those that were allocated and protect nothing nobody can see (no hardware here to try it on: by source).
 5. Huge pages, once advised for or against, cannot be un-advised: such a mapping is made anew (`may_become`).
 6. A mapping that was not known to be advised or not (older generations) is left as it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from ckpt.model import Mapping
from ckpt.plan import batch as b
from ckpt.plan.batch import Batch

_NR_MLOCK, _NR_MUNLOCK, _NR_MLOCK2, _NR_PKEY_MPROTECT, _NR_PKEY_ALLOC, _NR_MSEAL = 149, 150, 325, 329, 330, 462
_MLOCK_ONFAULT = 1
_GUARD_INSTALL, _GUARD_REMOVE = 102, 103
_NORMAL = 0
_SWITCHES = {"dc": (10, 11), "wf": (18, 19), "dd": (16, 17), "mg": (12, 13)}  #: word -> MADV_ to set, to take back
_HUGE = {"hg": 14, "nh": 15}
_ORDER = {"sr": 2, "rr": 1}
_MAY_FAIL = frozenset((12, 13, 14, 15))  #: kernels without KSM or huge pages
_NAMES = {
    0: "normal", 1: "random", 2: "sequential", 10: "dontfork", 11: "dofork", 12: "mergeable", 13: "unmergeable", 14: "hugepage",
    15: "nohugepage", 16: "dontdump", 17: "dodump", 18: "wipeonfork", 19: "keeponfork", 102: "guard install", 103: "guard remove",
}  # fmt: skip

Words = frozenset[str]
Span = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Advised:
    """A part of a wanted mapping; `old`: what holds there by then, nothing where it is mapped anew."""

    start: int
    end: int
    old: Words
    guarded: tuple[Span, ...]  #: guard pages that are there by then
    wanted: Mapping


@dataclass(slots=True)
class _Steps:
    """Calls of one sort after the other; neighbours with the same call become one."""

    spans: dict[tuple[int, int], list[Span]] = field(default_factory=dict)  #: (nr, argument) -> ranges

    def add(self, nr: int, argument: int, start: int, end: int) -> None:
        spans = self.spans.setdefault((nr, argument), [])
        if spans and spans[-1][1] == start:
            spans[-1] = (spans[-1][0], end)
        else:
            spans.append((start, end))


def may_become(old: Mapping, new: Mapping) -> bool:
    """Whether calls can bring the one's advice to the other's."""
    if old.advice is None or new.advice is None:
        return True
    lost = {*old.advice} - {*new.advice}
    huge = bool(lost & {"hg", "nh"}) and not {"hg", "nh"} & {*new.advice}
    fixed = ({*old.advice} ^ {*new.advice}) & {"mw", "dp"} or (old.flags ^ new.flags) & b.MAP_NORESERVE
    return not huge and not fixed


def take_keys(mappings: Iterable[Mapping], finish: Batch) -> None:
    """For a newborn, before any other call of `finish`. (For execute-only memory the kernel takes a key by itself.)"""
    last = max((_key_of(mapping.advice or ()) for mapping in mappings if mapping.prot != b.PROT_EXEC), default=0)
    for key in range(1, last + 1):
        finish.add(_NR_PKEY_ALLOC, 0, 0, note=f"pkey_alloc: protection key {key}", expect=key)


#: What no call gives: how it was mapped, or what it was (ckpt/plan/mappings.py).
_MAPPED_SO = frozenset(("ac",))


def advise(parts: Sequence[Advised], before: Batch, finish: Batch) -> None:
    """`before`: the end of the stage of the mappings; `finish`: once the pages stand."""
    early, locks, late, last = _Steps(), _Steps(), _Steps(), _Steps()
    for part in parts:
        if part.wanted.advice is None:
            continue
        new = frozenset(part.wanted.advice)
        if not part.wanted.guards and not part.guarded and new ^ part.old <= _MAPPED_SO:
            continue
        guards = [(max(low, part.start), min(high, part.end)) for low, high in part.wanted.guards if low < part.end and high > part.start]
        _madvise(early, part, new)
        for low, high in part.guarded:
            if (low, high) not in guards:
                early.add(b.NR_MADVISE, _GUARD_REMOVE, low, high)
        install = [span for span in guards if span not in part.guarded]
        for low, high in install:
            late.add(b.NR_MADVISE, _GUARD_INSTALL, low, high)
        if install and "lo" in part.old:  # refused in locked memory
            early.add(_NR_MUNLOCK, 0, part.start, part.end)
            part = replace(part, old=part.old - {"lo"})
        _lock(late if install else locks, early, part, new)
        _at_last(last, part, new)
    for batch, steps in ((before, early), (before, locks), (finish, late), (finish, last)):
        _emit(batch, steps)


def _madvise(steps: _Steps, part: Advised, new: Words) -> None:
    for word, (wish, undo) in _SWITCHES.items():
        if (word in new) != (word in part.old):
            steps.add(b.NR_MADVISE, wish if word in new else undo, part.start, part.end)
    for word, wish in _HUGE.items():
        if word in new and word not in part.old:
            steps.add(b.NR_MADVISE, wish, part.start, part.end)
    order, was = ({*_ORDER} & words for words in (new, part.old))
    if order != was:
        steps.add(b.NR_MADVISE, next((_ORDER[word] for word in order), _NORMAL), part.start, part.end)


def _lock(steps: _Steps, early: _Steps, part: Advised, new: Words) -> None:
    if "lo" in part.old and "lo" not in new:
        early.add(_NR_MUNLOCK, 0, part.start, part.end)
    elif "lo" in new and ("lo" not in part.old or ("lf" in new) != ("lf" in part.old)):
        steps.add(_NR_MLOCK2, _MLOCK_ONFAULT, part.start, part.end)
        if "lf" not in new:
            steps.add(_NR_MLOCK, 0, part.start, part.end)


def _key_of(words: Iterable[str]) -> int:
    return next((int(word[2:]) for word in words if word.startswith("pk")), 0)


def _at_last(steps: _Steps, part: Advised, new: Words) -> None:
    if (key := _key_of(new)) != _key_of(part.old) and part.wanted.prot != b.PROT_EXEC:  # for those the kernel takes one itself
        steps.add(_NR_PKEY_MPROTECT, key << 3 | part.wanted.prot, part.start, part.end)
    if "sl" in new and "sl" not in part.old:
        steps.add(_NR_MSEAL, 0, part.start, part.end)


def _emit(batch: Batch, steps: _Steps) -> None:
    for (nr, argument), spans in sorted(steps.spans.items(), key=lambda item: item[0][0] == _NR_MSEAL):
        for start, end in spans:
            where, size = f"{start:x}-{end:x}", end - start
            if nr == b.NR_MADVISE:
                note = f"madvise {where} {_NAMES[argument]}"
                batch.add(nr, start, size, argument, note=note, expect=None if argument in _MAY_FAIL else 0)
            elif nr == _NR_MLOCK2:
                batch.add(nr, start, size, argument, note=f"mlock {where}")
            elif nr == _NR_MLOCK:
                batch.add(nr, start, size, note=f"mlock {where}: fill it", expect=None)
            elif nr == _NR_PKEY_MPROTECT:
                batch.add(nr, start, size, argument & 7, argument >> 3, note=f"pkey_mprotect {where} key {argument >> 3}")
            else:
                batch.add(nr, start, size, 0, note=f"{'munlock' if nr == _NR_MUNLOCK else 'mseal'} {where}")
