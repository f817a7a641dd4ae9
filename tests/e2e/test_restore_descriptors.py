"""Open files of a task that is killed and restored, kind by kind: the program is asked, then and now, and every line of fdinfo that
can be the same is the same."""

from __future__ import annotations

import fcntl
import os
import re
import struct
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.asked import Asked
from tests.e2e.test_restore import revive
from tests.harness import Ckpt

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: acts on other processes")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the program lives; nothing else is in it."""
    (tmp_path / "program").mkdir()
    return tmp_path / "program"


@pytest.fixture
def program(folder: Path) -> Iterator[Asked]:
    with Asked() as asked:
        asked.tell(f"import errno, struct, termios, tty; os.chdir({str(folder)!r})")
        yield asked


@dataclass(frozen=True)
class Case:
    setup: str
    probe: str  #: the same then and now; must not change what it looks at
    use: str = "None"  #: works only if the thing is whole; asked after the restore
    expect: Any = None
    change: str = ""  #: for a rollback in place
    fds: str = "[]"  #: numbers whose fdinfo is compared


CASES = {
    "a deleted file": Case(
        "fd = os.open('gone', os.O_RDWR | os.O_CREAT); os.write(fd, b'x' * 9000 + b'end'); os.lseek(fd, 8998, 0); os.unlink('gone')",
        "[os.pread(fd, 20000, 0), os.lseek(fd, 0, 1), os.fstat(fd).st_nlink, os.readlink(f'/proc/self/fd/{fd}')]",
        "[os.read(fd, 5), os.listdir('.')]",
        [b"xxend", []],
        "os.pwrite(fd, b'changed', 100); os.ftruncate(fd, 200); os.lseek(fd, 0, 0)",
        "[fd]",
    ),
    "a deleted file with holes": Case(
        "fd = os.open('gone', os.O_RDWR | os.O_CREAT); os.ftruncate(fd, 1 << 21); os.pwrite(fd, b'here', 1 << 20); os.unlink('gone')",
        "[os.fstat(fd).st_size, os.pread(fd, 8, (1 << 20) - 2), os.pread(fd, 4, 0)]",
        change="os.pwrite(fd, b'there', 2)",
    ),
    "one deleted file, open three times": Case(
        "one = os.open('gone', os.O_RDWR | os.O_CREAT, 0o640); os.write(one, b'0123456789'); two = os.open('gone', os.O_RDONLY); "
        "three = os.open('gone', os.O_WRONLY | os.O_APPEND); four = os.dup(two); os.unlink('gone'); os.lseek(two, 4, 0)",
        "[os.fstat(fd).st_ino == os.fstat(one).st_ino for fd in (two, three, four)] + [oct(os.fstat(one).st_mode)]",
        "[os.write(three, b'ab'), os.read(two, 3), os.read(four, 3), os.pread(one, 20, 0)]",
        [2, b"456", b"789", b"0123456789ab"],
        fds="[one, two, three, four]",
    ),
    "a deleted file that is only mapped": Case(
        "libc.mmap.restype = ctypes.c_void_p; fd = os.open('gone', os.O_RDWR | os.O_CREAT, 0o640); os.write(fd, b'file' * 3000); "
        "at = libc.mmap(None, 12288, 3, 2, fd, 0); shared = libc.mmap(None, 4096, 3, 1, fd, 8192); os.close(fd); os.unlink('gone'); "
        "ctypes.memmove(at + 5000, b'mine', 4); ctypes.memmove(shared, b'ours', 4)",
        "[ctypes.string_at(at, 12288), ctypes.string_at(shared, 4096)] + "
        "[line.split()[1::4] for line in open('/proc/self/maps') if 'gone' in line]",
        "[ctypes.memmove(shared + 8, b'both', 4) > 0, ctypes.string_at(at + 8200, 4), libc.mprotect(ctypes.c_void_p(at), 4096, 1)]",
        [True, b"both", 0],
        "ctypes.memmove(at, b'other', 5); ctypes.memmove(at + 5000, b'yours', 5); ctypes.memmove(shared + 100, b'others', 6)",
    ),
    "a library that was replaced": Case(
        "import glob, shutil; shutil.copy(glob.glob('/lib/x86_64-linux-gnu/libz.so.1')[0], 'libold.so'); old = ctypes.CDLL('./libold.so'); "
        "os.unlink('libold.so'); old.crc32.restype = ctypes.c_uint",
        "old.crc32(0, b'123456789', 9)",
        "[old.adler32(1, b'abc', 3), os.listdir('.')]",
        [0x24D0127, []],
    ),
    "two deleted files of one name": Case(
        "one = os.open('gone', os.O_RDWR | os.O_CREAT); os.unlink('gone'); two = os.open('gone', os.O_RDWR | os.O_CREAT); "
        "os.unlink('gone'); os.write(one, b'first'); os.write(two, b'second')",
        "[os.pread(one, 9, 0), os.pread(two, 9, 0)]",
    ),
    "O_TMPFILE": Case(
        "fd = os.open('.', os.O_TMPFILE | os.O_RDWR | os.O_NOFOLLOW); os.write(fd, b'nameless')",
        "[os.pread(fd, 9, 0), os.fstat(fd).st_nlink, os.listdir('.')]",
        "[libc.linkat(-100, f'/proc/self/fd/{fd}'.encode(), -100, b'named', 0x400), open('named').read(), os.unlink('named')]",
        [0, "nameless", None],
        "os.pwrite(fd, b'other', 2)",
    ),
    "a log": Case(
        "fd = os.open('log', os.O_WRONLY | os.O_CREAT | os.O_APPEND); os.write(fd, b'one ')",
        "[os.lseek(fd, 0, 1), fcntl.fcntl(fd, fcntl.F_GETFL)]",
        "[os.write(fd, b'two'), open('log').read()]",
        [3, "one two"],
        fds="[fd]",
    ),
    "a path only": Case(
        "open('file', 'w').write('a'); os.symlink('file', 'link'); os.mkfifo('fifo'); "
        "fds = [os.open(name, os.O_PATH | os.O_NOFOLLOW) for name in ('file', 'link', 'fifo', '.')]",
        "[(fcntl.fcntl(fd, fcntl.F_GETFL), os.readlink(f'/proc/self/fd/{fd}'), os.fstat(fd).st_ino) for fd in fds]",
        "[os.readlink('', dir_fd=fds[1]), os.listdir(f'/proc/self/fd/{fds[3]}').sort()]",
        ["file", None],
        fds="fds",
    ),
    "files of /proc": Case(
        "fds = [os.open(f'/proc/{name}', os.O_RDONLY) for name in ('self/maps', 'self/stat', 'self/task', 'meminfo', '')]; "
        "fds.append(os.open('/proc/self/comm', os.O_RDWR)); gone = [os.read(fds[0], 100), os.read(fds[1], 10)]",
        "[[os.readlink(f'/proc/self/fd/{fd}'), os.lseek(fd, 0, 1)] for fd in fds]",
        "[os.pread(fds[1], 100, 0).split()[0] == str(os.getpid()).encode(), os.listdir(fds[2]) == [str(os.getpid())], "
        "os.listdir(fds[4]).count('self'), os.write(fds[5], b'renamed'), open('/proc/self/comm').read()]",
        [True, True, 1, 7, "renamed\n"],
        "[os.lseek(fd, 0, 0) for fd in fds]; os.dup2(fds[0], fds[3])",
        "fds",
    ),
    "a directory half read": Case(
        "[open(f'f{n}', 'w').close() for n in range(50)]; fd = os.open('.', os.O_RDONLY); room = bytearray(512); "
        "some = libc.syscall(217, fd, (ctypes.c_char * 512).from_buffer(room), 512); "
        "rest = lambda: [libc.syscall(217, fd, ctypes.create_string_buffer(65536), 65536), os.lseek(fd, 0, 1)]; "
        "here = os.lseek(fd, 0, 1); left = rest(); back = os.lseek(fd, here, 0)",
        "os.lseek(fd, 0, 1)",
        "rest() == left and left[0] > 500",
        True,
        "os.lseek(fd, 0, 0)",
        "[fd]",
    ),
    "flock": Case(
        "fd = os.open('lock', os.O_RDWR | os.O_CREAT); fcntl.flock(fd, fcntl.LOCK_EX); two = os.open('lock', os.O_RDWR)",
        "'FLOCK  ADVISORY  WRITE' in open(f'/proc/self/fdinfo/{fd}').read()",
        "[fcntl.flock(fd, fcntl.LOCK_UN), fcntl.flock(two, fcntl.LOCK_EX | fcntl.LOCK_NB)]",
        [None, None],
    ),
    "POSIX locks": Case(
        "fd = os.open('lock', os.O_RDWR | os.O_CREAT); two = os.open('lock', os.O_RDONLY); fcntl.lockf(fd, fcntl.LOCK_EX, 10, 5); "
        "fcntl.lockf(fd, fcntl.LOCK_SH, 0, 100); fcntl.lockf(two, fcntl.LOCK_SH, 3, 50)",
        "sorted(line.split(None, 2)[2] for fd in (fd, two) for line in open(f'/proc/self/fdinfo/{fd}') if line.startswith('lock'))",
        fds="[fd, two]",
    ),
    "locks of an open file": Case(
        "fd = os.open('lock', os.O_RDWR | os.O_CREAT); fcntl.fcntl(fd, 37, struct.pack('<hh4xqqi4x', 1, 0, 3, 4, 0)); two = os.dup(fd)",
        "[line for line in open(f'/proc/self/fdinfo/{two}') if line.startswith('lock')]",
    ),
    "a pipe's packets": Case(
        "ends = os.pipe2(os.O_DIRECT); [os.write(ends[1], b'p' * size) for size in (3, 500, 1, 4096)]",
        "[fcntl.fcntl(ends[1], 1032), fcntl.ioctl(ends[0], 0x541b, bytes(4))]",
        "[len(os.read(ends[0], 9000)) for _ in range(4)] + [os.write(ends[1], b'12'), os.write(ends[1], b'3'), os.read(ends[0], 9)]",
        [3, 500, 1, 4096, 2, 1, b"12"],
        "os.read(ends[0], 1); os.write(ends[1], b'other')",
        "ends",
    ),
    "a large pipe, nearly full": Case(
        "ends = os.pipe2(os.O_NONBLOCK); fcntl.fcntl(ends[1], 1031, 1 << 18); os.write(ends[1], bytes(range(256)) * 1000)",
        "[fcntl.fcntl(ends[0], 1032), fcntl.ioctl(ends[0], 0x541b, bytes(4))]",
        "os.read(ends[0], 1 << 20) == bytes(range(256)) * 1000",
        True,
        fds="ends",
    ),
    "a pipe whose writer has left": Case(
        "ends = os.pipe(); os.write(ends[1], b'last words'); os.close(ends[1])",
        "select.select([ends[0]], [], [], 0)[0] == [ends[0]]",
        "[os.read(ends[0], 20), os.read(ends[0], 20)]",
        [b"last words", b""],
    ),
    "a FIFO": Case(
        "os.mkfifo('fifo'); ends = [os.open('fifo', os.O_RDONLY | os.O_NONBLOCK), os.open('fifo', os.O_WRONLY)]; "
        "os.write(ends[1], b'in it')",
        "[fcntl.ioctl(ends[0], 0x541b, bytes(4)), [fcntl.fcntl(fd, fcntl.F_GETFL) for fd in ends]]",
        "[os.read(ends[0], 20), os.write(ends[1], b'more'), os.read(ends[0], 20), os.close(ends[1]), os.read(ends[0], 20)]",
        [b"in it", 4, b"more", None, b""],
        "os.read(ends[0], 2); os.write(ends[1], b'other')",
        "ends",
    ),
    "a FIFO that waits for a writer": Case(
        "os.mkfifo('fifo'); end = os.open('fifo', os.O_RDONLY | os.O_NONBLOCK); poll = select.poll(); poll.register(end)",
        "poll.poll(0)",
        fds="[end]",
    ),
    "a FIFO both ways": Case(
        "os.mkfifo('fifo'); end = os.open('fifo', os.O_RDWR); os.write(end, b'to myself')",
        "fcntl.ioctl(end, 0x541b, bytes(4))",
        "os.read(end, 20)",
        b"to myself",
        fds="[end]",
    ),
    "inotify": Case(
        "[open(name, 'w').close() for name in 'abc']; os.mkdir('inner'); fd = libc.inotify_init1(os.O_NONBLOCK); "
        "[libc.inotify_add_watch(fd, name.encode(), mask) for name, mask in (('a', 2), ('inner', 0x300), ('b', 2), ('.', 0x80000200))]; "
        "libc.inotify_rm_watch(fd, 1); gone = os.read(fd, 100)",
        "sorted(line.split(' ignored')[0] for line in open(f'/proc/self/fdinfo/{fd}') if line.startswith('inotify'))",
        "[open('inner/new', 'w').close(), struct.unpack('<iIII', os.read(fd, 100)[:16]), libc.inotify_add_watch(fd, b'c', 2)]",
        [None, (2, 0x100, 0, 16), 5],
        "libc.inotify_rm_watch(fd, 3); libc.inotify_add_watch(fd, b'c', 8); open('inner/x', 'w').close(); os.unlink('inner/x')",
        "[fd]",
    ),
    "a pty": Case(
        "master, slave = os.openpty(); two = os.dup(slave); attributes = termios.tcgetattr(slave); attributes[3] &= ~termios.ECHO; "
        "termios.tcsetattr(slave, 0, attributes); fcntl.ioctl(master, 0x5414, struct.pack('<4H', 33, 99, 0, 0))",
        "[os.ttyname(slave), fcntl.ioctl(two, 0x5413, bytes(8)), repr(termios.tcgetattr(slave)), os.isatty(master)]",
        "[os.write(master, b'typed' + bytes([10])), os.read(slave, 100), os.write(two, b'shown'), os.read(master, 100)]",
        [6, b"typed\n", 5, b"shown"],
        "tty.setraw(slave); fcntl.ioctl(master, 0x5414, struct.pack('<4H', 1, 2, 0, 0))",
        "[slave, two]",
    ),
    "one-shots that have fired": Case(
        "pair = socket.socketpair(); ends = os.pipe(); event = libc.eventfd(0, 0); link = socket.create_server(('127.0.0.1', 0)); "
        "near = socket.create_connection(link.getsockname()); far = link.accept()[0]; full = os.pipe(); os.write(full[1], b'x'); "
        "pool = select.epoll(); watched = [pair[0].fileno(), near.fileno(), event, ends[0], ends[1], full[0]]; "
        "os.write(ends[1], b'x'); pair[1].send(b'x'); far.send(b'x'); os.write(event, b'12345678'); "
        "[pool.register(fd, 5 | 1 << 30) for fd in watched]; time.sleep(0.05); first = sorted(fd for fd, _ in pool.poll(0)); "
        "gone = [os.read(ends[0], 1), pair[0].recv(1), near.recv(1), os.read(event, 8)]; "
        "armed = libc.eventfd(1, 0); pool.register(armed, 1 | 1 << 30); edge = libc.eventfd(1, 0); pool.register(edge, 1 | 1 << 31)",
        "[first == sorted(watched), sorted(line[:50] for line in open(f'/proc/self/fdinfo/{pool.fileno()}') if 'tfd' in line)]",
        "[sorted(fd for fd, _ in pool.poll(0)) == sorted((armed, edge)), pair[1].close(), far.close(), os.close(ends[1]), "
        "time.sleep(0.05), pool.poll(0), pool.modify(ends[0], 1), pool.poll(0) == [(ends[0], 16)]]",
        [True, None, None, None, None, [], None, True],
        "[pool.modify(fd, 5 | 1 << 30) for fd in watched[:4]]",
    ),
    "message queues": Case(
        "name = f'test-{os.getpid()}'.encode(); attr = struct.pack('<8q', 0, 5, 64, 0, 0, 0, 0, 0); os.umask(0o22); "
        "fd = libc.syscall(240, name, os.O_RDWR | os.O_CREAT | os.O_NONBLOCK, 0o660, attr); two = libc.syscall(240, name, os.O_WRONLY); "
        "room = ctypes.create_string_buffer(64); size = lambda fd: [libc.syscall(245, fd, None, room), room.raw[8:32]]",
        "[size(fd), size(two), os.fstat(fd).st_mode, os.fstat(fd).st_ino == os.fstat(two).st_ino, os.readlink(f'/proc/self/fd/{fd}')]",
        "[libc.syscall(242, two, b'hello', 5, 3, None), libc.syscall(243, fd, room, 64, None, None), room.raw[:5], "
        "libc.syscall(243, fd, room, 64, None, None), libc.syscall(241, name)]",
        [0, 5, b"hello", -1, 0],
        "os.close(two); fcntl.fcntl(fd, fcntl.F_SETFL, 0); two = os.dup(fd)",
        "[fd, two]",
    ),
    "who is signalled": Case(
        "ends = os.pipe(); pair = socket.socketpair(); event = libc.eventfd(0, 0); got = []; job = os.fork() or signal.pause(); "
        "[signal.signal(n, lambda n, _: got.append(n)) for n in (signal.SIGIO, 40)]; os.getpgid(0) == os.getpid() or os.setpgid(0, 0); "
        "told = lambda fd: [struct.unpack('<2i', fcntl.fcntl(fd, 16, bytes(8))), fcntl.fcntl(fd, 11), fcntl.fcntl(fd, fcntl.F_GETFL)]; "
        "tell = lambda fd, sort, who: fcntl.fcntl(fd, 15, struct.pack('<2i', sort, who)); "
        "tell(ends[0], 0, threading.get_native_id()); fcntl.fcntl(ends[0], 10, 40); tell(pair[0].fileno(), 2, os.getpgid(0)); "
        "tell(event, 1, job); fds = (ends[0], pair[0].fileno()); "
        "[fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) | 0o20000) for fd in fds]",
        "[told(fd) for fd in (*ends, pair[0].fileno(), pair[1].fileno(), event)] + [got]",
        "[os.write(ends[1], b'x'), time.sleep(0.05), pair[1].send(b'x'), time.sleep(0.05), got]",
        [1, None, 1, None, [40, 29]],
        "tell(ends[0], 1, os.getpid()); fcntl.fcntl(ends[0], 10, 0); tell(ends[1], 1, job); tell(event, 0, 0); "
        "fcntl.fcntl(pair[0].fileno(), fcntl.F_SETFL, 0)",
        "[*ends, pair[0].fileno(), event]",
    ),
    "a pty whose slave nobody has": Case(
        "master = os.open('/dev/ptmx', os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)",
        "[fcntl.ioctl(master, 0x80045430, bytes(4)), fcntl.ioctl(master, 0x80045439, bytes(4)), fcntl.fcntl(master, fcntl.F_GETFL)]",
    ),
    "pidfd": Case(
        "fds = [os.pidfd_open(os.getpid()), os.pidfd_open(os.getpid(), os.O_NONBLOCK), os.pidfd_open(1)]",
        "[[line for line in open(f'/proc/self/fdinfo/{fd}') if line.startswith(('Pid', 'flags'))] for fd in fds]",
        "[select.select(fds, [], [], 0)[0], signal.pidfd_send_signal(fds[0], 0)]",
        [[], None],
    ),
    "pidfd of a process that has ended": Case(
        "child = os.fork() or os._exit(0); fd = os.pidfd_open(child); gone = os.waitpid(child, 0)",
        "[[line for line in open(f'/proc/self/fdinfo/{fd}') if line.startswith('Pid')], select.select([fd], [], [], 0)[0] == [fd]]",
    ),
    "eventfd": Case(
        "fds = [libc.eventfd(7, flags) for flags in (0, 1, os.O_NONBLOCK)]; os.write(fds[0], (2 ** 63).to_bytes(8, 'little'))",
        "[line for fd in fds for line in open(f'/proc/self/fdinfo/{fd}') if line.startswith(('eventfd-c', 'eventfd-s', 'flags'))]",
        "[int.from_bytes(os.read(fd, 8), 'little') for fd in fds]",
        [2**63 + 7, 1, 7],
        "[os.read(fd, 8) for fd in fds]",
    ),
    "signalfd": Case(
        "old = signal.pthread_sigmask(signal.SIG_BLOCK, [10, 12]); "
        "fd = libc.signalfd(-1, struct.pack('<Q', 1 << 9 | 1 << 11), os.O_NONBLOCK); os.kill(os.getpid(), 12)",
        "[line for line in open(f'/proc/self/fdinfo/{fd}') if line.startswith(('sigmask', 'flags'))]",
        "struct.unpack_from('<I', os.read(fd, 128))",
        (12,),
        fds="[fd]",
    ),
    "timerfd": Case(
        "fds = [libc.timerfd_create(clock, 0) for clock in (1, 0, 7, 1, 1)]; room = (ctypes.c_long * 4)(); "
        "spec = lambda *seconds: struct.pack('<4q', *(part for value in seconds for part in divmod(int(value * 1e9), 10 ** 9))); "
        "[libc.timerfd_settime(fd, flags, spec(*times), None) for fd, flags, times in ((fds[0], 0, (500, 1000)), "
        "(fds[1], 3, (0, 4e9)), (fds[2], 1, (0, time.clock_gettime(7) + 1e5)), (fds[3], 0, (1e6, 0.001)))]; time.sleep(0.01)",
        "[line for fd in fds for line in open(f'/proc/self/fdinfo/{fd}') if line.startswith(('clock', 'ticks', 'settime', 'it_int'))]",
        "[os.read(fds[3], 8)] + [[libc.timerfd_gettime(fd, room), room[2] // 200, room[0]] for fd in fds if fd != fds[1]]",
        [b"\1" + bytes(7), [0, 4, 500], [0, 499, 0], [0, 4999, 10**6], [0, 0, 0]],
    ),
    "epoll": Case(
        "ends = os.pipe(); event = libc.eventfd(0, 0); pool = select.epoll(); outer = select.epoll(); "
        "pool.register(ends[0], 1 | 1 << 31); pool.register(event, 4 | 1 << 30); outer.register(pool, 1); twin = os.dup(event); "
        "outer.register(twin, 1 | 1 << 28); os.close(twin); second = os.dup(ends[0]); pool.register(second, 1); "
        "third = os.dup2(event, second)",
        "sorted(line[:50] for fd in (pool.fileno(), outer.fileno()) for line in open(f'/proc/self/fdinfo/{fd}') if 'tfd' in line)",
        "[outer.poll(0) == [(pool.fileno(), 1)], os.write(ends[1], b'x'), "
        "sorted(pool.poll(0)) == sorted([(ends[0], 1), (event, 4), (second, 1)]), os.write(event, b'12345678'), "
        "(twin, 1) in outer.poll(0)]",
        [True, 1, True, 8, True],
    ),
}

_FDINFO_PASSING = re.compile(r"^(ino|mnt_id|eventfd-id|lock):.*\n?|ino:[0-9a-f]+ |sdev:[0-9a-f]+", re.M)


def infos(program: Asked, fds: str) -> list[str]:
    numbers = program.tell(f"list({fds})")
    texts = [_FDINFO_PASSING.sub("", Path(f"/proc/{program.pid}/fdinfo/{fd}").read_text()) for fd in numbers]
    return ["\n".join(sorted(text.splitlines())) for text in texts]  # a watch that was put back is listed first


@pytest.mark.parametrize("name", CASES)
def test_it_is_what_it_was(name: str, ckpt: Ckpt, program: Asked) -> None:
    case = CASES[name]
    program.tell(case.setup)
    before, shown = program.tell(case.probe), infos(program, case.fds)
    generation = ckpt.snapshot(program.pid)["generation"]
    assert ckpt.run("verify", generation, "--json").json["differences"] == []  # beside the living one, which sees nothing of it
    assert (program.tell(case.probe), infos(program, case.fds)) == (before, shown)
    program.kill()
    said = revive(ckpt, program, generation)
    assert said["warnings"] == []
    assert infos(program, case.fds) == shown
    assert program.tell(case.probe) == before
    again = ckpt.snapshot(program.pid)["generation"]
    program.kill()
    revive(ckpt, program, again)
    assert program.tell(case.probe) == before
    assert infos(program, case.fds) == shown
    assert program.tell(case.use) == case.expect


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.change])
def test_it_is_rolled_back(name: str, ckpt: Ckpt, program: Asked) -> None:
    case = CASES[name]
    program.tell(case.setup)
    before, shown = program.tell(case.probe), infos(program, case.fds)
    generation = ckpt.snapshot(program.pid)["generation"]
    program.tell(case.change)
    assert (program.tell(case.probe), infos(program, case.fds)) != (before, shown), "nothing was changed: nothing is tested"
    done = ckpt.run("rollback", generation, "--pid", program.pid, "--json")
    assert done.code == 0, done.err
    assert program.tell(case.probe) == before
    assert infos(program, case.fds) == shown
    assert program.tell(case.use) == case.expect


# ---- what is no longer as it was ----


def test_a_fifo_that_another_reads_keeps_what_is_in_it(ckpt: Ckpt, program: Asked, folder: Path) -> None:
    generation = killed(
        ckpt,
        program,
        "os.mkfifo('fifo'); ends = [os.open('fifo', os.O_RDONLY | os.O_NONBLOCK), os.open('fifo', os.O_WRONLY)]; "
        "os.write(ends[1], b'mine')",
    )
    reader = os.open(folder / "fifo", os.O_RDONLY | os.O_NONBLOCK)
    try:
        (warning,) = [text for text in revive(ckpt, program, generation)["warnings"] if "not put back" in text][:1]
        assert str(folder / "fifo") in warning
        program.tell("os.write(ends[1], b'new')")
        assert os.read(reader, 100) == b"new"
    finally:
        os.close(reader)


def test_a_pty_whose_number_is_taken_gets_another_and_unread_input_is_told(ckpt: Ckpt, program: Asked) -> None:
    generation = killed(ckpt, program, "master, slave = os.openpty(); name = os.ttyname(slave); os.write(slave, b'shown, not read')")
    masters = [os.open("/dev/ptmx", os.O_RDWR | os.O_NOCTTY) for _ in range(40)]
    try:
        told = revive(ckpt, program, generation)["warnings"]
    finally:
        for master in masters:
            os.close(master)
    assert any("is somebody else's by now" in text for text in told)
    assert any("15 bytes" in text and "are lost" in text for text in told)
    assert program.tell("[os.ttyname(slave) != name, os.write(slave, b'here'), os.read(master, 9)]") == [True, 4, b"here"]


def test_a_process_outside_that_has_ended_is_named(ckpt: Ckpt, program: Asked) -> None:
    other = subprocess.Popen(["sleep", "1000"])
    try:
        generation = killed(ckpt, program, f"fd = os.pidfd_open({other.pid})")
        revive(ckpt, program, generation)
        assert program.tell("select.select([fd], [], [], 0)[0]") == []
        program.kill()
    finally:
        other.kill()
        other.wait()
    ckpt.run("restore", generation).refused(3, "pidfd", str(other.pid), "has ended")


def test_events_that_inotify_had_not_delivered_are_told(ckpt: Ckpt, program: Asked) -> None:
    generation = killed(ckpt, program, "fd = libc.inotify_init(); libc.inotify_add_watch(fd, b'.', 0x100); open('new', 'w').close()")
    assert any("events" in text and "not brought back" in text for text in revive(ckpt, program, generation)["warnings"])
    assert program.tell("[open('newer', 'w').close(), os.read(fd, 100)[16:21]]") == [None, b"newer"]


def test_what_inotify_watched_and_is_gone_is_named(ckpt: Ckpt, program: Asked, folder: Path) -> None:
    (folder / "inner").mkdir()
    generation = killed(ckpt, program, "fd = libc.inotify_init(); libc.inotify_add_watch(fd, b'inner', 0x100)")
    (folder / "inner").rmdir()
    ckpt.run("restore", generation).refused(3, "inotify", "number 1", "is gone")


def killed(ckpt: Ckpt, program: Asked, setup: str) -> int:
    program.tell(setup)
    generation = int(ckpt.snapshot(program.pid)["generation"])
    program.kill()
    return generation


OPEN = "fd = os.open('file', os.{0} | os.O_CREAT); os.write(fd, b'0123456789'); os.lseek(fd, 6, 0)"


def test_a_file_that_is_gone_another_or_shorter_is_named(ckpt: Ckpt, program: Asked, folder: Path) -> None:
    path = folder / "file"
    generation = killed(ckpt, program, OPEN.format("O_RDWR"))
    path.rename(folder / "aside")
    ckpt.run("restore", generation).refused(3, str(path), "is gone")
    path.write_bytes(b"0123456789")
    ckpt.run("restore", generation).refused(3, str(path), "another file")
    (folder / "aside").rename(path)
    os.truncate(path, 5)
    ckpt.run("restore", generation).refused(3, str(path), "shorter", "10 bytes then, 5 now", "position 6")
    assert not Path(f"/proc/{program.pid}").exists()
    path.write_bytes(b"x" * 12)
    (warning,) = revive(ckpt, program, generation)["warnings"]
    assert "longer (10 bytes then, 12 now)" in warning
    assert program.tell("os.read(fd, 100)") == b"x" * 6


def test_a_log_goes_on_at_its_end(ckpt: Ckpt, program: Asked, folder: Path) -> None:
    log = folder / "file"
    generation = killed(ckpt, program, "fd = os.open('file', os.O_WRONLY | os.O_CREAT | os.O_APPEND); os.write(fd, b'0123456789')")
    log.write_bytes(b"0123456789 and what others wrote")
    assert revive(ckpt, program, generation)["warnings"] == []
    program.tell("os.write(fd, b'+')")
    assert log.read_bytes() == b"0123456789 and what others wrote+"
    program.kill()
    os.truncate(log, 3)
    (warning,) = revive(ckpt, program, generation)["warnings"]
    assert "it goes on at its end" in warning
    program.tell("os.write(fd, b'!')")
    assert log.read_bytes() == b"012!"


@pytest.mark.parametrize(
    ("setup", "take"),
    [
        ("fcntl.flock(fd, fcntl.LOCK_EX)", lambda fd: fcntl.flock(fd, fcntl.LOCK_SH)),
        ("fcntl.lockf(fd, fcntl.LOCK_EX, 4, 2)", lambda fd: fcntl.lockf(fd, fcntl.LOCK_SH, 1, 5)),
        ("fcntl.lockf(fd, fcntl.LOCK_SH)", lambda fd: fcntl.fcntl(fd, 37, struct.pack("<hh4xqqi4x", fcntl.F_WRLCK, 0, 0, 0, 0))),
    ],
)
def test_a_lock_that_another_has_by_then_is_named(setup: str, take: Any, ckpt: Ckpt, program: Asked, folder: Path) -> None:
    generation = killed(ckpt, program, OPEN.format("O_RDWR") + "; " + setup)
    fd = os.open(folder / "file", os.O_RDWR)
    try:
        take(fd)
        ckpt.run("restore", generation).refused(3, str(folder / "file"), "lock")
    finally:
        os.close(fd)
    revive(ckpt, program, generation)
    assert program.tell("'ADVISORY' in open(f'/proc/self/fdinfo/{fd}').read()") is True


def test_a_posix_lock_of_a_child_that_shares_the_open_file_is_named(ckpt: Ckpt, program: Asked, folder: Path) -> None:
    program.tell("fd = os.open('file', os.O_RDWR | os.O_CREAT); child = os.fork() or (fcntl.lockf(fd, fcntl.LOCK_EX), time.sleep(600))")
    child = program.tell("child")
    generation = ckpt.snapshot(program.pid)["generation"]
    program.kill()
    ckpt.run("restore", generation).refused(3, str(folder / "file"), str(child), "POSIX lock")


def test_a_deleted_file_that_is_too_large_is_told_at_once(ckpt: Ckpt, program: Asked) -> None:
    program.tell("fd = os.open('gone', os.O_RDWR | os.O_CREAT); os.ftruncate(fd, 65 << 20); os.unlink('gone')")
    checked = ckpt.run("check", program.pid)
    assert "cannot be restored" in checked.out + checked.err
    generation = ckpt.snapshot(program.pid)["generation"]
    program.tell("value = 1")
    assert ckpt.run("rollback", generation, "--pid", program.pid).code == 0
    program.kill()
    ckpt.run("restore", generation).refused(3, "gone", "were not captured")


def test_a_deleted_file_whose_name_or_directory_is_no_longer_free(ckpt: Ckpt, program: Asked, folder: Path) -> None:
    """It is made again without a name that leads anywhere, and that is told."""
    (folder / "inner").mkdir()
    generation = killed(
        ckpt, program, "fd = os.open('inner/gone', os.O_RDWR | os.O_CREAT); os.write(fd, b'still'); os.unlink('inner/gone')"
    )
    (folder / "inner/gone").write_text("another")
    (warning,) = revive(ckpt, program, generation)["warnings"]
    assert str(folder / "inner") in warning
    assert program.tell("[os.pread(fd, 9, 0), os.fstat(fd).st_nlink, os.listdir('inner')]") == [b"still", 0, ["gone"]]
    assert (folder / "inner/gone").read_text() == "another"
    program.kill()
    (folder / "inner/gone").unlink()
    (folder / "inner").rmdir()
    (warning,) = revive(ckpt, program, generation)["warnings"]
    assert "is gone" in warning
    assert program.tell("os.pread(fd, 9, 0)") == b"still"


def test_whom_a_descriptor_signals_outside_is_told(ckpt: Ckpt, program: Asked) -> None:
    generation = killed(ckpt, program, f"ends = os.pipe(); fcntl.fcntl(ends[0], 8, {os.getpid()}); fcntl.fcntl(ends[0], 10, 40)")
    assert ckpt.run("verify", generation, "--json").json["differences"] == []
    (warning,) = revive(ckpt, program, generation)["warnings"]
    assert f"process {os.getpid()}, which is not of the tree" in warning
    assert program.tell("[fcntl.fcntl(ends[0], 9), fcntl.fcntl(ends[0], 11)]") == [0, 40]


def test_a_library_whose_name_another_has_by_then(ckpt: Ckpt, program: Asked, folder: Path) -> None:
    generation = killed(
        ckpt,
        program,
        "import shutil; shutil.copy('/lib/x86_64-linux-gnu/libz.so.1', 'lib.so'); old = ctypes.CDLL('./lib.so'); os.unlink('lib.so')",
    )
    (folder / "lib.so").write_text("the new one")
    (warning,) = revive(ckpt, program, generation)["warnings"]
    assert "lib.so" in warning
    assert program.tell("[old.adler32(1, b'abc', 3), open('lib.so').read()]") == [0x24D0127, "the new one"]


def test_a_deleted_file_that_is_mapped_and_too_large_is_told_at_once(ckpt: Ckpt, program: Asked) -> None:
    program.tell("fd = os.open('gone', os.O_RDWR | os.O_CREAT); os.ftruncate(fd, 65 << 20); libc.mmap.restype = ctypes.c_void_p")
    program.tell("at = libc.mmap(None, 4096, 3, 2, fd, 0); os.close(fd); os.unlink('gone')")
    assert "cannot be restored" in ckpt.run("check", program.pid).out
    generation = ckpt.snapshot(program.pid)["generation"]
    program.tell("ctypes.memmove(at, b'other', 5)")
    assert ckpt.run("rollback", generation, "--pid", program.pid).code == 0
    assert program.tell("ctypes.string_at(at, 5)") == bytes(5)
    program.kill()
    ckpt.run("restore", generation).refused(3, "gone", "had been deleted already", "were not captured")


def test_a_file_of_proc_with_a_new_number(ckpt: Ckpt, program: Asked) -> None:
    generation = killed(ckpt, program, "fd = os.open(f'/proc/self/task/{os.getpid()}/stat', os.O_RDONLY); old = os.getpid()")
    revive(ckpt, program, generation, "--new-pid")
    assert program.tell("os.pread(fd, 100, 0).split()[0] == os.readlink('/proc/self').encode()")


def test_a_file_of_proc_of_another_process_is_named(ckpt: Ckpt, program: Asked) -> None:
    generation = killed(ckpt, program, f"fd = os.open('/proc/{os.getpid()}/stat', os.O_RDONLY)")
    ckpt.run("restore", generation).refused(3, "fd 3", f"/proc/{os.getpid()}/stat", "outside the tree")


QUEUE = (
    "attr = struct.pack('<8q', 0, 5, 64, 0, 0, 0, 0, 0); name = f'test-{os.getpid()}'.encode(); room = ctypes.create_string_buffer(64); "
    "fd = libc.syscall(240, name, os.O_RDWR | os.O_CREAT | os.O_NONBLOCK, 0o660, attr); take = lambda: "
    "[libc.syscall(243, fd, room, 64, number := ctypes.create_string_buffer(4), None), room.raw[:5], number.raw[0]]; "
    "[libc.syscall(242, fd, text, 5, n, None) for text, n in ((b'first', 1), (b'third', 3))]"
)


def test_messages_stay_in_their_queue(ckpt: Ckpt, program: Asked) -> None:
    """They are not taken by a snapshot, and not lost with the program: the queue is the machine's."""
    generation = killed(ckpt, program, QUEUE)
    assert revive(ckpt, program, generation)["warnings"] == []
    assert program.tell("[take(), take(), take()[0]]") == [[5, b"third", 3], [5, b"first", 1], -1]
    done = ckpt.run("rollback", generation, "--pid", program.pid, "--json").json
    assert any("2 messages then, 0 now" in warning for warning in done["warnings"])
    program.tell("libc.syscall(241, name)")


def test_messages_that_went_with_their_queue_are_named(ckpt: Ckpt, program: Asked) -> None:
    program.tell(QUEUE)
    assert "holds 2 messages" in ckpt.run("check", program.pid).out
    generation = killed(ckpt, program, "libc.syscall(241, name)")
    ckpt.run("restore", generation).refused(3, "message queue", "2 messages")


def test_a_queue_that_had_been_unlinked(ckpt: Ckpt, program: Asked) -> None:
    generation = killed(ckpt, program, QUEUE + "; [take(), take(), libc.syscall(241, name)]")
    assert ckpt.run("verify", generation, "--json").json["differences"] == []
    assert revive(ckpt, program, generation)["warnings"] == []
    assert program.tell("[libc.syscall(242, fd, b'alone', 5, 1, None), take()[1], libc.syscall(240, name, 0)]") == [0, b"alone", -1]


def test_a_notification_is_named(ckpt: Ckpt, program: Asked) -> None:
    program.tell(QUEUE + "; [take(), take(), libc.syscall(244, fd, struct.pack('<qii48x', 0, 10, 0))]")
    for command in ("check", "snapshot"):
        done = ckpt.run(command, program.pid)
        assert done.code == 3
        assert "mq_notify" in done.out + done.err
    program.tell("libc.syscall(241, name)")


def test_a_one_shot_of_what_is_not_ready_is_told(ckpt: Ckpt, program: Asked) -> None:
    setup = (
        "link = socket.create_server(('127.0.0.1', 0)); near = socket.create_connection(link.getsockname()); pool = select.epoll(); "
        "pool.register(link, 1 | 1 << 30); seen = pool.poll(1); far = link.accept()[0]"
    )
    generation = killed(ckpt, program, setup)
    assert ckpt.run("verify", generation, "--json").json["differences"] == []
    (warning,) = revive(ckpt, program, generation)["warnings"]
    assert "one-shot" in warning
    assert program.tell("pool.poll(0)") == []
    assert program.tell("[pool.modify(link, 1), socket.create_connection(link.getsockname()).close(), len(pool.poll(1))]") == [
        None,
        None,
        1,
    ]
