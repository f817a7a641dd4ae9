"""Snapshots on a timer, and what is kept of them."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from ckpt.errors import CkptError, UsageError
from ckpt.history.open import Mode, open_store
from ckpt.live import runtime
from ckpt.ops.snapshot import Request, Result, snapshot

UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}


def parse_interval(text: str, option: str = "--every") -> float:
    """ "5s", "500ms", "1m" -> seconds; UsageError says what is accepted."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(ms|s|m|min|h)?", text.strip())
    seconds = float(match[1]) * UNITS[match[2] or "s"] if match else 0.0
    if seconds < 0.01:
        raise UsageError(f"{option} {text}: give a time of at least 10ms, such as 500ms, 5s or 1m")
    return seconds


def repeat(request: Request, seconds: float, keep: str | None, show: Callable[[Result], None]) -> None:
    """One snapshot each `seconds`, counted from the starts, until the process ends. A slow one delays the next; none overlap."""
    taken, due = 0, time.monotonic()
    request = replace(request, start_ticks=runtime.start_ticks(request.pid))  # never of a stranger who got its number
    while True:
        try:
            made = snapshot(request if taken == 0 else replace(request, mode="auto", tag=None))
        except CkptError:
            if taken == 0 or runtime.lives(request.pid, request.start_ticks):
                raise
            return  # the process has ended by itself, perhaps in the middle of this one: the work is done
        show(made)
        tend(request.store, made.generation.number)
        taken += 1
        if keep is not None:
            prune(request.store, keep)
        due = max(due + seconds, time.monotonic())
        time.sleep(max(0.0, due - time.monotonic()))


def tend(store: Path | None, number: int) -> None:
    """The store's own work after a generation was reported, a tenth of a second now and then: nobody waits for it, and what goes
    wrong in it is not the snapshot's failure."""
    with suppress(CkptError), open_store(store, Mode.WRITE) as history:
        history.store.tend(number)


def prune(store: Path | None, policy: str) -> list[int]:
    """Drops the generations that the policy does not keep. Returns their numbers."""
    from ckpt.history.upkeep import apply, parse_policy

    parsed = parse_policy(policy)
    with open_store(store, Mode.WRITE) as history:
        return apply(history, parsed)
