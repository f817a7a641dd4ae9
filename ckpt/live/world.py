"""What stands under a path just now, for the plan: identity, size, time, and who has it locked."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from ckpt.kinds.fd.locks import text_of
from ckpt.model import Snapshot
from ckpt.plan.sources import FileIdentity


def look(paths: Iterable[str], wanted: Snapshot, root: str = "") -> dict[str, FileIdentity]:
    """Paths as the target sees them whose root directory is `root`; those that lead nowhere are left out. Who has what locked is
    only looked up where `wanted` has locks: the list is that of the whole machine."""
    locked = any(file.state.get("locks") for file in wanted.files)
    world: dict[str, FileIdentity] = {}
    held: dict[tuple[int, int], list[str]] | None = None
    for path in paths:
        try:
            found = os.stat(root + path)
        except OSError:
            continue
        if held is None:
            held = _locks() if locked else {}
        identity = found.st_dev, found.st_ino
        world[path] = FileIdentity(*identity, found.st_size, found.st_mtime_ns, tuple(held.get(identity, ())))
    return world


def _locks() -> dict[tuple[int, int], list[str]]:
    """(device, inode) -> the locks on it ("1: POSIX  ADVISORY  WRITE 4121 fe:00:131 0 EOF"); who only waits has none ("->")."""
    found: dict[tuple[int, int], list[str]] = {}
    for line in Path("/proc/locks").read_text().splitlines():
        words = line.split()
        if len(words) < 8 or words[1] not in ("FLOCK", "POSIX", "OFDLCK"):
            continue
        major, minor, inode = words[5].split(":")
        found.setdefault((os.makedev(int(major, 16), int(minor, 16)), int(inode)), []).append(text_of(line))
    return found
