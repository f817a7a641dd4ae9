"""Controlling terminals: a program that runs others on ptys of its own (a terminal multiplexer, expect) is killed and restored, or rolled
back, and its sessions still have their terminals and foreground groups: what is typed reaches the job in the foreground, ^C too."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.e2e.asked import Asked
from tests.e2e.test_restore import revive
from tests.harness import Ckpt
from tests.harness.victim import stat_fields

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: acts on other processes")

#: The session on the pty: its leader waits, one job is in the background, one in the foreground and answers.
LIFE = """
def answer(*_):
    os.write(1, f"INT {os.getpid()}\\n".encode())

def job(foreground):
    os.setpgid(0, 0)
    signal.signal(signal.SIGINT, answer)
    if foreground:
        signal.signal(signal.SIGTTOU, signal.SIG_IGN)
        os.tcsetpgrp(0, os.getpid())
    while True:
        if not foreground:
            signal.pause()
        line = os.read(0, 100)
        with open("/dev/tty", "w") as terminal:
            terminal.write(f"{os.getpid()} {os.tcgetpgrp(0)} {os.ttyname(0)} {line!r}\\n")

def life():
    signal.signal(signal.SIGINT, answer)
    signal.signal(signal.SIGTTOU, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, lambda *_: os.tcsetpgrp(0, os.getpid()))
    for foreground in (0, 1):
        os.fork() or job(foreground)
    while True:
        signal.pause()

def typed(text):
    os.write(master, text)
    said = b""
    while not said.endswith(b"\\n"):
        said += os.read(master, 1000)
    return said.decode().split()

def opened():
    global leader, master
    leader, master = pty.fork()
    leader or life()
    settings = termios.tcgetattr(master)
    settings[3] &= ~(termios.ECHO | termios.ECHOCTL)
    settings[1] &= ~termios.OPOST
    termios.tcsetattr(master, 0, settings)
"""


@pytest.fixture
def program() -> Iterator[Asked]:
    with Asked() as asked:
        asked.tell(f"import pty, termios; exec({LIFE!r}, globals())")
        yield asked


def facts(program: Asked) -> dict[int, tuple[str, ...]]:
    """pid -> group, session, terminal, foreground group; of everybody but the root."""
    return {pid: tuple(stat_fields(pid)[2:6]) for pid in program.tree() if pid != program.pid}


def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


def begun(program: Asked) -> dict[int, tuple[str, ...]]:
    program.tell("opened()")
    leader = program.tell("leader")
    until(lambda: len(facts(program)) == 3 and facts(program)[leader][3] != str(leader))
    return facts(program)


def works(program: Asked, then: dict[int, tuple[str, ...]]) -> None:
    """What is typed is read by the job in the foreground, through its controlling terminal; ^C reaches it, and nobody else."""
    group = next(iter(then.values()))[3]
    job, foreground, _name, line = program.tell("typed(b'hello' + bytes([10]))")
    assert (job, foreground, line) == (group, group, "b'hello\\n'")
    assert program.tell("typed(bytes([3]))") == ["INT", group]


def test_a_session_on_a_pty_has_its_terminal_after_a_restore(ckpt: Ckpt, program: Asked) -> None:
    then = begun(program)
    works(program, then)
    generation = ckpt.snapshot(program.pid)["generation"]
    assert ckpt.run("verify", generation, "--json").json["differences"] == []
    works(program, then)
    for _ in range(2):
        program.kill()
        assert revive(ckpt, program, generation)["warnings"] == []
        assert facts(program) == then
        works(program, then)
        generation = ckpt.snapshot(program.pid)["generation"]


def test_with_new_numbers(ckpt: Ckpt, program: Asked) -> None:
    begun(program)
    generation = ckpt.snapshot(program.pid)["generation"]
    program.kill()
    revive(ckpt, program, generation, "--new-pid")
    now = facts(program)
    groups = {group for group, _, _, _ in now.values()}
    assert {foreground for _, _, _, foreground in now.values()} < groups
    assert all(terminal != "0" for _, _, terminal, _ in now.values())


def test_the_foreground_group_is_rolled_back(ckpt: Ckpt, program: Asked) -> None:
    then = begun(program)
    generation = ckpt.snapshot(program.pid)["generation"]
    leader = program.tell("leader")
    program.tell("os.kill(leader, signal.SIGUSR1)")
    until(lambda: facts(program)[leader][3] == str(leader))
    roll(ckpt, program, generation)
    assert facts(program) == then
    works(program, then)
    os.kill(int(then[leader][3]), 9)
    until(lambda: stat_fields(int(then[leader][3]))[0] == "Z")
    roll(ckpt, program, generation)
    assert facts(program) == then
    works(program, then)


@pytest.mark.parametrize("gone", ["the leader", "all", "the pty"])
def test_a_session_that_ended_since_is_rolled_back(gone: str, ckpt: Ckpt, program: Asked) -> None:
    then = begun(program)
    generation = ckpt.snapshot(program.pid)["generation"]
    leader = program.tell("leader")
    victims = [leader] if gone == "the leader" else sorted(then)
    program.tell("libc.prctl(36, 1)")  # who loses its parent stays in the tree
    program.tell(f"[os.kill(pid, 9) for pid in {victims}]; [os.waitpid(pid, 0) for pid in {victims}]")
    if gone == "the pty":
        program.tell("os.close(master)")
        ckpt.run("rollback", generation, "--pid", program.pid).refused(3, "pty", "is gone")
        return
    roll(ckpt, program, generation)
    assert facts(program) == then
    works(program, then)


def test_the_root_has_its_own_pty(ckpt: Ckpt, program: Asked) -> None:
    program.tell("import contextlib; master, slave = os.openpty(); os.getsid(0) == os.getpid() or os.setsid()")
    free = ckpt.snapshot(program.pid)["generation"]
    program.tell("fcntl.ioctl(slave, termios.TIOCSCTTY, 0)")
    probe = "[os.tcgetpgrp(slave), os.close(os.open('/dev/tty', os.O_RDWR)), open('/proc/self/stat').read().split()[6]]"
    before = program.tell(probe)
    generation = ckpt.snapshot(program.pid)["generation"]
    assert ckpt.run("verify", generation, "--json").json["differences"] == []
    ckpt.run("rollback", free, "--pid", program.pid).refused(3, "controlling terminal", "had none")
    assert program.tell(probe) == before
    program.kill()
    assert revive(ckpt, program, generation)["warnings"] == []
    assert program.tell(probe) == before
    program.tell("signal.signal(signal.SIGHUP, signal.SIG_IGN); fcntl.ioctl(slave, termios.TIOCNOTTY)")
    ckpt.run("rollback", generation, "--pid", program.pid).refused(3, "controlling terminal", "is gone")


def roll(ckpt: Ckpt, program: Asked, generation: int) -> Any:
    done = ckpt.run("rollback", generation, "--pid", program.pid, "--json")
    assert done.code == 0, done.err
    return done.json
