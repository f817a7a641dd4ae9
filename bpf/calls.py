"""bpf(2): maps, programs and raw tracepoints by number. libbcc could do it too, at the price of loading LLVM for each command.

Layouts of `union bpf_attr` are from include/uapi/linux/bpf.h; members behind the ones that are given are zero. Failures are OSError.
"""

from __future__ import annotations

import ctypes
import os
import struct
from contextlib import suppress
from typing import Any

_NR_BPF = 321
_MAP_CREATE, _LOOKUP, _UPDATE, _DELETE, _PROG_LOAD, _RAW_TRACEPOINT_OPEN, _LOOKUP_BATCH = 0, 1, 2, 3, 5, 17, 24
_RAW_TRACEPOINT = 17  #: BPF_PROG_TYPE_RAW_TRACEPOINT
_LOG_BYTES = 1 << 16
_libc = ctypes.CDLL(None, use_errno=True)


def _bpf(command: int, attributes: bytes) -> int:
    buffer = ctypes.create_string_buffer(attributes.ljust(152, b"\0"), 152)
    got = int(_libc.syscall(_NR_BPF, command, buffer, len(buffer)))
    if got < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return got


def _at(buffer: Any) -> int:
    return ctypes.addressof(buffer)


def map_create(kind: int, key: int, value: int, entries: int, flags: int, name: str) -> int:
    """A new map's descriptor (close-on-exec)."""
    return _bpf(_MAP_CREATE, struct.pack("<7I16s", kind, key, value, entries, flags, 0, 0, name.encode()[:15]))


def map_update(fd: int, key: bytes, value: bytes) -> None:
    keys, values = ctypes.create_string_buffer(key, len(key)), ctypes.create_string_buffer(value, len(value))
    _bpf(_UPDATE, struct.pack("<IIQQQ", fd, 0, _at(keys), _at(values), 0))


def map_lookup(fd: int, key: bytes, size: int) -> bytes | None:
    keys, values = ctypes.create_string_buffer(key, len(key)), ctypes.create_string_buffer(size)
    try:
        _bpf(_LOOKUP, struct.pack("<IIQQQ", fd, 0, _at(keys), _at(values), 0))
    except FileNotFoundError:
        return None
    return values.raw


def map_delete_if_there(fd: int, key: bytes) -> None:
    keys = ctypes.create_string_buffer(key, len(key))
    with suppress(FileNotFoundError):
        _bpf(_DELETE, struct.pack("<IIQ", fd, 0, _at(keys)))


def map_entries(fd: int, key: int, value: int, cap: int) -> tuple[bytes, bytes]:
    """All keys and all values of a hash map with at most `cap` entries, in one go; one that comes meanwhile may be missing."""
    keys, values, cursor = ctypes.create_string_buffer(key * cap), ctypes.create_string_buffer(value * cap), ctypes.create_string_buffer(8)
    attributes = ctypes.create_string_buffer(struct.pack("<QQQQIIQQ", 0, _at(cursor), _at(keys), _at(values), cap, fd, 0, 0), 56)
    if _libc.syscall(_NR_BPF, _LOOKUP_BATCH, attributes, len(attributes)) < 0 and ctypes.get_errno() != 2:  # ENOENT: that was all
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    count = struct.unpack_from("<I", attributes, 32)[0]
    return keys.raw[: count * key], values.raw[: count * value]


def program_load(instructions: bytes, name: str) -> int:
    """A raw tracepoint program's descriptor. The verifier's last line is in the OSError's filename."""
    code = ctypes.create_string_buffer(instructions, len(instructions))
    text = ctypes.create_string_buffer(b"GPL")

    def load(level: int, log: int, size: int) -> int:
        words = (_RAW_TRACEPOINT, len(instructions) // 8, _at(code), _at(text), level, size, log, 0, 0, name.encode()[:15])
        return _bpf(_PROG_LOAD, struct.pack("<IIQQIIQII16s", *words))

    try:
        return load(0, 0, 0)
    except OSError as refused:
        log = ctypes.create_string_buffer(_LOG_BYTES)
        try:  # once more, for the reason in words
            return load(1, _at(log), _LOG_BYTES)
        except OSError:
            lines = [line for line in log.value.decode(errors="replace").splitlines() if line and not line.startswith("processed ")]
            raise OSError(refused.errno, refused.strerror, lines[-1] if lines else None) from None


def raw_tracepoint(name: str, program: int) -> int:
    """Attaches; closing the descriptor that is returned detaches."""
    text = ctypes.create_string_buffer(name.encode())
    return _bpf(_RAW_TRACEPOINT_OPEN, struct.pack("<QI", _at(text), program))
