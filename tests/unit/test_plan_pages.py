"""The arithmetic of pages against the rule stated page by page."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from ckpt.live.act import PageRule, PageWork, runs_subtract
from ckpt.model import PAGE, Backing, Content, Mapping
from ckpt.plan.pages import RUN, Span, as_runs, as_spans, first_pages, joined, private_ranges, total

SIZE = 40


def pack(pages: dict[int, int]) -> bytes:
    """One run for each stretch of equal content."""
    out: list[list[int]] = []
    for page in sorted(pages):
        if out and out[-1][0] + out[-1][1] == page and out[-1][2] == pages[page]:
            out[-1][1] += 1
        else:
            out.append([page, 1, pages[page]])
    return b"".join(RUN.pack(*run) for run in out)


def spread(spans: list[Span]) -> set[int]:
    pages = [page for first, end in spans for page in range(first, end)]
    assert pages == sorted(set(pages)), "sorted and disjoint"
    return set(pages)


DATA, ZERO, SAME, ABSENT = Content
contents = st.dictionaries(st.integers(0, SIZE - 1), st.sampled_from((DATA, ZERO)))
scans = st.dictionaries(st.integers(0, SIZE - 1), st.sampled_from((DATA, SAME, ABSENT)))
differences = st.dictionaries(st.integers(0, SIZE - 1), st.sampled_from((DATA, ZERO, ABSENT)))


@given(contents, scans, st.none() | differences, st.integers(0, SIZE), st.integers(0, SIZE))
@settings(max_examples=500, deadline=None)
def test_page_by_page(wanted: dict[int, int], seen: dict[int, int], differs: dict[int, int] | None, cut_a: int, cut_b: int) -> None:
    low, high = sorted((cut_a, cut_b))
    ranges = [item for item in ((0, low, True), (high, SIZE, False)) if item[0] < item[1]]
    work = PageRule(pack(wanted), None if differs is None else pack(differs), ranges).work(pack(seen))
    write, zero, drop = spread(as_spans(work.write)), spread(as_spans(work.zero)), spread(as_spans(work.drop))
    for page in range(SIZE):
        inside, anonymous = page < low or page >= high, page < low
        there = page in seen and seen[page] != ABSENT
        equal = differs is not None and page not in differs and seen.get(page) == SAME
        expected = set()
        if inside and page in wanted and not equal:
            if wanted[page] == DATA:
                expected = {"write"}
            elif not anonymous:
                expected = {"zero"}
            elif there:
                expected = {"drop"}
        elif inside and page not in wanted and there:
            expected = {"drop"}
        got = {name for name, pages in (("write", write), ("zero", zero), ("drop", drop)) if page in pages}
        assert got == expected, page


def test_nothing_written_and_nothing_different_needs_nothing() -> None:
    wanted = pack(dict.fromkeys(range(1000), DATA))
    seen = pack(dict.fromkeys(range(1000), SAME))
    assert PageRule(wanted, b"", [(0, 2000, True)]).work(seen) == PageWork(b"", b"", b"")


def test_private_ranges_join_and_leave_out_what_is_not_ours() -> None:
    anonymous, kernel, file = Backing("anonymous"), Backing("kernel"), Backing("file", "/x", 1, 2)
    mappings = [
        Mapping(0, 4 * PAGE, 3, 0x22, anonymous),
        Mapping(4 * PAGE, 5 * PAGE, 0, 0x22, anonymous),
        Mapping(5 * PAGE, 6 * PAGE, 1, 2, file),
        Mapping(6 * PAGE, 7 * PAGE, 3, 1, file),
        Mapping(7 * PAGE, 8 * PAGE, 5, 2, kernel, "[vdso]"),
    ]
    assert private_ranges(mappings) == [(0, 5, True), (5, 6, False)]


spans = st.sets(st.integers(0, SIZE)).map(lambda pages: [(p, p + 1) for p in sorted(pages)])


@given(spans, spans)
def test_subtract(a: list[Span], b: list[Span]) -> None:
    assert spread(as_spans(runs_subtract(as_runs(a), as_runs(b)))) == spread(a) - spread(b)
    assert total(a) == len(spread(a))


def test_as_runs() -> None:
    assert list(RUN.iter_unpack(as_runs([(3, 5), (9, 10)]))) == [(3, 2, 0), (9, 1, 0)]


@given(spans, st.integers(0, SIZE + 5))
def test_first_pages(a: list[Span], room: int) -> None:
    chosen, left = first_pages(joined(a), room)
    assert total(chosen) == min(room, total(a))
    assert sorted(spread(chosen)) == sorted(spread(a))[:room]
    assert left == total(a) - total(chosen)


def test_joined() -> None:
    assert joined([(1, 3), (2, 5), (5, 6), (8, 9)]) == [(1, 6), (8, 9)]
