"""A snapshot's --tag does not take a name away from another generation."""

from __future__ import annotations

from collections.abc import Callable

from tests.harness import Ckpt, Victim


def test_a_name_is_not_moved_silently(ckpt: Ckpt, victim: Callable[..., Victim]) -> None:
    target = victim("sleeper")
    first = ckpt.snapshot(target.pid, "--tag", "good")
    ckpt.run("snapshot", target.pid, "--tag", "good").refused(2, "good", str(first["generation"]), "--force")
    assert len(ckpt.generations()) == 1
    assert ckpt.snapshot(target.pid, "--incremental")["kind"] == "incremental", "the refused one touched nothing"
