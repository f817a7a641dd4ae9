"""Bad stores and generations: one clear line, the documented exit code, nothing lost, the target unharmed."""

from __future__ import annotations

import os
import sqlite3
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.harness import Ckpt, Victim
from tests.harness.odd import mount_small, unmount
from tests.harness.victim import HERE, build

Start = Callable[..., Victim]


@pytest.fixture
def filled(ckpt: Ckpt, victim: Start) -> tuple[Ckpt, Victim, int]:
    target = victim("counter")
    return ckpt, target, ckpt.snapshot(target.pid)["generation"]


@pytest.mark.parametrize("words", [("log",), ("show", "1"), ("diff", "1", "2"), ("stats",), ("query", "growth"), ("rm", "1"), ("fsck",)])
def test_no_store(words: tuple[str, ...], ckpt: Ckpt) -> None:
    done = ckpt.run(*words)
    assert done.code in (5, 6)
    done.refused(done.code, str(ckpt.store))
    assert not ckpt.store.exists()


def test_not_a_store(ckpt: Ckpt, victim: Start) -> None:
    target = victim("counter")
    ckpt.store.write_bytes(b"this is a text, not a store\n" * 1000)
    before = ckpt.store.read_bytes()
    ckpt.run("log").refused(5, str(ckpt.store))
    ckpt.run("snapshot", target.pid).refused(5, str(ckpt.store))
    assert ckpt.store.read_bytes() == before
    target.verify()


def test_somebody_elses_database(ckpt: Ckpt, victim: Start) -> None:
    target = victim("counter")
    with sqlite3.connect(ckpt.store) as connection:
        connection.execute("create table theirs (x)")
    connection.close()
    before = ckpt.store.read_bytes()
    ckpt.run("snapshot", target.pid).refused(5, str(ckpt.store))
    assert ckpt.store.read_bytes() == before


def test_a_newer_store(filled: tuple[Ckpt, Victim, int]) -> None:
    ckpt, target, _ = filled
    connection = sqlite3.connect(ckpt.store)
    number = connection.execute("pragma user_version").fetchone()[0]
    connection.execute(f"pragma user_version = {number + 1}")
    connection.commit()
    connection.close()
    ckpt.run("log").refused(5, "newer")
    ckpt.run("snapshot", target.pid).refused(5, "newer")
    target.verify()


def test_a_damaged_page(filled: tuple[Ckpt, Victim, int]) -> None:
    """A flipped byte in the middle of the page data is found by fsck --full, and no rollback uses it."""
    ckpt, target, generation = filled
    raw = bytearray(ckpt.store.read_bytes())
    for at in range(len(raw) // 3, len(raw) - 256, 256):
        raw[at] ^= 0x55
    for side in ckpt.store.parent.glob("store.db-*"):
        side.unlink()
    ckpt.store.write_bytes(bytes(raw))
    done = ckpt.run("fsck", "--full")
    assert done.code == 5, done
    assert "Traceback" not in done.err + done.out
    ckpt.run("rollback", generation, "--pid", target.pid).refused(5)
    target.verify()


def test_a_cut_store(filled: tuple[Ckpt, Victim, int]) -> None:
    ckpt, target, _ = filled
    for side in ckpt.store.parent.glob("store.db-*"):
        side.unlink()
    os.truncate(ckpt.store, ckpt.store.stat().st_size // 2)
    assert ckpt.run("fsck", "--full").code == 5
    done = ckpt.run("snapshot", target.pid)
    assert "Traceback" not in done.err
    target.verify()


def test_a_read_only_place(ckpt: Ckpt, victim: Start, tmp_path: Path) -> None:
    target = victim("counter")
    folder = tmp_path / "fixed"
    if not mount_small(folder, "32m"):
        pytest.skip("mounting is not allowed here")
    try:
        there = ckpt.at(folder / "store.db")
        made = there.snapshot(target.pid)
        subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
        assert made["generation"] in there.generations()  # reading needs no right to write
        done = there.run("snapshot", target.pid)
        assert done.code in (1, 4)
        done.refused(done.code, str(folder), "writ")
        target.verify()
    finally:
        unmount(folder)


def test_a_full_disk(ckpt: Ckpt, tmp_path: Path) -> None:
    """No generation, one line; what was there is there; with room again the next snapshot is exact."""
    build()
    folder = tmp_path / "small"
    if not mount_small(folder, "24m"):
        pytest.skip("mounting is not allowed here")
    try:
        there = ckpt.at(folder / "store.db")
        with Victim([str(HERE / "bin/dirty"), "4"]) as small, Victim([str(HERE / "bin/dirty"), "64"]) as big:
            held = there.snapshot(small.pid)["generation"]
            there.run("snapshot", big.pid).refused(1, str(folder))
            assert there.generations() == [held]
            there.sound()
            big.verify()
            subprocess.run(["mount", "-o", "remount,size=256m", str(folder)], check=True)
            there.snapshot(big.pid, "--paranoid")
            there.exact(small.pid)
            there.sound()
    finally:
        unmount(folder)


def test_a_locked_store(filled: tuple[Ckpt, Victim, int]) -> None:
    """Somebody's sqlite3 sits in a write transaction: wait for a while, then say so; afterwards all is well."""
    ckpt, target, _ = filled
    connection = sqlite3.connect(ckpt.store, isolation_level=None)
    connection.execute("begin immediate")
    try:
        done = ckpt.run("snapshot", target.pid, timeout_s=60)
        done.refused(1, "lock")
        assert ckpt.run("log").code == 0
    finally:
        connection.execute("rollback")
        connection.close()
    ckpt.exact(target.pid)
    target.verify()


# ---- generations ----


def test_unknown_generations(filled: tuple[Ckpt, Victim, int]) -> None:
    ckpt, target, _ = filled
    for spec in ("99", "no-such-tag", "latest~7", "nobody@latest"):
        ckpt.run("show", spec).refused(6, spec.split("~")[0].split("@")[0])
        ckpt.run("rollback", spec, "--pid", target.pid).refused(6)
    target.verify()


def test_an_ambiguous_latest(filled: tuple[Ckpt, Victim, int], victim: Start) -> None:
    ckpt, target, first = filled
    other = victim("sleeper")
    second = ckpt.snapshot(other.pid)["generation"]
    ckpt.run("show", "latest").refused(6, "latest")
    assert ckpt.run("show", "sleeper@latest").code == 0
    assert second != first
    assert ckpt.run("rollback", "latest", "--pid", target.pid, "--dry-run").code == 0


def test_a_tagged_generation_stays(filled: tuple[Ckpt, Victim, int]) -> None:
    ckpt, _, generation = filled
    assert ckpt.run("tag", "kept", generation).code == 0
    done = ckpt.run("rm", generation)
    assert done.code != 0
    done.refused(done.code, "kept")
    assert ckpt.generations() == [generation]


def test_rollback_after_the_process_died(filled: tuple[Ckpt, Victim, int]) -> None:
    ckpt, target, generation = filled
    target.end()
    ckpt.run("rollback", generation).refused(6, str(target.pid))
