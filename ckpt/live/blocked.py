"""The call that a thread of a running program sleeps in, as /proc tells it."""

from __future__ import annotations

from pathlib import Path

from ckpt.procfs import parse_syscall


def blocked_call(pid: int, tid: int) -> tuple[int, tuple[int, ...]]:
    """Its number and arguments; (-1, ()) where it sleeps in none, or has ended."""
    try:
        return parse_syscall(Path(f"/proc/{pid}/task/{tid}/syscall").read_bytes()) or (-1, ())
    except (OSError, ValueError):
        return -1, ()
