"""Contents of shared objects (memfd, shared anonymous memory, System V segments) brought back: by offset, through a file.

Writes to shared memory are not tracked, so everything is read and compared; only pages that differ are written. An object
is reached through a mapping or a descriptor of a task that has it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Protocol

from ckpt.errors import CkptError
from ckpt.model import PAGE, SharedObject, Snapshot
from ckpt.plan.pages import RUN

PIECE = 256  #: pages compared at once


class Pages(Protocol):
    """The part of a PageSource that is needed here."""

    def raw_runs(self, space: int) -> bytes: ...

    def read(self, space: int, page: int, count: int) -> Iterator[memoryview]: ...


def put(objects: Sequence[SharedObject], wanted: Snapshot, source: Pages, ours: Callable[[int], int]) -> int:
    """Makes every object what the generation says. Returns pages written. `ours`: a pid of the tree -> our number of it."""
    return sum(_put(item, wanted, source, ours) for item in objects)


def _put(item: SharedObject, wanted: Snapshot, source: Pages, ours: Callable[[int], int]) -> int:
    path = _reach(item, wanted, ours)
    if path is None:
        return 0
    try:
        file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise CkptError(f"shared object {path}: cannot be written: {error.strerror}") from None
    try:
        if os.fstat(file).st_size != item.size:
            os.ftruncate(file, item.size)
        return _compare(file, item, source)
    except OSError as error:
        raise CkptError(f"shared object {path}: cannot be brought back: {error.strerror}") from None
    finally:
        os.close(file)


def _compare(file: int, item: SharedObject, source: Pages) -> int:
    written = 0
    pages = (item.size + PAGE - 1) // PAGE
    held = [(page, page + count) for page, count, _content in RUN.iter_unpack(source.raw_runs(item.space))]
    for first in range(0, pages, PIECE):
        count = min(PIECE, pages - first)
        want = _wanted(item.space, first, count, held, source)[: item.size - first * PAGE]
        have = os.pread(file, len(want), first * PAGE)
        if have == want:
            continue
        for at in range(0, len(want), PAGE):
            if have[at : at + PAGE] != want[at : at + PAGE]:
                os.pwrite(file, want[at : at + PAGE], first * PAGE + at)
                written += 1
    return written


def _wanted(space: int, first: int, count: int, held: Sequence[tuple[int, int]], source: Pages) -> bytes:
    """What the generation says of these pages; holes, which it does not name, are zeros."""
    want = bytearray(count * PAGE)
    for page, end in held:
        low, high = max(page, first), min(end, first + count)
        if low < high:
            want[(low - first) * PAGE : (high - first) * PAGE] = b"".join(source.read(space, low, high - low))
    return bytes(want)


def _reach(item: SharedObject, wanted: Snapshot, ours: Callable[[int], int]) -> str | None:
    """A path of /proc under which the object can be opened, now that the wanted layout and tables stand."""
    files = {file.id for file in wanted.files if (file.state.get("dev"), file.state.get("ino")) == (item.dev, item.ino)}
    for task in wanted.tasks:
        for mapping in task.mappings:
            if (mapping.backing.dev, mapping.backing.ino) == (item.dev, item.ino) and mapping.backing.kind in ("object", "file"):
                path = f"/proc/{ours(task.pid)}/map_files/{mapping.start:x}-{mapping.end:x}"
                with suppress(OSError):
                    os.readlink(path)
                    return path
        for descriptor in task.descriptors:
            if descriptor.file in files:
                return f"/proc/{ours(task.pid)}/fd/{descriptor.fd}"
    return None
