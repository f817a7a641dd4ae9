"""What a store needs in the long run: which generations to keep, space given back, everything checked.

A keep policy is text such as "last=10,hourly=24,tagged": a generation is kept if any of its rules keeps it. Rules count
per lineage: `last=N` the newest N; `hourly=N`, `daily=N`, `weekly=N`, `monthly=N` the newest of each of the newest N such
periods that hold any (UTC); `tagged` says what holds anyway: a tagged generation is never removed.
The newest generation of a lineage is always kept: the next incremental snapshot stands on it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from ckpt.errors import CkptError, UsageError
from ckpt.history import codec

if TYPE_CHECKING:
    from ckpt.history.open import History
    from store import GcResult

Progress = Callable[[str, int, int], None]  #: (what is being done, done, of how many)


class Kept(Protocol):
    """The part of a Generation that a policy looks at."""

    @property
    def number(self) -> int: ...
    @property
    def lineage(self) -> str: ...
    @property
    def created_ns(self) -> int: ...


_PERIODS = {"hourly": "%Y-%m-%d %H", "daily": "%Y-%m-%d", "weekly": "%G-%V", "monthly": "%Y-%m"}


@dataclass(frozen=True, slots=True)
class Policy:
    last: int = 0
    periods: tuple[tuple[str, int], ...] = ()  #: ("hourly", 24) ...


def parse_policy(text: str) -> Policy:
    """Raises UsageError that names the rule which is none."""
    last, periods = 0, []
    for rule in filter(None, (part.strip() for part in text.split(","))):
        name, equals, number = rule.partition("=")
        if rule == "tagged":
            continue
        if name not in ("last", *_PERIODS) or not equals or not number.isdecimal() or int(number) < 1:
            raise UsageError(f"{rule!r} is no keep rule: use last=N, hourly=N, daily=N, weekly=N, monthly=N, tagged")
        if name == "last":
            last = int(number)
        else:
            periods.append((name, int(number)))
    if not last and not periods and "tagged" not in text:
        raise UsageError('an empty keep policy would keep nothing: for instance --keep "last=10,hourly=24,tagged"')
    return Policy(last, tuple(periods))


def superfluous(policy: Policy, generations: Iterable[Kept], tagged: Iterable[int]) -> list[int]:
    """Numbers that the policy does not keep, in order. Pure."""
    groups: dict[str, list[Kept]] = {}
    for generation in sorted(generations, key=lambda item: item.number, reverse=True):
        groups.setdefault(generation.lineage, []).append(generation)
    kept = set(tagged)
    for group in groups.values():
        kept.update(item.number for item in group[: max(1, policy.last)])
        for name, limit in policy.periods:
            kept.update(_newest_of_periods(group, _PERIODS[name], limit))
    return sorted(item.number for group in groups.values() for item in group if item.number not in kept)


def _newest_of_periods(newest_first: Sequence[Kept], period: str, limit: int) -> list[int]:
    newest: dict[str, int] = {}
    for generation in newest_first:
        newest.setdefault(time.strftime(period, time.gmtime(generation.created_ns // 1_000_000_000)), generation.number)
    return list(newest.values())[:limit]


def apply(history: History, policy: Policy, lineage: str | None = None) -> list[int]:
    """Removes what the policy does not keep (of one lineage, or of all); returns the removed numbers."""
    return remove(history, superfluous(policy, history.generations(lineage), history.store.tags().values()))


def remove(history: History, numbers: Sequence[int]) -> list[int]:
    """Removes generations; refuses all of them if one is tagged. Space comes back with `gc`."""
    tags: dict[int, list[str]] = {}
    for name, number in history.store.tags().items():
        tags.setdefault(number, []).append(name)
    held = [f"{number} is tagged {', '.join(sorted(tags[number]))}" for number in numbers if number in tags]
    if held:
        raise CkptError(f"generation {'; '.join(held)}: nothing was removed; ckpt tag --delete NAME lets it go")
    for number in numbers:
        history.store.remove(number)
    return list(numbers)


def gc(history: History, progress: Progress) -> GcResult:
    """Gives back what no generation needs."""
    return history.store.gc(progress)


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong, in words, and the generation that it touches (None: the store as a whole)."""

    what: str
    generation: int | None = None
    repaired: bool = False


def check(history: History, *, full: bool, repair: bool, progress: Progress) -> list[Finding]:
    """The store's own check, then ours: every snapshot document must decode."""
    findings = [
        Finding(f"invariant {problem.invariant}: {problem.message}", problem.generation, problem.repaired)
        for problem in history.store.fsck(full, repair, progress)
    ]
    for generation in history.generations():
        try:
            codec.decode(history.generation(generation.number).snapshot)
        except CkptError as error:
            findings.append(Finding(f"generation {generation.number}: {error}", generation.number))
    return findings
