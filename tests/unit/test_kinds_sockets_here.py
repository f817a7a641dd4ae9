"""Sockets on real ones: capture, change, adjust, capture again: the same; and made anew: the same."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import time
from dataclasses import replace
from pathlib import Path

import pytest

from ckpt.kinds.base import CannotUndo, Moved, Unsupported, peers, with_outside
from ckpt.kinds.fd import tcp_pair
from ckpt.kinds.fd.tcp import KIND as TCP_KIND
from ckpt.kinds.groups import groups
from ckpt.model import OpenFile
from tests.unit.here import back, capture, capture_all, close, kind_named, made, made_group, run, until

needs_root = pytest.mark.skipif(os.getuid() != 0, reason="TCP_REPAIR needs CAP_NET_ADMIN")
UNIX = ("type", "local", "far", "shutdown", "backlog", "queue", "senders", "options", "connected")


pytestmark = pytest.mark.usefixtures("no_descriptor_is_left_over")


def same_again(wanted: list[OpenFile], fds: list[int], keys: tuple[str, ...] = UNIX) -> None:
    for one, other in zip(wanted, capture_all(fds), strict=True):
        assert one.flags == other.flags
        for key in keys:
            assert one.state.get(key) == other.state.get(key), f"{key} of {one.id}"


def adjusted(fds: list[int], wanted: list[OpenFile]) -> list[OpenFile]:
    """In place, each end its part."""
    now = capture_all(fds)
    for fd, here, there in zip(fds, now, wanted, strict=True):
        run(kind_named(there.kind).adjust(fd, here, there))
    return capture_all(fds)


# ---- unix ----


@pytest.mark.parametrize("form", [socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_SEQPACKET])
def test_socket_pair(form: int) -> None:
    left, right = socket.socketpair(socket.AF_UNIX, form)
    fds = [left.fileno(), right.fileno()]
    left.send(b"to the right")
    left.send(b"and more")
    right.send(b"to the left")
    left.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    right.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 50000)
    wanted = capture_all(fds)
    assert peers(wanted) == {0: (1,), 1: (0,)}
    assert groups(wanted) == {0: (0, 1), 1: (0, 1)}
    assert kind_named("unix").adjust(fds[0], wanted[0], wanted[0]) == []
    right.recv(8)
    left.recv(8)
    right.send(b"something else")
    left.send(b"other")
    assert adjusted(fds, wanted) == wanted
    left.recv(99)
    wanted = capture_all(fds)
    right.shutdown(socket.SHUT_WR)
    half = capture_all(fds)
    with pytest.raises(CannotUndo, match="another way"):
        kind_named("unix").adjust(fds[1], half[1], wanted[1])
    again = made_group(half)
    same_again(half, again)
    left.close()
    alone = capture(right.fileno(), 2)
    assert peers([alone]) == {2: None}
    (survivor,) = made_group([alone])
    if form == socket.SOCK_STREAM:
        assert os.read(survivor, 99) == b"to the rightand more"
        assert os.read(survivor, 99) == b""
    elif form == socket.SOCK_SEQPACKET:
        assert [os.read(survivor, 99) for _ in range(3)] == [b"to the right", b"and more", b""]
    close((*again, survivor))
    right.close()


@pytest.mark.parametrize("abstract", [False, True])
@pytest.mark.parametrize("form", [socket.SOCK_STREAM, socket.SOCK_SEQPACKET])
@pytest.mark.parametrize("listening", [True, False])
def test_connected_by_name(form: int, abstract: bool, listening: bool, tmp_path: Path) -> None:
    name = f"\0{tmp_path}" if abstract else str(tmp_path / "s")
    server, client, waiting = (socket.socket(socket.AF_UNIX, form) for _ in range(3))
    server.bind(name)
    server.listen(5)
    client.connect(name)
    served, _ = server.accept()
    client.send(b"question")
    served.send(b"an answer")
    served.setblocking(False)
    open_sockets = [server, client, served]
    if listening:
        waiting.bind(name + ".client")
        waiting.connect(name)
        open_sockets.append(waiting)
    else:
        server.close()
        open_sockets.remove(server)
    fds = [item.fileno() for item in open_sockets]
    wanted = capture_all(fds)
    assert set(groups(wanted).values()) == {tuple(range(len(fds)))}
    client.send(b"more")
    client.recv(99)
    assert adjusted(fds, wanted) == wanted
    for item in open_sockets:
        item.close()
    if not abstract and not listening:
        Path(name).unlink()
    again = made_group(wanted)
    same_again(wanted, again)
    if listening:
        late = socket.socket(socket.AF_UNIX, form)
        late.connect(name)
        revived = socket.socket(fileno=os.dup(again[0]))
        first, second = revived.accept()[0], revived.accept()[0]
        late.send(b"late")
        assert second.recv(99) == b"late"
        os.write(again[3], b"waited")
        assert first.recv(99) == b"waited"
        for item in (late, revived, first, second):
            item.close()
    close(again)
    waiting.close()
    if not abstract:
        assert Path(name).exists() == listening


def test_who_sent_to_a_queue_that_nobody_accepted_is_refused(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
        server.bind(str(tmp_path / "s"))
        server.listen(5)
        client.connect(str(tmp_path / "s"))
        found = kind_named("unix").recreate_group(capture_all([server.fileno()]), {})
        assert found.warnings == (f"1 connections from outside that waited to be accepted on {tmp_path}/s are gone",)
        client.send(b"x")
        with pytest.raises(CannotUndo, match=r"has sent to one that has not accepted it"):
            made_group(capture_all([server.fileno(), client.fileno()]))


def test_datagrams_keep_their_order_and_their_senders(tmp_path: Path) -> None:
    paths = [str(tmp_path / name) for name in "abc"]
    one, two, three, nameless = (socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) for _ in range(4))
    for item, path in zip((one, two, three), paths, strict=True):
        item.bind(path)
    nameless.connect(paths[0])
    three.connect(paths[0])
    for sender, text in ((two, b"1"), (nameless, b"2"), (three, b""), (two, b"4")):
        sender.sendto(text, paths[0]) if sender is two else sender.send(text)
    fds = [item.fileno() for item in (one, two, three, nameless)]
    wanted = capture_all(fds)
    assert [bytes.fromhex(text) for text in wanted[0].state["queue"]] == [b"1", b"2", b"", b"4"]
    assert groups(wanted)[0] == (0, 1, 2, 3)
    one.recv(1)
    with pytest.raises(CannotUndo, match="queued"):
        kind_named("unix").adjust(fds[0], capture_all(fds)[0], wanted[0])
    for item in (one, two, three, nameless):
        item.close()
    again = made_group(wanted)
    same_again(wanted, again)
    revived = socket.socket(fileno=again[0])
    assert [revived.recvfrom(9) for _ in range(4)] == [(b"1", paths[1]), (b"2", None), (b"", paths[2]), (b"4", paths[1])]
    os.write(again[3], b"goes on")
    assert revived.recv(99) == b"goes on"
    revived.close()
    close(again[1:])


def test_a_stranger_at_the_other_end(tmp_path: Path) -> None:
    name = str(tmp_path / "log")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as client:
        server.bind(name)
        client.connect(name)
        wanted = capture_all([client.fileno()])
        (again,) = made_group(wanted)  # as syslog(3) does: by name, to whoever is there now
        os.write(again, b"a line")
        assert server.recv(99) == b"a line"
        os.close(again)
    left, right = socket.socketpair()
    with left, right, pytest.raises(Moved, match="outside the tree") as found:
        made_group(capture_all([left.fileno()]))
    dead = run(found.value.dead)[-1]
    assert os.read(dead, 9) == b""
    with pytest.raises(BrokenPipeError):
        os.write(dead, b"x")
    os.close(dead)


def test_much_is_queued() -> None:
    left, right = socket.socketpair()
    left.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 17)
    text = os.urandom(150_000)
    left.send(text)
    wanted = capture_all([left.fileno(), right.fileno()])
    again = made_group(wanted)
    same_again(wanted, again)
    assert os.read(again[1], 1 << 20) == text
    close(again)
    left.close()
    right.close()


def test_socket_pair_to_the_outside_is_left_alone() -> None:
    left, right = socket.socketpair()
    (wanted,) = with_outside([capture(left.fileno(), 1)])
    right.send(b"news")
    (now,) = with_outside([capture(left.fileno(), 1)])
    assert wanted.state["outside"]
    assert kind_named("unix").adjust(left.fileno(), now, wanted) == []
    left.close()
    right.close()


# ---- tcp ----


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
    after = back(served.fileno(), wanted)
    for key in ("consumed", "written", "options"):
        assert after.state[key] == wanted.state[key], key
    client.close()
    until(lambda: capture(served.fileno()).state["state"] == "CLOSE_WAIT", "the end to arrive")
    assert kind_named("tcp").adjust(served.fileno(), capture(served.fileno()), wanted) == []
    served.close()
    server.close()


def test_tcp_that_moved_says_so() -> None:
    server, client, served = connection()
    wanted = capture(client.fileno())
    client.send(b"12345")
    with pytest.raises(Moved, match="0 bytes were read and 5 written"):
        kind_named("tcp").adjust(client.fileno(), capture(client.fileno()), wanted)
    client.shutdown(socket.SHUT_WR)
    with pytest.raises(Moved, match="was ESTABLISHED"):
        kind_named("tcp").adjust(client.fileno(), capture(client.fileno()), wanted)
    with pytest.raises(Moved, match="is gone"):
        made(wanted)
    served.send(b"abc")
    until(lambda: capture(served.fileno()).state["written"] == 3, "the bytes to be told")
    wanted = capture(served.fileno())
    assert served.recv(99) == b"12345"
    with pytest.raises(Moved, match="5 bytes were read and 0 written"):
        kind_named("tcp").adjust(served.fileno(), capture(served.fileno()), wanted)
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


def in_the_tree(*parts: socket.socket) -> list[OpenFile]:
    time.sleep(0.05)
    return capture_all([part.fileno() for part in parts])


TCP = ("state", "local", "peer", "unread", "away", "options", "wire")


@needs_root
@pytest.mark.parametrize("sizes", [(0, 0), (5, 40_000), (100_000, 10)])
@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_a_connection_with_itself_is_made_again(sizes: tuple[int, int], family: int) -> None:
    server = socket.create_server(("127.0.0.1" if family == socket.AF_INET else "::1", 0), family=family)
    client = socket.create_connection(server.getsockname()[:2])
    served, _ = server.accept()
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    served.setblocking(False)
    text = [os.urandom(size) for size in sizes]
    client.sendall(b"seen")
    time.sleep(0.02)
    served.recv(4)
    client.sendall(text[0])
    served.sendall(text[1])
    wanted = in_the_tree(client, served)
    assert [len(file.state["unread"]) // 2 for file in wanted] == [sizes[1], sizes[0]]
    assert groups(wanted) == {0: (0, 1), 1: (0, 1)}
    served.close()
    client.close()
    again = made_group(wanted)  # the listener still has the port
    time.sleep(0.05)
    same_again(wanted, again, TCP)
    first, second = (socket.socket(fileno=fd) for fd in again)
    second.settimeout(5)
    got = b""
    while len(got) < sizes[0]:
        got += second.recv(1 << 20)
    assert got == text[0]
    start = time.monotonic()
    second.sendall(b"goes on")
    got = b""
    while len(got) < sizes[1] + 7:
        got += first.recv(1 << 20)
    assert got == text[1] + b"goes on"
    assert time.monotonic() - start < 0.15, "the first write waited for a probe of the window"
    first.close()
    assert second.recv(1) == b""
    second.close()
    server.close()


@needs_root
def test_a_half_closed_connection_is_made_again() -> None:
    server, client, served = connection()
    client.sendall(b"the last words")
    client.shutdown(socket.SHUT_WR)
    wanted = in_the_tree(client, served)
    assert [file.state["state"] for file in wanted] == ["FIN_WAIT2", "CLOSE_WAIT"]
    for part in (client, served):
        part.close()
    again = made_group(wanted)
    time.sleep(0.05)
    same_again(wanted, again, TCP)
    assert [os.read(again[1], 99) for _ in range(2)] == [b"the last words", b""]
    os.write(again[1], b"reply")
    assert os.read(again[0], 99) == b"reply"
    close(again)
    server.close()


@pytest.mark.parametrize(("then", "now"), [("FIN_WAIT1", "FIN_WAIT2"), ("FIN_WAIT2", "FIN_WAIT1")])
def test_whether_the_end_of_a_stream_is_acknowledged_says_nothing(then: str, now: str) -> None:
    server, client, served = connection()
    client.shutdown(socket.SHUT_WR)
    first, second = in_the_tree(client, served)
    wanted, here = (replace(first, state={**first.state, "state": name}) for name in (then, now))
    assert tcp_pair.can_be_made(wanted, second)
    assert tcp_pair.can_be_made(second, wanted)
    assert TCP_KIND.adjust(client.fileno(), here, wanted) == []
    for part in (client, served, server):
        part.close()


def test_bytes_under_way_are_no_pair() -> None:
    server, client, served = connection()
    client.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while client.send(bytes(1 << 16)):
            pass
    wanted = in_the_tree(client, served)
    assert all("away" not in file.state for file in wanted)
    with pytest.raises(Moved, match="had found no room at the other end"):
        made_group(wanted[:1])
    for part in (server, client, served):
        part.close()


# ---- udp ----


def test_udp() -> None:
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as first:
        first.bind(("::1", 0))
        wanted = capture(first.fileno())
        assert wanted.state["local"].startswith("[::1]:")
    again = made(wanted)
    assert capture(again).state["local"] == wanted.state["local"]
    close((again,))


@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_datagrams_that_lay_unread_come_again(family: int, own: bool) -> None:
    receiver, sender, other = (socket.socket(family, socket.SOCK_DGRAM) for _ in range(3))
    host = "127.0.0.1" if family == socket.AF_INET else "::1"
    receiver.bind((host, 0))
    sender.bind((host if own else host[:0], 0))
    for item, text in ((sender, b"one"), (other, b""), (sender, b"three")):
        item.sendto(text, receiver.getsockname())
    receiver.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
    if own:
        sender.connect(receiver.getsockname())
        receiver.connect((host, sender.getsockname()[1]))
    parts = [receiver, sender] if own else [receiver]
    wanted = capture_all([part.fileno() for part in parts])
    assert [bytes.fromhex(data) for _, data in wanted[0].state["queue"]] == [b"one", b"", b"three"]
    assert groups(wanted)[0] == tuple(range(len(parts)))
    froms = [receiver.recvfrom(99) for _ in range(3)]
    for item in (receiver, sender, other):
        item.close()
    again = made_group(wanted)
    same_again(wanted, again, ("local", "peer", "options", "queue"))
    revived = socket.socket(fileno=again[0])
    assert [revived.recvfrom(99) for _ in range(3)] == froms
    revived.close()
    close(again[1:])


# ---- netlink, and what is refused ----


def test_netlink_routes() -> None:
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as channel:
        channel.bind((0x7001, 1 | 1 << 4))
        channel.setsockopt(270, 1, 33)
        wanted = capture(channel.fileno())
        assert (wanted.state["port"], wanted.state["groups"]) == (0x7001, [1, 5, 33])
        assert back(channel.fileno(), wanted) == wanted
    again = made(wanted)
    after = capture(again)
    for key in ("port", "groups", "options", "protocol"):
        assert after.state[key] == wanted.state[key], key
    request = struct.pack("<IHHIIB15x", 32, 18, 0x300 | 1, 1, 0, 0)  # RTM_GETLINK, dump
    os.write(again, request)
    with pytest.raises(CannotUndo, match="lay unread"):
        made(capture(again))
    assert int.from_bytes(os.read(again, 1 << 16)[4:6], "little") == 16  # RTM_NEWLINK
    close((again,))


ONE_LINK, ALL_LINKS = (struct.pack("<IHHIIB15x", 32, 18, flags, 1, 0, 0) for flags in (1, 0x300 | 1))  #: RTM_GETLINK


@pytest.mark.parametrize("questions", [(ALL_LINKS,), (ONE_LINK, ONE_LINK, ONE_LINK), ()], ids=len)
def test_answers_to_questions_that_were_not_asked_yet_are_taken_away(questions: tuple[bytes, ...]) -> None:
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as channel:
        channel.bind((0, 0))
        wanted = capture(channel.fileno())
        for question in questions:
            channel.send(question)
        assert back(channel.fileno(), wanted) == wanted
        with pytest.raises(BlockingIOError):
            channel.recv(100, socket.MSG_DONTWAIT)


def test_an_answer_that_lay_unread_and_has_been_read_cannot_be_undone() -> None:
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as channel:
        channel.send(ONE_LINK)
        wanted = capture(channel.fileno())
        assert back(channel.fileno(), wanted) == wanted
        channel.recv(1 << 16)
        with pytest.raises(CannotUndo, match="have been read"):
            back(channel.fileno(), wanted)


def test_events_stay() -> None:
    """They are the machine's, which does not go back."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as channel:
        channel.bind((0, 1))
        wanted = capture(channel.fileno())
        channel.send(ONE_LINK)
        back(channel.fileno(), wanted)
        assert channel.recv(1 << 16, socket.MSG_DONTWAIT)


@pytest.mark.parametrize(
    ("words", "match"),
    [
        ((socket.AF_NETLINK, socket.SOCK_RAW, 12), "netlink socket of family 12"),
        ((socket.AF_PACKET, socket.SOCK_RAW, 0), "packet socket"),
        ((socket.AF_INET, socket.SOCK_RAW, 1), "raw socket"),
    ],
)
@needs_root
def test_other_sockets_are_refused_by_name(words: tuple[int, int, int], match: str) -> None:
    with socket.socket(*words) as channel, pytest.raises(Unsupported, match=f"{match}: not supported"):
        capture(channel.fileno())
