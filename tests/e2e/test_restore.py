"""Back from the dead: every workload is killed and restored, and its own check passes."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tests.harness import WORKLOADS, Ckpt, Victim

Start = Callable[..., Victim]
#: Not yet: trees, shared objects that nobody holds any more, connections inside the tree.
ALONE = [name for name in WORKLOADS if name not in ("redis", "waits", "mappings", "python-asyncio")]


def revive(ckpt: Ckpt, target: Victim, generation: int | str) -> None:
    def restore(words: Sequence[str]) -> None:
        done = ckpt.run("restore", generation, *words, "--json")
        assert done.code == 0, f"exit {done.code}: {done.err}{done.out}"
        assert done.json["pid"] == target.pid

    target.revive(restore)


@pytest.mark.parametrize("name", ALONE)
def test_killed_and_restored(name: str, ckpt: Ckpt, victim: Start) -> None:
    target = victim(name)
    made = ckpt.snapshot(target.pid)
    time.sleep(0.1)
    target.kill()
    assert not Path(f"/proc/{target.pid}").exists()
    revive(ckpt, target, made["generation"])
    target.verify()
    assert target.tracer() == 0
    assert not target.states() & {"t", "T"}
    time.sleep(0.1)
    target.verify()
    again = ckpt.exact(target.pid)
    assert again["parent"] == made["generation"]
    assert again["lineage"] == made["lineage"]
    ckpt.sound()
