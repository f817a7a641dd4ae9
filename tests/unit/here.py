"""This process as a target: looks at its own descriptors as C would, and runs remote calls on itself by syscall(2)."""

from __future__ import annotations

import array
import contextlib
import ctypes
import fcntl
import os
import resource
import select
import socket
import stat as stat_module
import struct
import termios
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from ckpt.kinds.base import Answer, FdKind, RawDescriptor, RawTask, TaskKind, Work, fd_kinds, with_outside
from ckpt.kinds.fd import sockets
from ckpt.kinds.groups import Kept, with_others
from ckpt.model import Arg, OpenFile, RemoteCall
from ckpt.procfs import parse_fdinfo

O_PATH = 0o10000000
_LIBC = ctypes.CDLL(None, use_errno=True)
_LIBC.syscall.restype = ctypes.c_long


def run(calls: Sequence[RemoteCall]) -> list[int]:
    """Results in order; raises OSError where a result is less than expected, as the executor would stop there."""
    results: list[int] = []
    for call in calls:
        keep, args = [], []
        for item in call.args:
            if item.form is Arg.BUFFER:
                keep.append(ctypes.create_string_buffer(item.data, len(item.data)))
                args.append(ctypes.c_void_p(ctypes.addressof(keep[-1])))
            else:
                args.append(ctypes.c_uint64(results[item.value] & (2**64 - 1) if item.form is Arg.RESULT else item.value))
        ctypes.set_errno(0)
        got = int(_LIBC.syscall(ctypes.c_long(call.nr), *args))
        if got == -1 and ctypes.get_errno():
            got = -ctypes.get_errno()
        if call.expect is not None and got < call.expect:
            raise OSError(-got, f"{call.note}: {got}, expected at least {call.expect}")
        results.append(got)
    return results


def look(fd: int, identity: int = 0, watched: dict[int, int] | None = None) -> RawDescriptor:
    """`watched`: descriptor number -> identity, for epoll."""
    link, stat = str(Path(f"/proc/self/fd/{fd}").readlink()), os.stat(fd)
    work: dict[int, bytes] = {}
    options: dict[int, bytes] = {}
    if stat_module.S_ISFIFO(stat.st_mode) and not parse_fdinfo(Path(f"/proc/self/fdinfo/{fd}").read_text()).flags & O_PATH:
        work[Work.PIPE] = _pipe(fd)
    elif link.startswith("socket:["):
        _socket(fd, stat.st_ino, work, options)
    elif stat_module.S_ISCHR(stat.st_mode) and link.startswith(("/dev/ptmx", "/dev/pts/")):
        work[Work.TTY] = _tty(fd)
    elif link == "anon_inode:inotify":
        work[Work.QUEUED] = struct.pack("<i", _queued(fd))
    elif link == "anon_inode:[timerfd]":
        spec = (ctypes.c_int64 * 4)()
        assert _LIBC.timerfd_gettime(fd, spec) == 0
        work[Work.TIMERFD] = bytes(spec) + struct.pack(
            "<3Q", time.monotonic_ns(), time.time_ns(), time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        )
    elif link.startswith("/memfd:"):
        work[Work.SEALS] = struct.pack("<i", fcntl.fcntl(fd, 1034))
    fdinfo = Path(f"/proc/self/fdinfo/{fd}").read_text()
    if not parse_fdinfo(fdinfo).flags & O_PATH:
        told = (*struct.unpack("<2i", fcntl.fcntl(fd, 16, bytes(8))), fcntl.fcntl(fd, 11))
        work |= {Work.OWNER: struct.pack("<3i", *told)} if any(told[1:]) else {}
    if link == "anon_inode:[eventpoll]":
        targets = [target.tfd for target in parse_fdinfo(fdinfo).epoll]
        work[Work.EPOLL] = b"".join(struct.pack("<ii", tfd, (watched or {}).get(tfd, -1)) for tfd in targets)
    who, what = (os.getpid(), fd, stat.st_dev, stat.st_ino), (stat.st_rdev, stat.st_size, stat.st_nlink, stat.st_mode)
    return RawDescriptor(*who, *what, identity, link, fdinfo, work, options)


def capture(fd: int, identity: int = 0, watched: dict[int, int] | None = None) -> OpenFile:
    raw = look(fd, identity, watched)
    return kind_of(raw).parse(raw)


def capture_all(fds: Sequence[int]) -> list[OpenFile]:
    """As one tree; ids are places in `fds`."""
    return list(with_others(with_outside([capture(fd, identity) for identity, fd in enumerate(fds)])))


def made_group(members: Sequence[OpenFile], kept: Mapping[int, Kept] | None = None) -> list[int]:
    """The descriptors, in order."""
    found = kind_named(members[0].kind).recreate_group(members, kept or {})
    results = run(found.calls)
    return [results[index] if index >= 0 else kept[member.id].fd for index, member in zip(found.results, members, strict=True)]  # type: ignore[index]


def ask(kind: TaskKind) -> RawTask:
    """This thread's answers to a kind's questions, and the files that it wants."""
    answers = []
    for question in kind.questions:
        room = ctypes.create_string_buffer(max(question.answer_size, 1))
        args: list[object] = [ctypes.c_uint64(number & (2**64 - 1)) for number in question.args]
        if question.answer_arg < 6:
            args[question.answer_arg] = ctypes.c_void_p(ctypes.addressof(room))
        ctypes.set_errno(0)
        got = int(_LIBC.syscall(ctypes.c_long(question.nr), *args))
        got = -ctypes.get_errno() if got == -1 and ctypes.get_errno() else got
        answers.append(Answer(got, room.raw[: question.answer_size]))
    files = {name: Path(f"/proc/thread-self/{name}" if kind.per_thread else f"/proc/self/{name}").read_bytes() for name in kind.proc_files}
    limits = tuple((soft & (2**64 - 1), hard & (2**64 - 1)) for soft, hard in map(resource.getrlimit, range(16)))
    head = (ctypes.c_uint64 * 2)()
    _LIBC.syscall(ctypes.c_long(274), 0, ctypes.byref(head), ctypes.byref(head, 8))
    return RawTask(os.getpid(), threading.get_native_id(), files, answers, limits, {"robust": bytes(head)})


def kind_of(raw: RawDescriptor) -> FdKind:
    return next(kind for kind in fd_kinds() if kind.recognises(raw))


def _queued(fd: int, request: int = termios.FIONREAD) -> int:
    room = array.array("i", [0])
    try:
        fcntl.ioctl(fd, request, room)
    except OSError:  # netlink has none
        return 0
    return room[0]


def _tty(fd: int) -> bytes:
    answers = []
    for request in (0x80045430, 0x80045439, 0x80045438, 0x80045440, 0x540F, 0x5429, 0x541B):
        try:
            answers.append(struct.unpack("<i", fcntl.ioctl(fd, request, bytes(4)))[0])
        except OSError as error:
            answers.append(-(error.errno or 1))
    return fcntl.ioctl(fd, 0x802C542A, bytes(44)) + fcntl.ioctl(fd, 0x5413, bytes(8)) + struct.pack("<7i", *answers)


def _pipe(fd: int) -> bytes:
    capacity, length = fcntl.fcntl(fd, 1032), _queued(fd)
    poll = select.poll()
    poll.register(fd, 0)
    revents = dict(poll.poll(0)).get(fd, 0)
    reader = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_NONBLOCK)
    copy_r, copy_w = os.pipe()
    fcntl.fcntl(copy_w, 1031, capacity)
    contents, reads = b"", []
    if length:
        _LIBC.tee(reader, copy_w, ctypes.c_size_t(1 << 30), 0)
    while len(contents) < length:
        contents += os.read(copy_r, length - len(contents))
        reads.append(len(contents) - sum(reads))
    for number in (reader, copy_r, copy_w):
        os.close(number)
    return struct.pack("<III", capacity, revents, len(contents)) + contents + struct.pack(f"<{len(reads)}I", *reads)


def _socket(fd: int, ino: int, work: dict[int, bytes], options: dict[int, bytes]) -> None:
    found = socket.socket(fileno=os.dup(fd))
    names = [_name("getsockname", fd), _name("getpeername", fd)]
    listening = found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    inq, outq = (0, 0) if listening else (_queued(fd), _queued(fd, termios.TIOCOUTQ))
    work[Work.SOCKET] = struct.pack("<8i", found.family, found.type, found.proto, listening, inq, outq, *map(len, names)) + b"".join(names)
    for position, option in enumerate(sockets.OPTIONS):
        if option == sockets.SO_GET_FILTER or option.type not in (0, found.type) or option.domain not in (0, found.family):
            continue
        with contextlib.suppress(OSError):
            value = found.getsockopt(option.level, option.name, option.size)
            if any(value) or option.level == socket.IPPROTO_IPV6:
                options[position] = value
    if found.family == socket.AF_UNIX:
        work[Work.UNIX_DIAG] = _diag(ino)
    if found.family == socket.AF_UNIX or _with_itself(found, names):
        work[Work.PEEK] = b"" if listening else _peek(found, inq)
    found.close()


def _with_itself(found: socket.socket, names: Sequence[bytes]) -> bool:
    if found.family not in (socket.AF_INET, socket.AF_INET6) or found.proto == socket.IPPROTO_UDP:
        return found.proto == socket.IPPROTO_UDP
    return names[0][:2] == names[1][:2] and names[0][4:8] + names[0][8:24] == names[1][4:8] + names[1][8:24]


def _peek(found: socket.socket, inq: int) -> bytes:
    """A stream at once, messages one by one: with their senders if they are datagrams."""
    if found.type == socket.SOCK_STREAM:
        data = found.recv(inq, socket.MSG_PEEK | socket.MSG_DONTWAIT) if inq else b""
        return struct.pack("<III", len(data), 0, 0) + data if data else b""
    poll = select.poll()
    poll.register(found.fileno(), 0)
    if poll.poll(0) and poll.poll(0)[0][1] & select.POLLERR:
        return struct.pack("<III", 0, 2, 0) if inq else b""
    answer, datagrams = b"", found.type == socket.SOCK_DGRAM
    found.setsockopt(socket.SOL_SOCKET, 42, 0)  # SO_PEEK_OFF
    room, name = ctypes.create_string_buffer(1 << 18), ctypes.create_string_buffer(128)
    while datagrams or inq > 0:
        size = ctypes.c_uint32(128)
        flags = socket.MSG_PEEK | socket.MSG_DONTWAIT
        got = int(_LIBC.recvfrom(found.fileno(), room, len(room), flags, name, ctypes.byref(size)))
        if got < 0:
            break
        inq -= got
        sender = name.raw[: size.value] if datagrams else b""
        answer += struct.pack("<III", got, 0, len(sender)) + room.raw[:got] + sender
    found.setsockopt(socket.SOL_SOCKET, 42, -1)
    return answer


def _name(call: str, fd: int) -> bytes:
    room, size = ctypes.create_string_buffer(128), ctypes.c_uint32(128)
    return room.raw[: size.value] if getattr(_LIBC, call)(fd, room, ctypes.byref(size)) == 0 else b""


def _diag(ino: int) -> bytes:
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 4) as channel:
        request = struct.pack("<BBHIIIII", socket.AF_UNIX, 0, 0, 0xFFFFFFFF, ino, 0x7F, 0xFFFFFFFF, 0xFFFFFFFF)
        channel.send(struct.pack("<IHHII", 16 + len(request), 20, 1, 1, 0) + request)
        answer = channel.recv(8192)
    return answer[16 : int.from_bytes(answer[:4], "little")]


def close(fds: Iterable[int]) -> None:
    for fd in fds:
        os.close(fd)


def until(true: Callable[[], bool], what: str, seconds: float = 10) -> None:
    """Waits for what another party brings about: loopback and the scheduler may be late on a busy machine."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"waited {seconds} s for {what}"
        time.sleep(0.002)


def kind_named(name: str):  # type: ignore[no-untyped-def]
    return next(kind for kind in fd_kinds() if kind.name == name)


def back(fd: int, wanted: OpenFile) -> OpenFile:
    """Adjusts and captures again."""
    run(kind_named(wanted.kind).adjust(fd, capture(fd), wanted))
    return capture(fd)


def made(wanted: OpenFile) -> int:
    return run(kind_named(wanted.kind).recreate(wanted))[-1]
