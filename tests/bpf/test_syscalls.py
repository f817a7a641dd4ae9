"""The call of every thread: its number, arguments, beginning and last result; also of one that was in it before we came."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

import bpf
from ckpt.live import core
from ckpt.live.inflight import USER, InFlight, Observer
from ckpt.syscalls import names

pytestmark = pytest.mark.usefixtures("usable")

THREADS = """
import os, select, sys, threading, time
reading, writing = os.pipe()
threading.Thread(target=lambda: os.read(reading, 77), daemon=True).start()
threading.Thread(target=lambda: time.sleep(1000), daemon=True).start()
def spin():
    while True:
        pass
threading.Thread(target=spin, daemon=True).start()
sys.setswitchinterval(0.0001)
for line in sys.stdin:
    if line == "wake\\n":
        os.write(writing, b"four")
    else:
        print("ready", flush=True)
        select.poll().poll(int(line))
"""


@contextmanager
def victim(script: str = THREADS) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen([sys.executable, "-uc", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def ask(process: subprocess.Popen[str], line: str) -> None:
    assert process.stdin is not None
    process.stdin.write(line + "\n")
    process.stdin.flush()


def settled(process: subprocess.Popen[str], observer: Observer, wanted: str, end_s: float = 10) -> list[InFlight]:
    """Until the main thread is in this call."""
    end = time.monotonic() + end_s
    while True:
        found = observer.look([process.pid])
        if found[0].nr is not None and names.name(found[0].nr) == wanted:
            return found
        assert time.monotonic() < end, found
        time.sleep(0.01)


def of(found: list[InFlight], name: str) -> InFlight:
    (one,) = [one for one in found if one.nr is not None and names.name(one.nr) == name]
    return one


def test_calls_that_began_before_and_after() -> None:
    with victim() as process, bpf.Filter() as tree:
        ask(process, "50")  # it has done so much that its threads are where they stay
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(0.3)
        with bpf.Syscalls(tree) as syscalls:
            tree.add([process.pid])
            observer = Observer(syscalls)
            found = observer.look([process.pid])
            assert [one.tid for one in found] == sorted(one.tid for one in found)
            sleeping, reading = of(found, "clock_nanosleep"), [one for one in found if one.nr == names.nr("read") and one.args[2] == 77]
            assert (sleeping.since_ns, sleeping.count, sleeping.last_nr) == (None, 0, USER)
            assert len(reading) == 1
            assert reading[0].since_ns is None
            before = time.monotonic_ns()
            ask(process, "123456")
            process.stdout.readline()
            found = settled(process, observer, "poll")
            waiting = found[0]
            assert (waiting.pid, waiting.tid, waiting.args[1:3]) == (process.pid, process.pid, (0, 123456))
            assert waiting.since_ns is not None
            assert before < waiting.since_ns < time.monotonic_ns()
            assert (names.name(waiting.last_nr), waiting.count > 0) == ("futex" if waiting.last_nr == 202 else "write", True)
            assert of(found, "clock_nanosleep").since_ns is None, "it began before we came, and that stays unknown"


def test_the_result_of_a_call_that_began_before() -> None:
    """os.close(9999) fails at once; what follows it is a read that blocks."""
    script = "import os\nwhile True:\n  if os.read(0, 1) == b'x':\n    try: os.close(9999)\n    except OSError: pass"
    with victim(script) as process, bpf.Filter() as tree, bpf.Syscalls(tree) as syscalls:
        time.sleep(0.2)
        tree.add([process.pid])
        observer = Observer(syscalls)
        (one,) = settled(process, observer, "read")
        assert (one.since_ns, one.count) == (None, 0)
        ask(process, "")
        time.sleep(0.2)
        (one,) = settled(process, observer, "read")
        assert (one.last_nr, one.last_result, one.count) == (names.nr("read"), 1, 1), "of the call that began before we came"
        ask(process, "x")
        end = time.monotonic() + 10
        while one.count < 4 and time.monotonic() < end:
            time.sleep(0.01)
            (one,) = settled(process, observer, "read")
        assert (one.count, one.args[:1], one.args[2]) == (4, (0,), 1), "read, close, read of the end of the line"
        assert one.since_ns is not None


def test_a_freeze_does_not_begin_a_call_anew() -> None:
    """A thread in nanosleep goes on as restart_syscall, one in read as read: both in the call that they were in, since then."""
    script = (
        "import os, threading, time\nthreading.Thread(target=time.sleep, args=(500,)).start()\nprint('ready', flush=True)\nos.read(0, 5)"
    )
    with bpf.Filter() as tree, bpf.Syscalls(tree) as syscalls, victim(script) as process:
        tree.add([process.pid])
        observer = Observer(syscalls)
        settled(process, observer, "read")
        time.sleep(0.1)
        before = observer.look([process.pid])
        for _ in range(2):
            with core.Tree(process.pid) as frozen:
                frozen.freeze()
                frozen.thaw()
            time.sleep(0.1)
            after = observer.look([process.pid])
            for old, new in zip(before, after, strict=True):
                assert (new.nr, new.args, new.since_ns, new.count) == (old.nr, old.args, old.since_ns, old.count)
        assert {one.nr for one in after} == {names.nr("read"), names.nr("clock_nanosleep")}


def test_records_are_whole_while_they_are_written() -> None:
    """Two calls with arguments of their own, as fast as it goes: never the arguments of one with the number of the other."""
    script = "import os\nwhile True:\n  os.getpgid(0)\n  os.umask(0o22)"
    with bpf.Filter() as tree, bpf.Syscalls(tree) as syscalls, victim(script) as process:
        tree.add([process.pid])
        time.sleep(0.2)
        seen = set()
        for _ in range(3000):
            call = syscalls.calls()[process.pid]  # it is always there
            if call.nr in (names.nr("getpgid"), names.nr("umask")):
                seen.add((names.name(call.nr), call.args[0]))
        assert seen == {("getpgid", 0), ("umask", 0o22)}


def test_threads_that_have_ended_are_forgotten() -> None:
    script = "import threading, time\nwhile True:\n  one = threading.Thread(target=time.sleep, args=(0.001,))\n  one.start()\n  one.join()"
    with bpf.Filter() as tree, bpf.Syscalls(tree) as syscalls, victim(script) as process:
        tree.add([process.pid])
        observer = Observer(syscalls)
        for _ in range(5):
            time.sleep(0.1)
            assert len(observer.look([process.pid])) <= 2
            assert len(syscalls.calls()) < 200
        assert syscalls.lost() == 0


def test_under_a_debugger_proc_tells() -> None:
    """A traced thread's calls are its tracer's business: what it is in is known, since when is not."""
    script = "import os, time\nwhile True: time.sleep(0.05)"
    with bpf.Filter() as tree, bpf.Syscalls(tree) as syscalls, victim(script) as process:
        tree.add([process.pid])
        observer = Observer(syscalls)
        settled(process, observer, "clock_nanosleep")
        _ptrace(PTRACE_SEIZE, process.pid)
        try:
            time.sleep(0.2)
            (one,) = settled(process, observer, "clock_nanosleep")
            assert (one.since_ns, one.count) == (None, 0)
        finally:
            _ptrace(PTRACE_INTERRUPT, process.pid)
            os.waitpid(process.pid, 0x40000000)
            _ptrace(PTRACE_DETACH, process.pid)
        time.sleep(0.2)
        (one,) = settled(process, observer, "clock_nanosleep")
        assert one.since_ns is not None


PTRACE_SEIZE, PTRACE_INTERRUPT, PTRACE_DETACH = 0x4206, 0x4207, 17


def _ptrace(request: int, pid: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
    assert libc.ptrace(request, pid, None, None) == 0, os.strerror(ctypes.get_errno())
