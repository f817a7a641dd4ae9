"""Snapshots on a timer, and what is kept of them."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ckpt.errors import CkptError, UsageError
from ckpt.history.open import Mode, open_store
from ckpt.live import runtime
from ckpt.live.deadlines import Deadlines
from ckpt.model import PidRef
from ckpt.ops.snapshot import Request, Result, snapshot

if TYPE_CHECKING:
    from ckpt.live.telemetry import Telemetry

DRAIN_S = 0.1  #: the ring holds 350,000 first writes; one thread makes some 500,000 a second
UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}


def parse_interval(text: str, option: str = "--every") -> float:
    """ "5s", "500ms", "1m" -> seconds; UsageError says what is accepted."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(ms|s|m|min|h)?", text.strip())
    seconds = float(match[1]) * UNITS[match[2] or "s"] if match else 0.0
    if seconds < 0.01:
        raise UsageError(f"{option} {text}: give a time of at least 10ms, such as 500ms, 5s or 1m")
    return seconds


def repeat(request: Request, seconds: float, keep: str | None, show: Callable[[Result], None], *, traced: bool = False) -> None:
    """One snapshot each `seconds`, counted from the starts, until the process ends. A slow one delays the next; none overlap.
    `traced`: writes are watched between them, and told by the generation that ends the interval."""
    request = replace(request, start_ticks=runtime.start_ticks(request.pid))  # never of a stranger who got its number
    with ExitStack() as stack:
        ebpf = stack.enter_context(Deadlines())  # loaded once for all of them
        witness = None
        if traced:
            from ckpt.live.telemetry import Telemetry

            witness = stack.enter_context(Telemetry(PidRef(request.pid, request.start_ticks), calls=False))
        _repeat(request, seconds, keep, show, witness, ebpf)


def _repeat(
    request: Request, seconds: float, keep: str | None, show: Callable[[Result], None], witness: Telemetry | None, ebpf: Deadlines
) -> None:
    taken, due = 0, time.monotonic()
    while True:
        try:
            made = snapshot(request if taken == 0 else replace(request, mode="auto", tag=None), witness=witness, ebpf=ebpf)
        except CkptError:
            if taken == 0 or runtime.lives(request.pid, request.start_ticks):
                raise
            return  # the process has ended by itself, perhaps in the middle of this one: the work is done
        show(made)
        tend(request.store, made.generation.number)
        ebpf.compile_ahead()
        taken += 1
        if keep is not None:
            prune(request.store, keep)
        due = max(due + seconds, time.monotonic())
        while (left := due - time.monotonic()) > 0:
            time.sleep(left if witness is None else min(left, DRAIN_S))
            if witness is not None:
                witness.drain()


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
