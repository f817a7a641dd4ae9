"""Kinds of descriptor on real ones: capture, change, adjust, capture again: the same; and made anew: the same."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import select
import signal
import struct
import termios
import time
import tty
from dataclasses import replace
from pathlib import Path

import pytest

from ckpt.errors import RefusedError
from ckpt.kinds.base import CannotUndo, Unsupported, peers, with_outside
from ckpt.kinds.fd import locks
from ckpt.live import processes, watches
from ckpt.live.terminals import Terminal
from ckpt.model import OpenFile, PidRef, Snapshot
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
    path.unlink()
    assert capture(fd).state["deleted"]
    assert capture(fd).state["path"] == str(path)
    nameless = capture(fd)
    with pytest.raises(CannotUndo, match="not captured"):
        made(nameless)
    through = replace(nameless, state={**nameless.state, "through": f"/proc/self/fd/{fd}"})
    third = made(through)
    assert capture(third) == nameless
    close((fd, again, third))


def span(kind: int, start: int, length: int) -> bytes:
    return struct.pack("<hh4xqqi4x", kind, 0, start, length, 0)


OFD_SETLK = 37
LOCKS = {
    "flock": (lambda fd: fcntl.flock(fd, fcntl.LOCK_SH), ["FLOCK ADVISORY READ"]),
    "ofd": (lambda fd: fcntl.fcntl(fd, OFD_SETLK, span(fcntl.F_WRLCK, 3, 4)), ["OFDLCK ADVISORY WRITE 3 6"]),
    "posix": (lambda fd: fcntl.fcntl(fd, fcntl.F_SETLK, span(fcntl.F_WRLCK, 3, 0)), ["POSIX ADVISORY WRITE 3 EOF"]),
}


@pytest.mark.parametrize("name", LOCKS)
def test_locks_are_given_back_and_taken_again(name: str, tmp_path: Path) -> None:
    path = tmp_path / "locked"
    path.write_bytes(b"0123456789")
    take, texts = LOCKS[name]
    fd = os.open(path, os.O_RDWR)
    free = capture(fd)
    take(fd)
    held = capture(fd)
    assert held.state["locks"] == texts
    assert back(fd, free) == free
    with pytest.raises(CannotUndo, match="locks"):
        kind_named("file").adjust(fd, free, held)
    os.close(fd)
    again = made(held)
    run(kind_named("file").settle(again, held))
    assert capture(again) == held
    close((again,))


def test_a_lock_that_another_has_is_known() -> None:
    texts = ["FLOCK ADVISORY WRITE", "POSIX ADVISORY READ 10 19", "OFDLCK ADVISORY WRITE 100 EOF"]
    assert locks.taken(texts, ["POSIX ADVISORY READ 0 EOF", "POSIX ADVISORY WRITE 20 99"]) == "OFDLCK ADVISORY WRITE 100 EOF"
    assert locks.taken(texts, ["POSIX ADVISORY WRITE 19 20"]) == "POSIX ADVISORY READ 10 19"
    assert locks.taken(texts, ["FLOCK ADVISORY READ"]) == "FLOCK ADVISORY WRITE"
    assert locks.taken(texts, ["POSIX ADVISORY WRITE 20 99", "OFDLCK ADVISORY READ 0 50"]) is None
    assert locks.text_of("1: FLOCK  ADVISORY  WRITE 7829 fe:00:2146360 0 EOF") == "FLOCK ADVISORY WRITE"
    assert locks.text_of("3: OFDLCK ADVISORY  READ -1 fe:00:21 5 EOF") == "OFDLCK ADVISORY READ 5 EOF"


def test_a_fifo_and_what_lies_in_it(tmp_path: Path) -> None:
    path = tmp_path / "named pipe"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    lonely = with_outside([capture(reader, 1)])[0]
    assert (lonely.kind, lonely.state["alone"], lonely.state["outside"]) == ("fifo", False, True)
    writer = os.open(path, os.O_WRONLY | os.O_APPEND)
    fcntl.fcntl(writer, 1031, 8192)
    os.write(writer, b"in the FIFO")
    ends = with_outside([capture(reader, 1), capture(writer, 2)])
    assert peers(ends) == {1: (2,), 2: (1,)}
    os.read(reader, 3)
    for fd, file in zip((reader, writer), ends, strict=True):
        run(kind_named("fifo").adjust(fd, with_outside([capture(reader, 1), capture(writer, 2)])[file.id - 1], file))
    assert with_outside([capture(reader, 1), capture(writer, 2)]) == ends
    close((reader, writer))
    again = [made(end) for end in ends]
    for fd, end in zip(again, ends, strict=True):
        run(kind_named("fifo").settle(fd, end))
    assert with_outside([capture(again[0], 1), capture(again[1], 2)]) == ends
    assert os.read(again[0], 100) == b"in the FIFO"
    close((again[1],))
    ended = with_outside([capture(again[0], 1)])[0]
    assert ended.state["alone"]
    close((again[0],))
    for wanted in (lonely, ended):
        third = made(wanted)
        run(kind_named("fifo").settle(third, wanted))
        assert with_outside([capture(third, 1)])[0].state == wanted.state
        close((third,))


def test_packets_stay_packets() -> None:
    reader, writer = os.pipe2(0o40000)
    sizes = [5, 1, 4096, 30]
    for size in sizes:
        os.write(writer, bytes([size & 0xFF]) * size)
    ends = (capture(reader, 1), capture(writer, 2))
    assert ends[0].state["packets"] == sizes
    os.read(reader, 3000)
    os.write(writer, b"more")
    run(kind_named("pipe").adjust(reader, capture(reader, 1), ends[0]))
    assert (capture(reader, 1), capture(writer, 2)) == ends
    made_ends = run(kind_named("pipe").recreate_pair(*ends))[:2]
    for source in (reader, made_ends[0]):
        assert [len(os.read(source, 1 << 16)) for _ in sizes] == sizes
    close((reader, writer, *made_ends))


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
    opened = {
        "namespace handle net:": os.open("/proc/self/ns/net", os.O_RDONLY),
    }
    for name, fd in opened.items():
        raw = look(fd)
        with pytest.raises(Unsupported, match=f"^{name}.*: not supported$"):
            kind_of(raw).parse(raw)
        with pytest.raises(Unsupported):
            kind_of(raw).check(raw)  # type: ignore[attr-defined]
    close(opened.values())


def test_a_terminal_of_ones_own_gets_its_settings_back_and_is_made_anew() -> None:
    master, slave = os.openpty()
    fcntl.ioctl(master, 0x5414, struct.pack("<4H", 33, 99, 0, 0))
    ends = with_outside([capture(master, 1), capture(slave, 2)])
    assert [(end.kind, end.state["master"], end.state["outside"]) for end in ends] == [("pty", True, False), ("pty", False, False)]
    assert ends[0].state["index"] == ends[1].state["index"]
    settings = termios.tcgetattr(slave)
    tty.setraw(slave)
    fcntl.ioctl(master, 0x5414, struct.pack("<4H", 1, 2, 0, 0))
    os.set_blocking(slave, False)
    for fd, end in zip((master, slave), ends, strict=True):
        assert back(fd, end) == replace(end, id=0, state={key: value for key, value in end.state.items() if key != "outside"})
    assert termios.tcgetattr(slave) == settings
    with pytest.raises(CannotUndo, match="pty"):
        made(ends[0])
    close((master, slave))
    keep: list[int] = []
    anew = Terminal(ends[0], keep)
    assert anew.index == ends[0].state["index"]
    at = anew.ends(ends[0], [ends[1]])
    again = [made(replace(end, state={**end.state, "at": at[end.id]})) for end in ends]
    assert with_outside([capture(again[0], 1), capture(again[1], 2)]) == ends
    other: list[int] = []
    assert Terminal(ends[0], other).index != anew.index
    close((*keep, *again, *other))


def test_a_terminal_of_somebody_else_is_left_alone() -> None:
    master, slave = os.openpty()
    wanted = with_outside([capture(slave)])[0]
    assert wanted.state["outside"]
    fcntl.ioctl(master, 0x5414, struct.pack("<4H", 33, 99, 0, 0))
    assert kind_named("pty").adjust(slave, capture(slave), wanted) == []
    again = made(wanted)
    assert os.readlink(f"/proc/self/fd/{again}") == wanted.state["path"]
    close((master, slave, again))


def located(file: OpenFile) -> OpenFile:
    return watches.located(Snapshot(PidRef(1, 1), (), (file,), (), {}, 0)).files[0]


@pytest.mark.skipif(os.getuid() != 0, reason="open_by_handle_at needs CAP_DAC_READ_SEARCH")
def test_inotify(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    fd = LIBC.inotify_init1(os.O_NONBLOCK)
    for path, mask in ((tmp_path, 0x300), (tmp_path / "file", 0x2 | 0x80000000), (Path("/"), 0x400), (tmp_path / "file", 0x2)):
        LIBC.inotify_add_watch(fd, os.fsencode(path), mask)
    LIBC.inotify_rm_watch(fd, 1)
    os.read(fd, 100)
    wanted = capture(fd)
    assert [watch["wd"] for watch in wanted.state["watches"]] == [2, 3]
    with pytest.raises(CannotUndo, match="number 2"):
        made(wanted)
    found = located(wanted)
    assert [watch["path"] for watch in found.state["watches"]] == [str(tmp_path / "file"), "/"]
    again = made(found)
    assert capture(again) == wanted
    LIBC.inotify_rm_watch(fd, 3)
    LIBC.inotify_add_watch(fd, os.fsencode(tmp_path), 0x100)
    (tmp_path / "another").touch()
    changed = capture(fd)
    assert changed.state["queued"] > 0
    run(kind_named("inotify").adjust(fd, changed, found))
    assert capture(fd) == wanted
    assert kind_named("inotify").caveats(None, changed)[0].endswith("are not brought back")
    (tmp_path / "file").unlink()
    close((fd, again))
    assert "path" not in located(wanted).state["watches"][0]


def pidfds() -> set[int]:
    found = set()
    for one in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # the folder's own
            if os.readlink(one).startswith(("pidfd", "anon_inode:[pidfd]")):
                found.add(int(one.name))
    return found


def test_pidfd() -> None:
    of_others = pidfds()
    child = os.fork()
    if child == 0:
        signal.pause()
    fds = [os.pidfd_open(child), os.pidfd_open(child, os.O_NONBLOCK), os.pidfd_open(os.getpid())]
    states = [capture(fd) for fd in fds]
    assert [state.state["pid"] for state in states] == [child, child, os.getpid()]
    again = [made(state) for state in states]
    assert [capture(fd) for fd in again] == states
    with pytest.raises(CannotUndo):
        back(fds[0], states[2])
    held = processes.outside(states[1])
    assert capture(made(replace(states[1], state={**states[1].state, "at": held}))) == states[1]
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    dead = capture(fds[0])
    assert dead.state["pid"] == -1
    with pytest.raises(RefusedError, match="has ended"):
        processes.outside(states[0])
    gone = processes.ended()
    assert capture(gone).state["pid"] == -1
    assert select.select([gone], [], [], 0)[0] == [gone]
    for fd in pidfds() - of_others:
        os.close(fd)
