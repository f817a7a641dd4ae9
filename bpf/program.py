"""A program in the kernel: its maps, its functions on raw tracepoints. Leaving the `with` takes everything away again.

The kernel takes it away too when we die: descriptors are all that holds it.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from contextlib import suppress
from types import TracebackType
from typing import Self

from bpf import calls
from bpf.errors import BpfError
from bpf.images import Image, MapSpec, image

_LD_IMM64, _MAP_FD, _RINGBUF = 0x18, 1, 27


class Program:
    """`attach`: function -> tracepoint. `shared`: maps by name that belong to another program, used instead of an own one.
    `ring_bytes`: size of ring buffers, a power of two."""

    def __init__(self, name: str, attach: Mapping[str, str], shared: Mapping[str, int] | None = None, ring_bytes: int = 0) -> None:
        self.name = name
        self.maps: dict[str, int] = {}
        self.specs: dict[str, MapSpec] = {}
        self._open: list[int] = []
        made = image(name)
        try:
            fds = [self._map(spec, shared or {}, ring_bytes) for spec in made.maps]
            loaded = {point: self._load(made, function, fds) for function, point in attach.items()}
            # Attached last of all and closed first: none of them is left running without the others.
            for point, program in loaded.items():
                self._open.insert(0, self._attached(point, program))
        except BaseException:
            self.close()
            raise

    def _map(self, spec: MapSpec, shared: Mapping[str, int], ring_bytes: int) -> int:
        entries = ring_bytes or spec.entries * os.sysconf("SC_PAGE_SIZE") if spec.kind == _RINGBUF else spec.entries
        if spec.name in shared:
            fd = shared[spec.name]
        else:
            try:
                fd = calls.map_create(spec.kind, spec.key, spec.value, entries, spec.flags, spec.name)
            except OSError as error:
                raise _refused(self.name, f"map {spec.name}", error) from error
            self._open.append(fd)
        self.maps[spec.name], self.specs[spec.name] = fd, spec
        return fd

    def _load(self, made: Image, function: str, fds: list[int]) -> int:
        try:
            fd = calls.program_load(relocated(made.programs[function], fds), function)
        except OSError as error:
            raise _refused(self.name, function, error) from error
        self._open.append(fd)
        return fd

    def _attached(self, point: str, program: int) -> int:
        try:
            return calls.raw_tracepoint(point, program)
        except OSError as error:
            raise _refused(self.name, f"tracepoint {point}", error) from error

    def counter(self, name: str) -> int:
        """The one number in an array map."""
        return int.from_bytes(calls.map_lookup(self.maps[name], bytes(4), 8) or b"", "little")

    def close(self) -> None:
        while self._open:
            with suppress(OSError):
                os.close(self._open.pop(0))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def relocated(code: bytes, fds: list[int]) -> bytes:
    """The code with descriptors instead of places in the list of maps."""
    words = bytearray(code)
    at = 0
    while at < len(words):
        if words[at] == _LD_IMM64:
            if words[at + 1] >> 4 == _MAP_FD:
                words[at + 4 : at + 8] = fds[int.from_bytes(words[at + 4 : at + 8], "little")].to_bytes(4, "little")
            at += 8
        at += 8
    return bytes(words)


def _refused(name: str, what: str, error: OSError) -> BpfError:
    if error.errno in (errno.EPERM, errno.EACCES) and error.filename is None:
        return BpfError("no-rights", "no right to load BPF programs: run as root, or with CAP_BPF and CAP_PERFMON")
    said = f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    return BpfError("load", f"{name}.bpf.c: the kernel refuses {what} ({said}): everything but eBPF works without")
