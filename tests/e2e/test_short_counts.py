"""Transfers that a stop cuts short and that cannot go on: what `show --threads` says of them is what the program
got, and nothing is said of those that go on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from tests.harness import Ckpt, Victim, build
from tests.harness.victim import BIN, within

CUT = {"writev", "pwritev2", "sendmsg", "sendmmsg", "sendmmsg/last", "recvmsg", "recvmmsg/last"}
GO_ON = {"write/none", "writev/none", "recvfrom/none", "recvmsg/none", "read/none"}
GO_ON |= {"write", "sendto", "sendfile", "splice", "recvfrom"}  # a part is done: test_transfers.py


@dataclass(frozen=True)
class Got:
    name: str
    tid: int
    result: int | None  #: None: it is still in its call
    short: bool


def report(victim: Victim) -> dict[str, Got]:
    found, line = {}, victim.ask("report")
    while line != "END":
        name, tid, result, how = line.split()
        found[name] = Got(name, int(tid), None if result == "-" else int(result), how == "short")
        line = victim.line()
    return found


def told(ckpt: Ckpt) -> dict[int, dict[str, Any]]:
    return {row["tid"]: row for row in ckpt.run("show", "latest", "--threads", "--json").json["threads"]}


def snapshot(ckpt: Ckpt, *words: str | int) -> None:
    done = ckpt.run("snapshot", *words)
    assert done.code == 0, done.err


def cut(victim: Victim) -> dict[str, Got]:
    assert within(10, lambda: {one.name for one in report(victim).values() if one.result is not None} >= CUT), report(victim)
    return report(victim)


def agree(got: dict[str, Got], rows: dict[int, dict[str, Any]]) -> None:
    """Each that was cut is told with what it got, and nobody else."""
    assert got.keys() == CUT | GO_ON
    for name in sorted(CUT):
        one, row = got[name], rows[got[name].tid]
        assert one.short, one
        assert (row["disturbed"], row["raw_retval"], row["action"]) == (True, one.result, "keep"), (one, row)
        assert f"{name.split('/')[0]} had done {one.result}" in row["reason"]
        assert "short count" in row["reason"]
    for name in sorted(GO_ON):
        assert got[name].result is None
        assert not rows[got[name].tid]["disturbed"], rows[got[name].tid]


@pytest.fixture
def victim() -> Iterator[Victim]:
    build()
    with Victim([str(BIN / "counts")]) as victim:
        yield victim


@pytest.mark.parametrize("tracker", ["auto", "compare"])
def test_what_show_says_is_what_happened(tracker: str, ckpt: Ckpt, victim: Victim) -> None:
    """At a snapshot whose capture is the first stop: by comparison each is, else each but the one that begins to track."""
    words = (victim.pid, "--tracker", tracker)
    if tracker == "auto":
        snapshot(ckpt, *words)
    assert victim.ask("begin") == "BEGUN"
    assert all(one.result is None for one in report(victim).values())
    snapshot(ckpt, *words)
    agree(cut(victim), told(ckpt))
    snapshot(ckpt, *words)
    assert not any(row["disturbed"] for row in told(ckpt).values()), "it is told once"


def test_the_snapshot_that_begins_to_track_tells_nothing_false(ckpt: Ckpt, victim: Victim) -> None:
    """Its own earlier stop has cut the calls, so its capture may meet none of them: README says so."""
    assert victim.ask("begin") == "BEGUN"
    snapshot(ckpt, victim.pid)
    got, rows = cut(victim), told(ckpt)
    by_tid = {one.tid: one for one in got.values()}
    for tid, row in rows.items():
        if row["disturbed"]:
            assert (by_tid[tid].short, by_tid[tid].result) == (True, row["raw_retval"]), row
    assert {name for name, one in got.items() if one.result is None} == GO_ON
