"""A lazy restore: the program runs while its pages are brought, whatever it does to them meanwhile; whole or ended, never wrong."""

from __future__ import annotations

import contextlib
import os
import random
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.test_restore import revive
from tests.harness import Ckpt, Victim, VictimError, times
from tests.harness.victim import HERE, build, stat_fields

SIZE = "512"  #: MiB: bringing them takes longer than the command's own end
Start = Callable[..., Victim]


def until_whole(target: Victim) -> None:
    """The server lets go when everything is there."""
    deadline = time.monotonic() + 60
    while target.tracer():
        assert time.monotonic() < deadline, "still traced"
        time.sleep(0.01)


def survives(target: Victim) -> bool:
    """Its own check passes, or it is gone; a wrong answer, or none, raises."""
    try:
        answer = target.ask("churn", timeout_s=30)
    except VictimError as error:
        if "silent" in str(error):
            raise
        return False
    assert answer == "PASS"
    return True


def server_of(target: Victim) -> int:
    return target.tracer()


@pytest.mark.parametrize("name", ["threads4", "threads200", "family", "registers", "signals", "churn", "python-threads"])
def test_every_sort_of_program(name: str, ckpt: Ckpt, victim: Start) -> None:
    target = victim(name)
    made = ckpt.snapshot(target.pid)
    target.kill()
    revive(ckpt, target, made["generation"], "--lazy")
    target.verify()
    until_whole(target)
    target.verify()
    ckpt.exact(target.pid)
    ckpt.sound()


def test_moved_dropped_unmapped_and_forked_while_it_is_filled(ckpt: Ckpt) -> None:
    build()
    met = 0
    with Victim([str(HERE / "bin/layout"), SIZE]) as target:
        made = ckpt.snapshot(target.pid)
        for _ in range(times(3, 50)):
            target.kill()
            revive(ckpt, target, made["generation"], "--lazy")
            met += bool(target.tracer())
            assert target.ask("churn") == "PASS"
            until_whole(target)
            target.verify()
            made = ckpt.snapshot(target.pid)
    assert met, "everything was there before the program ran: nothing was tested"


def test_whole_or_ended_when_the_server_dies(ckpt: Ckpt) -> None:
    """kill -9 of the server at any moment: the program has everything, or it is gone."""
    build()
    draw = random.Random(7)
    ended = 0
    with Victim([str(HERE / "bin/layout"), SIZE]) as target:
        made = ckpt.snapshot(target.pid)
        target.kill()
        for _ in range(times(6, 60)):
            revive(ckpt, target, made["generation"], "--lazy")
            pidfd = os.pidfd_open(target.pid)
            server = server_of(target)
            time.sleep(draw.random() * 0.2)
            if server and "ckpt" in Path(f"/proc/{server}/cmdline").read_text():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(server, signal.SIGKILL)
            if not survives(target):
                ended += 1
                assert select.select([pidfd], [], [], 10)[0], "neither whole nor ended"
            else:
                until_whole(target)
                target.kill()
            os.close(pidfd)
    assert ended, "no server was killed in time: nothing was tested"


def test_nobody_is_left(ckpt: Ckpt, victim: Start) -> None:
    """Server and guardian end when everything is there."""
    target = victim("python-threads")
    made = ckpt.snapshot(target.pid)
    target.kill()
    revive(ckpt, target, made["generation"], "--lazy")
    until_whole(target)
    deadline = time.monotonic() + 20
    while ckpts(ckpt):
        assert time.monotonic() < deadline, f"left over: {ckpts(ckpt)}"
        time.sleep(0.05)
    while int(stat_fields(target.pid)[1]) != adopter():  # on its way out a server has lost its command line before its children
        assert time.monotonic() < deadline


def adopter() -> int:
    """Whose child an orphan becomes here: init's, or that of a reaper between (PR_SET_CHILD_SUBREAPER)."""
    code = "import os, time; me = os.getpid(); os.fork() and os._exit(0)\nwhile os.getppid() == me: time.sleep(0.01)\nprint(os.getppid())"
    return int(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout)


def ckpts(ckpt: Ckpt) -> set[int]:
    """Processes of our command that nobody waits for: servers and guardians."""
    return ckpt.processes(word="restore")


def test_others_are_told(ckpt: Ckpt) -> None:
    build()
    with Victim([str(HERE / "bin/layout"), SIZE]) as target:
        made = ckpt.snapshot(target.pid)
        target.kill()
        revive(ckpt, target, made["generation"], "--lazy")
        done = ckpt.run("snapshot", target.pid)
        if done.code:
            done.refused(3, str(target.pid), "traced")
        until_whole(target)
        target.verify()
    ckpt.run("restore", made["generation"], "--lazy", "--stopped").refused(2, "--lazy")
