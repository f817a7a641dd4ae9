"""/proc/PID/task/TID/syscall (fs/proc/base.c, proc_pid_syscall)."""

from __future__ import annotations


def parse_syscall(text: bytes) -> tuple[int, tuple[int, ...]] | None:
    """(number, six arguments) of the call that the thread sleeps in; number -1: it sleeps outside of one (a page fault). None: it runs."""
    words = text.split()
    if words == [b"running"]:
        return None
    try:
        if words[0] == b"-1":
            return -1, ()
        number, *arguments = int(words[0]), *(int(word, 16) for word in words[1:7])
    except (IndexError, ValueError):
        arguments = []
    if len(arguments) != 6:
        raise ValueError('syscall: neither a call with six arguments nor "running"')
    return number, tuple(arguments)
