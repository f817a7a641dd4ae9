"""Sockets of a program that is killed and restored: whom it can still talk to, what lay unread, who stands in the way."""

from __future__ import annotations

import os
import socket
import stat
import struct
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.asked import Asked
from tests.e2e.test_restore import revive
from tests.harness import Ckpt

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: acts on other processes")


@pytest.fixture
def program() -> Iterator[Asked]:
    with Asked() as asked:
        yield asked


def again(ckpt: Ckpt, program: Asked, *options: str) -> list[str]:
    """Snapshot, kill, restore; the warnings about descriptors."""
    generation = ckpt.snapshot(program.pid)["generation"]
    program.kill()
    said = revive(ckpt, program, generation, *options)
    return [text for text in said["warnings"] if "fd " in text]


def test_a_connection_to_the_outside_is_ended_or_refused(ckpt: Ckpt, program: Asked) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        program.tell(f"s = socket.create_connection({server.getsockname()}); s.sendall(b'x')")
        served, _ = server.accept()
        generation = ckpt.snapshot(program.pid)["generation"]
        program.kill()
        ckpt.run("restore", generation, "--tcp", "refuse", "--fd", "2=/dev/null").refused(
            3, "fd ", f"127.0.0.1:{server.getsockname()[1]}", "--tcp refuse"
        )
        (warning,) = (text for text in revive(ckpt, program, generation)["warnings"] if "connection" in text)
        assert "reads as ended" in warning
        assert program.tell("s.recv(9)") == b""
        served.close()


def test_a_port_that_is_in_use_is_named_with_its_holder(ckpt: Ckpt, program: Asked) -> None:
    program.tell("s = socket.create_server(('127.0.0.1', 0))")
    port = program.tell("s.getsockname()[1]")
    generation = ckpt.snapshot(program.pid)["generation"]
    program.kill()
    with socket.create_server(("127.0.0.1", port)):
        done = ckpt.run("restore", generation, "--fd", "2=/dev/null")
        done.refused(3, f"port {port} is in use by task {os.getpid()}", f"task {program.pid}", "fd ")
    revive(ckpt, program, generation)
    with socket.create_connection(("127.0.0.1", port)) as client:
        program.tell("c = s.accept()[0]; c.sendall(b'here')")
        assert client.recv(9) == b"here"


def test_a_listener_keeps_its_file_and_lets_strangers_in(ckpt: Ckpt, program: Asked, tmp_path: Path) -> None:
    path = tmp_path / "s"
    program.tell(f"s = socket.socket(socket.AF_UNIX); s.bind({str(path)!r}); s.listen(3)")
    path.chmod(0o640)
    os.chown(path, 1000, 1001)
    with socket.socket(socket.AF_UNIX) as waiting:
        waiting.connect(str(path))
        warnings = again(ckpt, program)
    assert [text for text in warnings if "1 connections from outside that waited" in text]
    there = path.stat()
    assert (stat.S_IMODE(there.st_mode), there.st_uid, there.st_gid) == (0o640, 1000, 1001)
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        program.tell("c = s.accept()[0]; c.sendall(b'here')")
        assert client.recv(9) == b"here"
        assert struct.unpack("<3i", client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0] == program.pid


@pytest.mark.parametrize("what", ["another file", "a listener", "nothing", "no folder"])
def test_who_stands_at_a_sockets_name(what: str, ckpt: Ckpt, program: Asked, tmp_path: Path) -> None:
    path = tmp_path / "folder" / "s"
    path.parent.mkdir()
    program.tell(f"s = socket.socket(socket.AF_UNIX); s.bind({str(path)!r}); s.listen(3)")
    generation = ckpt.snapshot(program.pid)["generation"]
    program.kill()
    if what == "nothing":
        path.unlink()
        revive(ckpt, program, generation)
        assert path.is_socket()
        return
    with socket.socket(socket.AF_UNIX) as other:
        path.rename(tmp_path / "kept")
        if what == "a listener":
            other.bind(str(path))
            other.listen()
        elif what == "another file":
            path.write_text("mine")
        else:
            path.parent.rmdir()
        expected = {"another file": "is another file by now", "a listener": str(path), "no folder": "the folder of"}[what]
        ckpt.run("restore", generation, "--fd", "2=/dev/null").refused(3, expected, str(path), "fd ")
        assert path.exists() == (what != "no folder")


def test_who_made_a_socket_is_still_known(ckpt: Ckpt, program: Asked, tmp_path: Path) -> None:
    name = f"\\0{tmp_path}"
    program.tell("os.setgid(1001); os.setuid(1000)")
    program.tell(f"l = socket.socket(socket.AF_UNIX); l.bind({name.encode().decode('unicode_escape')!r}); l.listen(3)")
    program.tell("c = socket.socket(socket.AF_UNIX); c.connect(l.getsockname()); a = l.accept()[0]; pair = socket.socketpair()")
    probe = "[bytes(each.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)) for each in (l, c, a, *pair)]"
    before = program.tell(probe)
    assert before == [struct.pack("<3i", program.pid, 1000, 1001)] * 5
    assert again(ckpt, program) == []
    assert program.tell(probe) == before
    assert program.tell("c.send(b'x') and a.recv(9)") == b"x"


def test_datagrams_of_strangers_that_lay_unread(ckpt: Ckpt, program: Asked) -> None:
    program.tell("u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); u.bind(('127.0.0.1', 0))")
    port = program.tell("u.getsockname()[1]")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        for text in (b"one", b"", b"three"):
            other.sendto(text, ("127.0.0.1", port))
        name = other.getsockname()[1]
        time.sleep(0.05)
    assert again(ckpt, program) == []
    got = program.tell("[u.recvfrom(9) for _ in range(3)]")
    assert got == [(text, ("127.0.0.1", name)) for text in (b"one", b"", b"three")]


def test_the_system_log_is_found_again(ckpt: Ckpt, program: Asked, tmp_path: Path) -> None:
    path = str(tmp_path / "log")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as log:
        log.bind(path)
        program.tell(f"s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM); s.connect({path!r})")
        assert again(ckpt, program) == []
        program.tell("s.send(b'a line')")
        assert log.recv(99) == b"a line"


def test_a_conversation_with_a_stranger_is_over(ckpt: Ckpt, program: Asked, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "s"))
        server.listen()
        program.tell(f"s = socket.socket(socket.AF_UNIX); s.connect({str(tmp_path / 's')!r})")
        with server.accept()[0]:
            warnings = again(ckpt, program)
    assert [text for text in warnings if "outside the tree" in text and str(tmp_path) in text]
    assert program.tell("s.recv(9)") == b""


def test_descriptors_in_flight_are_refused_by_name(ckpt: Ckpt, program: Asked) -> None:
    program.tell("pair = socket.socketpair(); socket.send_fds(pair[0], [b'x'], [0])")
    ckpt.run("snapshot", program.pid).refused(3, f"task {program.pid}", "descriptors in flight", "fd ")


def test_options_are_put_back(ckpt: Ckpt, program: Asked) -> None:
    program.tell("s = socket.create_server(('127.0.0.1', 0)); c = socket.create_connection(s.getsockname()); a = s.accept()[0]")
    program.tell("u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)")
    values = ((1, 9, 1), (1, 7, 30000), (1, 8, 60000), (1, 36, 7), (6, 1, 1), (6, 4, 77), (6, 18, 12345), (0, 1, 16), (0, 2, 33))
    program.tell(f"values = {values}; [c.setsockopt(*each) for each in values]; [u.setsockopt(*each) for each in values if each[0] != 6]")
    program.tell("a.settimeout(17); c.setsockopt(1, 13, b'\\1\\0\\0\\0\\5\\0\\0\\0'); a.setsockopt(6, 13, b'reno')")
    probe = "[[each.getsockopt(*value[:2]) for value in values if value[0] != 6 or each is not u] for each in (c, u)]"
    more = "[bytes(a.getsockopt(6, 13, 16)), bytes(c.getsockopt(1, 13, 8)), a.gettimeout(), s.getsockname(), c.getsockname()]"
    before = program.tell(probe), program.tell(more)
    assert again(ckpt, program) == []
    assert (program.tell(probe), program.tell(more)) == before
    assert program.tell("c.send(b'x') and a.recv(9)") == b"x"


CHILD = """
def serve():
    while True:
        for talk in (tcp[1], unix[1], pair[1]): talk.sendall(talk.recv(99).upper())
        new = listener.accept()[0]; new.sendall(b"accepted by %d" % os.getpid()); new.close()
"""


def test_members_of_a_tree_go_on_talking(ckpt: Ckpt, program: Asked, tmp_path: Path) -> None:
    """The ends of connections, and a listener, in two processes; words under way, and one who waits to be accepted."""
    program.tell(f"path = {str(tmp_path / 's')!r}; source = {CHILD!r}; exec(source)")
    program.tell("listener = socket.socket(socket.AF_UNIX); listener.bind(path); listener.listen(4)")
    program.tell("c = socket.socket(socket.AF_UNIX); c.connect(path); unix = (c, listener.accept()[0])")
    program.tell("s = socket.create_server(('127.0.0.1', 0)); c = socket.create_connection(s.getsockname()); tcp = (c, s.accept()[0])")
    program.tell("pair = socket.socketpair(); child = os.fork(); child or (serve(), os._exit(0))")
    program.tell("tcp[1].close(); unix[1].close(); pair[1].close()")
    child = program.tell("child")
    send, hear = (f"[each[0].{word} for each in (tcp, unix, pair)]" for word in ("sendall(b'word')", "recv(99)"))
    dial = "new = socket.socket(socket.AF_UNIX); new.connect(path)"
    for turn in range(2):
        program.tell(f"ignored = {send}")
        assert program.tell(hear) == [b"WORD"] * 3
        program.tell(dial)
        assert program.tell("new.recv(99)") == b"accepted by %d" % child
        program.tell("tcp[0].sendall(b'first')")
        program.tell(dial)  # the child waits for a word over the unix connection: nobody accepts
        time.sleep(0.05)
        if turn == 0:
            assert again(ckpt, program) == []
        program.tell("unix[0].sendall(b'second'); pair[0].sendall(b'third')")
        assert program.tell(hear) == [b"FIRST", b"SECOND", b"THIRD"]
        assert program.tell("new.recv(99)") == b"accepted by %d" % child


@pytest.mark.parametrize("abstract", [False, True])
def test_what_was_closed_since_is_there_again_after_a_rollback(abstract: bool, ckpt: Ckpt, program: Asked, tmp_path: Path) -> None:
    """Connections inside the tree; the listener, which still is, stays: who is outside has not lost it."""
    path = f"\0{tmp_path}" if abstract else str(tmp_path / "s")
    program.tell(
        f"path = {path!r}; l = socket.socket(socket.AF_UNIX); l.bind(path); l.listen(4); s = socket.create_server(('127.0.0.1', 0))"
    )
    program.tell("c = socket.socket(socket.AF_UNIX); c.connect(path); unix = (c, l.accept()[0])")
    program.tell(
        "c = socket.create_connection(s.getsockname()); tcp = (c, s.accept()[0]); c.sendall(b'unread'); unix[1].sendall(b'as well')"
    )
    names = "[tcp[0].getsockname(), tcp[0].getpeername(), unix[1].getsockname(), unix[0].getpeername()]"
    before, inode = program.tell(names), program.tell("os.fstat(l.fileno()).st_ino")
    generation = ckpt.snapshot(program.pid)["generation"]
    program.tell("tcp[1].recv(99); tcp[0].close(); tcp[1].close(); unix[0].close(); unix[1].close()")
    with socket.socket(socket.AF_UNIX) as client:
        done = ckpt.run("rollback", generation, "--pid", program.pid, "--json")
        assert done.code == 0, done.err
        assert program.tell(names) == before
        assert program.tell("[tcp[1].recv(99), unix[0].recv(99), os.fstat(l.fileno()).st_ino]") == [b"unread", b"as well", inode]
        program.tell("tcp[1].sendall(b'on'); unix[0].sendall(b'and on')")
        assert program.tell("[tcp[0].recv(99), unix[1].recv(99)]") == [b"on", b"and on"]
        client.connect(path)
        program.tell("new = l.accept()[0]; new.sendall(b'here')")
        assert client.recv(9) == b"here"


def test_without_the_right_a_connection_that_is_gone_is_ended(ckpt: Ckpt, program: Asked) -> None:
    """TCP_REPAIR needs CAP_NET_ADMIN, which the program must have itself if it is rolled back in place."""
    program.tell("s = socket.create_server(('127.0.0.1', 0)); c = socket.create_connection(s.getsockname()); a = s.accept()[0]")
    program.tell("os.setgid(1001); os.setuid(1000)")
    generation = ckpt.snapshot(program.pid)["generation"]
    program.tell("c.close(); a.close()")
    done = ckpt.run("rollback", generation, "--pid", program.pid, "--json")
    assert done.code == 0, done.err
    assert [text for text in done.json["warnings"] if "has not the right to make it again: it reads as ended" in text]
    assert program.tell("[c.recv(9), a.recv(9)]") == [b"", b""]


GROUPS = """
def joined(family, group, device, option, *more):
    s = socket.socket(family, socket.SOCK_DGRAM)
    s.bind(('', 0))
    s.setsockopt(*option, b''.join(more))
    return s

def four(group): return (struct.pack('<H', 2) + bytes(2) + socket.inet_aton(group)).ljust(128, bytes(1))
def six(group): return (struct.pack('<H', 10) + bytes(6) + socket.inet_pton(10, group)).ljust(128, bytes(1))
lo = struct.pack('<I4x', 1)
near = joined(2, '239.1.1.1', 'lo', (0, 35), socket.inet_aton('239.1.1.1'), socket.inet_aton('127.0.0.1'))
near.setsockopt(0, 42, lo + four('239.1.1.2'))
far = joined(2, '239.1.1.3', 'lo', (0, 35), socket.inet_aton('239.1.1.3'), bytes(4), struct.pack('<i', EXTERNAL))
some = joined(2, '239.1.1.4', 'lo', (0, 46), lo, four('239.1.1.4'), four('127.0.0.1'))
but = joined(2, '239.1.1.5', 'lo', (0, 42), lo, four('239.1.1.5'))
but.setsockopt(0, 43, lo + four('239.1.1.5') + four('10.1.2.3'))
wide = joined(10, 'ff05::7', 'lo', (41, 20), socket.inet_pton(10, 'ff05::7'), struct.pack('<i', 1))
wide.setsockopt(41, 46, lo + six('ff05::8') + six('::1'))
wide.setsockopt(0, 42, lo + four('239.1.1.6'))
none = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)

def seen(s, level, group, index):
    room = struct.pack('<I4x', index) + group + struct.pack('<II', 0, 4) + bytes(512)
    try:
        answer = asked(s, level, room)
    except OSError as error:
        return error.errno
    mode, count = struct.unpack_from('<II', answer, 136)
    return mode, count, answer[144:144 + 24 * min(count, 1)]

def asked(s, level, room):
    given, size = ctypes.create_string_buffer(room, len(room)), ctypes.c_uint(len(room))
    if libc.getsockopt(s.fileno(), level, 48, given, ctypes.byref(size)):
        raise OSError(ctypes.get_errno(), '')
    return given.raw

def probe():
    return [seen(s, level, group, index) for s, level, group, index in (
        (near, 0, four('239.1.1.1'), 1), (near, 0, four('239.1.1.2'), 1), (near, 0, four('239.1.1.3'), 1),
        (far, 0, four('239.1.1.3'), EXTERNAL), (some, 0, four('239.1.1.4'), 1), (but, 0, four('239.1.1.5'), 1),
        (wide, 41, six('ff05::7'), 1), (wide, 41, six('ff05::8'), 1), (wide, 0, four('239.1.1.6'), 1), (none, 0, four('239.1.1.1'), 1))]
"""


def outer_interface() -> int:
    """One that can multicast, beside the loopback if there is one."""
    for index, name in socket.if_nameindex():
        flags = int(Path(f"/sys/class/net/{name}/flags").read_text(), 16)
        if name != "lo" and flags & 0x1001 == 0x1001:  # IFF_UP, IFF_MULTICAST
            return index
    return 1


def test_multicast_groups(ckpt: Ckpt, program: Asked) -> None:
    program.tell(f"import struct; EXTERNAL = {outer_interface()}; exec({GROUPS!r}, globals())")
    before = program.tell("probe()")
    assert [isinstance(one, tuple) for one in before] == [True, True, False, *[True] * 6, False]
    generation = ckpt.snapshot(program.pid)["generation"]
    assert ckpt.json("verify", generation)["differences"] == []
    assert program.tell("probe()") == before
    program.kill()
    assert [text for text in revive(ckpt, program, generation)["warnings"] if "fd " in text] == []
    assert program.tell("probe()") == before
    program.tell("near.setsockopt(0, 36, socket.inet_aton('239.1.1.1') + socket.inet_aton('127.0.0.1'))")  # as it was joined
    program.tell("near.setsockopt(0, 42, lo + four('239.9.9.9')); but.setsockopt(0, 44, lo + four('239.1.1.5') + four('10.1.2.3'))")
    program.tell("wide.setsockopt(41, 21, socket.inet_pton(10, 'ff05::7') + struct.pack('<i', 1))")
    assert program.tell("probe()") != before
    done = ckpt.run("rollback", generation, "--pid", program.pid)
    assert done.code == 0, done.err
    assert program.tell("probe() + [seen(near, 0, four('239.9.9.9'), 1)]") == [*before, 99]
    program.tell("near.setsockopt(0, 32, socket.inet_aton('127.0.0.1')); near.sendto(b'heard', ('239.1.1.1', near.getsockname()[1]))")
    assert program.tell("near.recv(9)") == b"heard"


def test_a_group_on_an_interface_that_is_gone(ckpt: Ckpt, program: Asked) -> None:
    link = ["ip", "link", "add", "ckpttest0", "type"]
    if all(subprocess.run([*link, kind], check=False, capture_output=True).returncode for kind in ("dummy", "ifb", "bridge")):
        pytest.skip("this kernel makes no interface to try it with")
    try:
        index = socket.if_nametoindex("ckpttest0")
        program.tell("import struct; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)")
        program.tell(f"s.setsockopt(0, 35, socket.inet_aton('239.1.1.1') + bytes(4) + struct.pack('<i', {index}))")
        generation = ckpt.snapshot(program.pid)["generation"]
        program.kill()
    finally:
        subprocess.run(["ip", "link", "del", "ckpttest0"], check=True)
    ckpt.run("restore", generation).refused(3, "fd 3", "ckpttest0", "239.1.1.1")
