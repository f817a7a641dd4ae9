"""The memory of a restored process against that of the original, byte for byte, by a reader that shares no code with ckpt."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.test_restore import ALONE, revive
from tests.harness import Ckpt, Victim
from tests.harness.memory import Memory, memory

Start = Callable[..., Victim]


@pytest.mark.parametrize("name", ALONE)
def test_memory_is_the_same_byte_for_byte(name: str, ckpt: Ckpt, victim: Start) -> None:
    target = victim(name)
    tree = [pid for pid in target.tree() if states(pid) != {"Z"}]
    ours = [pid for pid in tree if states(pid) != {"T"}]  # one that its own parent has stopped stays so
    for pid in ours:
        os.kill(pid, signal.SIGSTOP)
        wait_for_state(pid, "T")
    made = ckpt.snapshot(target.pid)
    rseqs = rseq_areas(ckpt, made["generation"])
    before = {pid: memory(pid, rseqs) for pid in tree}
    target.kill()
    revive(ckpt, target, made["generation"], "--stopped")
    for pid in tree:
        wait_for_state(pid, "T")
    for pid in tree:
        same(before[pid], memory(pid, rseqs))
    for pid in ours:
        os.kill(pid, signal.SIGCONT)
    # Stopped and continued by signals, the kernel itself ends epoll_wait by EINTR (signal(7)), which that victim counts as wrong.
    if name != "epoll":
        target.verify()


def states(pid: int) -> set[str]:
    """Of all threads of the process."""
    texts = (file.read_text() for file in Path(f"/proc/{pid}/task").glob("*/stat"))
    return {text[text.rindex(")") + 2] for text in texts}


def wait_for_state(pid: int, state: str) -> None:
    """All threads of the process."""
    deadline = time.monotonic() + 10
    while states(pid) != {state}:
        assert time.monotonic() < deadline, f"task {pid} does not stop"
        time.sleep(0.005)


def rseq_areas(ckpt: Ckpt, generation: int) -> list[tuple[int, int]]:
    """Where the kernel writes the number of the processor that a thread is on. Processes may share memory: those of all."""
    threads = ckpt.json("show", str(generation))["threads"]
    return [(thread["attributes"].get("rseq", {}).get("pointer", 0), 32) for thread in threads]


def same(before: Memory, after: Memory) -> None:
    gone, new = set(before.lines) - set(after.lines), set(after.lines) - set(before.lines)
    assert not gone | new, f"{len(gone)} mappings gone: {list(gone)[:5]}, {len(new)} new: {list(new)[:5]}"
    addresses = before.pages.keys() | after.pages.keys()
    wrong = [hex(page) for page in sorted(addresses) if before.pages.get(page) != after.pages.get(page)]
    assert not wrong, f"{len(wrong)} of {len(addresses)} pages differ: {wrong[:10]}"
