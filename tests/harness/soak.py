"""`make soak` (CKPT_SOAK=1) repeats more often than `make test`, says how far it is, and tells at the end what it did.

It is bounded: after CKPT_SOAK_MINUTES (default 180) no repetition begins any more. What was not reached is named at the end, and
CKPT_SOAK_SEED (printed at the start, another one each time) takes the same random choices again.
"""

from __future__ import annotations

import os
import sys
import time
from collections import Counter

SOAK = os.environ.get("CKPT_SOAK", "") not in ("", "0")
#: Runs of the tests that work side by side (pytest-xdist) share one seed and one beginning, and one of them speaks.
HELPS = "PYTEST_XDIST_WORKER" in os.environ
MINUTES = float(os.environ.get("CKPT_SOAK_MINUTES", "180"))
SEED = int(os.environ.get("CKPT_SOAK_SEED", "0")) or time.time_ns() // 1000 % 1_000_000_000
BEGAN = float(os.environ.get("CKPT_SOAK_BEGAN", "0")) or time.monotonic()
os.environ |= {"CKPT_SOAK_SEED": str(SEED), "CKPT_SOAK_BEGAN": str(BEGAN)} if SOAK else {}

#: What was done, in words, and how often. Shown at the end of a soak.
done: Counter[str] = Counter()


def times(test: int, soak: int) -> int:
    """How often to repeat: `test` in make test, `soak` in make soak."""
    return soak if SOAK else test


def did(what: str, number: int = 1) -> None:
    done[what] += number


def seconds() -> float:
    return time.monotonic() - BEGAN


def time_is_up() -> bool:
    return SOAK and seconds() > MINUTES * 60


def progress(text: str) -> None:
    """One line of a soak (which runs with -s) on standard error; silent in make test."""
    if SOAK:
        print(f"[{seconds() / 60:6.1f} min] {text}", file=sys.stderr, flush=True)
