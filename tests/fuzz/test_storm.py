"""Random signals against random freezes (tests/workloads/storm.c): no genuine EINTR is lost, none comes that no handler caused, each
handler runs once per signal, no wake-up is lost and no time ends early."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from tests.harness import Ckpt, Victim, build, did, times
from tests.harness.ckpt import ROOT
from tests.harness.soak import SEED, SOAK
from tests.harness.victim import BIN, within

SNAPSHOTS, FREEZES = times(40, 2000), times(460, 8000)
GAP_US = 300  #: between two signals, on the average
WINDOW = (
    40  #: a signal may come in the kernel's own moment (storm.c) once in so many freezes; with -513 for -514 more than one is lost in each
)


@pytest.fixture
def storm() -> Iterator[tuple[Victim, Victim]]:
    """The program, and who sends it signals."""
    build()
    with ExitStack() as stack:
        program = stack.enter_context(Victim([str(BIN / "storm")]))
        threads = program.ask("threads").split()
        yield program, stack.enter_context(Victim([str(BIN / "storm"), "send", str(program.pid), str(SEED), str(GAP_US), *threads]))


def calm(program: Victim, sender: Victim, freezes: int) -> int:
    """Ends the storm and lets the program check itself. How many signals there were."""
    sent = sender.ask("stop")
    program.verify()
    within(10, lambda: program.ask("seen") == sent)  # some may still be on their way on a busy machine
    assert program.ask("seen") == sent, "not each handler has run once per signal"
    anew = int(program.ask("anew"))
    assert anew <= freezes // WINDOW, f"{anew} EINTR are lost"
    did("signals of the moment in which the kernel has restarted a call already", anew)
    return sum(int(number) for word in sent.split() for number in word.split("/"))


@contextmanager
def snapshots(ckpt: Ckpt, pid: int) -> Iterator[subprocess.Popen[str]]:
    process = ckpt.start("snapshot", pid, "--every", "10ms", "--json")
    try:
        yield process
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)


@pytest.mark.timeout(0 if SOAK else 300)
def test_snapshots(ckpt: Ckpt, storm: tuple[Victim, Victim]) -> None:
    program, sender = storm
    with snapshots(ckpt, program.pid) as process:
        assert process.stdout is not None
        for _ in range(SNAPSHOTS):
            assert json.loads(process.stdout.readline())["stop_us"] > 0
    signals = calm(program, sender, SNAPSHOTS)
    assert signals > 10 * SNAPSHOTS
    did("snapshots among random signals", SNAPSHOTS)


@pytest.mark.timeout(0 if SOAK else 300)
def test_freezes(ckpt: Ckpt, storm: tuple[Victim, Victim]) -> None:
    program, sender = storm
    words = [sys.executable, "-m", "tests.fuzz.freezer", str(program.pid), str(program.start_ticks()), str(FREEZES), str(SEED)]
    done = subprocess.run(words, cwd=ROOT, env=ckpt.environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    signals = calm(program, sender, FREEZES)
    assert signals > FREEZES
    did("freezes among random signals", FREEZES)
    did("signals among freezes", signals)
