"""Rollback in place of every workload: forth and back, and the program's own check passes each time."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.faults import Faults, kill_at
from tests.harness import WORKLOADS, Ckpt, Victim, did, times
from tests.harness.victim import HERE, build

Start = Callable[..., Victim]
#: redis has tests of its own below.
ALONE = [name for name in WORKLOADS if name not in ("redis", "waits")]


def identity(target: Victim) -> tuple[int, int]:
    return target.pid, target.start_ticks()


def roll(ckpt: Ckpt, target: Victim, generation: int) -> None:
    done = ckpt.run("rollback", generation, "--pid", target.pid, "--json")
    assert done.code == 0, f"exit {done.code}: {done.err}{done.out}"


@pytest.mark.parametrize("name", ALONE)
def test_back_and_forth(name: str, ckpt: Ckpt, victim: Start) -> None:
    target = victim(name)
    who = identity(target)
    first = ckpt.snapshot(target.pid)["generation"]
    time.sleep(0.2)
    target.verify()
    second = ckpt.snapshot(target.pid, "--incremental")["generation"]
    for generation in (first, second, first):
        roll(ckpt, target, generation)
        assert identity(target) == who
        target.verify()
        assert target.untraced()
        assert not target.stands_still()
        time.sleep(0.1)
        target.verify()
    made = ckpt.exact(target.pid)
    assert made["parent"] == first, "what follows a rollback descends from what it rolled back to"
    ckpt.sound()


@pytest.mark.parametrize("name", ["churn", "python-threads", "threads200"])
def test_ten_times(name: str, ckpt: Ckpt, victim: Start) -> None:
    target = victim(name)
    made = [ckpt.snapshot(target.pid)["generation"]]
    for _ in range(2):
        time.sleep(0.1)
        target.verify()
        made.append(ckpt.snapshot(target.pid, "--incremental")["generation"])
    for turn in range(times(10, 100)):
        roll(ckpt, target, made[turn * 2 % 3])
        target.verify()
        did(f"rollbacks back and forth, {name}")
        if turn % 3 == 2:
            ckpt.exact(target.pid)
    ckpt.sound()


def test_memory_is_what_it_was(ckpt: Ckpt) -> None:
    """Byte for byte, read from outside; and another rollback over it, forward again."""
    build()
    with Victim([str(HERE / "bin/dirty"), "16"]) as target:

        def memory() -> bytes:
            ranges = [
                (int(match[1], 16), int(match[2], 16))
                for match in re.finditer(r"^(\w+)-(\w+) rw-p \S+ 00:00 0\s*$", Path(f"/proc/{target.pid}/maps").read_text(), re.M)
            ]
            start, end = max(ranges, key=lambda one: one[1] - one[0])
            with open(f"/proc/{target.pid}/mem", "rb", buffering=0) as file:  # noqa: PTH123
                file.seek(start)
                return file.read(end - start)

        first = ckpt.snapshot(target.pid)["generation"]
        then = memory()
        target.ask("dirty 30")
        second = ckpt.snapshot(target.pid, "--incremental")["generation"]
        later = memory()
        target.ask("dirty 30")
        assert memory() not in (then, later)
        roll(ckpt, target, first)
        assert memory() == then
        target.verify()
        roll(ckpt, target, second)
        assert memory() == later
        target.verify()


def test_a_position_goes_back(ckpt: Ckpt, victim: Start) -> None:
    target = victim("counter")

    def position() -> int:
        for entry in Path(f"/proc/{target.pid}/fd").iterdir():
            if entry.resolve().name == "counter.txt":
                return int(Path(f"/proc/{target.pid}/fdinfo/{entry.name}").read_text().split()[1])
        raise AssertionError("the counter has closed its file")

    made = ckpt.snapshot(target.pid)
    then = position()
    while position() < then + 9 * 500:
        time.sleep(0.05)
    before = position()
    roll(ckpt, target, made["generation"])
    assert position() < before
    target.verify()


def test_threads_that_came_are_ended_and_gone_ones_are_back(ckpt: Ckpt, victim: Start) -> None:
    target = victim("churn")
    made = ckpt.snapshot(target.pid)
    then = {thread["tid"] for thread in threads_of(ckpt, made["generation"])}
    time.sleep(0.3)
    target.verify()
    roll(ckpt, target, made["generation"])
    again = ckpt.snapshot(target.pid)
    assert target.pid in then
    assert {thread["tid"] for thread in threads_of(ckpt, again["generation"])} & then
    target.verify()


def threads_of(ckpt: Ckpt, generation: int) -> list[dict[str, int]]:
    """Every {"tid": ...} in what show prints."""
    found: list[dict[str, int]] = []

    def walk(value: object) -> None:
        if isinstance(value, dict):
            if "tid" in value:
                found.append(value)
            for one in value.values():
                walk(one)
        elif isinstance(value, list):
            for one in value:
                walk(one)

    walk(ckpt.json("show", generation, "--threads"))
    assert found
    return found


def test_redis_goes_back(ckpt: Ckpt, victim: Start) -> None:
    target = victim("redis")
    run_id = target.ask("info run_id")
    who = identity(target)
    first = ckpt.snapshot(target.pid)["generation"]
    target.ask("save")
    assert target.ask("write 300") == "OK"
    assert target.ask("set sentinel here") == "OK"
    second = ckpt.snapshot(target.pid, "--incremental")["generation"]
    roll(ckpt, target, first)
    assert target.ask("get sentinel") == "NONE"
    target.ask("back")
    target.verify()
    assert target.ask("info run_id") == run_id
    assert identity(target) == who
    roll(ckpt, target, second)
    assert target.ask("get sentinel") == "here"
    roll(ckpt, target, first)
    target.verify()
    ckpt.exact(target.pid)
    graph = ckpt.run("log", "--graph")
    assert graph.code == 0


def test_dry_run_touches_nothing(ckpt: Ckpt, victim: Start) -> None:
    target = victim("churn")
    made = ckpt.snapshot(target.pid)
    time.sleep(0.2)
    done = ckpt.run("rollback", made["generation"], "--pid", target.pid, "--dry-run")
    assert done.code == 0, done.err
    assert done.out.strip()
    target.verify()
    assert ckpt.exact(target.pid)["parent"] == made["generation"]


def test_into_a_stranger_is_refused(ckpt: Ckpt, victim: Start) -> None:
    one, two = victim("registers"), victim("sleeper")
    made = ckpt.snapshot(one.pid)
    done = ckpt.run("rollback", made["generation"], "--pid", two.pid)
    assert done.code in (3, 6)
    done.refused(done.code, str(two.pid))
    one.verify()
    two.verify()


def test_a_killed_rollback_is_finished_from_another_folder(
    ckpt: Ckpt, victim: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The journal names the store by its full path, however the rollback was told of it."""
    monkeypatch.chdir(tmp_path)
    target, here = victim("counter"), ckpt.at(Path("beside.db"))
    generation = here.snapshot(target.pid)["generation"]
    target.verify()
    assert here.run("rollback", generation, "--pid", target.pid, faults=Faults(tmp_path, kill_at("layout"))).killed
    monkeypatch.chdir("/")
    done = ckpt.run("check", target.pid)
    assert done.code == 0, done.err
    target.verify()
    here.at(tmp_path / "beside.db").sound()
