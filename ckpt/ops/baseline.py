"""What an operation starts from: which generation this memory descends from, and whether the dirty state since is known."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass

from ckpt.history.open import History
from ckpt.live import core, runtime
from ckpt.model import PidRef


class Clock:
    """Phase times: `lap(name)` books what has passed since the last lap."""

    def __init__(self) -> None:
        self.start = self.last = time.monotonic_ns()
        self.phases: dict[str, int] = {}

    def lap(self, name: str) -> None:
        now = time.monotonic_ns()
        self.phases[name] = self.phases.get(name, 0) + now - self.last
        self.last = now
        core.mark(name)


@dataclass(frozen=True, slots=True)
class Baseline:
    """What this memory descends from, and whether the dirty state since then is known."""

    lineage: str
    parent: int | None
    exact: bool  #: pages that are not dirty are those of `parent`
    seats: tuple[runtime.TrackerSeat, ...]


def find_baseline(history: History, ref: PidRef, incarnation: str) -> Baseline:
    """What an earlier snapshot left: exact only if its record matches this store, this very program and a generation that is there."""
    record = runtime.load(ref)
    there = {generation.number: generation for generation in history.generations()}
    if record is not None and record.store == history.store.uuid and record.generation in there:
        exact = record.incarnation == incarnation
        return Baseline(record.lineage, record.generation, exact, record.seats)
    own = [g for g in there.values() if runtime.same_process(g.incarnation, incarnation)]
    if record is not None:
        mine = [g.number for g in there.values() if g.lineage == record.lineage]
        parent = max((g.number for g in own), default=max(mine, default=None))
        return Baseline(record.lineage, parent, False, record.seats)
    if own:
        last = max(own, key=lambda g: g.number)
        return Baseline(last.lineage, last.number, False, ())
    return Baseline(os.urandom(6).hex(), None, False, ())
