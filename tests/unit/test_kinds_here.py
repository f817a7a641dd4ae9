"""Kinds of descriptor on real ones: capture, change, adjust, capture again: the same; and made anew: the same."""

from __future__ import annotations

import ctypes
import fcntl
import os
import select
import signal
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ckpt.kinds.base import CannotUndo, Moved, Unsupported, fd_kinds, peers, with_outside
from ckpt.model import OpenFile
from tests.unit.here import capture, close, kind_of, look, run, until

LIBC = ctypes.CDLL(None)


@pytest.fixture(autouse=True)
def _no_descriptor_is_left_over() -> Iterator[None]:
    def count() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    before = count()
    yield
    assert count() == before


def kind(name: str):  # type: ignore[no-untyped-def]
    return next(kind for kind in fd_kinds() if kind.name == name)


def back(fd: int, wanted: OpenFile) -> OpenFile:
    """Adjusts and captures again."""
    run(kind(wanted.kind).adjust(fd, capture(fd), wanted))
    return capture(fd)


def made(wanted: OpenFile) -> int:
    return run(kind(wanted.kind).recreate(wanted))[-1]


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
        run(kind("pipe").adjust(fd, now, file))
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
    assert kind("pipe").adjust(writer, now, wanted) == []
    with pytest.raises(CannotUndo, match="outside"):
        kind("pipe").recreate_pair(wanted, None)
    close((reader, writer))


@pytest.mark.parametrize("write_end_first", [False, True])
def test_pipe_pair_made_again(write_end_first: bool) -> None:
    ends = os.pipe()
    os.write(ends[1], b"hello")
    os.set_blocking(ends[0], False)
    order = (ends[1], ends[0]) if write_end_first else ends
    wanted = tuple(capture(fd, index) for index, fd in enumerate(order))
    results = run(kind("pipe").recreate_pair(*wanted))
    assert results[-1] == results[0]
    for index, fd in enumerate(results[:2]):
        got = capture(fd, index)
        assert (got.flags, got.state["contents"], got.state["capacity"]) == (wanted[index].flags, b"hello".hex(), 65536)
        assert got.state["ino"] != wanted[index].state["ino"]
    os.close(ends[1])
    lonely = run(kind("pipe").recreate_pair(capture(ends[0]), None))
    assert os.read(lonely[0], 99) == b"hello"
    assert os.read(lonely[0], 99) == b""
    close((ends[0], *results[:2], lonely[0]))


def test_socket_pair() -> None:
    left, right = socket.socketpair()
    left.send(b"to the right")
    right.shutdown(socket.SHUT_WR)
    left.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    wanted = (capture(left.fileno(), 1), capture(right.fileno(), 2))
    assert peers(wanted) == {1: (2,), 2: (1,)}
    assert kind("unix").adjust(left.fileno(), wanted[0], wanted[0]) == []
    right.recv(5)
    now = capture(right.fileno(), 2)
    with pytest.raises(CannotUndo, match="queued"):
        kind("unix").adjust(right.fileno(), now, wanted[1])
    results = run(kind("unix").recreate_pair(*wanted))
    for file, fd in zip(wanted, results, strict=False):
        got = capture(fd, file.id)
        for key in ("queue", "shutdown", "type", "options"):
            assert got.state[key] == file.state[key], key
    assert os.read(results[1], 99) == b"to the right"
    assert os.read(results[0], 99) == b""
    left.close()
    alone = capture(right.fileno(), 2)
    assert peers([alone]) == {2: None}
    survivor = run(kind("unix").recreate_pair(alone, None))
    assert os.read(survivor[0], 99) == b"e right"
    assert os.read(survivor[0], 99) == b""
    close((*results[:2], survivor[0]))
    right.close()


def test_socket_pair_to_the_outside_is_left_alone() -> None:
    left, right = socket.socketpair()
    (wanted,) = with_outside([capture(left.fileno(), 1)])
    right.send(b"news")
    (now,) = with_outside([capture(left.fileno(), 1)])
    assert wanted.state["outside"]
    assert kind("unix").adjust(left.fileno(), now, wanted) == []
    left.close()
    right.close()


def test_named_unix_sockets_are_refused(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
        server.bind(str(tmp_path / "s"))
        server.listen()
        with pytest.raises(Unsupported, match=r"unix socket listening on .*/s: not supported"):
            capture(server.fileno())
        client.connect(str(tmp_path / "s"))
        with pytest.raises(Unsupported, match=r"connected by name"):
            capture(client.fileno())


def connection() -> tuple[socket.socket, socket.socket, socket.socket]:
    server = socket.socket()
    server.bind(("127.0.0.1", 0))
    server.listen(7)
    client = socket.create_connection(server.getsockname())
    return server, client, server.accept()[0]


def test_tcp_that_stood_still_is_kept() -> None:
    server, client, served = connection()
    client.send(b"hello")
    until(lambda: served.recv(9, socket.MSG_PEEK) == b"hello", "the bytes")
    assert served.recv(3) == b"hel"
    wanted = capture(served.fileno())
    assert (wanted.kind, wanted.state["state"], wanted.state["consumed"], wanted.state["written"]) == ("tcp", "ESTABLISHED", 3, 0)
    client.send(b"more that nobody has read")
    served.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    until(lambda: len(served.recv(99, socket.MSG_PEEK)) > 20, "the bytes")
    assert back(served.fileno(), wanted) == wanted
    client.close()
    until(lambda: capture(served.fileno()).state["state"] == "CLOSE_WAIT", "the end to arrive")
    assert kind("tcp").adjust(served.fileno(), capture(served.fileno()), wanted) == []
    served.close()
    server.close()


def test_tcp_that_moved_says_so() -> None:
    server, client, served = connection()
    wanted = capture(client.fileno())
    client.send(b"12345")
    with pytest.raises(Moved, match="0 bytes were read and 5 written"):
        kind("tcp").adjust(client.fileno(), capture(client.fileno()), wanted)
    client.shutdown(socket.SHUT_WR)
    with pytest.raises(Moved, match="was ESTABLISHED"):
        kind("tcp").adjust(client.fileno(), capture(client.fileno()), wanted)
    with pytest.raises(Moved, match="is gone"):
        made(wanted)
    served.send(b"abc")
    until(lambda: capture(served.fileno()).state["written"] == 3, "the bytes to be told")
    wanted = capture(served.fileno())
    assert served.recv(99) == b"12345"
    with pytest.raises(Moved, match="5 bytes were read and 0 written"):
        kind("tcp").adjust(served.fileno(), capture(served.fileno()), wanted)
    for item in (server, client, served):
        item.close()


def test_tcp_listener_is_made_again() -> None:
    server = socket.socket()
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    server.bind(("127.0.0.1", 0))
    server.listen(7)
    server.setblocking(False)
    wanted = capture(server.fileno())
    assert (wanted.state["state"], wanted.state["backlog"]) == ("LISTEN", 7)
    address = server.getsockname()
    server.close()
    again = made(wanted)
    after = capture(again)
    for key in ("state", "backlog", "local", "options"):
        assert after.state[key] == wanted.state[key], key
    assert after.flags == wanted.flags
    socket.create_connection(address).close()
    close((again,))


def test_udp() -> None:
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as first:
        first.bind(("::1", 0))
        wanted = capture(first.fileno())
        assert wanted.state["local"].startswith("[::1]:")
    again = made(wanted)
    assert capture(again).state["local"] == wanted.state["local"]
    close((again,))


def test_other_sockets_are_refused_by_name() -> None:
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 4) as channel, pytest.raises(Unsupported, match="netlink socket: not supported"):
        capture(channel.fileno())


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
    run(kind("epoll").adjust(poll.fileno(), capture(poll.fileno(), 9, watched), wanted))
    assert capture(poll.fileno(), 9, watched) == wanted
    again = made(wanted)
    run(kind("epoll").adjust(again, capture(again, 9, watched), wanted))
    assert capture(again, 9, watched) == wanted
    with pytest.raises(CannotUndo, match="nobody in the tree"):
        kind("epoll").adjust(again, capture(again, 9, {}), capture(again, 9, {reader: 1, other: 3}))
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
        kind("memfd").adjust(fd, capture(fd), wanted)
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
