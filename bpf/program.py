"""A program in the kernel: its maps, its functions on raw tracepoints. Leaving the `with` takes everything away again.

The kernel takes it away too when we die: descriptors are all that holds it.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from types import TracebackType
from typing import Self

from bpf import calls
from bpf.errors import BpfError
from bpf.images import Image, MapSpec, image

_LD_IMM64, _MAP_FD, _RINGBUF = 0x18, 1, 27


class Program:
    """`attach`: function -> tracepoint. `shared`: maps by name that belong to another program, used instead of an own one.
    `ring_bytes`: size of ring buffers, a power of two. `idle`: loaded only, to be attached later."""

    def __init__(
        self, name: str, attach: Mapping[str, str], shared: Mapping[str, int] | None = None, ring_bytes: int = 0, *, idle: bool = False
    ) -> None:
        self.name = name
        self.maps: dict[str, int] = {}
        self.specs: dict[str, MapSpec] = {}
        self._open: list[int] = []
        self._links: list[int] = []
        made = image(name)
        used = set().union(*(references(made.programs[function]) for function in attach))
        try:
            fds = [self._map(spec, shared or {}, ring_bytes) if place in used else -1 for place, spec in enumerate(made.maps)]
            self._loaded = {point: self._load(made, function, fds) for function, point in attach.items()}
            if not idle:
                self.attach()
        except BaseException:
            self.close()
            raise

    def attach(self) -> None:
        """Last of all, and taken away first: none of them runs without the others."""
        try:
            for point, program in self._loaded.items():
                self._links.append(self._attached(point, program))
        except BpfError:
            self.detach()
            raise

    def detach(self) -> None:
        """What the maps hold stays."""
        while self._links:
            with suppress(OSError):
                os.close(self._links.pop())

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
        self.detach()
        while self._open:
            with suppress(OSError):
                os.close(self._open.pop())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def _map_operands(code: bytes) -> Iterator[int]:
    """Where a place in the list of maps stands."""
    at = 0
    while at < len(code):
        if code[at] == _LD_IMM64:
            if code[at + 1] >> 4 == _MAP_FD:
                yield at + 4
            at += 8  # it takes two
        at += 8


def references(code: bytes) -> set[int]:
    """Places in the list of maps that the code uses: tree.h declares more than most programs want."""
    return {int.from_bytes(code[at : at + 4], "little") for at in _map_operands(code)}


def relocated(code: bytes, fds: list[int]) -> bytes:
    """The code with descriptors instead of places in the list of maps."""
    words = bytearray(code)
    for at in _map_operands(code):
        words[at : at + 4] = fds[int.from_bytes(code[at : at + 4], "little")].to_bytes(4, "little")
    return bytes(words)


def _refused(name: str, what: str, error: OSError) -> BpfError:
    if error.errno in (errno.EPERM, errno.EACCES) and error.filename is None:
        return BpfError("no-rights", "no right to load BPF programs: run as root, or with CAP_BPF and CAP_PERFMON")
    said = f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    return BpfError("load", f"{name}.bpf.c: the kernel refuses {what} ({said}): everything but eBPF works without")
