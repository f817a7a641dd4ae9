"""Keep policies, as pure decisions."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckpt.errors import UsageError
from ckpt.history.upkeep import Policy, parse_policy, superfluous

HOUR = 3600 * 10**9


@dataclass(frozen=True)
class Gen:
    number: int
    created_ns: int
    lineage: str = "a"


#: one each 20 minutes from midnight on
DAY = [Gen(n + 1, n * HOUR // 3) for n in range(72)]


def test_last() -> None:
    assert superfluous(parse_policy("last=3"), DAY, []) == list(range(1, 70))


def test_hourly_keeps_the_newest_of_each_hour() -> None:
    gone = superfluous(parse_policy("hourly=2"), DAY, [])
    assert [gen.number for gen in DAY if gen.number not in gone] == [69, 72]


def test_rules_add_up_and_tags_stay() -> None:
    gone = superfluous(parse_policy("last=2, hourly=3, tagged"), DAY, [5])
    assert [gen.number for gen in DAY if gen.number not in gone] == [5, 66, 69, 71, 72]


def test_each_lineage_for_itself_and_its_newest_always() -> None:
    two = [*DAY[:3], Gen(100, 0, "b"), Gen(101, 1, "b")]
    assert superfluous(parse_policy("last=1"), two, []) == [1, 2, 100]
    assert superfluous(parse_policy("tagged"), two, []) == [1, 2, 100]


def test_days_weeks_months() -> None:
    year = [Gen(n + 1, n * 24 * HOUR) for n in range(365)]
    kept = 365 - len(superfluous(parse_policy("daily=7,weekly=4,monthly=12"), year, []))
    assert 18 <= kept <= 23


@pytest.mark.parametrize("text", ["", "last", "last=0", "last=x", "last=-1", "yearly=3", "hourly:3", "tagged=1"])
def test_nonsense_is_a_usage_error(text: str) -> None:
    with pytest.raises(UsageError):
        parse_policy(text)


@given(
    st.lists(st.tuples(st.integers(0, 400), st.sampled_from("ab")), max_size=40),
    st.integers(0, 5),
    st.dictionaries(st.sampled_from(["hourly", "daily"]), st.integers(1, 5)),
    st.sets(st.integers(1, 40)),
)
def test_never_a_tagged_one_nor_the_newest(made: list[tuple[int, str]], last: int, periods: dict[str, int], tagged: set[int]) -> None:
    generations = [Gen(number, hours * HOUR, lineage) for number, (hours, lineage) in enumerate(made, 1)]
    gone = set(superfluous(Policy(last, tuple(periods.items())), generations, tagged))
    assert not gone & tagged
    for lineage in "ab":
        numbers = [gen.number for gen in generations if gen.lineage == lineage]
        assert not gone & set(numbers[-max(1, last) :])
