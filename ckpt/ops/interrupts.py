"""Signals that end a command, between its steps: what they raise, and how a section that must not be left in the middle holds them back."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGIO)  #: SIGIO: ckpt/cli/front.py


class Ended(KeyboardInterrupt):
    """SIGTERM, SIGHUP, or the front's death: like ^C, with an exit code of its own."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


@contextmanager
def held() -> Iterator[None]:
    """What is inside is not left in the middle: such a signal raises afterwards."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
