"""Rollback in place, resource by resource, on a living program: it is changed, rolled back, and asked."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.e2e.asked import Asked
from tests.harness import Ckpt

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: acts on other processes")


@pytest.fixture
def program() -> Iterator[Asked]:
    with Asked() as asked:
        yield asked


@dataclass(frozen=True)
class Case:
    probe: str  #: an expression; the same after the rollback as before
    change: str
    setup: str = "None"


STATUS = "[line for line in open('/proc/self/status') if line.startswith({!r})]"
AREA = (
    "libc.mmap.restype = ctypes.c_void_p; base = libc.mmap(None, ctypes.c_size_t(16 * 4096), 3, 0x22, -1, ctypes.c_long(0)); "
    "at = lambda page: ctypes.c_void_p(base + page * 4096); old = ctypes.memset(base, 7, 16 * 4096)"
)
#: Which addresses are locked, and how ("lf": as they are touched), as smaps tells it.
LOCKS = (
    "[(int(head.split('-')[0], 16) - base >> 12, int(head.split('-')[1].split()[0], 16) - base >> 12, 'lf' in flags.split()) "
    "for lines in [[line for line in open('/proc/self/smaps') if '-' in line.split()[0] or line.startswith('VmFlags')]] "
    "for head, flags in zip(lines[::2], lines[1::2]) if ' lo' in flags]"
)
CASES = {
    "rlimit": Case(
        "resource.getrlimit(resource.RLIMIT_NOFILE)",
        "resource.setrlimit(resource.RLIMIT_NOFILE, (300, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))",
    ),
    "umask": Case("[os.umask(mask) and 0 or mask for mask in [os.umask(0)]]", "os.umask(0o11)", "os.umask(0o27)"),
    "cwd": Case("os.getcwd()", "os.chdir('/usr')"),
    "comm": Case("open('/proc/self/comm').read()", "open('/proc/self/comm', 'w').write('changed')"),
    "sigaction": Case(STATUS.format("SigIgn"), "old = signal.signal(signal.SIGUSR1, signal.SIG_IGN)"),
    "sigmask": Case(STATUS.format("SigBlk"), "old = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2])"),
    "itimer": Case(
        "[round(value / 100) for value in signal.getitimer(signal.ITIMER_REAL)]",
        "signal.setitimer(signal.ITIMER_REAL, 0)",
        "signal.setitimer(signal.ITIMER_REAL, 1000, 700)",
    ),
    "posix timer": Case(
        "open('/proc/self/timers').read()",
        "libc.timer_delete(ctypes.c_void_p(timer.value))",
        "event = (ctypes.c_int * 16)(0, 0, 0, 1); timer = ctypes.c_void_p(); libc.timer_create(1, event, ctypes.byref(timer))",
    ),
    "brk grown": Case("libc.sbrk(0) & 0xffffffff", "libc.sbrk(1 << 20)"),
    "brk shrunk": Case("libc.sbrk(0) & 0xffffffff", "libc.sbrk(-(1 << 19))", "libc.sbrk(1 << 20)"),
    "memfd": Case("os.pread(fd, 9, 4096)", "os.pwrite(fd, b'other', 4096)", "fd = os.memfd_create('x'); os.pwrite(fd, b'this', 4096)"),
    "memfd size": Case("os.fstat(fd).st_size", "os.ftruncate(fd, 5)", "fd = os.memfd_create('x'); os.ftruncate(fd, 10000)"),
    "shared anonymous": Case(
        "area[70000:70004]", "area[70000:70004] = b'that'", "area = mmap.mmap(-1, 1 << 20); area[70000:70004] = b'this'"
    ),
    "locked": Case(LOCKS, "libc.munlock(at(2), 4 * 4096); libc.mlock(at(8), 3 * 4096)", f"{AREA}; libc.mlock(at(2), 4 * 4096)"),
    "not locked": Case(LOCKS, "libc.mlock(at(0), 8 * 4096)", AREA),
    "locked on fault": Case(LOCKS, "libc.munlock(at(0), 16 * 4096)", f"{AREA}; libc.mlock2(at(1), 9 * 4096, 1)"),
    "locked and gone": Case(LOCKS, "libc.munmap(at(0), 16 * 4096)", f"{AREA}; libc.mlock(at(4), 4 * 4096)"),
    "dup": Case(
        "[os.lseek(one, 7, 0), os.lseek(two, 0, 1), os.lseek(one, 3, 0)]",
        "os.close(two); os.dup2(os.open('/etc/hostname', os.O_RDONLY), two)",
        "one = os.open('/etc/passwd', os.O_RDONLY); two = os.dup(one)",
    ),
    "a pipe's contents": Case(
        "[len(select.select([ends[0]], [], [], 0)[0]), fcntl.fcntl(ends[1], 1032)]",
        "os.read(ends[0], 100)",
        "ends = os.pipe(); os.write(ends[1], b'unread')",
    ),
    "pending": Case(
        STATUS.format("SigPnd"),
        "info = signal.sigtimedwait([40], 1)",
        "old = signal.pthread_sigmask(signal.SIG_BLOCK, [40]); libc.pthread_kill(ctypes.c_ulong(threading.get_ident()), 40)",
    ),
    "another user": Case("[os.getuid(), value]", "value = 2", "value = 1; os.setgid(65534); os.setuid(65534)"),
}


@pytest.mark.parametrize("name", CASES)
def test_it_is_what_it_was(name: str, ckpt: Ckpt, program: Asked) -> None:
    case = CASES[name]
    program.tell(case.setup)
    before = program.tell(case.probe)
    generation = ckpt.snapshot(program.pid)["generation"]
    program.tell(case.change)
    if name != "dup":
        assert program.tell(case.probe) != before, "nothing was changed: nothing is tested"
    done = ckpt.run("rollback", generation, "--pid", program.pid, "--json")
    assert done.code == 0, done.err
    assert program.tell(case.probe) == before
    assert program.tell("6 * 7") == 42


def roll(ckpt: Ckpt, program: Asked, generation: int, *words: str) -> None:
    done = ckpt.run("rollback", generation, "--pid", program.pid, "--json", *words)
    assert done.code == 0, done.err


def test_queued_signals_keep_their_values(ckpt: Ckpt, program: Asked) -> None:
    program.tell("old = signal.pthread_sigmask(signal.SIG_BLOCK, [41])")
    for value in (5, 6, 7):
        program.tell(f"libc.sigqueue(os.getpid(), 41, ctypes.c_void_p({value}))")
    generation = ckpt.snapshot(program.pid)["generation"]
    take = (
        "info = (ctypes.c_int * 32)(); mask = ctypes.c_ulong(1 << 40); libc.sigtimedwait(ctypes.byref(mask), info, (ctypes.c_long * 2)())"
    )
    program.tell(take)
    assert program.tell("[info[0], info[2], info[6]]") == [41, -1, 5]
    roll(ckpt, program, generation)
    for value in (5, 6, 7):
        program.tell(take)
        assert program.tell("[info[0], info[2], info[6]]") == [41, -1, value]


def test_the_number_of_the_trackers_descriptor_is_free_for_the_program(ckpt: Ckpt, program: Asked) -> None:
    generation = ckpt.snapshot(program.pid)["generation"]
    seat = next(int(fd.name) for fd in Path(f"/proc/{program.pid}/fd").iterdir() if "userfaultfd" in os.readlink(fd))
    assert program.tell(f"os.dup2(os.open('/etc/passwd', os.O_RDONLY), {seat})") == seat
    second = ckpt.snapshot(program.pid)["generation"]
    roll(ckpt, program, generation)
    links = {int(fd.name): os.readlink(fd) for fd in Path(f"/proc/{program.pid}/fd").iterdir()}
    assert "/etc/passwd" not in links.values()
    roll(ckpt, program, second)
    assert program.tell(f"os.pread({seat}, 5, 0)") == b"root:"
    ckpt.exact(program.pid)


def test_a_changed_file_is_refused_by_name(ckpt: Ckpt, program: Asked, tmp_path: Path) -> None:
    path = tmp_path / "mapped.dat"
    path.write_bytes(b"a" * 8192)
    program.tell(
        f"file = os.open({str(path)!r}, os.O_RDONLY); area = mmap.mmap(file, 8192, mmap.MAP_PRIVATE, mmap.PROT_READ); os.close(file)"
    )
    generation = ckpt.snapshot(program.pid)["generation"]
    program.tell("area.close()")
    time.sleep(0.02)
    path.write_bytes(b"b" * 8192)
    done = ckpt.run("rollback", generation, "--pid", program.pid)
    assert done.code == 3
    assert "mapped.dat" in done.err
    assert program.tell("1 + 1") == 2


# ---- connections ----

CONNECTED = """server = socket.create_server(('127.0.0.1', 0))
left = socket.create_connection(server.getsockname())
right = server.accept()[0]"""


@pytest.mark.parametrize(
    "change",
    [
        "right.recv(3); left.send(b'more'); right.send(b'x'); left.recv(1)",
        "left.recv(100)",
        "left.send(b'1' * 100000)",
        "right.recv(100); left.send(b'unread by the other')",
    ],
)
def test_both_ends_of_a_connection_get_their_queues_back(change: str, ckpt: Ckpt, program: Asked) -> None:
    program.tell(CONNECTED)
    program.tell("left.send(b'unread by the right'); right.send(b'unread by the left')")
    first = ckpt.snapshot(program.pid)["generation"]
    program.tell(change)
    second = ckpt.snapshot(program.pid)["generation"]
    for _ in range(2):
        roll(ckpt, program, first)
        program.tell("[end.settimeout(5) for end in (left, right)]")  # a loaded machine delivers late, also on loopback
        assert program.tell("right.recv(1 << 20)") == b"unread by the right"
        assert program.tell("left.recv(1 << 20)") == b"unread by the left"
        assert program.tell("left.send(b'on'), right.recv(9), right.send(b'wards'), left.recv(9)") == (2, b"on", 5, b"wards")
        roll(ckpt, program, second)
    roll(ckpt, program, first)
    assert program.tell("right.recv(1 << 20)") == b"unread by the right"


def test_a_connection_that_has_gone_reads_as_ended_and_the_program_goes_on(ckpt: Ckpt, program: Asked) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        program.tell(f"peer = socket.create_connection({server.getsockname()!r})")
        with server.accept()[0] as here:
            generation = ckpt.snapshot(program.pid)["generation"]
            program.tell("peer.close()")
            assert here.recv(1) == b""
            roll(ckpt, program, generation)
            assert program.tell("peer.recv(10)") == b""
            assert program.tell("2 + 2") == 4


def test_a_connection_that_has_moved_is_reset_kept_or_refused(ckpt: Ckpt, program: Asked) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        program.tell(f"peer = socket.create_connection({server.getsockname()!r})")
        with server.accept()[0] as here:
            generation = ckpt.snapshot(program.pid)["generation"]
            program.tell("peer.send(b'moved')")
            assert here.recv(10) == b"moved"
            refused = ckpt.run("rollback", generation, "--pid", program.pid, "--tcp", "refuse")
            assert refused.code == 3
            assert "--tcp refuse" in refused.err
            roll(ckpt, program, generation, "--tcp", "keep")
            program.tell("peer.send(b'again')")
            assert here.recv(10) == b"again"
            roll(ckpt, program, generation, "--tcp", "reset")
            assert program.tell("peer.recv(10)") == b""
            with pytest.raises(ConnectionResetError):
                here.recv(10)


# ---- inside a call that waits ----

WAITS = {
    "read": ("ends = os.pipe()", "os.read(ends[0], 10)", "os.write(ends[1], b'now')", b"now"),
    "poll": ("ends = os.pipe()", "len(select.select([ends[0]], [], [], 60)[0])", "os.write(ends[1], b'now')", 1),
    "epoll": (
        "ends = os.pipe(); pool = select.epoll(); pool.register(ends[0], 1)",
        "[event for _fd, event in pool.poll(60)]",
        "os.write(ends[1], b'now')",
        [1],
    ),
    "accept": (
        "server = socket.create_server(('127.0.0.1', 0))",
        "len(server.accept())",
        "client = socket.create_connection(server.getsockname())",
        2,
    ),
    "futex": ("lock = threading.Lock(); lock.acquire()", "lock.acquire()", "lock.release()", True),
    "futex with a time-out": ("lock = threading.Lock(); lock.acquire()", "lock.acquire(timeout=60)", "lock.release()", True),
    "nanosleep": ("pass", "libc.usleep(1500000)", "pass", 0),
    "sigwait": (
        "old = signal.pthread_sigmask(signal.SIG_BLOCK, [42])",
        "int(signal.sigwait([42]))",
        "signal.pthread_kill(who.ident, 42)",
        42,
    ),
}


@pytest.mark.parametrize("name", WAITS)
def test_a_call_that_waits_waits_again(name: str, ckpt: Ckpt, program: Asked) -> None:
    setup, call, trigger, expected = WAITS[name]
    program.tell(setup)
    program.tell(f"done = []; who = threading.Thread(target=lambda: done.append({call}), daemon=True); who.start(); time.sleep(0.1)")
    generation = ckpt.snapshot(program.pid)["generation"]
    for _ in range(3):
        assert name == "nanosleep" or program.tell("done") == []
        program.tell(trigger)
        program.tell("who.join(5)")
        assert program.tell("done") == [expected]
        roll(ckpt, program, generation)
    program.tell(trigger)
    program.tell("who.join(5)")
    assert program.tell("done") == [expected]


def test_a_child_that_is_waited_for(ckpt: Ckpt, program: Asked) -> None:
    """A tree: rolled back, or refused by name with nothing touched."""
    program.tell("child = os.fork() or (time.sleep(300), os._exit(3))")
    program.tell(
        "done = []; who = threading.Thread(target=lambda: done.append(os.waitpid(child, 0)), daemon=True); who.start(); time.sleep(0.1)"
    )
    program.tell("value = 1")
    generation = ckpt.snapshot(program.pid)["generation"]
    program.tell("value = 2")
    done = ckpt.run("rollback", generation, "--pid", program.pid)
    assert done.code in (0, 3), done.err
    assert program.tell("value") == (1 if done.code == 0 else 2)
    program.tell("os.kill(child, 9); who.join(5)")
    assert program.tell("[status for _pid, status in done]") == [9]


def test_answers_of_the_kernel(ckpt: Ckpt, program: Asked) -> None:
    """One to a question that was not asked yet is taken away; one that lay unread is told, and cannot be read twice."""
    program.tell("import struct; kernel = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)")
    question = "kernel.send(struct.pack('<IHHIIB15x', 32, 18, 1, {}, 0, 0))"  # RTM_GETLINK without an index: an error answers
    before = ckpt.snapshot(program.pid)["generation"]
    program.tell(question.format(1))
    asked = ckpt.json("snapshot", program.pid)
    assert [text for text in asked["warnings"] if "messages lie unread" in text] != []
    roll(ckpt, program, before)
    program.tell(question.format(2))
    assert program.tell("struct.unpack_from('<I', kernel.recv(8192), 8)[0]") == 2
    done = ckpt.run("rollback", asked["generation"], "--pid", program.pid)
    assert (done.code, "lay unread" in done.err) == (3, True), done
    assert program.tell("kernel.fileno() > 0"), "it goes on"
