"""What the kernel itself has as the end of a wait, seen by eBPF when a freeze interrupted it, and what was reckoned from outside. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class Told:
    """It ends between two instants: one, but for a timer that counts jiffies."""

    earliest: int
    latest: int
    source: str  #: what of the kernel's says so
    raw: Mapping[str, int]  #: the record as the program gave it

    @property
    def words(self) -> str:
        return f"eBPF saw {self.source}"

    def since(self, instant: int) -> Told:
        """The same as times that remain from then on."""
        return replace(self, earliest=max(self.earliest - instant, 0), latest=max(self.latest - instant, 0))

    def with_reckoned(self, end: int | None) -> int:
        """What is reckoned from outside (ckpt/live/known.py) may be too late and never too early: between two instants it has its say."""
        return self.latest if end is None else min(max(end, self.earliest), self.latest)
