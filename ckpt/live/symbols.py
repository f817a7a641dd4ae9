"""Addresses of a living process -> file, symbol, offset: ELF tables by pyelftools, read in bulk, kept for each file.

A stripped file names what it exports; where Debian's debug symbols are installed (/usr/lib/debug/.build-id) they name the rest. Code
that belongs to no file (made at run time) has no symbol.
"""

from __future__ import annotations

import os
import struct
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from ckpt.model import Mapping
from ckpt.procfs import parse_maps

_SYMBOL = struct.Struct("<IBBHQQ")  #: Elf64_Sym: name, info, other, section, value, size
_FUNCTIONS = (2, 10)  #: STT_FUNC, STT_GNU_IFUNC
_DEBUG = Path("/usr/lib/debug/.build-id")


@dataclass(frozen=True, slots=True)
class Where:
    """Of an instruction. Without a symbol `offset` is the address in the file's own numbering (as objdump shows it)."""

    file: str  #: path; "[vdso]"; "[anonymous]" for code without a file; "[gone]" where nothing is mapped any more
    symbol: str | None
    offset: int

    def __str__(self) -> str:
        return f"{self.symbol}+{self.offset:#x}" if self.symbol else f"{Path(self.file).name}+{self.offset:#x}"


class Layout:
    """The mappings of one process at one moment."""

    def __init__(self, pid: int, mappings: Sequence[Mapping]) -> None:
        self.pid = pid
        self.mappings = mappings
        self._starts = [mapping.start for mapping in mappings]

    @classmethod
    def read(cls, pid: int) -> Layout:
        """Empty where it has ended."""
        try:
            return cls(pid, parse_maps(Path(f"/proc/{pid}/maps").read_bytes()))
        except (FileNotFoundError, ProcessLookupError):
            return cls(pid, ())

    def at(self, address: int) -> Mapping | None:
        place = bisect_right(self._starts, address) - 1
        return self.mappings[place] if place >= 0 and address < self.mappings[place].end else None


class Symbols:
    """Kept while a tree is watched: each file is read once."""

    def __init__(self) -> None:
        self._files: dict[tuple[int, int], _Elf | None] = {}

    def where(self, layout: Layout, address: int) -> Where:
        mapping = layout.at(address)
        if mapping is None:
            return Where("[gone]", None, address)
        if mapping.backing.kind != "file":
            return Where(mapping.name or "[anonymous]", None, address - mapping.start)
        key = mapping.backing.dev, mapping.backing.ino
        if key not in self._files:
            self._files[key] = _opened(layout.pid, mapping)
        elf, place = self._files[key], address - mapping.start + mapping.backing.offset
        symbol, offset = elf.find(place) if elf is not None else (None, place)
        return Where(mapping.backing.path, symbol, offset)


def _opened(pid: int, mapping: Mapping) -> _Elf | None:
    """The mapped file itself where we may (it may be deleted), else the one of its name."""
    for path in (f"/proc/{pid}/map_files/{mapping.start:x}-{mapping.end:x}", f"/proc/{pid}/root{mapping.backing.path}"):
        try:
            with open(path, "rb") as file:  # noqa: PTH123
                if (os.fstat(file.fileno()).st_dev, os.fstat(file.fileno()).st_ino) == (mapping.backing.dev, mapping.backing.ino):
                    return _Elf(file)
        except (OSError, ValueError):
            continue
    return None


class _Elf:
    """Where the file's bytes lie in memory, and its functions, sorted by address. ValueError: not an ELF file that can be read."""

    def __init__(self, file: BinaryIO) -> None:
        from elftools.common.exceptions import ELFError
        from elftools.elf.elffile import ELFFile

        try:
            elf = ELFFile(file)
            self._loads = [(s["p_offset"], s["p_filesz"], s["p_vaddr"]) for s in elf.iter_segments() if s["p_type"] == "PT_LOAD"]
            found = _functions(elf, ".symtab") or _separate(elf) or _functions(elf, ".dynsym")
        except (ELFError, struct.error, KeyError) as error:
            raise ValueError(str(error)) from error
        self._functions = sorted(found)
        self._starts = [start for start, _, _ in self._functions]

    def find(self, place: int) -> tuple[str | None, int]:
        """(symbol, offset in it) of a byte of the file; (None, its address) where no function is known to hold it."""
        address = next((vaddr + place - offset for offset, size, vaddr in self._loads if offset <= place < offset + size), place)
        at = bisect_right(self._starts, address) - 1
        if at >= 0:
            start, size, name = self._functions[at]
            if address < start + max(size, 1):
                return name, address - start
        return None, address


def _functions(elf: Any, section: str) -> list[tuple[int, int, str]]:
    table = elf.get_section_by_name(section)
    if table is None or elf.elfclass != 64 or table["sh_type"] == "SHT_NOBITS":
        return []
    names = elf.get_section(table["sh_link"]).data()
    found = []
    for name, info, _, section_index, value, size in _SYMBOL.iter_unpack(table.data()):
        if info & 0xF in _FUNCTIONS and section_index and name:
            text = names[name : names.index(b"\0", name)].decode(errors="replace")
            found.append((value, size, text.partition("@")[0]))  # a version
    return found


def _separate(elf: Any) -> list[tuple[int, int, str]]:
    """From the debug file of this build, if it is installed."""
    from elftools.elf.elffile import ELFFile

    note = elf.get_section_by_name(".note.gnu.build-id")
    build = next((str(one["n_desc"]) for one in note.iter_notes() if one["n_type"] == "NT_GNU_BUILD_ID"), "") if note is not None else ""
    path = _DEBUG / build[:2] / f"{build[2:]}.debug"
    if not build or not path.exists():
        return []
    with path.open("rb") as file:
        return _functions(ELFFile(file), ".symtab")
