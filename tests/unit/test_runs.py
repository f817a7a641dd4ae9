"""Sets of pages by run, against a plain set."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ckpt.history.runs import PageSet, pack, pages_of, unpack
from ckpt.model import Content

RUNS = st.lists(st.tuples(st.integers(0, 60), st.integers(1, 12), st.sampled_from([0, 1, 2, 3])), max_size=12)


@given(st.lists(RUNS, max_size=3), st.integers(0, 80), st.integers(0, 80))
def test_against_a_set(batches: list[list[tuple[int, int, int]]], first: int, end: int) -> None:
    pages, plain = PageSet(), set()
    for batch in batches:
        pages.add(pack(batch))
        plain |= {page + n for page, count, content in batch if content != Content.ABSENT for n in range(count)}
        assert len(pages) == len(plain)
    assert pages.count(first, max(first, end)) == len([page for page in plain if first <= page < end])


def test_addresses_at_the_top_and_runs_longer_than_a_key_holds() -> None:
    pages = PageSet()
    pages.add(pack([((1 << 35) - 1, 3, 0), (0, (1 << 28) + 5, 1)]))
    assert len(pages) == (1 << 28) + 8
    assert pages.count(1 << 35, 1 << 36) == 2


def test_pack_and_unpack() -> None:
    runs = [(5, 2, 0), (9, 1, 3)]
    assert list(unpack(pack(runs))) == runs
    assert pages_of(pack(runs)) == 2
