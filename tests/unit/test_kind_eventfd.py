"""The example kind: state from fdinfo, and calls that bring the counter back."""

from __future__ import annotations

import struct

import pytest

from ckpt.kinds.base import CannotUndo, fd_kinds
from ckpt.kinds.fd.eventfd import KIND
from ckpt.model import OpenFile
from tests.unit.fakes import raw_fd, told


def eventfd(count: int, *, semaphore: bool = False, flags: int = 0o2) -> OpenFile:
    return OpenFile(40, "eventfd", flags, 0, {"count": count, "semaphore": semaphore})


def test_parse() -> None:
    raw = raw_fd("anon_inode:[eventfd]", "eventfd-count:               1a\neventfd-id: 1\neventfd-semaphore: 1\n", flags=0o2004002)
    assert KIND.recognises(raw)
    assert KIND.parse(raw) == OpenFile(40, "eventfd", 0o4002, 0, {"count": 26, "semaphore": True})
    assert KIND in fd_kinds()


@pytest.mark.parametrize(
    ("now", "wanted", "calls"),
    [
        (3, 3, []),
        (3, 5, [("write", 7, struct.pack("<Q", 2), 8)]),
        (5, 0, [("read", 7, bytes(8), 8)]),
        (5, 2, [("read", 7, bytes(8), 8), ("write", 7, struct.pack("<Q", 2), 8)]),
    ],
)
def test_adjust_counter(now: int, wanted: int, calls: list[tuple[object, ...]]) -> None:
    assert told(KIND.adjust(7, eventfd(now), eventfd(wanted))) == calls


def test_adjust_semaphore_reads_one_by_one() -> None:
    assert told(KIND.adjust(7, eventfd(5, semaphore=True), eventfd(3, semaphore=True))) == [("read", 7, bytes(8), 8)] * 2
    with pytest.raises(CannotUndo, match="100000 times"):
        KIND.adjust(7, eventfd(100_000, semaphore=True), eventfd(0, semaphore=True))


def test_adjust_flags() -> None:
    assert told(KIND.adjust(7, eventfd(0), eventfd(0, flags=0o4002))) == [("fcntl", 7, 4, 0o4000)]


def test_recreate() -> None:
    assert told(KIND.recreate(eventfd(26, semaphore=True, flags=0o4002))) == [("eventfd2", 26, 0o4001)]
    big = told(KIND.recreate(eventfd(2**40)))
    assert big == [("eventfd2", 2**32 - 1, 0), ("write", ("#", 0), struct.pack("<Q", 2**40 - 2**32 + 1), 8), ("dup2", ("#", 0), ("#", 0))]
