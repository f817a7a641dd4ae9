"""Contents of shared objects (memfd, shared anonymous memory, System V segments, deleted files) brought back: by offset, through a file.

Writes to shared memory are not tracked, so everything is read and compared; only pages that differ are written. An object
is reached through a mapping or a descriptor of a task that has it.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Protocol, Self

from ckpt.errors import CkptError
from ckpt.model import PAGE, Content, MadeObject, SharedObject, Snapshot
from ckpt.plan.pages import RUN

PIECE = 256  #: pages compared at once
F_ADD_SEALS = 1033


class Pages(Protocol):
    """The part of a PageSource that is needed here."""

    def raw_runs(self, space: int) -> bytes: ...

    def read(self, space: int, page: int, count: int) -> Iterator[memoryview]: ...


class Contents:
    """All shared objects of a tree, open while a plan is carried out on it; a context manager. `made`: those that are made anew.
    `ours`: a pid of the tree -> our number of it."""

    def __init__(self, wanted: Snapshot, made: Sequence[MadeObject], source: Pages, ours: Callable[[int], int]) -> None:
        self._wanted, self._source, self._ours = wanted, source, ours
        self._made = {one.space: one for one in made}
        self._to_seal: list[tuple[int, MadeObject]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for file, _made in self._to_seal:
            os.close(file)

    def put(self) -> int:
        """Makes every object what the generation says. Returns pages written."""
        return sum(self._put(item) for item in self._wanted.objects)

    def seal(self) -> None:
        """Seals those that had been sealed, now that nothing maps them for writing."""
        for file, made in self._to_seal:
            try:
                fcntl.fcntl(file, F_ADD_SEALS, made.seals)
            except OSError as error:
                raise CkptError(f"shared object {made.entry} of task {made.pid}: cannot be sealed: {error.strerror}") from None

    def _put(self, item: SharedObject) -> int:
        made = self._made.get(item.space)
        path = f"/proc/{self._ours(made.pid)}/{made.entry}" if made else reach(item, self._wanted, self._ours)
        if path is None or (made and not made.contents):
            return 0
        try:
            file = _opened(path, anew=made is not None)
        except OSError as error:
            raise CkptError(f"shared object {path}: cannot be written: {error.strerror}") from None
        try:
            if made and made.seals:
                self._to_seal.append((os.dup(file), made))
            if os.fstat(file).st_size != item.size:
                os.ftruncate(file, item.size)
            return _fill(file, item, self._source) if made else _compare(file, item, self._source)
        except OSError as error:
            raise CkptError(f"shared object {path}: cannot be brought back: {error.strerror}") from None
        finally:
            os.close(file)


def _opened(path: str, *, anew: bool) -> int:
    """Where nobody can write (a deleted file that is executed, say, or one on a read-only file system), reading shows that nobody has."""
    try:
        return os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        if anew or error.errno not in (errno.ETXTBSY, errno.EROFS, errno.EACCES):
            raise
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)


def _fill(file: int, item: SharedObject, source: Pages) -> int:
    """An object that was made empty. (A segment that was found by its id may hold anything: its holes are made zeros, too.)"""
    if os.lseek(file, 0, os.SEEK_END) and _has_data(file):
        return _compare(file, item, source)
    written = 0
    for page, count, content in RUN.iter_unpack(source.raw_runs(item.space)):
        at = page * PAGE
        for piece in source.read(item.space, page, count) if content == Content.DATA else ():
            left = piece[: max(item.size - at, 0)]
            while left:
                done = os.pwrite(file, left, at)
                at, left = at + done, left[done:]
            written += len(piece) // PAGE
    return written


def _has_data(file: int) -> bool:
    try:
        os.lseek(file, 0, os.SEEK_DATA)
    except OSError:
        return False
    return True


def _compare(file: int, item: SharedObject, source: Pages) -> int:
    written = 0
    pages = (item.size + PAGE - 1) // PAGE
    held = [(page, page + count) for page, count, _content in RUN.iter_unpack(source.raw_runs(item.space))]
    for first in range(0, pages, PIECE):
        count = min(PIECE, pages - first)
        want = wanted_bytes(item.space, first, count, held, source)[: item.size - first * PAGE]
        have = os.pread(file, len(want), first * PAGE)
        if have == want:
            continue
        for at in range(0, len(want), PAGE):
            if have[at : at + PAGE] != want[at : at + PAGE]:
                os.pwrite(file, want[at : at + PAGE], first * PAGE + at)
                written += 1
    return written


def wanted_bytes(space: int, first: int, count: int, held: Sequence[tuple[int, int]], source: Pages) -> bytes:
    """What the generation says of these pages; holes, which it does not name, are zeros."""
    want = bytearray(count * PAGE)
    for page, end in held:
        low, high = max(page, first), min(end, first + count)
        if low < high:
            want[(low - first) * PAGE : (high - first) * PAGE] = b"".join(source.read(space, low, high - low))
    return bytes(want)


def reach(item: SharedObject, wanted: Snapshot, ours: Callable[[int], int]) -> str | None:
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
