"""Segments against a dictionary of pages: whatever is done to both, they name the same."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from ckpt.model import PAGE
from ckpt.plan.segments import Segment, Segments

ROOM = 40
spans = st.tuples(st.integers(0, ROOM), st.integers(0, ROOM)).map(sorted).filter(lambda span: span[0] < span[1])
steps = st.one_of(
    st.tuples(st.just("remove"), spans, st.just(0)),
    st.tuples(st.just("move"), spans, st.integers(0, ROOM)),
)


def pages(segments: Segments) -> dict[int, int]:
    found = {}
    for number in range(3 * ROOM):
        one = segments.at(number * PAGE)
        if one is not None:
            found[number] = one.source // PAGE
    return found


@given(st.lists(spans, max_size=5), st.lists(steps, max_size=12))
@settings(max_examples=300, deadline=None)
def test_whatever_the_program_does(held: list[list[int]], done: list[tuple[str, list[int], int]]) -> None:
    model: dict[int, int] = {}
    segments = Segments()
    for low, high in held:  # one that overlaps takes the place
        segments.remove(low * PAGE, high * PAGE)
        segments.move(0, 0, 0)
        for number in range(low, high):
            model[number] = number + 1000
        segments = Segments([*segments._all, Segment(low * PAGE, high * PAGE, (low + 1000) * PAGE)])
    for what, (low, high), to in done:
        if what == "remove":
            segments.remove(low * PAGE, high * PAGE)
            for number in range(low, high):
                model.pop(number, None)
            continue
        if to < high and low < to + high - low:
            continue  # mremap refuses to move onto itself
        segments.move(low * PAGE, high * PAGE, to * PAGE)
        moved = {number - low + to: model.pop(number) for number in range(low, high) if number in model}
        for number in range(to, to + high - low):
            model.pop(number, None)
        model |= moved
    assert pages(segments) == model
    assert segments.bytes_left() == len(model) * PAGE
    assert bool(segments) == bool(model)
    low, high = ROOM // 4, ROOM
    here = {
        (one.start + at) // PAGE: (one.source + at) // PAGE
        for one in segments.within(low * PAGE, high * PAGE)
        for at in range(0, one.end - one.start, PAGE)
    }
    assert here == {number: source for number, source in model.items() if low <= number < high}


def test_a_search_goes_round() -> None:
    segments = Segments([Segment(0, 2 * PAGE, 0), Segment(8 * PAGE, 9 * PAGE, 8 * PAGE)])
    assert segments.after(PAGE) == Segment(PAGE, 2 * PAGE, PAGE)
    assert segments.after(3 * PAGE) == Segment(8 * PAGE, 9 * PAGE, 8 * PAGE)
    assert segments.after(20 * PAGE) == Segment(0, 2 * PAGE, 0)
    assert Segments().after(0) is None


def test_an_empty_range_holds_nothing() -> None:
    segments = Segments([Segment(0, 8 * PAGE, 0)])
    assert segments.within(4 * PAGE, 4 * PAGE) == []
