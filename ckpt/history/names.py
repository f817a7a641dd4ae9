"""What GEN means: a number, a tag, `latest`, `NAME@latest`, each with `~N` for the N-th parent. Pure.

`latest` is the newest generation of one lineage. With several lineages in the store it is refused and the candidates are
named, unless a pid or a lineage says which. NAME is a command's name, or a lineage's text, or at least four of its first letters.
`~N` follows parents, not numbers: after a rollback the number before is another branch.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol, TypeVar

from ckpt.errors import NotFoundError, UsageError

_SPEC = re.compile(r"(?P<base>[^~]+)(?P<steps>~(?P<up>\d*))?")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:/+-]*")


class Known(Protocol):
    """The part of a Generation that naming needs."""

    @property
    def number(self) -> int: ...
    @property
    def parent(self) -> int | None: ...
    @property
    def lineage(self) -> str: ...
    @property
    def command(self) -> str: ...
    @property
    def pid(self) -> int: ...


AnyKnown = TypeVar("AnyKnown", bound=Known)


def resolve(spec: str, generations: Sequence[Known], tags: Mapping[str, int], *, pid: int | None = None, lineage: str | None = None) -> int:
    """The number that `spec` means. Raises NotFoundError (unknown, or it fits several) and UsageError (no GEN at all)."""
    match = _SPEC.fullmatch(spec.strip())
    if match is None:
        raise UsageError(f"{spec!r} names no generation: use a number, a tag, latest, latest~2 or NAME@latest")
    base = _base(match["base"], generations, tags, pid, lineage)
    steps = 0 if match["steps"] is None else int(match["up"] or 1)
    return _ancestor(spec, base, steps, generations)


def check_tag(name: str) -> str:
    """The name, if it may be a tag: it must not read as another form of GEN."""
    if not _TAG.fullmatch(name) or name.isdigit() or name == "latest":
        raise UsageError(f"{name!r} cannot be a tag: use letters, digits and _.:/+-, not a number and not latest")
    return name


def lineages(generations: Iterable[AnyKnown]) -> dict[str, list[AnyKnown]]:
    """By lineage, generations in order; the lineage with the newest generation last."""
    groups: dict[str, list[AnyKnown]] = {}
    for generation in sorted(generations, key=lambda item: item.number):
        groups.setdefault(generation.lineage, []).append(generation)
    return dict(sorted(groups.items(), key=lambda item: item[1][-1].number))


def select(generations: Sequence[AnyKnown], *, pid: int | None = None, lineage: str | None = None) -> list[AnyKnown]:
    """The generations of the lineages that a filter means (all without one), in order. Raises NotFoundError."""
    chosen = {item.number for item in _chosen(generations, pid, lineage)}
    return sorted((item for item in generations if item.number in chosen), key=lambda item: item.number)


def _base(base: str, generations: Sequence[Known], tags: Mapping[str, int], pid: int | None, lineage: str | None) -> int:
    if base.isdecimal():
        number = int(base)
        if all(item.number != number for item in generations):
            raise NotFoundError(f"no generation {base}: {_there_is(generations)}")
        return number
    if base == "latest":
        return _latest(base, _chosen(generations, pid, lineage))
    name, at, rest = base.rpartition("@")
    if at and rest == "latest" and name:
        fitting = named(name, generations)
        if not fitting:
            raise NotFoundError(f"no lineage {name}: {_there_is(generations)}")
        return _latest(base, _chosen(fitting, pid, lineage))
    if base in tags:
        return tags[base]
    raise NotFoundError(f"no generation or tag {base}: {_there_is(generations)}")


def named(name: str, generations: Iterable[Known]) -> list[Known]:
    """The generations of the lineages that NAME means."""
    generations = list(generations)
    exact = [item for item in generations if name in (item.command, item.lineage)]
    if exact or len(name) < 4:
        return exact
    return [item for item in generations if item.lineage.startswith(name)]


def _chosen(generations: Sequence[Known], pid: int | None, lineage: str | None) -> Sequence[Known]:
    if lineage is not None:
        chosen = named(lineage, generations)
        if not chosen:
            raise NotFoundError(f"no lineage {lineage}: {_there_is(generations)}")
        return chosen
    if pid is not None:
        # A pid may have been recycled: the newest generation with it tells whose it is now.
        of_pid = [item for item in generations if item.pid == pid]
        if not of_pid:
            raise NotFoundError(f"no generation of process {pid}: {_there_is(generations)}")
        mine = max(of_pid, key=lambda item: item.number).lineage
        return [item for item in generations if item.lineage == mine]
    return generations


def _latest(base: str, generations: Sequence[Known]) -> int:
    groups = lineages(generations)
    if not groups:
        raise NotFoundError(f"no {base}: the store holds no generation yet")
    if len(groups) > 1:
        raise NotFoundError(f"{base} fits {len(groups)} lineages: {_candidates(groups)}")
    (group,) = groups.values()
    return group[-1].number


def _candidates(groups: Mapping[str, Sequence[Known]]) -> str:
    """ "say redis-server@latest or --pid 4121 (redis-server)": newest first, at most six."""
    names = [group[-1].command for group in groups.values()]
    texts = []
    for group in reversed(list(groups.values())):
        last = group[-1]
        how = f"{last.command}@latest" if names.count(last.command) == 1 else f"--pid {last.pid} ({last.command})"
        texts.append(f"{how} (= {last.number})")
    shown = texts[:6] + ([f"{len(texts) - 6} more in ckpt log"] if len(texts) > 6 else [])
    return "say " + ", ".join(shown[:-1]) + " or " + shown[-1]


def _ancestor(spec: str, number: int, steps: int, generations: Sequence[Known]) -> int:
    by_number = {item.number: item for item in generations}
    for step in range(steps):
        parent = by_number[number].parent
        if parent is None:
            raise NotFoundError(f"no {spec}: generation {number} is the first of its history, {step} before is as far as it goes")
        if parent not in by_number:
            raise NotFoundError(f"no {spec}: generation {parent}, the parent of {number}, was removed")
        number = parent
    return number


def _there_is(generations: Sequence[Known]) -> str:
    if not generations:
        return "the store holds no generation yet"
    numbers = sorted(item.number for item in generations)
    span = str(numbers[0]) if len(numbers) == 1 else f"{numbers[0]}..{numbers[-1]}"
    commands = sorted({item.command for item in generations})
    shown = ", ".join(commands[:4]) + (", ..." if len(commands) > 4 else "")
    return f"the store holds {span} ({shown}), see ckpt log"


def expand(
    specs: Iterable[str], generations: Sequence[Known], tags: Mapping[str, int], *, pid: int | None = None, lineage: str | None = None
) -> list[int]:
    """The numbers that several GEN mean, in order, each once. A..B is every generation there is from A to B, of one lineage
    if both ends are of the same."""
    by_number = {item.number: item for item in generations}
    numbers: set[int] = set()
    for spec in specs:
        first, dots, last = spec.partition("..")
        if not dots or spec in tags:
            numbers.add(resolve(spec, generations, tags, pid=pid, lineage=lineage))
            continue
        start = resolve(first, generations, tags, pid=pid, lineage=lineage)
        end = resolve(last, generations, tags, pid=pid, lineage=lineage)
        if start > end:
            raise UsageError(f"{spec}: {start} comes after {end}")
        one = by_number[start].lineage if by_number[start].lineage == by_number[end].lineage else None
        numbers.update(n for n, item in by_number.items() if start <= n <= end and one in (None, item.lineage))
    return sorted(numbers)
