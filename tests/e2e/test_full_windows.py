"""TCP connections inside the tree with full windows, either way: every byte that was written is read, once and in order, after a death,
after a rollback in place, and after a snapshot that was killed while it looked."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.asked import Asked
from tests.e2e.test_restore import revive
from tests.faults.faults import Faults
from tests.harness import Ckpt
from tests.harness.victim import children

#: alone: verify captures what it has made while segments may be on their way, and on a busy machine they are so for long
pytestmark = [pytest.mark.alone, pytest.mark.skipif(os.geteuid() != 0, reason="needs root: acts on other processes")]

#: Each end writes until nothing more goes in; what the n-th byte of a stream is follows from n. `child`: the far end is another process's.
FULL = """
import random
def stream(seed, size): return random.Random(seed).randbytes(size)
LONG = {1: stream(1, 24 << 20), 2: stream(2, 24 << 20)}
sent = {1: 0, 2: 0}
def fill(end, seed, most=24 << 20):
    while sent[seed] < most:
        try:
            sent[seed] += end.send(LONG[seed][sent[seed]:min(sent[seed] + 50000, most)])
        except BlockingIOError:
            return sent[seed]
    return sent[seed]
def drain(end, seed, first, last):
    got = bytearray()
    deadline = time.monotonic() + 20
    while len(got) < last - first and time.monotonic() < deadline:
        if select.select([end], [], [], 1)[0]:
            got += end.recv(min(1 << 16, last - first - len(got)))
    return bytes(got) == LONG[seed][first:last] or (len(got), last - first)
def silent(end): return select.select([end], [], [], 0.3)[0] == []
server = socket.create_server(('127.0.0.1', 0))
if SMALL: server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 15)
near = socket.create_connection(server.getsockname())
far = server.accept()[0]
if SMALL: near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 17)
near.setblocking(False); far.setblocking(False)
# Sizes that the kernel tunes say nothing.
NAMES = [(near, (2, 72, 7)), (far, (2, 72, 8))] if SMALL else [(near, (2, 72)), (far, (2, 72))]
def options(): return [[s.getsockopt(1, name) for name in names] for s, names in NAMES]
"""


@pytest.fixture(params=[False, True], ids=["tuned by the kernel", "small buffers"])
def program(request: pytest.FixtureRequest) -> Iterator[Asked]:
    with Asked() as asked:
        asked.tell(f"SMALL = {request.param}; exec({FULL!r}, globals())")
        yield asked


def everything_comes(program: Asked, first: tuple[int, int], last: tuple[int, int]) -> None:
    """To the far end, and to the near one; then more, both ways."""
    assert program.tell(f"drain(far, 1, {first[0]}, {last[0]})") is True
    assert program.tell(f"drain(near, 2, {first[1]}, {last[1]})") is True
    assert program.tell("silent(near) and silent(far)")
    assert program.tell("[near.send(b'on'), far.send(b'and on'), time.sleep(0.05), far.recv(99), near.recv(99)][3:]") == [b"on", b"and on"]


def test_restored(ckpt: Ckpt, program: Asked) -> None:
    """Twice, the second time on what the first has made; every option is what it was."""
    out, back = program.tell("fill(near, 1)"), program.tell("fill(far, 2)")
    options = program.tell("options()")
    for _ in range(2):
        made = ckpt.snapshot(program.pid)
        assert program.tell("options()") == options, "looking changes nothing"
        verdict = ckpt.json("verify", made["generation"])
        assert verdict["differences"] == []
        program.kill()
        assert [text for text in revive(ckpt, program, made["generation"])["warnings"] if "connection" in text] == []
        assert program.tell("options()") == options
    everything_comes(program, (0, 0), (out, back))


@pytest.mark.parametrize("full", [("near",), ("far",), ("near", "far")], ids=" and ".join)
def test_whose_writer_has_shut_down(ckpt: Ckpt, program: Asked, full: tuple[str, ...]) -> None:
    """The end of a stream waits behind its bytes; the other end goes on writing."""
    out = program.tell("fill(near, 1)") if "near" in full else 0
    back = program.tell("fill(far, 2)") if "far" in full else 0
    program.tell("near.shutdown(socket.SHUT_WR)")
    made = ckpt.snapshot(program.pid)
    assert ckpt.json("verify", made["generation"])["differences"] == []
    assert ckpt.json("rollback", made["generation"], "--pid", program.pid)["warnings"] == [], "nothing has moved"
    program.kill()
    assert [text for text in revive(ckpt, program, made["generation"])["warnings"] if "connection" in text] == []
    assert program.tell(f"drain(far, 1, 0, {out})") is True
    assert program.tell("select.select([far], [], [], 5)[0] != [] and far.recv(9)") == b""
    assert program.tell(f"drain(near, 2, 0, {back})") is True
    assert program.tell("[far.send(b'on'), select.select([near], [], [], 5), near.recv(9)][2]") == b"on"


def test_both_have_shut_down(ckpt: Ckpt, program: Asked) -> None:
    """While bytes wait for room: that is not made again, and said."""
    program.tell("fill(near, 1), fill(far, 2), near.shutdown(socket.SHUT_WR), far.shutdown(socket.SHUT_WR)")
    generation = ckpt.snapshot(program.pid)["generation"]
    program.kill()
    assert [text for text in revive(ckpt, program, generation)["warnings"] if "connection" in text] != []


def test_the_living_one_goes_on(ckpt: Ckpt, program: Asked) -> None:
    """Through snapshots, with full windows, while it drains, and at the end of it."""
    out, back = program.tell("fill(near, 1)"), program.tell("fill(far, 2)")
    read = 0
    for size in (100_000, 300_000, 500_000):
        ckpt.snapshot(program.pid)
        size = min(size, out - read)
        assert program.tell(f"drain(far, 1, {read}, {read + size})") is True
        read += size
    ckpt.snapshot(program.pid)
    everything_comes(program, (read, 0), (out, back))


def test_rolled_back(ckpt: Ckpt, program: Asked) -> None:
    """To full windows from drained ones, and from full to drained."""
    before = ckpt.snapshot(program.pid)["generation"]
    out, back = program.tell("fill(near, 1)"), program.tell("fill(far, 2)")
    full = ckpt.snapshot(program.pid)["generation"]
    assert ckpt.json("rollback", full, "--pid", program.pid)["warnings"] == [], "nothing has moved"
    everything_comes(program, (0, 0), (out, back))
    ckpt.json("rollback", full, "--pid", program.pid)
    everything_comes(program, (0, 0), (out, back))
    ckpt.json("rollback", full, "--pid", program.pid)
    ckpt.json("rollback", before, "--pid", program.pid)
    everything_comes(program, (0, 0), (0, 0))


def test_the_ends_are_in_two_processes(ckpt: Ckpt, program: Asked) -> None:
    serve = "near.close(), fill(far, 2), os.write(ready[1], b'x'), time.sleep(3), os._exit(drain(far, 1, 0, 600000) is not True)"
    program.tell(f"ready = os.pipe(); child = os.fork(); child or ({serve})")
    program.tell("far.close(); os.read(ready[0], 1)")
    program.tell("fill(near, 1, 600000)")
    generation = ckpt.snapshot(program.pid)["generation"]
    program.kill()
    assert [text for text in revive(ckpt, program, generation)["warnings"] if "connection" in text] == []
    program.tell("fill(near, 1, 600000)")
    deadline = time.monotonic() + 30
    while program.tell("sent[1]") < 600000 and time.monotonic() < deadline:
        program.tell("select.select([], [near], [], 1); fill(near, 1, 600000)")
    assert program.tell("os.waitpid(child, 0)[1]") == 0


LOOKS = """
def look(end, other, seed, size):
    # As a ckpt whose look at the send queue meets the other end's acknowledgment, only for certain.
    queued = struct.unpack('i', fcntl.ioctl(end, 0x5411, bytes(4)))[0]
    end.setsockopt(6, 19, 1); end.setsockopt(6, 20, 2)
    answer = drain(other, seed, 0, size)
    end.setsockopt(6, 20, 0); end.setsockopt(6, 19, -1)
    info = end.getsockopt(6, 11, 216)
    sent, again = struct.unpack_from('QQ', info, 200)
    acked, (notsent,) = struct.unpack_from('Q', info, 120)[0], struct.unpack_from('I', info, 144)
    return answer is True and notsent == 0 and sent - again < acked + queued // 2
"""


@pytest.mark.parametrize("which", [("near", "far", 1), ("far", "near", 2)], ids=["connected", "accepted"])
def test_looked_at_as_it_moved(ckpt: Ckpt, program: Asked, which: tuple[str, str, int]) -> None:
    """Bytes that the kernel never counts as sent: nothing has moved for that, nothing is lost, and no byte comes twice."""
    end, other, seed = which
    size = {end: program.tell(f"fill({end}, {seed})"), other: 0}
    read = min(200_000, size[end] // 2)
    program.tell(f"import struct, fcntl; exec({LOOKS!r}, globals())")
    before = ckpt.snapshot(program.pid)["generation"]
    assert program.tell(f"look({end}, {other}, {seed}, {read})") is True, "nothing was missing"
    made = ckpt.snapshot(program.pid)["generation"]
    assert ckpt.json("verify", made)["differences"] == []
    assert ckpt.json("rollback", made, "--pid", program.pid)["warnings"] == [], "nothing has moved"
    program.kill()
    assert [text for text in revive(ckpt, program, made)["warnings"] if "connection" in text] == []
    first = {end: read, other: 0}
    everything_comes(program, (first["near"], first["far"]), (size["near"], size["far"]))
    ckpt.json("rollback", before, "--pid", program.pid)
    everything_comes(program, (0, 0), (size["near"], size["far"]))


def test_killed_while_it_looks(ckpt: Ckpt, program: Asked, tmp_path: Path) -> None:
    """A socket in repair mode serves nobody: the worker is killed while one is, and it comes out all the same."""
    out, back = program.tell("fill(near, 1)"), program.tell("fill(far, 2)")
    options = program.tell("options()")
    faults = Faults(tmp_path, "sending=sleep:1000")
    running = ckpt.start("snapshot", program.pid, faults=faults)
    deadline = time.monotonic() + 20
    while "sending" not in faults.hits() and time.monotonic() < deadline:
        time.sleep(0.01)
    (worker,) = children(running.pid)
    assert program.tracer() == worker
    os.kill(worker, signal.SIGKILL)
    assert program.tell("near.getsockopt(6, 19)") == 1, "nobody has been killed in repair mode"
    assert ckpt.finish(running).code != 0
    time.sleep(1.2)
    assert program.tell("options()") == options
    everything_comes(program, (0, 0), (out, back))
