"""The memory of a restored process against that of the original, byte for byte, by a reader that shares no code with ckpt."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.test_restore import ALONE, TOLD_OF_STOPS, revive
from tests.harness import Ckpt, Victim
from tests.harness.memory import Memory, memory
from tests.harness.victim import stat_fields

Start = Callable[..., Victim]


@pytest.mark.parametrize("name", ALONE)
def test_memory_is_the_same_byte_for_byte(name: str, ckpt: Ckpt, victim: Start) -> None:
    target = victim(name)
    running = stopped(target)
    tree = [pid for pid in target.tree() if stat_fields(pid)[0] not in "ZX"]  # the memory of the dead is gone
    made = ckpt.snapshot(target.pid)
    rseqs = rseq_areas(ckpt, made["generation"])
    before = {pid: memory(pid, rseqs) for pid in tree}
    target.kill()
    revive(ckpt, target, made["generation"], "--stopped")
    for pid in tree:
        wait_for_state(pid, "T")
    for pid in tree:
        same(before[pid], memory(pid, rseqs))
    for pid in running:
        os.kill(pid, signal.SIGCONT)
    if name not in TOLD_OF_STOPS:
        target.verify()


def stopped(target: Victim) -> list[int]:
    """Stops all processes of the victim; gives those that were not stopped already. Children may come and go meanwhile."""
    seen: set[int] = set()
    ours = []
    while new := [pid for pid in target.tree() if pid not in seen]:
        seen.update(new)
        for pid in new:
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                if stat_fields(pid)[0] in "TZX":
                    continue
                os.kill(pid, signal.SIGSTOP)
                wait_for_state(pid, "T")
                ours.append(pid)
    return [pid for pid in ours if pid in target.tree() and stat_fields(pid)[0] == "T"]


def wait_for_state(pid: int, state: str) -> None:
    """All threads of the process."""
    deadline = time.monotonic() + 10
    while {text[text.rindex(")") + 2] for text in (f.read_text() for f in Path(f"/proc/{pid}/task").glob("*/stat"))} != {state}:
        if stat_fields(pid)[0] in "ZX":
            return
        assert time.monotonic() < deadline, f"task {pid} does not stop"
        time.sleep(0.005)


def rseq_areas(ckpt: Ckpt, generation: int) -> list[tuple[int, int]]:
    """Where the kernel writes the number of the processor that a thread is on; processes may share memory."""
    threads = ckpt.json("show", str(generation))["threads"]
    return [(thread["attributes"].get("rseq", {}).get("pointer", 0), 32) for thread in threads]


def same(before: Memory, after: Memory) -> None:
    gone, new = set(before.lines) - set(after.lines), set(after.lines) - set(before.lines)
    assert not gone | new, f"{len(gone)} mappings gone: {list(gone)[:5]}, {len(new)} new: {list(new)[:5]}"
    addresses = before.pages.keys() | after.pages.keys()
    wrong = [hex(page) for page in sorted(addresses) if before.pages.get(page) != after.pages.get(page)]
    assert not wrong, f"{len(wrong)} of {len(addresses)} pages differ: {wrong[:10]}"
