"""Transfers that a stop cuts for good: `ckpt check` names descriptor and thread beforehand, and says nothing of those that go on."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.asked import Asked
from tests.harness import Ckpt

CALLS = """
import ctypes, struct
libc = ctypes.CDLL(None, use_errno=True)
room = ctypes.create_string_buffer(1 << 23)
near, far = socket.socketpair()
out, into = os.pipe()
seqs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
datagrams = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
MANY = [bytes(1 << 16) for _ in range(20)]
kept = []
def message(count): # struct msghdr with so many buffers
    lists = ctypes.create_string_buffer(struct.pack('QQ', ctypes.addressof(room), 1 << 22) * count); kept.append(lists)
    return ctypes.create_string_buffer(struct.pack('QQQQQQQ', 0, 0, ctypes.addressof(lists), count, 0, 0, 0))
def messages(count):
    return ctypes.create_string_buffer((message(1).raw[:56] + bytes(8)) * count)
def limited(end, option):
    end.setsockopt(socket.SOL_SOCKET, option, struct.pack('qq', 60, 0)); return end
"""

#: name of the call -> what the thread does, what is said of it (None: nothing)
CASES = {
    "recvmsg": ("near.recvmsg_into([room], 0, socket.MSG_WAITALL)", "recvmsg of a message with MSG_WAITALL"),
    "recvmsg without": ("near.recvmsg_into([room])", None),
    "recvmmsg": ("libc.recvmmsg(datagrams[0].fileno(), messages(3), 3, 0, None)", "recvmmsg of several messages"),
    "recvmmsg for one": ("libc.recvmmsg(datagrams[0].fileno(), messages(3), 3, 0x10000, None)", None),
    "sendmmsg": ("libc.sendmmsg(near.fileno(), messages(3), 3, 0)", "sendmmsg of several messages"),
    "writev of 20": ("os.writev(into, MANY)", "writev of 20 buffers"),
    "writev of 4": ("os.writev(into, MANY[:4])", None),
    "sendmsg of 2": ("libc.sendmsg(near.fileno(), message(2), 0)", "sendmsg of 2 buffers"),
    "sendmsg of 1": ("libc.sendmsg(near.fileno(), message(1), 0)", None),
    "recv": ("near.recv(100, socket.MSG_WAITALL)", None),
    "recv with an address": ("near.recvfrom(100, socket.MSG_WAITALL)", "recvfrom with room for an address"),
    "recv with MSG_PEEK": ("near.recv(100, socket.MSG_WAITALL | socket.MSG_PEEK)", "recvfrom with MSG_PEEK"),
    "recv with a limit": ("limited(near, 20).recv(100, socket.MSG_WAITALL)", "recvfrom with SO_RCVTIMEO"),
    "recv with a limit of the other way": ("limited(near, 21).recv(100, socket.MSG_WAITALL)", None),
    "recv of a record": ("seqs[0].recv(100, socket.MSG_WAITALL)", None),
    "send with a limit": ("limited(near, 21).sendall(room)", "sendto with SO_SNDTIMEO"),
    "send": ("near.send(room)", None),
    "write": ("os.write(into, room)", None),
    "read": ("os.read(out, 100)", None),
    "splice": ("libc.splice(out, None, near.fileno(), None, 1 << 20, 0)", None),
    "splice with a limit": ("libc.splice(out, None, limited(near, 21).fileno(), None, 1 << 20, 0)", "splice with SO_SNDTIMEO"),
}


@pytest.fixture
def program() -> Iterator[Asked]:
    with Asked() as asked:
        asked.tell(f"exec({CALLS!r}, globals())")
        yield asked


def sleeps(program: Asked, code: str) -> int:
    """The thread that does so, asleep in its call."""
    program.tell(f"who = threading.Thread(target=lambda: {code}, daemon=True); who.start()")
    tid = int(program.tell("who.native_id"))
    folder, end = Path(f"/proc/{program.pid}/task/{tid}"), time.monotonic() + 10
    while (folder / "syscall").read_text().split()[0] in ("running", "202") or (folder / "stat").read_text().rsplit(")", 1)[1].split()[
        0
    ] != "S":
        assert time.monotonic() < end
        time.sleep(0.01)
    time.sleep(0.05)
    return tid


@pytest.mark.parametrize("name", CASES)
def test_what_is_said(name: str, ckpt: Ckpt, program: Asked) -> None:
    code, said = CASES[name]
    tid = sleeps(program, code)
    found = ckpt.json("check", program.pid)
    assert found["ok"]
    lines = [line for line in found["warnings"] if f"thread {tid} " in line]
    if said is None:
        assert lines == []
    else:
        (line,) = lines
        assert f"thread {tid} waits in {said}: if a part has gone by then" in line
        assert line.startswith("fd ")


def test_what_is_said_of_one_happens(ckpt: Ckpt, program: Asked) -> None:
    """And does not, where nothing has gone."""
    program.tell("got = []")
    sleeps(program, "got.append(near.recvmsg_into([room], 0, socket.MSG_WAITALL)[0])")
    ckpt.snapshot(program.pid)
    assert program.tell("got") == []
    program.tell("far.send(b'part')")
    time.sleep(0.1)
    deadline = time.monotonic() + 10
    while program.tell("got") == [] and time.monotonic() < deadline:
        ckpt.snapshot(program.pid)
    assert program.tell("got") == [4]
