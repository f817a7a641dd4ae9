"""What only a newborn needs (a fork of ckpt that becomes the wanted process): the kernel's own mappings brought to where the
program knows them to be, and the frame of its memory: program break, arguments, auxiliary vector, executed file.

Invariants
 1. A newborn has no descriptors: the executed file, opened first of all, gets number 0 (the structure that PR_SET_MM_MAP takes
    holds a number, not a result).
 2. vvar, vvar_vclock and vdso move in two hops, by a place that neither layout has: old and new place may overlap, and what
    the newborn has where they belong is still in use until everything else is unmapped. The vdso's tail, where injected code
    begins, is found through the auxiliary vector: so the second hop and the vector are of one batch.
 3. They are moved, never copied: the kernel knows them by what they are (arch/x86/entry/vdso/vma.c, vdso_mremap). A vdso of
    another build than the program has bound itself to is refused.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

from ckpt.kinds.task.memory import lay_out
from ckpt.model import PAGE, Mapping, State, Task
from ckpt.plan import batch as b
from ckpt.plan.batch import Batch

MOVED = ("[vvar]", "[vvar_vclock]", "[vdso]")
_NR_MREMAP, _MREMAP_MAYMOVE, _MREMAP_FIXED = 25, 1, 2
_DELETED = " (deleted)"
_LADDER, _STEP = 0x3900_0000_0000, 0x10_0000


class Frame:
    """The calls around a newborn's layout, in three places: `first`, before anything is unmapped, `last`."""

    def __init__(self, now: Task, wanted: Task, build: tuple[State, State]) -> None:
        self.now, self.wanted = now, wanted
        here, there = _of_kernel(now.mappings), _of_kernel(wanted.mappings)
        self.refusals: list[str] = []
        self.warnings: list[str] = []
        self.moves: list[tuple[Mapping, int, int]] = []  #: what, by where, to where
        self.memory = wanted.attributes.get("memory", {})
        if not _same_build(here, there, *build):
            self.refusals.append(
                f"task {wanted.pid} ({wanted.comm}): its vdso is of another build of the kernel ({build[1].get('kernel', '?')})"
            )
            return
        scratch = _hole((*now.mappings, *wanted.mappings), sum(m.end - m.start for m in here))
        for mapping, goal in zip(here, there, strict=True):
            self.moves.append((mapping, scratch, goal.start))
            scratch += mapping.end - mapping.start

    def first(self, batch: Batch) -> None:
        self.exe = self._executed()
        if self.exe:
            batch.add(b.NR_OPEN, os.fsencode(self.exe) + b"\0", b.O_RDONLY | b.O_CLOEXEC, 0, note=f"open {self.exe}")

    def aside(self, batch: Batch) -> None:
        for mapping, scratch, _goal in self.moves:
            _move(batch, mapping.start, mapping.end - mapping.start, scratch, f"{mapping.name} aside")

    def last(self, batch: Batch) -> None:
        for mapping, scratch, goal in self.moves:
            _move(batch, scratch, mapping.end - mapping.start, goal, f"{mapping.name} to {goal:x}")
        if "brk" in self.memory:
            auxv = bytes.fromhex(str(self.memory.get("auxv", "")))
            batch.extend([lay_out(self.memory, auxv=auxv, exe_fd=0 if self.exe else -1)])
        if self.exe:
            batch.add(b.NR_CLOSE, 0, note="close the executed file")

    def _executed(self) -> str:
        path = str(self.memory.get("exe", ""))
        if path.endswith(_DELETED):
            name = f"task {self.wanted.pid} ({self.wanted.comm})"
            self.warnings.append(f"{name}: the file that it executes is gone ({path}): /proc/{self.wanted.pid}/exe names another")
            return ""
        # Not even by itself can a file be replaced that is mapped; and ckpt executes what its Python programs do.
        return "" if path == self.now.attributes.get("memory", {}).get("exe") else path


def _of_kernel(mappings: Iterable[Mapping]) -> list[Mapping]:
    return [mapping for mapping in mappings if mapping.name in MOVED]


def _same_build(here: list[Mapping], there: list[Mapping], now: State, wanted: State) -> bool:
    if [(m.name, m.end - m.start) for m in here] != [(m.name, m.end - m.start) for m in there]:
        return False
    key = "vdso" if "vdso" in wanted else "kernel"
    return now.get(key) == wanted.get(key)


def _hole(mappings: Iterable[Mapping], size: int) -> int:
    """An address where neither layout has anything, a page around it included."""
    taken = [(mapping.start - PAGE, mapping.end + PAGE) for mapping in mappings]
    at = _LADDER
    while any(start < at + size and at < end for start, end in taken):
        at += _STEP
    return at


def _move(batch: Batch, start: int, size: int, to: int, note: str) -> None:
    batch.add(_NR_MREMAP, start, size, size, _MREMAP_MAYMOVE | _MREMAP_FIXED, to, note=note, expect=to)
