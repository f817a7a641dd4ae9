"""The kernel's own type information: where members of its structs lie. Reads what is asked and keeps nothing.

Format: Documentation/bpf/btf.rst. A header names two sections, types and strings. A type is 12 bytes (name, info, size or type) and,
by its kind, what follows: for a struct or union 12 bytes for each member (name, type, offset in bits).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from bpf.errors import BpfError

KERNEL = Path("/sys/kernel/btf/vmlinux")
_MAGIC = 0xEB9F
_STRUCT, _UNION = 4, 5
#: kind -> bytes that follow a type (fixed, for each of its vlen members)
_FOLLOWS = {1: (4, 0), 3: (12, 0), 4: (0, 12), 5: (0, 12), 6: (0, 8), 13: (0, 8), 14: (4, 0), 15: (0, 12), 17: (4, 0), 19: (0, 12)}


def offsets(wanted: Iterable[str], path: Path = KERNEL) -> dict[str, int]:
    """ "task_struct.tgid" -> bytes from the struct's beginning, members of anonymous structs and unions inside included; in one that is a
    member with a name: "restart_block.poll.tv_sec". Of several names with "|" between them the first that there is.

    Raises BpfError where the kernel has no BTF or lacks one of them.
    """
    names = list(wanted)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise BpfError("no-btf", f"{path}: {error.strerror}: eBPF needs a kernel with CONFIG_DEBUG_INFO_BTF") from error
    types = _Types(data)
    structs = types.structs({name.partition(".")[0] for name in names})
    found = {}
    for name in names:
        places = [place for one in name.split("|") if (place := types.place(structs, one)) is not None]
        if not places:
            raise BpfError("no-btf", f"{path}: this kernel has no {name}: the programs of this ckpt cannot be used on it")
        found[name] = places[0]
    return found


class _Types:
    def __init__(self, data: bytes) -> None:
        magic, _version, _flags, head, types_at, types_size, strings_at, _size = struct.unpack_from("<HBBIIIII", data)
        if magic != _MAGIC:
            raise BpfError("no-btf", f"{KERNEL}: not type information that this ckpt can read")
        self.data = data
        self.strings = head + strings_at
        self.starts = [0, *self._walk(head + types_at, head + types_at + types_size)]  #: by type id; id 0 is void

    def _walk(self, at: int, end: int) -> Iterator[int]:
        unpack, data = struct.Struct("<I").unpack_from, self.data
        while at < end:
            yield at
            info = unpack(data, at + 4)[0]
            fixed, each = _FOLLOWS.get(info >> 24 & 0x1F, (0, 0))
            at += 12 + fixed + each * (info & 0xFFFF)

    def _text(self, at: int) -> str:
        start = self.strings + at
        return self.data[start : self.data.index(b"\0", start)].decode()

    def structs(self, names: set[str]) -> dict[str, int]:
        """Name -> where its type begins. A name of a struct alone: declarations and functions have others."""
        found: dict[str, int] = {}
        for at in self.starts[1:]:
            name, info = struct.unpack_from("<II", self.data, at)
            if info >> 24 & 0x1F == _STRUCT and name and (text := self._text(name)) in names:
                found.setdefault(text, at)
        return found

    def place(self, structs: Mapping[str, int], name: str) -> int | None:
        outer, _, member = name.partition(".")
        return dict(self.members(structs[outer])).get(member) if outer in structs else None

    def members(self, at: int, base: int = 0) -> Iterator[tuple[str, int]]:
        info = struct.unpack_from("<I", self.data, at + 4)[0]
        for index in range(info & 0xFFFF):
            name, kind, bits = struct.unpack_from("<III", self.data, at + 12 + 12 * index)
            place = base + (bits & 0xFFFFFF if info >> 31 else bits) // 8  # with bit fields the upper byte is their size
            if name:
                yield self._text(name), place
            inner = self.starts[kind]
            of_type, inner_info = struct.unpack_from("<II", self.data, inner)
            if of_type or inner_info >> 24 & 0x1F not in (_STRUCT, _UNION):
                continue
            for member, at_byte in self.members(inner, place):
                yield f"{self._text(name)}.{member}" if name else member, at_byte
