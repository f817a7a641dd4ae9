"""No garbage collection while others wait: it looks through all that a command has read and planned, and finds nothing to free."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet() -> Iterator[None]:
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
