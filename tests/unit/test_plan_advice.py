"""What mappings were advised: the calls that bring it about, in the order that the kernel wants."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ckpt.model import PAGE, Backing, Mapping, RemoteCall, Task
from ckpt.plan import batch as b
from ckpt.plan.advice import take_keys
from ckpt.plan.batch import Batch
from ckpt.plan.mappings import plan_layout
from ckpt.plan.sources import LayoutPlan

BASE = 0x5000_0000
RW = 3
MLOCK, MUNLOCK, MLOCK2, PKEY, MSEAL = 149, 150, 325, 329, 462


def anon(*words: str, pages: int = 4, flags: int = 0x22, prot: int = RW, guards: tuple[tuple[int, int], ...] = ()) -> Mapping:
    return Mapping(BASE, BASE + pages * PAGE, prot, flags, Backing("anonymous"), "", words, guards)


def task(*mappings: Mapping) -> Task:
    return Task(7, 1, 1, 7, 7, "prog", 0, (), mappings, (), ())


def between(now: Mapping, wanted: Mapping) -> LayoutPlan:
    return plan_layout(task(now), task(wanted), (), {})


def told(calls: list[RemoteCall]) -> list[tuple[int, ...]]:
    return [(item.nr, *(arg.value for arg in item.args[2:3])) if item.nr == b.NR_MADVISE else (item.nr,) for item in calls]


@pytest.mark.parametrize(
    ("word", "wish", "undo"), [("dc", 10, 11), ("wf", 18, 19), ("dd", 16, 17), ("mg", 12, 13), ("sr", 2, 0), ("rr", 1, 0)]
)
def test_advice_is_given_and_taken_back(word: str, wish: int, undo: int) -> None:
    assert told(between(anon(), anon(word)).batch.calls) == [(b.NR_MADVISE, wish)]
    assert told(between(anon(word), anon()).batch.calls) == [(b.NR_MADVISE, undo)]
    assert not between(anon(word), anon(word)).batch.calls


def test_huge_pages_cannot_be_unadvised_so_the_mapping_is_made_anew() -> None:
    assert told(between(anon("nh"), anon("hg")).batch.calls) == [(b.NR_MADVISE, 14)]
    assert [item.nr for item in between(anon("hg"), anon()).batch.calls] == [b.NR_MMAP]


def test_locks() -> None:
    assert told(between(anon(), anon("lo")).batch.calls) == [(MLOCK2,), (MLOCK,)]
    assert told(between(anon(), anon("lf", "lo")).batch.calls) == [(MLOCK2,)]
    assert told(between(anon("lf", "lo"), anon("lo")).batch.calls) == [(MLOCK2,), (MLOCK,)]
    assert told(between(anon("lo"), anon()).batch.calls) == [(MUNLOCK,)]
    strict, filling = between(anon(), anon("lo")).batch.calls
    assert strict.expect == 0, "whether it may be locked is known here"
    assert filling.expect is None


def test_guard_pages_go_before_the_pages_and_come_after_them() -> None:
    guard = (BASE + PAGE, BASE + 2 * PAGE)
    coming = between(anon(), anon(guards=(guard,)))
    assert not coming.batch.calls
    assert told(coming.finish.calls) == [(b.NR_MADVISE, 102)]
    assert [arg.value for arg in coming.finish.calls[0].args[:2]] == [guard[0], PAGE]
    assert told(between(anon(guards=(guard,)), anon()).batch.calls) == [(b.NR_MADVISE, 103)]
    both = between(anon("lo"), anon("lo", guards=(guard,)))
    assert told(both.batch.calls) == [(MUNLOCK,)], "no guard page can be put into locked memory"
    assert told(both.finish.calls) == [(b.NR_MADVISE, 102), (MLOCK2,), (MLOCK,)]


def test_keys_then_seals_at_the_very_end() -> None:
    plan = between(anon(), anon("pk3", "sl", "ac", guards=((BASE, BASE + PAGE),), prot=1))
    assert [item.nr for item in plan.finish.calls] == [b.NR_MADVISE, PKEY, MSEAL]
    assert [arg.value for arg in plan.finish.calls[1].args[2:]] == [1, 3]


def test_a_newborn_allocates_the_keys_that_are_used() -> None:
    batch = Batch()
    take_keys([anon("pk3"), anon("pk1"), anon("pk9", prot=4), anon()], batch)
    assert [(item.nr, item.expect) for item in batch.calls] == [(330, 1), (330, 2), (330, 3)]


def test_what_is_sealed_by_now_is_left_alone_or_refused() -> None:
    assert not between(anon("sl"), anon("sl")).refusals
    for wanted in (anon(), anon("sl", prot=1), anon("sl", flags=0x21)):
        (line,) = between(anon("sl"), wanted).refusals
        assert "sealed" in line
    assert plan_layout(task(anon("sl")), task(), (), {}).refusals


def test_memory_that_was_writable_is_protected_when_its_pages_stand() -> None:
    plan = plan_layout(task(), task(anon("ac", prot=1)), (), {})
    made, touched, emptied = plan.batch.calls
    assert made.args[2].value == RW
    assert [one.args[2].value for one in (touched, emptied)] == [b.MADV_POPULATE_WRITE, b.MADV_DONTNEED]
    (protected,) = plan.finish.calls
    assert (protected.nr, protected.args[2].value) == (b.NR_MPROTECT, 1)
    assert plan_layout(task(), task(anon(prot=1)), (), {}).batch.calls[0].args[2].value == 1


def test_older_generations_leave_advice_alone() -> None:
    old = replace(anon(), advice=None)
    assert not between(anon("lo", "dc", "hg"), old).batch.calls
    grew = between(anon("ac", flags=0x122), replace(anon(pages=3), start=BASE - PAGE, end=BASE + 4 * PAGE, advice=None))
    assert grew.batch.calls[0].args[3].value & b.MAP_GROWSDOWN


def test_neighbours_share_a_call() -> None:
    left = replace(anon("dd"), end=BASE + 2 * PAGE)
    right = replace(anon("dd", prot=1), start=BASE + 2 * PAGE)
    calls = plan_layout(task(), task(left, right), (), {}).batch.calls
    assert [item.nr for item in calls] == [b.NR_MMAP, b.NR_MMAP, b.NR_MADVISE]
    assert [arg.value for arg in calls[2].args[:2]] == [BASE, 4 * PAGE]
