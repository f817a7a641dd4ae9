"""An ordinary user and a program of its own: what works without any right, and one line that says which right is missing for the rest."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.harness.ckpt import COMMAND, ROOT, Ckpt, Outcome

NOBODY = pwd.getpwnam("nobody")
DROP = ["setpriv", f"--reuid={NOBODY.pw_uid}", f"--regid={NOBODY.pw_gid}", "--clear-groups"]

#: Counts in memory, and writes where it is to a file. A thread ends by SIGUSR1, a child by SIGUSR2.
PROGRAM = """
import os, signal, sys, threading, time
child = os.fork()
if not child:
    signal.pause()
over = threading.Event()
threading.Thread(target=over.wait, daemon=True).start()
signal.signal(signal.SIGUSR1, lambda *_: over.set())
signal.signal(signal.SIGUSR2, lambda *_: (os.kill(child, 9), os.waitpid(child, 0)))
out = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)
block = bytearray(os.urandom(1 << 20))
count = 0
while True:
    count += 1
    block[count * 4096 % len(block)] = count & 0xff
    os.pwrite(out, b"%10d" % count, 0)
    time.sleep(0.005)
"""

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become somebody else"),
    pytest.mark.skipif(shutil.which("setpriv") is None, reason="setpriv(1) is not there"),
]


class Ordinary(Ckpt):
    """ckpt as that user runs it."""

    def run(self, *words: Any, **_: Any) -> Outcome:
        done = subprocess.run(
            [*DROP, *COMMAND, *map(str, words)],
            env={**self.environment, "HOME": str(self.folder)},
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        return Outcome(done.returncode, done.stdout, done.stderr)


@pytest.fixture
def folder() -> Iterator[Path]:
    """That user's own; pytest's is root's alone."""
    made = Path(subprocess.run([*DROP, "mktemp", "-d"], check=True, capture_output=True, text=True).stdout.strip())
    readable = subprocess.run([*DROP, sys.executable, "-c", "import ckpt.cli.main"], cwd="/", check=False, capture_output=True)
    if readable.returncode:
        pytest.skip(f"{ROOT} cannot be read by {NOBODY.pw_name}")
    yield made
    shutil.rmtree(made)


@pytest.fixture
def program(folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    with open("/dev/null", "r+b") as nothing:  # noqa: PTH123
        words = [*DROP, sys.executable, "-c", PROGRAM, str(folder / "count")]
        process = subprocess.Popen(words, stdin=nothing, stdout=nothing, stderr=nothing, start_new_session=True, cwd="/")
    try:
        until(lambda: (folder / "count").exists() and counted(folder) > 10)
        yield process
    finally:
        for child in children(process.pid) if process.poll() is None else ():
            os.kill(int(child), signal.SIGKILL)
        process.kill()
        process.wait()


def counted(folder: Path) -> int:
    return int((folder / "count").read_text() or 0)


def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_ones_own_program(folder: Path, program: subprocess.Popen[bytes]) -> None:
    ckpt = Ordinary(folder)
    pid = program.pid
    assert ckpt.run("check", pid).code == 0
    first = ckpt.snapshot(pid)["generation"]
    then = counted(folder)
    until(lambda: counted(folder) > then + 100)
    second = ckpt.snapshot(pid, "--incremental", "--paranoid")
    assert (second["kind"], second["tracker"], second["paranoid"]["wrong"]) == ("incremental", "uffd", 0)
    done = ckpt.run("rollback", first, "--pid", pid)
    assert done.code == 0, done.err
    assert counted(folder) < then + 100
    until(lambda: counted(folder) > then + 100)
    for child in children(pid):
        os.kill(int(child), signal.SIGKILL)
    program.kill()
    program.wait()
    ckpt.run("restore", first).refused(4, str(pid), "CAP_CHECKPOINT_RESTORE", "--new-pid")
    done = ckpt.run("restore", first, "--new-pid", "--json")
    assert done.code == 0, done.err
    try:
        assert os.stat(f"/proc/{done.json['pid']}").st_uid == NOBODY.pw_uid
        until(lambda: counted(folder) > then + 100)
    finally:
        for pid in (*map(int, children(done.json["pid"])), done.json["pid"]):
            os.kill(pid, signal.SIGKILL)


def test_what_needs_a_right_is_named(folder: Path, program: subprocess.Popen[bytes]) -> None:
    ckpt = Ordinary(folder)
    generation = ckpt.snapshot(program.pid)["generation"]
    ckpt.run("verify", generation).refused(4, "CAP_SYS_ADMIN")
    ckpt.run("restore", generation, "--pid-namespace").refused(4, "CAP_SYS_ADMIN")
    ckpt.run("snapshot", os.getpid()).refused(4, str(os.getpid()), "run as root")


@pytest.mark.parametrize("what", ["thread", "child"])
def test_who_has_ended_since_cannot_be_made_again(what: str, folder: Path, program: subprocess.Popen[bytes]) -> None:
    """Its number cannot be chosen: said before anything is changed."""
    ckpt = Ordinary(folder)
    generation = ckpt.snapshot(program.pid)["generation"]
    program.send_signal(signal.SIGUSR1 if what == "thread" else signal.SIGUSR2)
    until(lambda: len(list(Path(f"/proc/{program.pid}/task").iterdir())) == 1 if what == "thread" else not children(program.pid))
    ckpt.run("rollback", generation, "--pid", program.pid).refused(4, "CAP_CHECKPOINT_RESTORE")
    then = counted(folder)
    until(lambda: counted(folder) > then + 10)


def test_root_cannot_make_again_what_its_maker_may_not(folder: Path, program: subprocess.Popen[bytes]) -> None:
    """The program itself clones: its own right counts."""
    ckpt = Ckpt(folder)
    generation = ckpt.snapshot(program.pid)["generation"]
    program.send_signal(signal.SIGUSR1)
    until(lambda: len(list(Path(f"/proc/{program.pid}/task").iterdir())) == 1)
    ckpt.run("rollback", generation, "--pid", program.pid).refused(3, "CAP_CHECKPOINT_RESTORE", "--replace")
    then = counted(folder)
    until(lambda: counted(folder) > then + 10)


def children(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
