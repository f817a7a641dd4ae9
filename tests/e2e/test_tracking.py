"""The baseline: whatever happens between a scan and its commit, the next generation is exact."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.faults import Faults, fail_at, kill_at
from tests.harness import Ckpt, Victim
from tests.harness.victim import HERE, build

Start = Callable[..., Victim]


def test_into_another_store_and_back(ckpt: Ckpt, tmp_path: Path, victim: Start) -> None:
    target = victim("churn")
    other = ckpt.at(tmp_path / "other.db")
    ckpt.snapshot(target.pid)
    ckpt.exact(target.pid)
    assert other.exact(target.pid)["kind"] == "full"
    made = ckpt.exact(target.pid)
    assert made["kind"] == "full", "the other store took the dirty state with it"
    assert ckpt.exact(target.pid)["kind"] == "incremental"
    other.exact(target.pid)
    target.verify()
    ckpt.sound()
    other.sound()


def test_a_store_that_was_put_back(ckpt: Ckpt, tmp_path: Path, victim: Start) -> None:
    """The store is replaced by an older copy of itself: same name, same identity, but the baseline is not in it."""
    target = victim("churn")
    ckpt.snapshot(target.pid)
    copy = ckpt.store.read_bytes()
    ckpt.exact(target.pid)
    ckpt.exact(target.pid)
    for side in ckpt.store.parent.glob("store.db-*"):
        side.unlink()
    ckpt.store.write_bytes(copy)
    ckpt.exact(target.pid)
    ckpt.exact(target.pid)
    ckpt.sound()


def test_without_its_record(ckpt: Ckpt, victim: Start) -> None:
    target = victim("churn")
    ckpt.snapshot(target.pid)
    for file in ckpt.runtime.iterdir():
        if file.is_file():
            file.unlink()
    made = ckpt.exact(target.pid)
    assert made["kind"] == "full"
    assert made["pages"]["deduplicated"] > 50, "unchanged pages are known to the store all the same"
    ckpt.exact(target.pid)


@pytest.mark.parametrize("phase", ["consumed", "captured", "stored"])
def test_killed_between_scan_and_commit(phase: str, ckpt: Ckpt, tmp_path: Path) -> None:
    build()
    with Victim([str(HERE / "bin/dirty"), "16"]) as target:
        held = [ckpt.snapshot(target.pid)["generation"]]
        target.ask("dirty 10")
        faults = Faults(tmp_path, kill_at(phase))
        done = ckpt.run("snapshot", target.pid, "--incremental", "--json", faults=faults)
        assert done.killed, done
        assert faults.fired() == {kill_at(phase): 1}
        target.verify()
        assert ckpt.generations() == held
        assert ckpt.exact(target.pid)["kind"] == "full"
        target.ask("dirty 10")
        assert ckpt.exact(target.pid)["kind"] == "incremental"
        target.verify()
    ckpt.sound()


def test_a_commit_that_fails(ckpt: Ckpt, tmp_path: Path) -> None:
    """No generation, one line, exit 1; the next generation holds the pages that the failed one had consumed."""
    build()
    with Victim([str(HERE / "bin/dirty"), "16"]) as target:
        held = [ckpt.snapshot(target.pid)["generation"]]
        target.ask("dirty 10")
        done = ckpt.run("snapshot", target.pid, "--incremental", "--json", faults=Faults(tmp_path, fail_at("stored", errno.EIO)))
        done.refused(1)
        assert ckpt.generations() == held
        assert ckpt.exact(target.pid)["kind"] == "full"
        target.ask("dirty 10")
        assert ckpt.exact(target.pid)["kind"] == "incremental"
        target.verify()
    ckpt.sound()


def test_a_removed_baseline(ckpt: Ckpt, victim: Start) -> None:
    target = victim("churn")
    made = ckpt.snapshot(target.pid)
    second = ckpt.exact(target.pid)
    assert ckpt.run("rm", second["generation"]).code == 0
    ckpt.exact(target.pid)
    assert ckpt.run("rm", made["generation"]).code == 0
    ckpt.exact(target.pid)
    assert ckpt.run("gc").code == 0
    ckpt.exact(target.pid)
    ckpt.sound()
    target.verify()


def test_exec_between(ckpt: Ckpt, tmp_path: Path) -> None:
    build()
    with Victim([str(HERE / "bin/memops"), str(tmp_path)]) as target:
        for command in ("map 0 anon 64", "write 0 0 64 1 store"):
            assert target.ask(command) == "OK"
        first = ckpt.snapshot(target.pid)
        assert target.ask("exec") == "READY"
        made = ckpt.exact(target.pid)
        assert made["lineage"] == first["lineage"], "a lineage goes on over an exec"
        assert ckpt.exact(target.pid)["kind"] == "incremental"


def test_many_descriptors_and_a_small_table(ckpt: Ckpt, tmp_path: Path) -> None:
    """A program that closes all its descriptors takes ckpt's with them: the next snapshot arms anew, and is exact."""
    build()
    with Victim([str(HERE / "bin/memops"), str(tmp_path)]) as target:
        target.ask("map 0 anon 64")
        target.ask("write 0 0 64 1 store")
        ckpt.snapshot(target.pid)
        assert target.ask("closeall") == "OK"
        target.ask("write 0 5 20 2 store")
        ckpt.exact(target.pid)
        target.ask("write 0 5 20 3 store")
        made = ckpt.exact(target.pid)
        assert made["kind"] == "incremental"


def test_watching_a_program_that_ends(ckpt: Ckpt, victim: Start) -> None:
    """--every ends with its target: exit 0, every generation whole."""
    target = victim("sleeper")
    running = ckpt.start("snapshot", target.pid, "--every", "30ms", "--json")
    deadline = time.monotonic() + 30
    while ckpt.taken() < 3 and running.poll() is None:
        assert time.monotonic() < deadline, "no generations"
        time.sleep(0.05)
    target.end()
    done = ckpt.finish(running, 30)
    assert done.code == 0, done.err
    assert len(ckpt.generations()) >= 3
    ckpt.sound()
