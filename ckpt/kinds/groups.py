"""Open files that hang together: how a kind says so, and what follows from it for a whole tree."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from ckpt.kinds.base import fd_kinds, is_a
from ckpt.model import OpenFile, RemoteCall


@dataclass(frozen=True, slots=True)
class Made:
    """Calls that make several open files: `results[i]` is the index of the call whose result is the i-th; -1: it stays."""

    calls: tuple[RemoteCall, ...]
    results: tuple[int, ...]
    capability: int = -1  #: number of a capability that the calls need
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Kept:
    """A member that stays while others of its group are made again."""

    now: OpenFile
    fd: int  #: where the task that makes the others has it


@runtime_checkable
class GroupKind(Protocol):
    """A kind whose objects may hang together: what has to be made again of a group is made by one task, in one sequence."""

    name: str

    def links(self, files: Sequence[OpenFile]) -> Iterable[tuple[int, int]]:
        """Ids of files of this kind that hang together, two by two."""
        ...

    def together(self, members: Sequence[OpenFile]) -> Iterable[tuple[int, int]]:
        """Of one group: those that stay both or are made again both."""
        ...

    def stays(self, member: OpenFile) -> bool:
        """May stay though others of its group are made again."""
        ...

    def quiet(self, file: OpenFile) -> OpenFile:
        """As `adjust` is to see one that stays: without what `recreate_group` sees to."""
        ...

    def recreate_group(self, members: Sequence[OpenFile], kept: Mapping[int, Kept], *, root: bool = False) -> Made:
        """All of a group but what is kept, in the order of their ids; most groups have one member. `root`: who makes it is root and
        may be somebody else for a moment. Raises CannotUndo."""
        ...


@runtime_checkable
class SocialKind(Protocol):
    """A kind whose state is complete only beside the others of the tree."""

    name: str

    def with_others(self, files: Sequence[OpenFile]) -> Sequence[OpenFile]:
        """The same files of this kind, in the same order, with what each has to know of the others."""
        ...


def with_others(files: Sequence[OpenFile]) -> tuple[OpenFile, ...]:
    """The same files, complete (SocialKind)."""
    known = {file.id: file for file in files}
    for kind in fd_kinds():
        if is_a(kind, SocialKind):
            known |= {file.id: file for file in kind.with_others([file for file in files if file.kind == kind.name])}
    return tuple(known[file.id] for file in files)


def groups(files: Sequence[OpenFile]) -> dict[int, tuple[int, ...]]:
    """OpenFile.id -> ids of its whole group, itself among them, in order; for every file of a kind with groups."""
    found: dict[int, set[int]] = {}
    for kind in fd_kinds():
        if not is_a(kind, GroupKind):
            continue
        own = [file for file in files if file.kind == kind.name]
        found |= {file.id: {file.id} for file in own}
        for one, other in kind.links(own):
            if found[one] is not found[other]:
                found[one] |= found[other]
                for identity in found[other]:
                    found[identity] = found[one]
    return {identity: tuple(sorted(members)) for identity, members in found.items()}
