"""kill -9 of ckpt at each phase of a restore: no half-made process survives, and no newborn or zombie of it; the next one works.
(The server of a lazy one is killed in tests/e2e/test_lazy.py.)"""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

import pytest

from tests.faults.faults import Faults, kill_at
from tests.harness import Ckpt, Victim, times
from tests.harness.victim import stat_fields

BEFORE = ("opened", "born", "looked", "planned", "stopping", "stopped", "stage-mappings", "threads-ended", "stage-descriptors-made")
FILLING = ("stage-descriptors", "threads-made", "layout", "pages", "registers", "registers-set", "continued", "ended")
PHASES = (*BEFORE, *FILLING)
WHERE = {"same": (), "namespace": ("--pid-namespace",)}


def members(pids: set[int]) -> set[int]:
    """Which of these numbers are living processes."""
    found = set()
    for pid in pids:
        with contextlib.suppress(OSError):
            if stat_fields(pid)[0] not in "ZX":
                found.add(pid)
    return found


def inits(ckpt: Ckpt) -> set[int]:
    """First processes of namespaces that a restore of this ckpt has made."""
    return ckpt.processes(name="ckpt-init")


@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize("phase", PHASES)
def test_no_half_made_process(phase: str, where: str, ckpt: Ckpt, tmp_path: Path) -> None:
    with Victim.start("family", tmp_path / "victim") as target:
        made = ckpt.snapshot(target.pid)
        tree = set(target.tree())
        target.kill()
        for _ in range(times(1, 20)):
            faults = Faults(tmp_path, kill_at(phase))
            done = ckpt.run("restore", made["generation"], "--fd", "2=/dev/null", *WHERE[where], faults=faults)
            assert done.killed, f"{phase} was not met: exit {done.code}: {done.err}"
            assert faults.fired()
            deadline = time.monotonic() + 5
            while members(tree) or inits(ckpt):
                assert time.monotonic() < deadline, f"left over: {members(tree)}, {inits(ckpt)}"
                time.sleep(0.005)

        def restore(words: list[str]) -> int:
            return int(ckpt.json("restore", made["generation"], *words)["pid"])

        target.revive(restore)  # type: ignore[arg-type]
        target.verify()
        ckpt.exact(target.pid)
    ckpt.sound()
