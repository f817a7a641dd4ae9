"""`make soak` (CKPT_SOAK=1) repeats more often than `make test`."""

from __future__ import annotations

import os

SOAK = os.environ.get("CKPT_SOAK", "") not in ("", "0")


def times(test: int, soak: int) -> int:
    """How often to repeat: `test` in make test, `soak` in make soak."""
    return soak if SOAK else test
