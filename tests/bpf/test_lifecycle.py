"""The tree as the kernel tells it: everybody who is born is followed, nobody else is seen."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable

import pytest

import bpf
from bpf import Kind

pytestmark = pytest.mark.usefixtures("usable")

FAMILY = """
import mmap, os, subprocess, sys, threading
sys.stdin.readline()
area = mmap.mmap(-1, 40 * 4096)
area.close()
thread = threading.Thread(target=lambda: None)
thread.start()
thread.join()
child = os.fork()
if child == 0:
    grandchild = os.fork()
    if grandchild == 0:
        os.execv("/bin/sh", ["sh", "-c", "exit 7"])
    print(grandchild, flush=True)
    os.waitpid(grandchild, 0)
    os._exit(3)
os.waitpid(child, 0)
print(child, flush=True)
sys.stdin.readline()
"""


def until(what: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not what():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.01)


def test_forks_threads_execs_ends_and_mappings() -> None:
    stranger = subprocess.Popen(["sh", "-c", "while :; do /bin/true; done"])
    try:
        with bpf.Filter() as tree, bpf.Syscalls(tree):
            victim = subprocess.Popen([sys.executable, "-c", FAMILY], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            assert victim.stdin is not None
            assert victim.stdout is not None
            tree.add([victim.pid])
            start = time.monotonic_ns()
            victim.stdin.write("go\n")
            victim.stdin.flush()
            grandchild, child = int(victim.stdout.readline()), int(victim.stdout.readline())
            assert tree.pids() == {victim.pid}, "who has ended is not in the tree any more"
            victim.communicate("end\n", timeout=10)
            until(lambda: tree.pids() == set())
            changes = tree.take()
            assert tree.lost() == 0
    finally:
        stranger.kill()
        stranger.wait()
    assert {change.pid for change in changes} == {victim.pid, child, grandchild}
    assert [change.ns for change in changes] == sorted(change.ns for change in changes)
    assert all(start < change.ns < time.monotonic_ns() for change in changes if change.kind != Kind.MAPPING)
    seen = {(change.kind, change.pid, change.result) for change in changes}
    assert {(Kind.FORK, child, victim.pid), (Kind.FORK, grandchild, child), (Kind.EXEC, grandchild, grandchild)} <= seen
    (thread,) = [change for change in changes if change.kind == Kind.THREAD]
    assert (thread.pid, thread.result) == (victim.pid, victim.pid)
    last = [change for change in changes if change.kind == Kind.END]
    ends = {(change.pid, change.tid): (os.waitstatus_to_exitcode(change.value), change.result) for change in last}
    assert ends == {
        (victim.pid, thread.tid): (0, 0),
        (victim.pid, victim.pid): (0, 1),
        (child, child): (3, 1),
        (grandchild, grandchild): (7, 1),
    }
    (mapped,) = [change for change in changes if (change.value, change.size, change.pid) == (9, 40 * 4096, victim.pid)]
    assert any((change.value, change.address, change.size) == (11, mapped.result, 40 * 4096) for change in changes), "munmap"


def test_killed_and_never_taken_for_somebody_else() -> None:
    with bpf.Filter() as tree:
        victim = subprocess.Popen(["sleep", "100"])
        tree.add([victim.pid])
        victim.kill()
        victim.wait()
        until(lambda: tree.pids() == set())
        (end,) = [change for change in tree.take() if change.kind == Kind.END]
        assert (end.pid, end.value & 0x7F, end.result) == (victim.pid, 9, 1)


def test_more_changes_than_there_is_room_for_are_counted() -> None:
    """A ring of 1 MiB holds 18,724 of 48 + 8 bytes."""
    with bpf.Filter() as tree, bpf.Syscalls(tree):
        script = "import mmap\nfor _ in range(12000): mmap.mmap(-1, 4096).close()"
        victim = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.readline()\n" + script], stdin=subprocess.PIPE)
        tree.add([victim.pid])
        victim.communicate(b"go\n", timeout=60)
        assert len(tree.take()) == (1 << 20) // 56
        assert tree.lost() > 3000
        assert tree.take() == []


def test_leaving_takes_everything_away() -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        with bpf.Filter() as tree, bpf.Syscalls(tree), bpf.Writes(tree):
            pass
    assert len(os.listdir("/proc/self/fd")) == before


def test_who_has_its_parents_memory_writes_into_it() -> None:
    """posix_spawn: the child runs on its parent's memory until it executes. What it writes there is told as its parent's page."""
    script = "import os, sys\nsys.stdin.readline()\nfor _ in range(20): os.waitpid(os.posix_spawn('/bin/true', ['true'], {}), 0)"
    with bpf.Filter() as tree, bpf.Writes(tree) as writes:
        victim = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, text=True)
        tree.add([victim.pid])
        victim.communicate("go\n", timeout=20)
        changes, events = tree.take(), writes.take()
    executed = {change.pid: change.ns for change in changes if change.kind == Kind.EXEC and change.pid != victim.pid}
    born = {change.pid: change.ns for change in changes if change.kind == Kind.FORK}
    assert len(executed) == len(born) == 20
    own = [event for event in events if event.tid in executed]
    assert {event.pid for event in own if event.ns > executed[event.tid]} == set(executed), "a memory of its own"
    lent = [event for event in own if event.ns < executed[event.tid]]
    assert lent, "its stack lies in its parent's memory"
    assert victim.pid in {event.pid for event in lent}
    assert {event.pid for event in lent} <= {victim.pid, *executed}, "the kernel fills the new one before it tells of it"
    assert all(event.pid == victim.pid or event.place & 1 for event in lent)
