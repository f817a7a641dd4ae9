"""Transfers that a stop cuts short go on: the program gets whole counts, its registers as they were, and every byte once."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Iterator

import pytest

from tests.harness import Ckpt, Victim, build
from tests.harness.victim import BIN, PYTHON, within

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: acts on other processes")

CALLS = {(): {"write", "sendto", "sendfile", "splice", "recvfrom"}, ("lists",): {"writev", "pwritev2", "sendmsg"}}

Start = Callable[..., Victim]
Words = tuple[str, ...]
each = pytest.mark.parametrize("which", CALLS, ids=lambda words: " ".join(words) or "of one buffer")


@pytest.fixture
def started() -> Iterator[Start]:
    build()
    victims: list[Victim] = []

    def start(*words: str) -> Victim:
        victims.append(Victim([str(BIN / "transfers"), *words], timeout_s=60))
        return victims[-1]

    yield start
    for victim in victims:
        victim.end()


def die(ckpt: Ckpt, target: Victim) -> int:
    made = ckpt.snapshot(target.pid, "--kill")
    target.kill()
    return int(made["generation"])


def gone_on(ckpt: Ckpt) -> set[str]:
    """The calls that go on by what the last generation tells; nobody sees a short count."""
    rows = ckpt.json("show", "latest", "--threads")["threads"]
    assert [row["reason"] for row in rows if row["disturbed"]] == []
    return {row["reason"].split()[0] for row in rows if row["action"] == "go-on"}


def stall(ckpt: Ckpt, target: Victim, which: Words = ()) -> None:
    """The other ends stand still, where each call has done a part; the last generation holds them so."""

    def each_has_begun() -> bool:
        target.ask("go")
        time.sleep(0.05)
        target.ask("stall")
        ckpt.snapshot(target.pid)
        return gone_on(ckpt) >= CALLS[which]

    assert within(60, each_has_begun)


@each
def test_no_count_is_short(which: Words, ckpt: Ckpt, started: Start) -> None:
    """At least a dozen snapshots, and as many as it takes until each call has been met in the middle."""
    target, seen, turn = started(*which), set[str](), 0
    end = time.monotonic() + 60
    while turn < 12 or (not seen >= CALLS[which] and time.monotonic() < end):
        ckpt.snapshot(target.pid, *(["--tracker", "compare"] if turn % 3 == 2 else []))
        seen |= gone_on(ckpt)
        target.verify()
        turn += 1
    assert seen >= CALLS[which]


def test_a_vdso_that_lies_low(ckpt: Ckpt) -> None:
    """As where the stack has no limit: below a third of all addresses."""
    build()
    with Victim(["setarch", "-L", str(BIN / "transfers"), "lists"]) as target:
        stall(ckpt, target, ("lists",))
        ckpt.snapshot(target.pid)
        assert gone_on(ckpt) >= CALLS["lists",]
        target.ask("go")
        time.sleep(0.3)
        target.verify()


@each
def test_those_that_stand_still(which: Words, ckpt: Ckpt, started: Start) -> None:
    """Cut again and again, in the same place: each time they go on from there."""
    target = started(*which)
    stall(ckpt, target, which)
    for _ in range(3):
        ckpt.snapshot(target.pid)
        assert gone_on(ckpt) >= CALLS[which]
    target.ask("go")
    time.sleep(0.3)
    target.verify()


@each
def test_rolled_back(which: Words, ckpt: Ckpt, started: Start) -> None:
    target = started(*which)
    stall(ckpt, target, which)
    target.ask("go")
    time.sleep(0.2)
    for _ in range(3):
        done = ckpt.json("rollback", "latest", "--pid", target.pid)
        assert done["disturbed"] == []
        target.ask("go")
        time.sleep(0.2)
        target.verify()


@each
@pytest.mark.parametrize("still", [False, True], ids=["in the middle", "standing still"])
def test_restored(which: Words, still: bool, ckpt: Ckpt, started: Start) -> None:
    target = started(*which)
    for turn in range(3):
        if still:
            stall(ckpt, target, which)
        generation = die(ckpt, target)
        if turn == 0:
            assert ckpt.json("verify", generation)["differences"] == []
        target.revive(lambda words, number=generation: int(ckpt.json("restore", number, *words)["pid"]))
        target.ask("go")
        time.sleep(0.2)
        target.verify()


@each
def test_restored_lazily(which: Words, ckpt: Ckpt, started: Start) -> None:
    target = started(*which)
    generation = die(ckpt, target)
    target.revive(lambda words: int(ckpt.json("restore", "--lazy", generation, *words)["pid"]))
    time.sleep(0.3)
    target.verify()


@each
def test_signals_come_meanwhile(which: Words, ckpt: Ckpt, started: Start) -> None:
    target = started(*which, "signals")
    for _ in range(10):
        ckpt.snapshot(target.pid)
        target.verify()


@each
@pytest.mark.parametrize("deep", [(), ("deep",)], ids=["flat", "deep"])
@pytest.mark.parametrize("then", ["goes on", "rolled back", "restored"])
def test_a_handler_stands_over_it(which: Words, then: str, deep: Words, ckpt: Ckpt, started: Start) -> None:
    """Its frame returned into the instructions that carry the transfer on: it returns to the program's own, with a short count. `deep`:
    with 600 KiB of the handler's in between."""
    target = started(*which, "handlers", *deep)
    stall(ckpt, target, which)
    target.ask("hold")
    generation = ckpt.snapshot(target.pid)["generation"]
    if then == "rolled back":
        target.ask("release")
        target.ask("go")
        ckpt.json("rollback", generation, "--pid", target.pid)
    elif then == "restored":
        target.kill()
        target.revive(lambda words: int(ckpt.json("restore", generation, *words)["pid"]))
    target.ask("release")
    target.ask("go")
    time.sleep(0.3)
    target.verify()


@each
def test_killed_at_any_moment(which: Words, ckpt: Ckpt, started: Start) -> None:
    """A count may be short then, as one that a signal has cut; no byte is lost or comes twice."""
    target = started(*which, "handlers")
    for _ in range(15):
        running = ckpt.start("snapshot", target.pid)
        time.sleep(random.uniform(0, 0.25))
        running.send_signal(signal.SIGKILL)
        ckpt.finish(running)
        target.verify()
    ckpt.snapshot(target.pid)
    target.verify()


LIMITED = """
import socket, struct, threading, time
one, other = socket.socketpair()
one.setsockopt(socket.SOL_SOCKET, getattr(socket, LIMIT), struct.pack('qq', 60, 0))
got = []
threading.Thread(target=lambda: got.append(one.send(bytes(1 << 20))), daemon=True).start()
time.sleep(0.3)
print('READY', flush=True)
for _ in iter(input, 'end'): print(got and got[0] or 0, flush=True)
"""


def test_one_with_a_time_out_does_not(ckpt: Ckpt) -> None:
    """Its time would begin again: the short count is told instead."""
    with Victim([PYTHON, "-c", "LIMIT = 'SO_SNDTIMEO'\n" + LIMITED]) as target:
        ckpt.snapshot(target.pid, "--tracker", "compare")
        assert within(5, lambda: int(target.ask("got")) > 0)
        (row,) = [row for row in ckpt.json("show", "latest", "--threads")["threads"] if row["disturbed"]]
        assert (row["action"], row["raw_retval"]) == ("keep", int(target.ask("got")))


def test_one_with_a_time_out_for_the_other_direction_does(ckpt: Ckpt) -> None:
    with Victim([PYTHON, "-c", "LIMIT = 'SO_RCVTIMEO'\n" + LIMITED]) as target:
        ckpt.snapshot(target.pid)
        assert gone_on(ckpt) == {"sendto"}
        assert target.ask("got") == "0"


ENDS = """
import os, signal, socket, struct, threading
signal.signal(signal.SIGPIPE, signal.SIG_IGN)
def tcp():
    with socket.create_server(('127.0.0.1', 0)) as server:
        one = socket.create_connection(server.getsockname())
        return one, server.accept()[0]
one, other = tcp() if KIND == 'tcp' else socket.socketpair()
got = []
def send():
    for _ in range(2):
        try:
            got.append(one.send(bytes(64 << 20)))
        except OSError as error:
            got.append(-error.errno)
threading.Thread(target=send, daemon=True).start()
import time; time.sleep(0.3)
print('READY', flush=True)
for what in iter(input, 'end'):
    if what == 'reset':
        other.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))
        other.close()
    print(*got, flush=True)
"""


@pytest.mark.parametrize("kind", ["tcp", "unix"])
def test_the_other_end_goes_away(kind: str, ckpt: Ckpt) -> None:
    """Who sends hears of it, as without a stop: if not behind a count, then at once."""
    with Victim([PYTHON, "-c", f"KIND = {kind!r}\n{ENDS}"]) as target:
        ckpt.snapshot(target.pid)
        assert gone_on(ckpt) == {"sendto"}
        assert target.ask("look") == ""
        target.ask("reset")
        assert within(10, lambda: len(target.ask("look").split()) == 2)
        first, second = map(int, target.ask("look").split())
        assert first in (-104, -32)
        assert second in (-104, -32)


CLOSES = """
import os, signal, threading, time
signal.signal(signal.SIGPIPE, signal.SIG_IGN)
r, w = os.pipe()
got = []
def send():
    for _ in range(2):
        try:
            got.append(os.writev(w, [bytes(100000), bytes(100000)]))
        except OSError as error:
            got.append(-error.errno)
threading.Thread(target=send, daemon=True).start()
time.sleep(0.3)
print('READY', flush=True)
for what in iter(input, 'end'):
    if what == 'close': os.close(r)
    print(*got, flush=True)
"""


def test_nobody_reads_any_more(ckpt: Ckpt) -> None:
    """Each later call is told so again: the count of this one comes first, as without a stop."""
    with Victim([PYTHON, "-c", CLOSES]) as target:
        ckpt.snapshot(target.pid)
        assert gone_on(ckpt) == {"writev"}
        target.ask("close")
        assert within(10, lambda: len(target.ask("look").split()) == 2)
        assert target.ask("look") == "65536 -32"


FORKED = """
import os, select, threading, time
WHOLE = 300000
pipes = [os.pipe() for _ in range(9)]
for _, into in pipes: threading.Thread(target=os.write, args=(into, bytes(WHOLE)), daemon=True).start()
time.sleep(0.3)
print('READY', flush=True)
for what in iter(input, 'end'):
    if what == 'fork':
        source, into = os.pipe()
        told, tell = os.pipe()
        child = os.fork()
        if not child:
            os.write(tell, b'%d' % os.writev(into, [bytes(WHOLE // 2)] * 2))
            time.sleep(1000)
        time.sleep(0.3)
        print(child, flush=True)
    else:
        while told not in (ready := select.select([source, told], [], [])[0]): os.read(source, 4096)
        print(os.read(told, 100).decode(), flush=True)
"""


def test_a_child_of_one_with_many_goes_on(ckpt: Ckpt) -> None:
    """It has a copy of its parent's slots, in which nobody is."""
    with Victim([PYTHON, "-c", FORKED]) as target:
        ckpt.snapshot(target.pid)
        child = int(target.ask("fork"))
        ckpt.snapshot(child)
        assert target.ask("count") == "300000"


APART = """
import ctypes, mmap, os, select, socket, threading, time
WHOLE = 300000
libc = ctypes.CDLL(None)
def memory(): return mmap.mmap(-1, 1 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
def place(of): return ctypes.addressof(ctypes.c_char.from_buffer(of)) + (1 << 19)
bytes_of, list_of, message_of = memory(), memory(), memory()
ends = [end.detach() for end in socket.socketpair()] if CALL == 'sendmsg' else os.pipe()[::-1]
buffers = (ctypes.c_ulong * 2).from_address(place(list_of))
buffers[:] = place(bytes_of), WHOLE
message = (ctypes.c_ulong * 7).from_address(place(message_of) - 20)
message[2:4] = place(list_of), 1
got = []
def work(): got.append(libc.sendmsg(ends[0], message, 0) if CALL == 'sendmsg' else libc.writev(ends[0], buffers, 1))
threading.Thread(target=work, daemon=True).start()
time.sleep(0.3)
print('READY', flush=True)
for _ in iter(input, 'end'):
    while not got:
        if select.select([ends[1]], [], [], 0.01)[0]: os.read(ends[1], 4096)
    print(*got, flush=True)
"""


@pytest.mark.parametrize("call", ["writev", "sendmsg"])
def test_a_list_that_would_come_later(call: str, ckpt: Ckpt) -> None:
    """Of a lazy restore: who lets the thread go reads its list."""
    with Victim([PYTHON, "-c", f"CALL = {call!r}\n{APART}"]) as target:
        generation = die(ckpt, target)
        assert gone_on(ckpt) == {call}
        target.revive(lambda words: int(ckpt.json("restore", "--lazy", generation, *words)["pid"]))
        assert target.ask("count") == "300000"


PEEKS = """
import socket, threading, time
with socket.create_server(('127.0.0.1', 0)) as server:
    one = socket.create_connection(server.getsockname())
    other = server.accept()[0]
one.send(b'a' * 1000)
got = []
threading.Thread(target=lambda: got.append(other.recv(2000, socket.MSG_PEEK | socket.MSG_WAITALL)), daemon=True).start()
time.sleep(0.3)
print('READY', flush=True)
for _ in iter(input, 'end'):
    one.send(b'b' * 1000)
    while not got: time.sleep(0.01)
    print(len(got[0]), got[0] == (b'a' * 1000 + b'b' * 1000)[:len(got[0])], flush=True)
"""


def test_a_peek_does_not(ckpt: Ckpt) -> None:
    """A second one would see the first bytes again."""
    with Victim([PYTHON, "-c", PEEKS]) as target:
        ckpt.snapshot(target.pid)
        assert target.ask("look") == "1000 True"


MESSAGES = """
import socket, threading
one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
back = socket.socketpair()
rounds, wrong = 0, set()
def work():
    while True:
        size = len(other.recv(2000, socket.MSG_WAITALL))
        if size != 1000: wrong.add(size)
        back[1].send(b'x')
threading.Thread(target=work, daemon=True).start()
def play():
    global rounds
    while True:
        one.send(bytes(1000))
        back[0].recv(1)
        rounds += 1
threading.Thread(target=play, daemon=True).start()
print('READY', flush=True)
for _ in iter(input, 'end'): print(rounds, *wrong, flush=True)
"""


def test_a_message_is_whole(ckpt: Ckpt) -> None:
    """Even if it does not fill its buffer: who waits for more would get the next one."""
    with Victim([PYTHON, "-c", MESSAGES]) as target:
        for _ in range(8):
            ckpt.snapshot(target.pid)
            before = int(target.ask("look"))
            assert within(10, lambda was=before: int(target.ask("look")) > was)


CARRIES = """
import os, socket, struct, threading, time
one, other = socket.socketpair()
got = []
threading.Thread(target=lambda: got.append(one.sendmsg([bytes(1 << 20)], [(socket.SOL_SOCKET, 2, struct.pack('iII', os.getpid(), 0, 0))])),
                 daemon=True).start()
time.sleep(0.3)
print('READY', flush=True)
for _ in iter(input, 'end'): print(got and got[0] or 0, flush=True)
"""


def test_what_carries_credentials_does_not(ckpt: Ckpt) -> None:
    """They went with the first part."""  # SCM_CREDENTIALS
    with Victim([PYTHON, "-c", CARRIES]) as target:
        ckpt.snapshot(target.pid, "--tracker", "compare")
        assert within(5, lambda: int(target.ask("got")) > 0)
        (row,) = [row for row in ckpt.json("show", "latest", "--threads")["threads"] if row["disturbed"]]
        assert (row["action"], row["raw_retval"]) == ("keep", int(target.ask("got")))


SPLICES = """
import os, threading, time
source, into = os.pipe()
file = os.memfd_create('file')
told = os.pipe()
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
def work():
    while True:
        at = ctypes.c_longlong(0)
        os.write(told[1], b'x' * (libc.splice(source, None, file, ctypes.byref(at), 1 << 20, 0) > 0))
threading.Thread(target=work, daemon=True).start()
rounds = 0
def play():
    global rounds
    while True:
        os.write(into, bytes(65536))
        os.read(told[0], 1)
        rounds += 1
threading.Thread(target=play, daemon=True).start()
print('READY', flush=True)
for _ in iter(input, 'end'): print(rounds, flush=True)
"""


def test_a_splice_ends_with_its_source(ckpt: Ckpt) -> None:
    """Its count is short by itself: who waits for more would wait for ever."""
    with Victim([PYTHON, "-c", SPLICES]) as target:
        for _ in range(8):
            ckpt.snapshot(target.pid)
            before = int(target.ask("look"))
            assert within(10, lambda was=before: int(target.ask("look")) > was)
