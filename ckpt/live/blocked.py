"""The call that a thread of a running program sleeps in, as /proc tells it."""

from __future__ import annotations

from pathlib import Path

from ckpt.procfs import parse_syscall

USER = -1  #: the number of no call: in user space


def blocked_call(pid: int, tid: int) -> tuple[int | None, tuple[int, ...]]:
    """Its number and arguments. USER: it has made none, or is in one that does not sleep; None: it has ended, or is not ours to look at."""
    try:
        return parse_syscall(Path(f"/proc/{pid}/task/{tid}/syscall").read_bytes()) or (USER, ())
    except (OSError, ValueError):
        return None, ()
