"""Builds native._native from src/*.c by cffi in API mode. The cdef is the public header itself."""

from __future__ import annotations

import os
from pathlib import Path

from cffi import FFI

HERE = Path(__file__).resolve().parent
WARNINGS = [
    "-Wall",
    "-Wextra",
    "-Werror=implicit-function-declaration",
    "-Werror=incompatible-pointer-types",
    "-Werror=int-conversion",
    "-Wno-unused-parameter",
    "-Wno-missing-field-initializers",
]


def cdef(header: Path) -> str:
    """The header without its '#' lines, which cffi's parser rejects."""
    return "\n".join(line for line in header.read_text().splitlines() if not line.startswith("#"))


ffibuilder = FFI()
ffibuilder.cdef(cdef(HERE / "ckpt_native.h"))
# Paths are relative to the project's root, where setuptools and `make` run (it refuses absolute ones).
ffibuilder.set_source(
    "native._native",
    '#include "ckpt_native.h"',
    sources=[os.path.relpath(path, HERE.parent) for path in sorted((HERE / "src").glob("*.c"))],
    depends=[os.path.relpath(path, HERE.parent) for path in sorted([*HERE.glob("*.h"), *(HERE / "src").glob("*.[hiS]*")])],
    include_dirs=["native", "native/src"],
    libraries=["pthread"],
    extra_compile_args=["-O2", "-g", "-std=gnu11", *WARNINGS],
    # Debian's Python links extensions with -Bsymbolic-functions: the seam (sys.h) and ckpt_mark() could then not be interposed.
    # -z now: a newborn has not what finding a symbol takes (native/src/lean.c).
    extra_link_args=["-Wl,-Bno-symbolic", "-Wl,-z,now"],
)

if __name__ == "__main__":
    os.chdir(HERE.parent)
    ffibuilder.compile(tmpdir=".", verbose=True)
