"""kill -9 of ckpt in each phase of an injection: the target goes on and computes the right result, and the next ckpt
finds nothing left of the dead one. Proven by the interposer's counters: the kill did happen in that phase."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from native._native import ffi, lib
from tests.faults.faults import Faults, kill_at, kill_in
from tests.harness.soak import did, times
from tests.native.remote import RemoteVictim, batch, build, check, frozen, opened, wait_until

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: acts on other processes")

ROOT = Path(__file__).resolve().parents[2]
DRIVER = Path(__file__).with_name("kill_driver.py")
VICTIMS = ("registers", "nanosleep", "int80", "epoll", "pause", "masked", "caught", "threads")
PHASES = ("arm", "inject", "injected", "batch", "batch-done", "armed")


def is_ours(line: str) -> bool:
    """Where a bridge lies (native/src/bridge.c). By the whole address: a heap may begin with the same digits."""
    return int(line.split("-")[0], 16) >> 40 == 0x3A


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


def mapped(victim: RemoteVictim) -> set[str]:
    """All mappings but the stack, which grows by itself."""
    return {line for line in victim.maps() if "[stack]" not in line}


@pytest.mark.parametrize("victim", VICTIMS, indirect=True)
@pytest.mark.parametrize("phase", PHASES)
def test_the_target_survives_a_kill(victim: RemoteVictim, phase: str, tmp_path: Path) -> None:
    rng = random.Random(f"{phase} {victim.file.name[:12]}")
    maps = mapped(victim)
    plain = {fd: link for fd, link in victim.descriptors().items() if "userfaultfd" not in link}
    for number in range(times(2, 20)):
        chosen = rule(phase, number, rng)
        faults = Faults(tmp_path, chosen)
        command = [sys.executable, str(DRIVER), str(victim.pid)]
        killed = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT), **faults.env()}, cwd=ROOT, timeout=60, check=False)
        assert killed.returncode == -signal.SIGKILL
        assert sum(faults.fired().values()) == 1, f"{chosen} did not happen: {faults.hits()}"
        victim.goes_on()
        did(f"kill -9 of an injection, {phase}, {victim.mode}")
    with frozen(victim.pid) as tree:
        changed = mapped(victim) ^ maps
        assert not changed, f"a bridge was left, or a mapping was lost: {changed}"
        assert batch(tree, victim.pid, [(39,)])[0] == [victim.pid]
    with opened(victim.pid) as tree:
        track = ffi.new("struct ckpt_track *")
        check(lib.ckpt_track_arm(tree, victim.pid, -1, 0, track), tree)
        assert list(victim.descriptors().values()).count("anon_inode:[userfaultfd]") == 1
        check(lib.ckpt_track_disarm(tree, track), tree)
    assert victim.descriptors() == plain
    victim.goes_on()


NAP = """
import struct, sys
from tests.native.remote import batch, frozen
with frozen(int(sys.argv[1])) as tree:
    print("in", flush=True)
    batch(tree, int(sys.argv[1]), [(110,), (35, ("data", 0), 0), (110,)], struct.pack("qq", 0, 150_000_000))
"""


@pytest.mark.parametrize("victim", ["registers", "pause", "threads"], indirect=True)
def test_a_thread_inside_a_dead_tracers_batch_is_let_out_first(victim: RemoteVictim) -> None:
    for _ in range(times(2, 10)):
        command = [sys.executable, "-c", NAP, str(victim.pid)]
        with subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, cwd=ROOT, stdout=subprocess.PIPE) as tracer:
            assert tracer.stdout is not None
            assert tracer.stdout.readline() == b"in\n"
            wait_until(lambda: Path(f"/proc/{victim.pid}/syscall").read_text().startswith("35 "), "the call of the batch")
            tracer.kill()
        assert any(map(is_ours, victim.maps())), "the victim is not in the batch any more: nothing was tested"
        with frozen(victim.pid) as tree:
            regs = ffi.new("uint64_t[27]")
            check(lib.ckpt_thread_get(tree, victim.pid, regs, ffi.NULL, 0, ffi.NULL), tree)
            assert not 0x3A0000000000 <= regs[16] < 0x550000000000, "rip stands in the bridge"
            assert not any(map(is_ours, victim.maps()))
        victim.goes_on()


def stopped(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


@pytest.mark.parametrize("victim", ["registers", "pause", "threads", "caught"], indirect=True)
def test_a_stopped_thread_inside_a_dead_tracers_batch_does_not_run(victim: RemoteVictim) -> None:
    """As a rollback leaves them that was killed in the middle: the memory may be half of another time."""
    for _ in range(times(2, 10)):
        command = [sys.executable, "-c", NAP, str(victim.pid)]
        with subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, cwd=ROOT, stdout=subprocess.PIPE) as tracer:
            assert tracer.stdout is not None
            assert tracer.stdout.readline() == b"in\n"
            wait_until(lambda: Path(f"/proc/{victim.pid}/syscall").read_text().startswith("35 "), "the call of the batch")
            tracer.kill()
            tracer.wait()
            os.kill(victim.pid, signal.SIGSTOP)
        wait_until(partial(stopped, victim.pid), "the stop")
        assert any(map(is_ours, victim.maps())), "the victim is not in the batch any more: nothing was tested"
        rounds = victim.rounds()
        with frozen(victim.pid) as tree:
            regs = ffi.new("uint64_t[27]")
            check(lib.ckpt_thread_get(tree, victim.pid, regs, ffi.NULL, 0, ffi.NULL), tree)
            assert not 0x3A0000000000 <= regs[16] < 0x550000000000, "rip stands in the bridge"
            assert not any(map(is_ours, victim.maps()))
        wait_until(partial(stopped, victim.pid), "the stop again: let go, it still has to get there")
        assert victim.rounds() == rounds, "the program itself has run"
        os.kill(victim.pid, signal.SIGCONT)
        victim.goes_on()


@pytest.mark.parametrize("victim", ["fork"], indirect=True)
@pytest.mark.parametrize("phase", ["injected", "batch", "batch-done"])
def test_a_child_that_inherits_the_remains_is_rid_of_them(victim: RemoteVictim, phase: str, tmp_path: Path) -> None:
    faults = Faults(tmp_path, kill_at(phase))
    command = [sys.executable, str(DRIVER), str(victim.pid)]
    subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT), **faults.env()}, cwd=ROOT, timeout=60, check=False)
    assert sum(faults.fired().values()) == 1
    os.kill(victim.pid, signal.SIGUSR1)
    children = Path(f"/proc/{victim.pid}/task/{victim.pid}/children")
    wait_until(lambda: children.read_text() != "", "the child")
    child = int(children.read_text())
    try:
        wait_until(lambda: victim.rounds()[1] > 20, "the child's rounds")
        with frozen(victim.pid) as tree:
            for pid in (victim.pid, child):
                assert not any(map(is_ours, Path(f"/proc/{pid}/maps").read_text().splitlines()))
                assert batch(tree, pid, [(39,)])[0] == [pid]
        victim.goes_on()
    finally:
        os.kill(child, signal.SIGKILL)
