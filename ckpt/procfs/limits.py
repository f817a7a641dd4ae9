"""/proc/PID/limits (fs/proc/base.c, proc_pid_limits)."""

from __future__ import annotations

import re
from dataclasses import dataclass

INFINITY = 0xFFFF_FFFF_FFFF_FFFF

#: The kernel's row titles, at the position that is the RLIMIT_* number.
TITLES = (
    "Max cpu time", "Max file size", "Max data size", "Max stack size", "Max core file size", "Max resident set", "Max processes",
    "Max open files", "Max locked memory", "Max address space", "Max file locks", "Max pending signals", "Max msgqueue size",
    "Max nice priority", "Max realtime priority", "Max realtime timeout",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Limit:
    """INFINITY is RLIM_INFINITY; the unit is that of the resource."""

    soft: int
    hard: int


def parse_limits(text: bytes) -> dict[int, Limit]:
    """RLIMIT_* number -> limit."""
    limits: dict[int, Limit] = {}
    for line in text.decode("ascii", "replace").splitlines():
        title = re.split(r"\s{2,}", line)[0]
        if title not in TITLES:
            continue
        soft, hard = (INFINITY if word == "unlimited" else int(word) for word in line[len(title) :].split()[:2])
        limits[TITLES.index(title)] = Limit(soft, hard)
    if not limits:
        raise ValueError("limits: no row that is known")
    return limits
