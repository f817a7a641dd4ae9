"""/proc/PID/timens_offsets: what is added to the machine's clocks for whom PID bears (kernel/time/namespace.c)."""

from __future__ import annotations

_SECOND = 1_000_000_000


def parse_offsets(text: bytes) -> tuple[int, int]:
    """Of CLOCK_MONOTONIC and CLOCK_BOOTTIME, ns. `monotonic 12 345`: seconds, which may be negative, and nanoseconds, which are not."""
    found = {"monotonic": 0, "boottime": 0}
    for line in text.decode("ascii", "replace").splitlines():
        words = line.split()
        if len(words) == 3 and words[0] in found:
            found[words[0]] = int(words[1]) * _SECOND + int(words[2])
    return found["monotonic"], found["boottime"]
