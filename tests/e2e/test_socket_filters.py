"""Programs on sockets (SO_ATTACH_FILTER): brought back with the socket, in place and after a death; an eBPF one is refused by name."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.e2e.asked import Asked
from tests.e2e.test_restore import revive
from tests.harness import Ckpt

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: acts on other processes")

#: UDP: what begins with an 'x' does not arrive. `lets` takes everything, and is longer than what getsockopt is asked for at first.
PROGRAMS = """
import struct
def attach(s, *instructions):
    code = b''.join(struct.pack('<HBBI', *one) for one in instructions)
    room = ctypes.create_string_buffer(code, len(code))
    s.setsockopt(1, 26, struct.pack('<H6xQ', len(instructions), ctypes.addressof(room)))
def seen(s):
    count = ctypes.c_uint(0)
    assert libc.getsockopt(s.fileno(), 1, 26, None, ctypes.byref(count)) == 0
    room = ctypes.create_string_buffer(8 * count.value)
    libc.getsockopt(s.fileno(), 1, 26, room, ctypes.byref(count))
    return count.value, room.raw.hex(), s.getsockopt(1, 44)
def udp():
    made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    made.bind(('127.0.0.1', 0))
    return made
no_x = ((0x30, 0, 0, 8), (0x15, 0, 1, ord('x')), (6, 0, 0, 0), (6, 0, 0, 0xffff))
lets = (*((0, 0, 0, 7),) * 900, (6, 0, 0, 0xffff))
def heard():
    for word in (b'xa', b'b'): out.sendto(word, u.getsockname())
    return u.recv(9)
out, u, plain, locked = udp(), udp(), udp(), udp()
pair = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
listener = socket.create_server(('127.0.0.1', 0))
near = socket.create_connection(listener.getsockname())
far = listener.accept()[0]
near.sendall(b'lay unread')
attach(u, *no_x)
attach(pair[0], *lets)
attach(locked, (6, 0, 0, 0xffff))
locked.setsockopt(1, 44, 1)
attach(far, (6, 0, 0, 0))
sockets = (u, plain, locked, pair[0], pair[1], far, near)
"""


@pytest.fixture
def program() -> Iterator[Asked]:
    with Asked() as asked:
        yield asked


def test_filters_come_back(ckpt: Ckpt, program: Asked) -> None:
    program.tell(f"exec({PROGRAMS!r}, globals())")
    before = program.tell("[seen(s) for s in sockets]")
    assert [count for count, *_ in before] == [4, 0, 1, 901, 0, 1, 0]
    assert program.tell("heard()") == b"b"
    generation = ckpt.snapshot(program.pid)["generation"]
    assert ckpt.json("verify", generation)["differences"] == []
    program.kill()
    assert [text for text in revive(ckpt, program, generation)["warnings"] if "fd " in text] == []
    assert program.tell("[seen(s) for s in sockets]") == before
    assert program.tell("[heard(), far.recv(99)]") == [b"b", b"lay unread"], "it judges what arrives, not what had arrived"
    program.tell("u.setsockopt(1, 27, 0); attach(plain, (6, 0, 0, 1)); attach(pair[0], (6, 0, 0, 9))")
    assert program.tell("heard()") == b"xa"
    done = ckpt.run("rollback", generation, "--pid", program.pid)
    assert done.code == 0, done.err
    assert program.tell("[seen(s) for s in sockets]") == before


def test_a_filter_that_was_locked_since_is_refused(ckpt: Ckpt, program: Asked) -> None:
    program.tell(f"exec({PROGRAMS!r}, globals())")
    generation = ckpt.snapshot(program.pid)["generation"]
    program.tell("attach(plain, (6, 0, 0, 1)); plain.setsockopt(1, 44, 1)")
    said = ckpt.run("rollback", generation, "--pid", program.pid).refused(3, "fd ", f"task {program.pid}", "locked", "--replace")
    assert said.count("fd ") == 1
    assert program.tell("seen(plain)[0]") == 1


def test_ebpf_is_refused_by_name(ckpt: Ckpt, program: Asked) -> None:
    code = "b'\\xb7\\0\\0\\0\\xff\\xff\\0\\0\\x95\\0\\0\\0\\0\\0\\0\\0'"
    program.tell(f"import struct; code = ctypes.create_string_buffer({code}, 16); license = ctypes.create_string_buffer(b'GPL')")
    program.tell("request = struct.pack('<IIQQ', 1, 2, ctypes.addressof(code), ctypes.addressof(license)) + bytes(96)")
    if program.tell("(fd := libc.syscall(321, 5, request, len(request)))") < 0:
        pytest.skip(f"bpf(2): {os.strerror(program.tell('ctypes.get_errno()'))}")
    program.tell("s = socket.socket(); s.setsockopt(1, 50, struct.pack('<i', fd)); os.close(fd)")
    words = ("SO_ATTACH_BPF", f"fd {program.tell('s.fileno()')}", f"task {program.pid}")
    ckpt.run("snapshot", program.pid).refused(3, *words)
    found = ckpt.run("check", program.pid)
    assert found.code == 3
    assert all(word in found.out + found.err for word in words)
