"""Kinds of descriptor on real ones: capture, change, adjust, capture again: the same; and made anew: the same."""

from __future__ import annotations

import ctypes
import fcntl
import os
import select
import signal
import struct
import time
from pathlib import Path

import pytest

from ckpt.kinds.base import CannotUndo, Unsupported, peers, with_outside
from tests.unit.here import back, capture, close, kind_named, kind_of, look, made, run

LIBC = ctypes.CDLL(None)
pytestmark = pytest.mark.usefixtures("no_descriptor_is_left_over")


def test_eventfd() -> None:
    fd = LIBC.eventfd(26, os.O_NONBLOCK)
    wanted = capture(fd)
    os.read(fd, 8)
    assert capture(fd).state["count"] == 0
    assert back(fd, wanted) == wanted
    os.write(fd, struct.pack("<Q", 2**33))
    big = capture(fd)
    os.set_blocking(fd, True)
    assert back(fd, wanted) == wanted
    assert os.get_blocking(fd) is False
    again = made(big)
    assert capture(again) == big
    close((fd, again))


def test_signalfd() -> None:
    fd = LIBC.signalfd(-1, struct.pack("<Q", 1 << 11), 0)
    wanted = capture(fd)
    LIBC.signalfd(fd, struct.pack("<Q", 1 << 9), 0)
    assert back(fd, wanted) == wanted
    again = made(wanted)
    assert capture(again) == wanted
    close((fd, again))


def itimerspec(fd: int, interval: float, value: float, flags: int = 0) -> None:
    parts = [*divmod(int(interval * 1e9), 10**9), *divmod(int(value * 1e9), 10**9)]
    assert LIBC.timerfd_settime(fd, flags, struct.pack("<4q", *parts), None) == 0


def test_timerfd_relative_gets_what_remained() -> None:
    fd = LIBC.timerfd_create(1, os.O_NONBLOCK)
    itimerspec(fd, 0.005, 0.005)
    time.sleep(0.03)
    wanted = capture(fd)
    assert wanted.state["ticks"] >= 3
    itimerspec(fd, 5, 100)
    begin = time.monotonic()
    after = back(fd, wanted)
    assert after.state["ticks"] >= wanted.state["ticks"]  # it runs again already
    assert after.state["ticks"] <= wanted.state["ticks"] + (time.monotonic() - begin) / 0.005 + 1
    assert after.state["interval"] == 5_000_000
    itimerspec(fd, 0, 100)
    long = capture(fd)
    itimerspec(fd, 0, 3)
    assert 90e9 < back(fd, long).state["remaining"] <= long.state["remaining"]
    itimerspec(fd, 0, 0)
    idle = capture(fd)
    itimerspec(fd, 0, 3)
    assert back(fd, idle) == idle
    close((fd,))


def test_timerfd_absolute_keeps_its_instant() -> None:
    fd = LIBC.timerfd_create(1, 0)
    instant = time.monotonic_ns() + 50 * 10**9
    itimerspec(fd, 0, instant / 1e9, 1)
    wanted = capture(fd)
    assert wanted.state["absolute"]
    assert abs(wanted.state["expires"] - instant) < 2_000_000
    itimerspec(fd, 0, 3)
    time.sleep(0.05)
    assert abs(back(fd, wanted).state["expires"] - instant) < 2_000_000
    again = made(wanted)
    assert abs(capture(again).state["expires"] - instant) < 2_000_000
    close((fd, again))


def test_file(tmp_path: Path) -> None:
    path = tmp_path / "log of this"
    path.write_bytes(b"0123456789")
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND)
    os.lseek(fd, 4, os.SEEK_SET)
    wanted = capture(fd)
    assert (wanted.kind, wanted.pos, wanted.state["path"], wanted.state["deleted"]) == ("file", 4, str(path), False)
    fcntl.flock(fd, fcntl.LOCK_EX)
    os.lseek(fd, 9, os.SEEK_SET)
    fcntl.fcntl(fd, fcntl.F_SETFL, 0)
    assert back(fd, wanted) == wanted
    again = made(wanted)
    assert capture(again) == wanted
    fcntl.flock(fd, fcntl.LOCK_SH)
    with pytest.raises(CannotUndo, match="locked"):
        made(capture(fd))
    path.unlink()
    assert capture(fd).state["deleted"]
    assert capture(fd).state["path"] == str(path)
    fcntl.flock(fd, fcntl.LOCK_UN)
    with pytest.raises(CannotUndo, match="deleted"):
        made(capture(fd))
    close((fd, again))


def test_directory_and_device(tmp_path: Path) -> None:
    for path, flags in ((str(tmp_path), os.O_RDONLY | os.O_DIRECTORY), ("/dev/null", os.O_RDWR), ("/dev/urandom", os.O_RDONLY)):
        fd = os.open(path, flags)
        wanted = capture(fd)
        again = made(wanted)
        assert capture(again) == wanted
        close((fd, again))
    assert wanted.state["device"] == "urandom"


def test_pipe_contents_come_back() -> None:
    reader, writer = os.pipe()
    os.write(writer, b"x" * 5000 + b"tail")
    wanted = (capture(reader, 1), capture(writer, 2))
    assert peers(wanted) == {1: (2,), 2: (1,)}
    os.read(reader, 5002)
    os.write(writer, b"more")
    fcntl.fcntl(writer, 1031, 1 << 17)
    os.set_blocking(writer, False)
    for fd, file in zip((reader, writer), wanted, strict=True):
        now = capture(fd, file.id)
        run(kind_named("pipe").adjust(fd, now, file))
    assert (capture(reader, 1), capture(writer, 2)) == wanted
    os.close(writer)
    alone = capture(reader, 1)
    assert alone.state["alone"]
    assert peers([alone]) == {1: None}
    close((reader,))


def test_pipe_to_the_outside_is_left_alone() -> None:
    reader, writer = os.pipe()
    os.write(writer, b"before")
    (wanted,) = with_outside([capture(writer, 2)])
    assert wanted.state["outside"]
    os.read(reader, 3)
    (now,) = with_outside([capture(writer, 2)])
    assert kind_named("pipe").adjust(writer, now, wanted) == []
    with pytest.raises(CannotUndo, match="outside"):
        kind_named("pipe").recreate_pair(wanted, None)
    close((reader, writer))


@pytest.mark.parametrize("write_end_first", [False, True])
def test_pipe_pair_made_again(write_end_first: bool) -> None:
    ends = os.pipe()
    os.write(ends[1], b"hello")
    os.set_blocking(ends[0], False)
    order = (ends[1], ends[0]) if write_end_first else ends
    wanted = tuple(capture(fd, index) for index, fd in enumerate(order))
    results = run(kind_named("pipe").recreate_pair(*wanted))
    assert results[-1] == results[0]
    for index, fd in enumerate(results[:2]):
        got = capture(fd, index)
        assert (got.flags, got.state["contents"], got.state["capacity"]) == (wanted[index].flags, b"hello".hex(), 65536)
        assert got.state["ino"] != wanted[index].state["ino"]
    os.close(ends[1])
    lonely = run(kind_named("pipe").recreate_pair(capture(ends[0]), None))
    assert os.read(lonely[0], 99) == b"hello"
    assert os.read(lonely[0], 99) == b""
    close((ends[0], *results[:2], lonely[0]))


def test_epoll() -> None:
    reader, writer = os.pipe()
    other, beyond = os.pipe()
    poll = select.epoll()
    poll.register(reader, select.EPOLLIN | select.EPOLLET)
    poll.register(other, select.EPOLLIN)
    watched = {reader: 1, other: 2, writer: 3}
    wanted = capture(poll.fileno(), 9, watched)
    assert [(entry["fd"], entry["file"]) for entry in wanted.state["entries"]] == [(reader, 1), (other, 2)]
    poll.modify(reader, select.EPOLLPRI)
    poll.unregister(other)
    poll.register(writer, select.EPOLLOUT)
    run(kind_named("epoll").adjust(poll.fileno(), capture(poll.fileno(), 9, watched), wanted))
    assert capture(poll.fileno(), 9, watched) == wanted
    again = made(wanted)
    run(kind_named("epoll").adjust(again, capture(again, 9, watched), wanted))
    assert capture(again, 9, watched) == wanted
    with pytest.raises(CannotUndo, match="nobody in the tree"):
        kind_named("epoll").adjust(again, capture(again, 9, {}), capture(again, 9, {reader: 1, other: 3}))
    poll.close()
    close((reader, writer, other, beyond, again))


def test_memfd() -> None:
    fd = os.memfd_create("a name", os.MFD_ALLOW_SEALING)
    empty = capture(fd)
    os.write(fd, b"x" * 100)
    wanted = capture(fd)
    assert (wanted.kind, wanted.pos, wanted.state["size"], wanted.state["name"]) == ("memfd", 100, 100, "a name")
    os.ftruncate(fd, 7)
    os.lseek(fd, 1, os.SEEK_SET)
    assert back(fd, wanted) == wanted
    again = made(empty)
    after = capture(again)
    assert (after.flags, after.pos, after.state["seals"]) == (empty.flags, 0, 0)
    with pytest.raises(CannotUndo, match="100 bytes"):
        made(wanted)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW)
    with pytest.raises(CannotUndo, match="sealed since"):
        kind_named("memfd").adjust(fd, capture(fd), wanted)
    close((fd, again))


def test_unsupported_descriptors_are_named(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    poll = LIBC.inotify_init()
    opened = {
        "inotify": poll,
        "pidfd": os.pidfd_open(os.getpid()),
        f"FIFO {fifo}": os.open(fifo, os.O_RDWR),
        "namespace handle net:": os.open("/proc/self/ns/net", os.O_RDONLY),
        "pty master": os.open("/dev/ptmx", os.O_RDWR | os.O_NOCTTY),
    }
    for name, fd in opened.items():
        raw = look(fd)
        with pytest.raises(Unsupported, match=f"^{name}.*: not supported$"):
            kind_of(raw).parse(raw)
        with pytest.raises(Unsupported):
            kind_of(raw).check(raw)  # type: ignore[attr-defined]
    close(opened.values())


def test_terminal() -> None:
    master, slave = os.openpty()
    wanted = capture(slave)
    assert (wanted.kind, wanted.state["device"]) == ("device", "tty")
    os.set_blocking(slave, False)
    assert back(slave, wanted) == wanted
    assert signal.getsignal(signal.SIGTTOU) is not None
    close((master, slave))
