"""A restore as a person does it at a terminal: in a shell with job control, with --foreground and --fd."""

from __future__ import annotations

import os
import pty
import select
import shlex
import signal
import time
from collections.abc import Iterator
from contextlib import suppress

import pytest

from tests.harness import Ckpt
from tests.harness.ckpt import COMMAND

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: acts on other processes")

PROGRAM = ("/bin/bash", "--norc", "-c", 'while read x; do echo "said $x"; [ "$x" = quit ] && exit 7; done')
SHELL = ("/bin/bash", "--norc", "--noprofile", "-i")


class Terminal:
    """A program on a terminal of its own."""

    def __init__(self, words: tuple[str, ...], environment: dict[str, str]) -> None:
        self.pid, self.fd = pty.fork()
        if not self.pid:
            os.closerange(3, 1000)
            os.execve(words[0], words, environment)

    def type(self, text: str, expect: str) -> None:
        os.write(self.fd, text.encode())
        said, deadline = b"", time.monotonic() + 20
        while expect.encode() not in said and time.monotonic() < deadline:
            if select.select([self.fd], [], [], 0.1)[0]:
                said += os.read(self.fd, 4096)
        assert expect.encode() in said, said

    def end(self) -> None:
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        os.close(self.fd)


@pytest.fixture
def generation(ckpt: Ckpt) -> Iterator[int]:
    """Of a program that read from its terminal, and died with the snapshot."""
    first = Terminal(PROGRAM, ckpt.environment)
    try:
        first.type("x\n", "said x")
        yield ckpt.snapshot(first.pid, "--kill")["generation"]
    finally:
        first.end()


def test_job_control(ckpt: Ckpt, generation: int) -> None:
    """^Z stops it with its ckpt, fg lets both go on, and the shell gets its exit status."""
    shell = Terminal(SHELL, {**ckpt.environment, "PS1": "@ "})
    try:
        shell.type(f"{shlex.join(COMMAND)} restore {generation} --new-pid --foreground 2>/dev/null\n", "\r\n")
        time.sleep(1.5)
        shell.type("one\n", "said one")
        shell.type("\x1a", "Stopped")
        shell.type("fg\n", "restore")
        shell.type("two\n", "said two")
        shell.type("quit\n", "said quit")
        shell.type("echo status $?\n", "status 7")
    finally:
        shell.end()


def test_fd_makes_no_standard_input_and_knows_no_number_that_is_not(ckpt: Ckpt, generation: int) -> None:
    """A terminal can be written to; yet --fd 0=PATH is a file to read: one that is missing is not made."""
    missing = ckpt.folder / "missing"
    ckpt.run("restore", generation, "--new-pid", "--fd", f"0={missing}").refused(1, str(missing), "No such file")
    assert not missing.exists()
    ckpt.run("restore", generation, "--new-pid", "--fd", "77=/dev/null").refused(2, "--fd 77", "no descriptor 77")
    log = ckpt.folder / "log"
    done = ckpt.run("restore", generation, "--new-pid", "--fd", f"1={log}", "--json")
    assert done.code == 0, done.err
    assert log.exists(), "standard output is"
