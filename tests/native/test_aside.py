"""While a tree is worked on ckpt keeps off the CPU where it runs; only the freeze goes there, and afterwards everything is as it was."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable

import pytest

from ckpt.live import core
from tests.harness import Victim
from tests.harness.victim import within

pytestmark = [pytest.mark.alone, pytest.mark.skipif(os.cpu_count() == 1, reason="needs a second CPU")]

SPINS = "import os; os.sched_setaffinity(0, {CPU}); print('READY', flush=True)\nwhile True: pass"


@pytest.fixture
def spinning() -> Callable[[int], subprocess.Popen[str]]:
    return lambda cpu: subprocess.Popen([sys.executable, "-c", SPINS.replace("CPU", str(cpu))], stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize("number", [0, -1])
def test_off_the_cpu_of_a_program_that_runs(number: int, spinning: Callable[[int], subprocess.Popen[str]]) -> None:
    home = os.sched_getaffinity(0)
    cpu = sorted(home)[number]
    with spinning(cpu) as target:
        try:
            assert target.stdout is not None
            assert target.stdout.readline() == "READY\n"
            with core.Tree(target.pid) as tree:
                tree.aside()
                assert os.sched_getaffinity(0) == home - {cpu}
                for _ in range(2):
                    tree.freeze()
                    tree.thaw()
                    assert os.sched_getaffinity(0) == home - {cpu}
            assert os.sched_getaffinity(0) == home
            assert os.sched_getscheduler(0) == os.SCHED_OTHER
        finally:
            target.kill()


def test_nothing_changes_beside_a_program_that_waits() -> None:
    home = os.sched_getaffinity(0)
    with Victim([sys.executable, "-c", "print('READY', flush=True); input()"]) as target, core.Tree(target.pid) as tree:
        assert within(5, lambda: target.states() == {"S"})
        tree.aside()
        assert os.sched_getaffinity(0) == home
        tree.freeze()
        tree.thaw()
        assert os.sched_getaffinity(0) == home
