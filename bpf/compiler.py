"""A script: BCC compiles a program, and an image of it goes to standard output. The only file that imports bcc.

    compiler.py SOURCE... [-CFLAG...]

It runs in a process of its own: BCC brings LLVM with it (some 100 MB), and its complaints go to standard error whatever its caller wants.
BCC makes the maps as it compiles and writes their descriptors into the code; here they become places in the image's list of maps again,
so that code and maps can be made anew from the image. The sources are put together to one text: BCC understands `map.lookup()` in its main
file alone, and compiles it to a call that the kernel refuses in one that is included.
"""

from __future__ import annotations

import ctypes
import json
import struct
import sys
from pathlib import Path
from typing import Any

_LD_IMM64, _MAP_FD = 0x18, 1


def tables(lib: Any, module: Any) -> list[dict[str, Any]]:
    """One object for each map, with the descriptor that stands in the code."""
    for name in ("bpf_num_tables", "bpf_table_key_size_id", "bpf_table_leaf_size_id"):
        function = getattr(lib, name)
        function.restype = ctypes.c_size_t
        function.argtypes = [ctypes.c_void_p] if name == "bpf_num_tables" else [ctypes.c_void_p, ctypes.c_size_t]
    lib.bpf_table_name.restype, lib.bpf_table_name.argtypes = ctypes.c_char_p, [ctypes.c_void_p, ctypes.c_size_t]
    lib.bpf_table_fd_id.restype, lib.bpf_table_fd_id.argtypes = ctypes.c_int, [ctypes.c_void_p, ctypes.c_size_t]
    return [
        {
            "name": lib.bpf_table_name(module, index).decode(),
            "kind": lib.bpf_table_type_id(module, index),
            "key": lib.bpf_table_key_size_id(module, index),
            "value": lib.bpf_table_leaf_size_id(module, index),
            "entries": lib.bpf_table_max_entries_id(module, index),
            "flags": lib.bpf_table_flags_id(module, index),
            "fd": lib.bpf_table_fd_id(module, index),
        }
        for index in range(lib.bpf_num_tables(module))
    ]


def relocatable(code: bytes, places: dict[int, int]) -> bytes:
    """The code with places in the list of maps instead of descriptors."""
    words = bytearray(code)
    at = 0
    while at < len(words):
        operation, registers, _offset, value = struct.unpack_from("<BBhi", words, at)
        if operation == _LD_IMM64:
            if registers >> 4 == _MAP_FD:
                struct.pack_into("<i", words, at + 4, places[value])
            elif registers >> 4:
                raise ValueError(f"instruction {at // 8} refers to something that is no map")
            at += 8  # it takes two
        at += 8
    return bytes(words)


def main(words: list[str]) -> None:
    from bcc import BPF
    from bcc.libbcc import lib

    text = b"".join(b'#line 1 "%s"\n' % Path(word).name.encode() + Path(word).read_bytes() for word in words if not word.startswith("-"))
    module = BPF(text=text, cflags=[word for word in words if word.startswith("-")]).module
    maps = tables(lib, module)
    places = {one.pop("fd"): place for place, one in enumerate(maps)}
    programs = {}
    for index in range(lib.bpf_num_functions(module)):
        name = lib.bpf_function_name(module, index)
        code = ctypes.string_at(lib.bpf_function_start(module, name), lib.bpf_function_size(module, name))
        programs[name.decode()] = relocatable(code, places).hex()
    json.dump({"maps": maps, "programs": programs}, sys.stdout)


if __name__ == "__main__":
    main(sys.argv[1:])
