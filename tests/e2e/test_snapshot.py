"""Snapshots of every workload through the command line: full, then incremental, each compared page by page in its freeze."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ckpt.live import core
from tests.harness import WORKLOADS, Ckpt, Victim
from tests.harness.victim import HERE, build

Start = Callable[..., Victim]
KEYS = {"generation", "parent", "lineage", "kind", "tracker", "pid", "stop_us", "total_ms", "pages", "bytes_stored", "phases"}


def unharmed(target: Victim, stopped: bool = False) -> None:
    """It runs, nobody traces it, no thread is stopped (but by itself: `stopped`), and its own check passes."""
    assert target.alive()
    assert target.untraced()
    target.verify()
    assert not target.stands_still(but="T" if stopped else "")


@pytest.mark.parametrize("name", WORKLOADS)
def test_full_then_incremental(name: str, ckpt: Ckpt, victim: Start) -> None:
    target = victim(name)
    threads = len(target.tids())
    stopped = "T" in target.states()
    first = ckpt.snapshot(target.pid, "--full", "--paranoid")
    assert first.keys() >= KEYS
    assert first["kind"] == "full"
    assert first["parent"] is None
    assert first["pid"] == target.pid
    assert first["tracker"] == "uffd"
    assert first["paranoid"]["wrong"] == 0
    assert first["stop_us"] > 0
    assert set(first["pages"]) >= {"resident", "dirty", "read", "zero", "deduplicated", "stored"}
    unharmed(target, stopped)
    last = first
    for _ in range(3):
        time.sleep(0.05)
        made = ckpt.exact(target.pid)
        assert made["kind"] == "incremental", made
        assert made["tracker"] == "uffd", made
        assert made["parent"] == last["generation"]
        assert made["lineage"] == first["lineage"]
        last = made
        unharmed(target, stopped)
    if name != "churn":
        assert len(target.tids()) == threads
    assert ckpt.generations() == [first["generation"] + i for i in range(4)]
    ckpt.sound()


@pytest.mark.parametrize("name", ["epoll", "waits", "sleeper", "signals", "threads4", "registers", "python-asyncio"])
def test_a_freeze_is_invisible(name: str, ckpt: Ckpt, victim: Start) -> None:
    """Many freezes in quick succession: one process of ckpt, --every. No EINTR, no lost wake-up, no lost signal."""
    target = victim(name)
    running = ckpt.start("snapshot", target.pid, "--every", "20ms", "--json")
    try:
        start = time.monotonic()
        while running.poll() is None and (time.monotonic() < start + 2 or ckpt.taken() <= 10) and time.monotonic() < start + 30:
            target.verify()
        assert running.poll() is None, ckpt.finish(running)
    finally:
        running.terminate()
        running.wait(20)
    unharmed(target)
    assert len(ckpt.generations()) > 10


def test_without_a_mode_it_says_which(ckpt: Ckpt, victim: Start) -> None:
    target = victim("registers")
    assert ckpt.snapshot(target.pid)["kind"] == "full"
    assert ckpt.snapshot(target.pid)["kind"] == "incremental"
    assert ckpt.snapshot(target.pid, "--full")["kind"] == "full"
    compared = ckpt.run("snapshot", target.pid, "--paranoid")
    assert " pages, 0 differ" in compared.out
    text = ckpt.run("snapshot", target.pid)
    assert text.code == 0
    assert "compared" not in text.out
    assert "incremental" in text.out


@pytest.mark.parametrize("tracker", ["compare", "softdirty"])
@pytest.mark.parametrize("name", ["churn", "python-threads"])
def test_other_trackers_are_exact(tracker: str, name: str, ckpt: Ckpt, victim: Start) -> None:
    target = victim(name)
    first = ckpt.run("snapshot", target.pid, "--tracker", tracker, "--json")
    if tracker == "softdirty" and core.probe()["soft_dirty"] != 0:
        first.refused(1, "soft-dirty", "--tracker auto")
        return
    assert first.json["tracker"] == tracker
    for _ in range(3):
        made = ckpt.snapshot(target.pid, "--incremental", "--paranoid", "--tracker", tracker)
        assert made["paranoid"]["wrong"] == 0
    if name == "python-threads":  # churn writes all that it has between two snapshots
        assert made["pages"]["deduplicated"] > made["pages"]["read"] * 3 // 4  # what did not change is known to the store
    unharmed(target)


def test_one_tracker_after_another(ckpt: Ckpt, victim: Start) -> None:
    """What one way of tracking left in the target does not stand in the way of another."""
    target = victim("threads4")
    for tracker in ("uffd", "compare", "uffd", "auto"):
        made = ckpt.snapshot(target.pid, "--paranoid", "--tracker", tracker)
        assert made["paranoid"]["wrong"] == 0
        assert made["tracker"] == ("compare" if tracker == "compare" else "uffd")
    ckpt.exact(target.pid)
    unharmed(target)


def test_the_store_is_private(ckpt: Ckpt, victim: Start) -> None:
    target = victim("counter")
    ckpt.snapshot(target.pid)
    assert stat.S_IMODE(ckpt.store.stat().st_mode) == 0o600


def test_truly_incremental(ckpt: Ckpt) -> None:
    """What is read is what was written, measured by the victim that wrote it, each time in a new ckpt."""
    build()
    with Victim([str(HERE / "bin/dirty"), "64", "random"]) as target:
        first = ckpt.snapshot(target.pid)
        assert first["pages"]["read"] > 64 * 256
        for percent in (1, 5, 0):
            written = int(target.ask(f"dirty {percent}").split()[1])
            made = ckpt.exact(target.pid)
            assert made["tracker"] == "uffd"
            assert made["pages"]["read"] <= written + 64, made
            assert made["pages"]["read"] >= written * 0.9, made
            assert made["pages"]["resident"] > 64 * 256
        target.verify()


def test_the_same_content_costs_nothing(ckpt: Ckpt) -> None:
    """Zero pages and pages that are known are not stored again; two processes share."""
    build()
    with Victim([str(HERE / "bin/dirty"), "32", "zero"]) as zero:
        made = ckpt.snapshot(zero.pid)
        assert made["pages"]["zero"] >= 32 * 256
        assert made["bytes_stored"] < 4 << 20
        zero.ask("dirty 50")
        again = ckpt.exact(zero.pid)
        assert again["pages"]["stored"] < 64
    with Victim([str(HERE / "bin/dirty"), "16"]) as one, Victim([str(HERE / "bin/dirty"), "16"]) as two:
        first = ckpt.snapshot(one.pid)
        second = ckpt.snapshot(two.pid)
        assert second["lineage"] != first["lineage"]
        assert second["pages"]["deduplicated"] >= 16 * 256
        assert second["bytes_stored"] < first["bytes_stored"] // 4


def test_kill_ends_the_tree_at_that_instant(ckpt: Ckpt, victim: Start) -> None:
    target = victim("family")
    tree = target.tree()
    made = ckpt.snapshot(target.pid, "--kill")
    deadline = time.monotonic() + 5
    while any(Path(f"/proc/{pid}/maps").exists() and Path(f"/proc/{pid}/maps").read_bytes() for pid in tree):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert made["generation"] in ckpt.generations()


def test_a_tree_is_captured_whole(ckpt: Ckpt, victim: Start) -> None:
    target = victim("family")
    made = ckpt.snapshot(target.pid)
    assert len(target.tree()) == 4
    shown = ckpt.json("show", made["generation"])
    text = str(shown)
    for pid in target.tree():
        assert str(pid) in text
    for _ in range(3):
        ckpt.exact(target.pid)
    unharmed(target)


@pytest.mark.alone
def test_stop_time_is_what_the_victim_sees(ckpt: Ckpt) -> None:
    """The largest gap of the victim's own clock agrees with the stop time that ckpt tells, within 20 %. What else wants the
    processor can only lengthen a gap: it is tried until one round was undisturbed."""
    build()
    with Victim([str(HERE / "bin/dirty"), "64"]) as target:
        os.setpriority(os.PRIO_PROCESS, target.pid, -20)
        ckpt.snapshot(target.pid)
        ratios = []
        for _ in range(40):
            target.ask("dirty 10")
            time.sleep(0.05)
            target.ask("gap")
            made = ckpt.snapshot(target.pid, "--incremental", "--precopy", "0")
            gap = int(target.ask("gap").split()[1]) / 1000
            ratios.append(gap / made["stop_us"])
            if ratios[-1] < 1.2:
                break
        assert 0.8 < min(ratios) < 1.2, ratios


def test_a_child_that_nobody_waits_for(ckpt: Ckpt, tmp_path: Path) -> None:
    """A zombie below the root has no memory to capture; it is no reason to refuse its living parent."""
    build()
    with Victim([str(HERE / "bin/memops"), str(tmp_path)]) as target:
        assert target.ask("zombie") == "OK"
        made = ckpt.run("snapshot", target.pid, "--paranoid", "--json")
        assert made.code == 0, made.err
        assert target.ask("reap") == "OK"
        ckpt.exact(target.pid)
