"""snapshot --every --trace: each generation says who wrote the pages that it changed."""

from __future__ import annotations

import json
import signal
import sqlite3
import subprocess
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.harness import Ckpt, Victim
from tests.harness.victim import children

pytestmark = pytest.mark.usefixtures("usable")

Start = Callable[..., Victim]
PAGE = 4096
THREADS = 5


def begun(ckpt: Ckpt, pid: int, every: str) -> tuple[subprocess.Popen[str], dict[str, Any]]:
    process = ckpt.start("snapshot", pid, "--every", every, "--trace", "--json")
    return process, following(process)


def following(process: subprocess.Popen[str]) -> dict[str, Any]:
    """The next generation."""
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, process.communicate()[1]
    made: dict[str, Any] = json.loads(line)
    return made


def ended(ckpt: Ckpt, process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGINT)
    assert ckpt.finish(process).code == 130


def areas(target: Victim) -> dict[str, tuple[range, int]]:
    """name -> (its pages by number, the thread that writes them)."""
    words = target.ask("where").split()[1:]
    found = {}
    for at in range(0, len(words), 4):
        start, pages, tid = (int(word) for word in words[at + 1 : at + 4])
        found[words[at]] = (range(start // PAGE, start // PAGE + pages), tid)
    return found


class Rows:
    def __init__(self, store: Path) -> None:
        with closing(sqlite3.connect(f"file:{store}?mode=ro", uri=True)) as connection:
            self.writes = connection.execute("SELECT generation, page, tid, function, call, file FROM page_writers").fetchall()
            self.runs = connection.execute("SELECT generation, start, count FROM page_runs WHERE content <> 'absent'").fetchall()

    def changed(self, generation: int, area: range) -> set[int]:
        return {page for g, start, count in self.runs if g == generation for page in range(start, start + count) if page in area}

    def written(self, generation: int, area: range) -> dict[int, tuple[int, str, str | None]]:
        return {page: (tid, function, call) for g, page, tid, function, call, _ in self.writes if g == generation and page in area}


def test_every_changed_page_has_its_writer(ckpt: Ckpt, victim: Start) -> None:
    """Rounds between the snapshots, so that each generation's changes are known to be one round's: page for page."""
    target = victim("writers")
    where = areas(target)
    process, first = begun(ckpt, target.pid, "400ms")
    made = [first]
    for number in range(1, 6):
        target.ask(f"round {96 + number * 97}")
        made.append(following(process))
    ended(ckpt, process)
    rows = Rows(ckpt.store)
    seen = 0
    for one in made[1:]:
        assert (one["kind"], one["writes"]["lost"]) == ("incremental", 0)
        for name, (area, tid) in where.items():
            written = rows.written(one["generation"], area)
            assert set(written) == rows.changed(one["generation"], area), name
            seen += len(written)
            if name == "read":
                assert {(by, call) for by, _, call in written.values()} <= {(tid, "read")}
            else:
                assert set(written.values()) <= {(tid, f"scribble_{name}", None)}
    assert seen > 1000
    target.verify()
    ckpt.sound()
    plain = ckpt.json("query", "writers", "generation=2")["rows"]
    assert {row["function"] for row in plain[:4]} == {"scribble_plain", "scribble_huge", "scribble_file", "scribble_fresh"}
    assert "scribble_huge" in ckpt.run("query", "writers").out
    area, tid = where["huge"]
    page = min(rows.changed(made[-1]["generation"], area))
    history = ckpt.json("query", "page-history", hex(page * PAGE), target.pid)["rows"]
    assert (history[-1]["generation"], history[-1]["writer"], history[-1]["tid"]) == (made[-1]["generation"], "scribble_huge", tid)


def test_while_it_writes_without_a_pause(ckpt: Ckpt, victim: Start) -> None:
    """A write belongs to the generation whose freeze it came before. A thread that the freeze meets between its fault and its write has
    told of it already, and tells again: one page of each thread at most."""
    target = victim("writers")
    where = areas(target)
    target.ask("rate 40")
    process, _ = begun(ckpt, target.pid, "150ms")
    made = [following(process) for _ in range(12)]
    ended(ckpt, process)
    target.ask("rate 0")
    target.verify()
    rows = Rows(ckpt.store)
    for one in made:
        assert one["writes"]["lost"] == 0
        for name, (area, _) in where.items():
            changed, written = rows.changed(one["generation"], area), rows.written(one["generation"], area)
            assert changed - set(written) == set(), name
            assert len(set(written) - changed) <= THREADS, name
    assert sum(one["writes"]["pages"] for one in made) > 1000
    ckpt.sound()


def test_removed_generations_hand_their_writers_down(ckpt: Ckpt, victim: Start) -> None:
    target = victim("writers")
    where = areas(target)
    process, _ = begun(ckpt, target.pid, "300ms")
    target.ask("round 96")
    second = following(process)["generation"]
    target.ask("round 95")
    third = following(process)["generation"]
    ended(ckpt, process)
    before = Rows(ckpt.store)
    ckpt.json("rm", second)
    after = Rows(ckpt.store)
    for name, (area, _) in where.items():
        assert set(after.written(third, area)) == set(before.written(second, area)) | set(before.written(third, area)), name
        assert after.changed(third, area) <= set(after.written(third, area)), name
    ckpt.sound()


def test_children_are_followed(ckpt: Ckpt) -> None:
    """A child that writes 64 pages again and again until its parent, which waits for the end of its input, is gone."""
    script = """
import os, sys, time
parent = os.getpid()
if os.fork() == 0:
    area = bytearray(64 << 12)
    while os.getppid() == parent:
        time.sleep(0.02)
        for page in range(64):
            area[page << 12] ^= 1
    os._exit(0)
sys.stdin.read()
"""
    target = subprocess.Popen(["/usr/bin/python3", "-c", script], stdin=subprocess.PIPE)
    try:
        time.sleep(0.5)
        (child,) = children(target.pid)
        process, _ = begun(ckpt, target.pid, "200ms")
        last = [following(process)["generation"] for _ in range(3)][-1]
        ended(ckpt, process)
    finally:
        target.kill()
        target.communicate()
    tids = [tid for generation, _, tid, *_ in Rows(ckpt.store).writes if generation == last]
    assert set(tids) <= {child, target.pid}
    assert tids.count(child) >= 64


def test_it_needs_an_interval(ckpt: Ckpt, victim: Start) -> None:
    target = victim("counter")
    ckpt.run("snapshot", target.pid, "--trace").refused(2, "--every")
    assert not ckpt.store.exists()
    ckpt.run("snapshot", target.pid, "--trace", "--every", "1s", env={"CKPT_CACHE_DIR": "/proc/nowhere"}).refused(1, "eBPF")
    target.verify()
