"""Builds store._pages from src/*.c by cffi in API mode. The cdef is the header itself."""

from __future__ import annotations

import os
from pathlib import Path

from cffi import FFI

HERE = Path(__file__).resolve().parent
WARNINGS = ["-Wall", "-Wextra"]


def cdef(header: Path) -> str:
    """The header without its '#' lines, which cffi's parser rejects."""
    return "\n".join(line for line in header.read_text().splitlines() if not line.startswith("#"))


ffibuilder = FFI()
ffibuilder.cdef(cdef(HERE / "ckpt_store.h"))
# Paths are relative to the project's root, where setuptools and `make` run (it refuses absolute ones).
ffibuilder.set_source(
    "store._pages",
    '#include "ckpt_store.h"',
    sources=[os.path.relpath(path, HERE.parent) for path in sorted([*(HERE / "src").glob("*.c"), *(HERE / "src").glob("*.cc")])],
    depends=[os.path.relpath(path, HERE.parent) for path in sorted([*HERE.glob("*.h"), *(HERE / "src").glob("*.[hiS]*")])],
    include_dirs=["store", "store/src"],
    libraries=["lz4", "zstd", "highwayhash", "pthread"],
    extra_compile_args=["-O2", "-g", *WARNINGS],
)

if __name__ == "__main__":
    os.chdir(HERE.parent)
    ffibuilder.compile(tmpdir=".", verbose=bool(os.environ.get("VERBOSE")))
