"""Kinds of socket on real ones: capture, change, adjust, capture again: the same; and made anew: the same."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from ckpt.kinds.base import CannotUndo, Moved, Unsupported, peers, with_outside
from tests.unit.here import back, capture, close, kind_named, made, run, until

pytestmark = pytest.mark.usefixtures("no_descriptor_is_left_over")


def test_socket_pair() -> None:
    left, right = socket.socketpair()
    left.send(b"to the right")
    right.shutdown(socket.SHUT_WR)
    left.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    wanted = (capture(left.fileno(), 1), capture(right.fileno(), 2))
    assert peers(wanted) == {1: (2,), 2: (1,)}
    assert kind_named("unix").adjust(left.fileno(), wanted[0], wanted[0]) == []
    right.recv(5)
    now = capture(right.fileno(), 2)
    with pytest.raises(CannotUndo, match="queued"):
        kind_named("unix").adjust(right.fileno(), now, wanted[1])
    results = run(kind_named("unix").recreate_pair(*wanted))
    for file, fd in zip(wanted, results, strict=False):
        got = capture(fd, file.id)
        for key in ("queue", "shutdown", "type", "options"):
            assert got.state[key] == file.state[key], key
    assert os.read(results[1], 99) == b"to the right"
    assert os.read(results[0], 99) == b""
    left.close()
    alone = capture(right.fileno(), 2)
    assert peers([alone]) == {2: None}
    survivor = run(kind_named("unix").recreate_pair(alone, None))
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
    assert kind_named("unix").adjust(left.fileno(), now, wanted) == []
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
