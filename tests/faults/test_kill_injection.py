"""kill -9 of ckpt in each phase of an injection: the target goes on and computes the right result, and the next ckpt
finds nothing left of the dead one. Proven by the interposer's counters: the kill did happen in that phase."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from native._native import ffi, lib
from tests.faults.faults import Faults, kill_at, kill_in
from tests.harness.soak import times
from tests.native.remote import RemoteVictim, batch, build, check, frozen, opened

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: acts on other processes")

ROOT = Path(__file__).resolve().parents[2]
DRIVER = Path(__file__).with_name("kill_driver.py")
VICTIMS = ("registers", "nanosleep", "epoll", "pause", "masked", "caught", "threads")
PHASES = ("arm", "inject", "injected", "batch", "batch-done", "armed")


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("kill"))


@pytest.fixture
def victim(program: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[RemoteVictim]:
    victim = RemoteVictim(program, request.param, tmp_path)
    yield victim
    victim.close()


def rule(phase: str, number: int, rng: random.Random) -> str:
    """At the mark itself, or some system calls on the target behind it."""
    if number % 2 == 0 or phase in ("armed", "arm"):
        return kill_at(phase, rng.randint(1, 4))
    return kill_in(phase, rng.randint(1, 6))


@pytest.mark.parametrize("victim", VICTIMS, indirect=True)
@pytest.mark.parametrize("phase", PHASES)
def test_the_target_survives_a_kill(victim: RemoteVictim, phase: str, tmp_path: Path) -> None:
    rng = random.Random(f"{phase} {victim.file.name[:12]}")
    maps = len(victim.maps())
    plain = {fd: link for fd, link in victim.descriptors().items() if "userfaultfd" not in link}
    for number in range(times(2, 20)):
        chosen = rule(phase, number, rng)
        faults = Faults(tmp_path, chosen)
        command = [sys.executable, str(DRIVER), str(victim.pid)]
        killed = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT), **faults.env()}, cwd=ROOT, timeout=60, check=False)
        assert killed.returncode == -signal.SIGKILL
        assert sum(faults.fired().values()) == 1, f"{chosen} did not happen: {faults.hits()}"
        victim.goes_on()
    with frozen(victim.pid) as tree:
        assert len(victim.maps()) == maps, "a bridge was left"
        assert batch(tree, victim.pid, [(39,)])[0] == [victim.pid]
    with opened(victim.pid) as tree:
        track = ffi.new("struct ckpt_track *")
        check(lib.ckpt_track_arm(tree, victim.pid, -1, 0, track), tree)
        assert list(victim.descriptors().values()).count("anon_inode:[userfaultfd]") == 1
        check(lib.ckpt_track_disarm(tree, track), tree)
    assert victim.descriptors() == plain
    victim.goes_on()
