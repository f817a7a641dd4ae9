"""Clocks: what is added for whom, whose time namespaces fit together, and what a rollback says of them."""

from __future__ import annotations

import time
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from ckpt.compare import clocks_go_on
from ckpt.live import clock
from ckpt.live.clock import CHILDREN, OFFSETS, OWN, Clocks
from ckpt.plan.clocks import behind
from ckpt.procfs import parse_offsets
from tests.unit import samples

SECOND = 10**9


def test_offsets_are_read() -> None:
    assert parse_offsets(b"monotonic           0         0\nboottime            0         0\n") == (0, 0)
    assert parse_offsets(b"monotonic  -4 435158856\nboottime  86400 5\n") == (-4 * SECOND + 435158856, 86400 * SECOND + 5)
    assert parse_offsets(b"boottime 1 2\ntai 3 4\n") == (0, SECOND + 2)
    assert parse_offsets(b"") == (0, 0)


@given(st.integers(0, 10**18), st.integers(0, 10**18))
def test_clocks_go_on_from_where_they_were(monotonic: int, boottime: int) -> None:
    """Never from before; the start times of processes, which go by CLOCK_BOOTTIME in ticks, are shifted by whole ones."""
    then = Clocks(monotonic, boottime)
    added = clock.continuing(then)
    shown = clock.now().plus(added)
    assert added.boottime % clock.TICK == 0
    assert 0 <= shown.monotonic - monotonic < 5 * SECOND
    assert abs((shown.boottime - boottime) - (shown.monotonic - monotonic)) < SECOND // 1000


def test_our_own_clock_is_the_machines_here() -> None:
    before = time.monotonic_ns()
    assert before <= clock.now_ns() + clock.own().monotonic <= time.monotonic_ns()
    assert clock.ticks(4711) == 4711 - clock.own().boottime // clock.TICK
    seen = clock.at(before, Clocks(SECOND, 2 * SECOND))
    assert seen["monotonic"] == before + SECOND


def test_who_fits_into_a_tree() -> None:
    ours, theirs = {OWN: b"time:[1]", CHILDREN: b"time:[1]"}, {OWN: b"time:[2]", CHILDREN: b"time:[2]", OFFSETS: b"monotonic 5 0\n"}
    assert clock.strange(ours, ours, 7) is None
    assert clock.strange(theirs, theirs, 7) is None
    assert clock.strange({}, {}, 7) is None, "a kernel without time namespaces"
    assert "another time namespace than task 7" in str(clock.strange(theirs, ours, 7))
    assert "its children" in str(clock.strange({**ours, CHILDREN: b"time:[2]"}, ours, 7))
    assert clock.offsets(theirs) == (5 * SECOND, 0)
    assert clock.offsets(ours) == clock.own()


def test_verify_compares_clocks() -> None:
    plain = samples.snapshot()
    then, soon, late, before = (
        replace(plain, features={"clocks": {"monotonic": 100 * SECOND + ns, "boottime": 200 * SECOND + ns}})
        for ns in (0, SECOND, 5 * SECOND, -1)
    )
    assert clocks_go_on(then, soon, SECOND) == []
    assert clocks_go_on(plain, soon, SECOND) == []
    for wrong in (late, before, plain):
        (found,) = clocks_go_on(then, wrong, SECOND)
        assert [field.name for field in found.fields] == ["monotonic", "boottime"]


def test_a_rollback_says_that_the_clock_is_behind() -> None:
    plain = samples.snapshot()
    then, now = (replace(plain, features={**plain.features, "clocks": {"monotonic": s * SECOND, "boottime": 0}}) for s in (100, 70))
    assert behind(then, now) == []
    assert behind(plain, now) == behind(now, plain) == [], "a generation of an earlier ckpt does not say"
    (said,) = behind(now, then)
    assert "30.0 s behind" in said
    assert clock.clocks_then(plain.features) is None
    assert clock.clocks_then(then.features) == (100 * SECOND, 0)
