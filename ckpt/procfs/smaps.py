"""/proc/PID/smaps -> what maps does not tell: which mappings grow down (fs/proc/task_mmu.c, show_smap_vma_flags: "gd").

Writing smaps walks the page tables of the whole process: milliseconds for each 100 MB, while it runs.
"""

from __future__ import annotations

import re

_HEAD = re.compile(rb"[0-9a-f]+-([0-9a-f]+) ")


def growing_down(text: bytes) -> frozenset[int]:
    """Ends of the mappings that grow down: their starts move."""
    ends: set[int] = set()
    end = 0
    for line in text.split(b"\n"):
        head = _HEAD.match(line)
        if head:
            end = int(head[1], 16)
        elif line.startswith(b"VmFlags:") and b"gd" in line.split():
            ends.add(end)
    return frozenset(ends)
