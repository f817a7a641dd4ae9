"""/proc/PID/cgroup: one line "hierarchy:controllers:path" (kernel/cgroup/cgroup.c, proc_cgroup_show)."""

from __future__ import annotations

import os
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class CgroupEntry:
    hierarchy: int  #: 0 = the unified one (v2)
    controllers: tuple[str, ...]  #: empty in v2; "name=..." for a named v1 hierarchy
    path: str


def parse_cgroup(text: bytes) -> tuple[CgroupEntry, ...]:
    def entry(line: bytes) -> CgroupEntry:
        parts = line.split(b":", 2)
        if len(parts) != 3:
            raise ValueError(f"cgroup: cannot read the line {line[:80]!r}")
        controllers = tuple(name for name in parts[1].decode("ascii").split(",") if name)
        return CgroupEntry(int(parts[0]), controllers, os.fsdecode(parts[2]))

    return tuple(entry(line) for line in text.split(b"\n") if line)
