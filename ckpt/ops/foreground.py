"""ckpt as the parent of what it has restored: it waits, passes signals on, and ends as the program ends."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

#: The terminal sends these to the whole foreground group, the program included: ckpt only has to survive them.
_OF_TERMINAL = (signal.SIGINT, signal.SIGQUIT)
_PASSED_ON = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


def wait_for(child: int) -> int:
    """Until this child of ours has ended: its exit status, or 128 + the signal that ended it."""
    with _passing_on(child):
        while True:
            with suppress(InterruptedError):
                code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
                return code if code >= 0 else 128 - code


@contextmanager
def _passing_on(child: int) -> Iterator[None]:
    def pass_on(number: int, _frame: FrameType | None) -> None:
        with suppress(ProcessLookupError):
            os.kill(child, number)

    before = {number: signal.signal(number, signal.SIG_IGN) for number in _OF_TERMINAL}
    before |= {number: signal.signal(number, pass_on) for number in _PASSED_ON}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
