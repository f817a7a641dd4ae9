"""Each kind of system call on the target fails once, in each phase of a snapshot: ckpt says what failed, or does without; the
target goes on, the store is sound, and the next incremental is exact."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.faults import Faults
from tests.harness import SOAK, Ckpt, Victim

Start = Callable[..., Victim]
#: What `make test` takes of the many: every fifth; `make soak` takes all.
EVERY = 1 if SOAK else 5

INSIDE = ("inject", "injected", "batch", "batch-done")


def clear(line: str, pid: int) -> None:
    """What, which resource, what to do: `task 12: seize: Input/output error: try again; ...`."""
    words = line.removeprefix("ckpt: ")
    assert words != line, line
    assert str(pid) in words, line
    assert len(words.split(": ")) >= 3, f"says too little: {line}"


def places(faults: Faults) -> list[str]:
    """The first call of each function of the seam in each phase.

    Not waitpid and ptrace on a thread that runs our code inside the target: they fail there only when it was killed.
    """
    pairs = [(phase, call) for phase, call in (name.split("/") for name in faults.hits() if "/" in name)]
    return [f"{call}@{phase}#1" for phase, call in pairs if not (phase in INSIDE and call in ("sys_wait", "sys_ptrace"))]


@pytest.mark.parametrize("armed", [False, True], ids=["first", "next"])
def test_a_failed_call(armed: bool, ckpt: Ckpt, victim: Start, tmp_path: Path) -> None:
    plain, target, other = Faults(tmp_path), victim("threads4"), victim("threads4")
    ckpt.snapshot(target.pid)
    ckpt.snapshot(target.pid if armed else other.pid, faults=plain)
    seen: dict[int, int] = {}
    for number, place in enumerate(places(plain)):
        if number % EVERY:
            continue
        if not armed:
            other.end()
            target = other = victim("threads4")
        faults = Faults(tmp_path, f"{place}=fail:{errno.EIO}")
        done = ckpt.run("snapshot", target.pid, "--json", faults=faults)
        if done.code:
            assert done.code in (1, 3, 4, 6), (place, done)
            clear(done.refused(done.code), target.pid)
        seen[done.code] = seen.get(done.code, 0) + 1
        assert target.untraced()
        target.verify()
        ckpt.exact(target.pid)
    # Without the tracker, the diagnosis of sockets or the fast priority it does without: the rest must have been seen.
    assert sum(seen.values()) - seen.get(0, 0) >= sum(seen.values()) // 4, seen
    target.verify()
    ckpt.sound()
