"""What GEN means, over lineages, branches and removed parents."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckpt.errors import CkptError, NotFoundError, UsageError
from ckpt.history.names import check_tag, lineages, resolve


@dataclass(frozen=True)
class Gen:
    number: int
    parent: int | None
    lineage: str = "aaaa1111"
    command: str = "redis-server"
    pid: int = 4121


#: redis: 1-2-3, and after a rollback to 2: 2-5-6. worker: 4-7 under one pid, 9 under another
REDIS = [Gen(1, None), Gen(2, 1), Gen(3, 2), Gen(5, 2), Gen(6, 5)]
WORKER = [Gen(4, None, "bbbb2222", "worker", 77), Gen(7, 4, "bbbb2222", "worker", 77), Gen(9, 7, "bbbb2222", "worker", 90)]
BOTH = REDIS + WORKER
TAGS = {"before-upgrade": 2, "v1": 7}


@pytest.mark.parametrize(
    ("spec", "number"),
    [
        ("3", 3),
        ("before-upgrade", 2),
        ("before-upgrade~1", 1),
        ("v1~", 4),
        ("redis-server@latest", 6),
        ("redis-server@latest~1", 5),
        ("redis-server@latest~2", 2),
        ("worker@latest", 9),
        ("bbbb@latest~1", 7),
        ("6~3", 1),
    ],
)
def test_resolves(spec: str, number: int) -> None:
    assert resolve(spec, BOTH, TAGS) == number


def test_latest_of_one_lineage_needs_no_name() -> None:
    assert resolve("latest", REDIS, {}) == 6
    assert resolve("latest~1", REDIS, {}) == 5


def test_latest_of_several_is_refused_and_names_the_candidates() -> None:
    with pytest.raises(NotFoundError, match=r"2 lineages: say worker@latest \(= 9\) or redis-server@latest \(= 6\)"):
        resolve("latest", BOTH, TAGS)


def test_pid_and_lineage_choose() -> None:
    assert resolve("latest", BOTH, TAGS, pid=77) == 9
    assert resolve("latest~2", BOTH, TAGS, pid=4121) == 2
    assert resolve("latest", BOTH, TAGS, lineage="redis-server") == 6


def test_two_programs_of_one_name_are_told_apart_by_pid() -> None:
    twins = [*REDIS, Gen(8, None, "cccc3333", "redis-server", 555)]
    with pytest.raises(NotFoundError, match=r"--pid 555 \(redis-server\) \(= 8\) or --pid 4121"):
        resolve("redis-server@latest", twins, {})
    assert resolve("redis-server@latest", twins, {}, pid=555) == 8


def test_a_recycled_pid_belongs_to_the_newest() -> None:
    recycled = [*REDIS, Gen(8, None, "cccc3333", "other", 4121)]
    assert resolve("latest", recycled, {}, pid=4121) == 8


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("12", "no generation 12: the store holds 1..9"),
        ("nosuch", "no generation or tag nosuch"),
        ("nginx@latest", "no lineage nginx"),
        ("bbb@latest", "no lineage bbb"),
        ("1~1", "first of its history"),
        ("6~9", "first of its history, 3 before"),
    ],
)
def test_unknown(spec: str, says: str) -> None:
    with pytest.raises(NotFoundError, match=says):
        resolve(spec, BOTH, TAGS)


def test_removed_parent_is_named() -> None:
    kept = [item for item in REDIS if item.number != 5]
    with pytest.raises(NotFoundError, match="generation 5, the parent of 6, was removed"):
        resolve("latest~1", kept, {})


def test_empty_store() -> None:
    with pytest.raises(NotFoundError, match="no generation yet"):
        resolve("latest", [], {})


@pytest.mark.parametrize("name", ["12", "latest", "", "a b", "a~1", "a@latest", "-x", "~"])
def test_tags_that_would_read_as_something_else(name: str) -> None:
    with pytest.raises(UsageError):
        check_tag(name)


@given(st.text(max_size=12))
def test_any_text_resolves_or_is_refused_by_one_error(spec: str) -> None:
    try:
        number = resolve(spec, BOTH, TAGS)
    except CkptError:
        return
    assert number in {item.number for item in BOTH}


@given(st.from_regex(r"[A-Za-z0-9_.:/+@~-]{1,8}", fullmatch=True))
def test_every_allowed_tag_resolves_to_itself(name: str) -> None:
    try:
        check_tag(name)
    except UsageError:
        return
    assert resolve(name, BOTH, {name: 3}) == 3


def test_lineages_newest_last() -> None:
    assert [group[-1].number for group in lineages(BOTH).values()] == [6, 9]
