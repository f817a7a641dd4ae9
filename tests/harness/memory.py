"""All memory of a stopped process as raw /proc shows it: an independent reader, which shares no code with ckpt."""

from __future__ import annotations

import hashlib
import os
import re
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

PAGE = 4096
PIECE = 256  #: pages read at once
SPARSE = 16384  #: mappings of more pages are read where the page table has something
CLOCKS = ("[vvar]", "[vvar_vclock]", "[vsyscall]")  #: the kernel's own, and always changing
_LINE = re.compile(r"([0-9a-f]+)-([0-9a-f]+) (\S+) ([0-9a-f]+) (\S+) (\d+) *(.*)")


@dataclass(frozen=True)
class Line:
    start: int
    end: int
    perms: str
    offset: int
    file: str  #: device, inode and path; of an object without a name only the path: it is another one each time


@dataclass(frozen=True)
class Memory:
    lines: tuple[Line, ...]  #: neighbours of anonymous memory with equal permissions are one: the kernel may join them or not
    pages: dict[int, str]  #: address -> digest, or "unreadable"; pages of zeros are left out


def maps(pid: int) -> list[Line]:
    found = []
    for text in Path(f"/proc/{pid}/maps").read_text().splitlines():
        match = _LINE.fullmatch(text)
        assert match is not None, text
        start, end, perms, offset, dev, ino, path = match.groups()
        nameless = path.endswith("(deleted)")
        found.append(Line(int(start, 16), int(end, 16), perms, int(offset, 16), path if nameless else f"{dev} {ino} {path}"))
    return found


def memory(pid: int, blind: Iterable[tuple[int, int]] = ()) -> Memory:
    """`blind`: (address, bytes) that count as zeros: what the kernel writes by itself."""
    lines = maps(pid)
    spots = list(blind)
    pages: dict[int, str] = {}
    mem = os.open(f"/proc/{pid}/mem", os.O_RDONLY)
    table = os.open(f"/proc/{pid}/pagemap", os.O_RDONLY)
    try:
        for line in lines:
            if not line.file.endswith(CLOCKS):
                for start, end in _populated(table, line):
                    _read(mem, start, end, spots, pages)
    finally:
        os.close(mem)
        os.close(table)
    return Memory(tuple(_joined(lines)), pages)


def _populated(table: int, line: Line) -> Iterator[tuple[int, int]]:
    if line.end - line.start <= SPARSE * PAGE:
        yield line.start, line.end
        return
    for first in range(line.start // PAGE, line.end // PAGE, 1 << 16):
        entries = os.pread(table, min(1 << 16, line.end // PAGE - first) * 8, first * 8)
        if entries.count(0) != len(entries):
            for place, (entry,) in enumerate(struct.iter_unpack("<Q", entries)):
                if entry:
                    yield (first + place) * PAGE, (first + place + 1) * PAGE


def _read(mem: int, start: int, end: int, blind: list[tuple[int, int]], pages: dict[int, str]) -> None:
    at = start
    while at < end:
        try:
            data = os.pread(mem, min(PIECE * PAGE, end - at), at)
        except OSError:
            data = b""
        if not data:
            pages[at] = "unreadable"
            at += PAGE
            continue
        seen = bytearray(data)
        for address, size in blind:
            if at <= address < at + len(seen):
                seen[address - at : address - at + size] = bytes(len(seen[address - at : address - at + size]))
        for place in range(0, len(seen), PAGE):
            page = bytes(seen[place : place + PAGE])
            if page.count(0) != len(page):
                pages[at + place] = hashlib.blake2b(page, digest_size=8).hexdigest()
        at += len(data)


def _joined(lines: Iterable[Line]) -> Iterator[Line]:
    before: Line | None = None
    for line in lines:
        if line.file.endswith(CLOCKS):
            continue
        anonymous = line.file == "00:00 0 "
        if before and anonymous and (before.end, before.perms, before.file) == (line.start, line.perms, line.file):
            before = Line(before.start, line.end, line.perms, 0, line.file)
            continue
        if before:
            yield before
        before = line
    if before:
        yield before
