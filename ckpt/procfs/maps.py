"""/proc/PID/maps -> mappings (fs/proc/task_mmu.c, show_map_vma).

What the text cannot tell, and who adds it: size and mtime of a file (stat of map_files, by the wing of the living); growing
down, but for the main stack, and what a program asked of it (smaps); a name that really ends in
" (deleted)" reads as deleted (st_nlink decides).
"""

from __future__ import annotations

import os
import re
from mmap import MAP_ANONYMOUS, MAP_PRIVATE, MAP_SHARED, PROT_EXEC, PROT_READ, PROT_WRITE

from ckpt.model import Backing, Mapping

MAP_GROWSDOWN = 0x100
_DELETED = " (deleted)"
_LINE = re.compile(rb"([0-9a-f]+)-([0-9a-f]+) (....) ([0-9a-f]+) ([0-9a-f]+):([0-9a-f]+) (\d+)(?: +(.*))?")
#: Shared memory without a file that anybody could open by name: contents are captured as an object.
_OBJECTS = ("/memfd:", "/SYSV", "/anon_hugepage")
#: Memory that the kernel provides or a driver owns: nobody's pages to save.
_KERNEL = ("/[aio]", "anon_inode:", "socket:", "/anon_inode:", "/secretmem")


def _anonymous_name(path: str) -> bool:
    return path in ("", "[heap]") or path.startswith(("[stack", "[anon:"))


def _backing(path: str, shared: bool, dev: int, ino: int, offset: int) -> Backing:
    deleted = path.endswith(_DELETED)
    bare = path.removesuffix(_DELETED)
    if ino == 0 and dev == 0 and _anonymous_name(path):
        return Backing("anonymous")
    if bare.startswith(_KERNEL) or (path.startswith("[") and not path.startswith("[anon_shmem")):
        return Backing("kernel", "" if path.startswith("[") else path, dev, ino, offset)
    if path.startswith("[anon_shmem") or (deleted and (bare.startswith(_OBJECTS) or (shared and bare == "/dev/zero"))):
        return Backing("object", bare, dev, ino, offset, deleted=deleted)
    return Backing("file", bare, dev, ino, offset, deleted=deleted)


def _mapping(line: bytes) -> Mapping:
    match = _LINE.fullmatch(line)
    if match is None:
        raise ValueError(f"maps: cannot read the line {line[:80]!r}")
    start, end, perms, offset, major, minor, ino, raw = match.groups()
    path = os.fsdecode((raw or b"").replace(b"\\012", b"\n"))
    shared = perms[3:4] == b"s"
    dev = os.makedev(int(major, 16), int(minor, 16))
    backing = _backing(path, shared, dev, int(ino), int(offset, 16))
    flags = MAP_SHARED if shared else MAP_PRIVATE
    if backing.kind == "anonymous" or (backing.kind == "object" and backing.path == "/dev/zero"):
        flags |= MAP_ANONYMOUS
    if path == "[stack]":
        flags |= MAP_GROWSDOWN
    prot = (perms[0:1] == b"r") * PROT_READ | (perms[1:2] == b"w") * PROT_WRITE | (perms[2:3] == b"x") * PROT_EXEC
    return Mapping(int(start, 16), int(end, 16), prot, flags, backing, path if path.startswith("[") else "")


def parse_maps(text: bytes) -> tuple[Mapping, ...]:
    """Sorted by start, as the kernel writes them; `Backing.dev` compares with st_dev."""
    return tuple(_mapping(line) for line in text.split(b"\n") if line)
