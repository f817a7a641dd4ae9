"""A restored process as others see it, against the original: raw /proc by a reader that shares no code with ckpt, registers by gdb.
(Mappings and memory, byte for byte, are in test_restore_memory.py.)"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from tests.e2e.test_restore import ALONE, TOLD_OF_STOPS, revive
from tests.e2e.test_restore_memory import stopped, wait_for_state
from tests.harness import Ckpt, Victim
from tests.harness.look import GDB, process, registers, same_registers
from tests.harness.victim import stat_fields

Start = Callable[..., Victim]

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: acts on other processes")


@pytest.mark.parametrize("name", ALONE)
def test_proc_and_gdb_see_the_same(name: str, ckpt: Ckpt, victim: Start) -> None:
    target = victim(name)
    running = stopped(target)
    tree = [pid for pid in target.tree() if stat_fields(pid)[0] not in "ZX"]  # of the dead nothing is left to look at
    made = ckpt.snapshot(target.pid)
    seen, held = look(tree)
    target.kill()
    revive(ckpt, target, made["generation"], "--stopped")
    for pid in tree:
        wait_for_state(pid, "T")
    now, there = look(tree)
    for pid in tree:
        for what in seen[pid]:
            assert now[pid][what] == seen[pid][what], f"task {pid}: {what}"
    for pid in held:
        assert held[pid].keys() == seen[pid]["threads"].keys()
        assert same_registers(held[pid], there[pid]) == []
    for pid in running:
        os.kill(pid, signal.SIGCONT)
    if name not in TOLD_OF_STOPS:
        target.verify()
    if not GDB:
        pytest.skip("gdb is not there: registers were not compared")


def look(tree: Sequence[int]) -> tuple[dict[int, dict[str, Any]], dict[int, dict[str, dict[str, str]]]]:
    """gdb last: who was stopped may run on when it lets go."""
    return {pid: process(pid) for pid in tree}, {pid: registers(pid) for pid in tree} if GDB else {}


@pytest.mark.skipif(not GDB, reason="gdb is not there")
def test_a_program_that_has_gone_on_is_told_apart(victim: Start) -> None:
    """What the comparison above is worth."""
    target = victim("churn")
    stopped(target)
    seen, held = look([target.pid])
    os.kill(target.pid, signal.SIGCONT)
    target.verify()
    stopped(target)
    now, there = look([target.pid])
    assert now != seen
    assert same_registers(held[target.pid], there[target.pid]) != []
