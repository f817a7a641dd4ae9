"""The victims alone: each says READY, passes its own check again and again, and is gone afterwards.

And the other way round: a victim whose memory or sleep was tampered with must say FAIL, or its PASS means nothing.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.harness import WORKLOADS, Victim, VictimError
from tests.harness.victim import HERE, build


@pytest.mark.parametrize("name", WORKLOADS)
def test_ready_verify_gone(name: str, tmp_path: Path) -> None:
    with Victim.start(name, tmp_path) as victim:
        for _ in range(3):
            victim.verify()
            time.sleep(0.05)
        processes = victim.tree()
        assert victim.alive()
    for pid in processes:
        assert not Path(f"/proc/{pid}/exe").exists() or not os.access(f"/proc/{pid}/exe", os.R_OK)


def test_every_program_is_in_use() -> None:
    """No victim lies about unused: each C program is a workload of the harness, or one with a driver of its own."""
    used = {Path(command[0]).name for command in WORKLOADS.values() if command[0].startswith("bin/")}
    driven = {"asker", "calls", "clocks", "counts", "deadlines", "dirty", "layout", "limits", "memops", "storm", "transfers"}
    assert {path.stem for path in HERE.glob("*.c")} <= used | driven
    drivers = "".join(path.read_text() for path in HERE.parent.glob("*/*.py") if path != Path(__file__))
    assert [name for name in driven if not re.search(rf"bin/{name}\b|BIN / \"{name}\"|\"{name}\"", drivers)] == []


def writable(pid: int, wanted: Callable[[str], bool]) -> list[tuple[int, int]]:
    found = []
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        match = re.match(r"([0-9a-f]+)-([0-9a-f]+) rw.. \S+ \S+ \d+\s*(.*)", line)
        if match and wanted(match[3]):
            found.append((int(match[1], 16), int(match[2], 16)))
    return found


def tamper(pid: int, start: int, end: int, step: int) -> None:
    """Flips one byte in every `step` bytes of a stopped process."""
    os.kill(pid, signal.SIGSTOP)
    with open(f"/proc/{pid}/mem", "r+b", buffering=0) as memory:  # noqa: PTH123
        for at in range(start + 640, end, step):
            with contextlib.suppress(OSError):
                memory.seek(at)
                byte = memory.read(1)
                memory.seek(at)
                memory.write(bytes([byte[0] ^ 0x40]))
    os.kill(pid, signal.SIGCONT)


def test_a_wrong_page_shows(tmp_path: Path) -> None:
    build()
    with Victim([str(HERE / "bin/dirty"), "8"]) as victim:
        victim.verify()
        start, end = max(writable(victim.pid, lambda name: not name), key=lambda one: one[1] - one[0])
        tamper(victim.pid, start + 4096 * 100, start + 4096 * 101, 4096)
        assert end - start >= 8 << 20
        with pytest.raises(VictimError, match="page"):
            victim.verify()


@pytest.mark.parametrize("name", ["mappings", "churn"])
def test_wrong_pages_of_odd_mappings_show(name: str, tmp_path: Path) -> None:
    with Victim.start(name, tmp_path) as victim:
        victim.verify()
        for start, end in writable(victim.pid, lambda text: text in ("", "/dev/zero (deleted)") or "memfd" in text):
            if end - start <= 128 << 12:
                tamper(victim.pid, start, end, 4096)
        with pytest.raises(VictimError):
            victim.verify()


def test_a_moved_position_shows(tmp_path: Path) -> None:
    """The counter's next write lands elsewhere when the file is replaced under it: its lines no longer are their numbers."""
    with Victim.start("counter", tmp_path) as victim:
        victim.verify()
        with (tmp_path / "counter.txt").open("r+b") as file:
            file.seek(3)
            file.write(b"9")
        with pytest.raises(VictimError, match="line 0"):
            victim.verify()


def test_an_interrupted_wait_shows(tmp_path: Path) -> None:
    """SIGSTOP and SIGCONT make epoll_wait return EINTR on Linux (signal(7)): the very thing that a freeze must not do."""
    with Victim.start("epoll", tmp_path) as victim:
        victim.verify()
        for _ in range(20):
            os.kill(victim.pid, signal.SIGSTOP)
            time.sleep(0.01)
            os.kill(victim.pid, signal.SIGCONT)
            time.sleep(0.01)
        with pytest.raises(VictimError, match="epoll_wait"):
            victim.verify()


def test_a_doubled_signal_shows(tmp_path: Path) -> None:
    with Victim.start("signals", tmp_path) as victim:
        victim.verify()
        os.kill(victim.pid, signal.SIGRTMIN + 1)
        with pytest.raises(VictimError, match="signal number"):
            victim.verify()


def test_a_lost_message_shows(tmp_path: Path) -> None:
    with Victim.start("family", tmp_path) as victim:
        victim.verify()
        child = victim.tree()[1]
        os.kill(child, signal.SIGSTOP)
        reading = min(int(entry.name) for entry in Path(f"/proc/{child}/fd").iterdir() if int(entry.name) > 2)
        pipe = os.open(f"/proc/{child}/fd/{reading}", os.O_RDONLY | os.O_NONBLOCK)
        # The stopped child's pipe may be empty just now: what is on the way in the ring comes to it.
        assert select.select([pipe], [], [], 10)[0], "no message came to the stopped child"
        assert len(os.read(pipe, 256)) == 256
        os.close(pipe)
        os.kill(child, signal.SIGCONT)
        with pytest.raises(VictimError, match="message"):
            victim.verify()


def test_lost_keys_show(tmp_path: Path) -> None:
    with Victim.start("redis", tmp_path) as victim:
        assert victim.ask("set one 1") == "OK"
        assert victim.ask("save") == "OK"
        assert victim.ask("write 5") == "OK"
        victim.verify()
        assert victim.ask("back") == "OK"
        assert victim.ask("verify").startswith("FAIL key:")
