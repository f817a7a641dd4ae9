"""Somebody who has a process number that a restore wants, in each of the ways that the kernel knows.

    python3 taker.py HOW NUMBER    READY when the number is taken; ends with its standard input

What it leaves behind stays its descendant (it is a subreaper), so that whoever ends the tree ends all of it.
A number is had by setting the last one that was given (ns_last_pid) and being the next to ask for one; others may be quicker, so again.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path

TRIES = 1000
AWAY = 1000
PR_SET_CHILD_SUBREAPER = 36


def _next_is(number: int) -> None:
    Path("/proc/sys/kernel/ns_last_pid").write_text(str(number - 1))


def _away_from(number: int) -> None:
    """What is begun from here on, ckpt itself too, has none of the numbers behind it: they may be wanted, too."""
    last = int(Path("/proc/sys/kernel/pid_max").read_text()) - AWAY
    _next_is(number + AWAY if number < last - AWAY else AWAY)


def born(number: int, life: Callable[[], object]) -> None:
    """A child with this number that lives so, and then ends."""
    for _ in range(TRIES):
        _next_is(number)
        child = os.fork()
        if child == 0:
            if os.getpid() == number:
                life()
            os._exit(0)
        if child == number:
            return
        os.waitpid(child, 0)
    raise SystemExit(f"number {number} is not to be had")


def child_of(lead: Callable[[], object], join: Callable[[], object]) -> Callable[[], object]:
    """Leads, leaves a child behind that stays a member, and ends."""

    def life() -> None:
        lead()
        reading, writing = os.pipe()
        if os.fork() == 0:
            join()
            os.write(writing, b"r")
            signal.pause()
        os.read(reading, 1)

    return life


def thread(number: int) -> None:
    done = threading.Event()
    for _ in range(TRIES):
        _next_is(number)
        one = threading.Thread(target=lambda: threading.get_native_id() == number and done.wait(), daemon=True)
        one.start()
        if one.native_id == number:
            return
        one.join()
    raise SystemExit(f"thread number {number} is not to be had")


def take(how: str, number: int) -> None:
    if how == "process":
        born(number, signal.pause)
    elif how == "thread":
        thread(number)
    elif how == "zombie":
        born(number, lambda: None)
        os.waitid(os.P_PID, number, os.WEXITED | os.WNOWAIT)
    elif how == "group":
        born(number, child_of(lambda: os.setpgid(0, 0), lambda: None))
        os.waitpid(number, 0)
    elif how == "session":
        born(number, child_of(os.setsid, lambda: os.setpgid(0, 0)))
        os.waitpid(number, 0)


if __name__ == "__main__":
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    take(sys.argv[1], int(sys.argv[2]))
    _away_from(int(sys.argv[2]))
    print("READY", flush=True)
    sys.stdin.read()
