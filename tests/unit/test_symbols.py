"""Addresses of this very process -> file, symbol, offset."""

from __future__ import annotations

import ctypes
import mmap
import os
import subprocess
from pathlib import Path

import pytest

from ckpt.live.symbols import Layout, Symbols

SOURCE = """
__attribute__((noinline)) int outer(int x) { return x * 3; }
static __attribute__((noinline)) int hidden(int x) { return x * 5 + outer(x); }
int entry(int x) { return hidden(x) + 1; }
"""


def address_of(function: ctypes._CFuncPtr) -> int:
    return ctypes.cast(function, ctypes.c_void_p).value or 0


@pytest.fixture
def library(tmp_path: Path) -> tuple[Path, ctypes.CDLL]:
    (tmp_path / "one.c").write_text(SOURCE)
    path = tmp_path / "libone.so"
    subprocess.run(["gcc", "-shared", "-fPIC", "-O1", "-o", str(path), str(tmp_path / "one.c")], check=True)
    return path, ctypes.CDLL(str(path))


def test_functions_of_a_library(library: tuple[Path, ctypes.CDLL]) -> None:
    path, loaded = library
    symbols, layout = Symbols(), Layout.read(os.getpid())
    for name in ("outer", "entry"):
        found = symbols.where(layout, address_of(getattr(loaded, name)) + 3)
        assert (found.file, found.symbol, found.offset, str(found)) == (str(path), name, 3, f"{name}+0x3")
    between = address_of(loaded.outer) + 0x6  # hidden() follows; its name is in .symtab alone
    assert {symbols.where(layout, between + n).symbol for n in range(24)} >= {"hidden"}


def test_what_a_stripped_file_exports(library: tuple[Path, ctypes.CDLL], tmp_path: Path) -> None:
    bare = tmp_path / "libbare.so"
    subprocess.run(["strip", "-o", str(bare), str(library[0])], check=True)
    loaded = ctypes.CDLL(str(bare))
    symbols, layout = Symbols(), Layout.read(os.getpid())
    assert symbols.where(layout, address_of(loaded.entry)).symbol == "entry"
    start, end = address_of(loaded.outer), address_of(loaded.entry)
    unknown = [symbols.where(layout, place) for place in range(start, end) if symbols.where(layout, place).symbol is None]
    assert unknown, "hidden() has no name any more"
    base = min(mapping.start for mapping in layout.mappings if mapping.backing.path == str(bare))
    assert unknown[0].offset == next(place for place in range(start, end) if symbols.where(layout, place).symbol is None) - base


def test_a_deleted_file_is_still_read(library: tuple[Path, ctypes.CDLL]) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root: map_files")
    path, loaded = library
    path.unlink()
    assert Symbols().where(Layout.read(os.getpid()), address_of(loaded.entry)).symbol == "entry"


def test_code_without_a_file_and_none_at_all() -> None:
    symbols = Symbols()
    with mmap.mmap(-1, 4096) as area:
        found = symbols.where(Layout.read(os.getpid()), _address(area) + 5)
        assert (found.symbol, found.file in ("[anonymous]", "/dev/zero")) == (None, True)
    assert symbols.where(Layout.read(os.getpid()), 0x10).file == "[gone]"
    assert Layout.read(2**22 + 5).mappings == ()
    vdso = next(mapping for mapping in Layout.read(os.getpid()).mappings if mapping.name == "[vdso]")
    assert symbols.where(Layout.read(os.getpid()), vdso.start + 7).file == "[vdso]"


def _address(area: mmap.mmap) -> int:
    lent = ctypes.c_char.from_buffer(area)
    try:
        return ctypes.addressof(lent)
    finally:
        del lent
