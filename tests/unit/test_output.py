"""Numbers for people."""

from __future__ import annotations

import pytest

from ckpt.cli import output


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0"), (812, "812 B"), (4096, "4.0 KiB"), (340 << 20, "340 MiB"), (1 << 30, "1.0 GiB"), (5 << 40, "5.0 TiB")]
)
def test_size(count: int, text: str) -> None:
    assert output.size(count) == text


@pytest.mark.parametrize(
    ("ns", "text"),
    [(0, "0 us"), (812_000, "812 us"), (1_500_000, "1.5 ms"), (250_000_000, "250 ms"), (2_300_000_000, "2.3 s"), (240 * 10**9, "4 min")],
)
def test_duration(ns: int, text: str) -> None:
    assert output.duration(ns) == text


@pytest.mark.parametrize(("seconds", "text"), [(-5, "0 s"), (12, "12 s"), (300, "5 min"), (3 * 3600, "3 h"), (8 * 86400, "8 d")])
def test_age(seconds: int, text: str) -> None:
    assert output.age(10**18, 10**18 + seconds * 10**9) == text


def test_counts() -> None:
    assert [output.count(1, "tag"), output.count(2, "tag"), output.count(2, "process")] == ["1 tag", "2 tags", "2 processes"]
    assert [output.share(1, 3), output.share(0, 0)] == ["33 %", "-"]
