"""/proc/PID/auxv: the vector that execve left on the stack, pairs of u64 up to AT_NULL."""

from __future__ import annotations

import struct

AT_NULL = 0
AT_SYSINFO_EHDR = 33  #: address of the vdso


def parse_auxv(data: bytes) -> tuple[tuple[int, int], ...]:
    """(AT_*, value) in order, AT_NULL left out. A target that was never exec'd gives ()."""
    pairs: list[tuple[int, int]] = []
    for kind, value in struct.iter_unpack("<QQ", data[: len(data) // 16 * 16]):
        if kind == AT_NULL:
            break
        pairs.append((kind, value))
    return tuple(pairs)
