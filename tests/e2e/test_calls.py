"""Each blocking call in each form (tests/workloads/calls) through snapshots, a rollback and a restore while it blocks: its result, its
end in time, its argument registers and its memory are what they would have been.

In time: the deadline counts from the call's beginning, what the program stood still in a snapshot included. After a rollback or a
restore only the time counts that the program was running. How much that is the kernel tells by itself: ppoll, select and pselect6 have
what remains in the program's memory. `SLACK` on top; in a snapshot by how much the waits until an instant, in which ckpt has no
hand, were late on this machine at that moment; after a restore how long ckpt says that it took to set the program going, thread
after thread: the first waits begin with the first of them, the kernel's own with the last.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from tests.harness import Ckpt, Victim, build, did, times
from tests.harness.victim import BIN, VictimError

pytestmark = pytest.mark.alone

CASES = 121
SLACK_US = 20_000
EARLY_US = 1_500  #: a millisecond's rounding, and the clock of a socket's time-out
WHEEL = 8  #: a socket's time-out may come late by this part of it (the kernel's timer wheel); kept by us it does not


@dataclass(frozen=True)
class Said:
    name: str
    kind: str
    result: int
    expected: int
    elapsed_us: int
    changed: str


def report(victim: Victim) -> list[Said]:
    found, line = [], victim.ask("report")
    while line != "END":
        name, kind, result, expected, elapsed, changed = line.split()
        found.append(Said(name, kind, int(result), int(expected), int(elapsed), changed))
        line = victim.line()
    return found


def limited(name: str) -> bool:
    """By SO_RCVTIMEO or SO_SNDTIMEO."""
    return name.endswith("timeo")


BY_THE_KERNEL = ("ppoll", "ppoll/mask", "select", "pselect6")
BY_A_TIMER = ("read/timerfd-runs",)  #: of its own: that runs from when it is set, while ckpt still works at the rest
#: A unix stream that is made again counts what lies in its queue otherwise: there is room for more at once.
ROOM_AGAIN = ("write/timeo", "writev/timeo", "pwritev2/timeo", "sendto/timeo", "sendmsg/timeo", "sendmmsg/timeo", "sendfile/timeo")


def judge(found: list[Said], limit_us: int, *, stood_us: int = 0, going_us: int = 0, apart: bool = False, alone: bool = False) -> None:
    """Says what is wrong. `apart`: a rollback or a restore lies between, only the time that it ran counts. `alone`: without ckpt.
    `going_us`: how long it was being set going. `stood_us`: how long it stood still, which those that the kernel restarts with what
    remains do not count; a timer of its own does."""
    noise = 0 if apart else max(0, *(said.elapsed_us - limit_us for said in found if said.kind == "instant"))
    expected = median(said.elapsed_us for said in found if said.name in BY_THE_KERNEL) if apart else limit_us
    early, wrong = SLACK_US + going_us if apart else EARLY_US, []
    for said in found:
        late = said.elapsed_us - expected
        if said.result != said.expected:
            wrong.append(f"{said.name}: result {said.result}, not {said.expected}")
        if said.changed != "-":
            wrong.append(f"{said.name}: {said.changed}")
        allowed = SLACK_US + going_us + noise + (limit_us // WHEEL if alone and limited(said.name) else 0)
        allowed += stood_us if said.name in BY_THE_KERNEL and not apart else 0
        if said.kind == "finite" and not -early - (stood_us if said.name in BY_A_TIMER and apart else 0) <= late <= allowed:
            wrong.append(f"{said.name}: {late / 1000:+.1f} ms (noise {noise / 1000:.1f} ms)")
    assert not wrong, "\n".join(wrong)


def over(victim: Victim) -> None:
    """Its end, with the queues that have names of the machine's."""
    if victim.alive():
        with suppress(VictimError, OSError):
            victim.ask("clean", timeout_s=5)
    victim.end()


@pytest.fixture
def calls(tmp_path: Path) -> Iterator[Callable[[int], Victim]]:
    build()
    started: list[Victim] = []

    def start(limit_ms: int) -> Victim:
        folder = tmp_path / f"calls-{len(started)}"
        folder.mkdir()
        victim = Victim([str(BIN / "calls"), str(limit_ms), str(folder)], timeout_s=90)
        started.append(victim)
        assert victim.ask("go") == "GONE"
        return victim

    yield start
    for victim in started:
        over(victim)
        did("calls through snapshots", CASES)


def wait_until(victim: Victim, begun: float, limit_ms: int) -> None:
    time.sleep(max(0.0, begun + limit_ms / 1000 + 0.1 - time.monotonic()))
    assert victim.ask("wake") == "WOKEN"


def test_undisturbed(calls: Callable[[int], Victim]) -> None:
    """What the others are measured by."""
    begun = time.monotonic()
    victim = calls(1000)
    wait_until(victim, begun, 1000)
    found = report(victim)
    assert len(found) == CASES
    judge(found, 1_000_000, alone=True)


@pytest.mark.parametrize("snapshots", [1, 3])
def test_through_snapshots(snapshots: int, ckpt: Ckpt, calls: Callable[[int], Victim]) -> None:
    for _ in range(times(1, 20)):
        limit = 6000
        begun = time.monotonic()
        victim = calls(limit)
        stood_us = sum(2 * ckpt.snapshot(victim.pid)["stop_us"] for _ in range(snapshots))  # also while a tracker is armed
        assert time.monotonic() - begun < limit / 1000, "the machine is too slow for this test"
        wait_until(victim, begun, limit)
        judge(report(victim), limit * 1000, stood_us=stood_us)
        over(victim)


def test_rolled_back(ckpt: Ckpt, calls: Callable[[int], Victim]) -> None:
    for _ in range(times(1, 20)):
        limit = 3000
        victim = calls(limit)
        made = ckpt.snapshot(victim.pid)
        time.sleep(limit / 1000)  # all that have an end have come to it
        done = ckpt.json("rollback", made["generation"], "--pid", victim.pid)
        assert done["disturbed"] == []
        wait_until(victim, time.monotonic(), limit)
        judge(report(victim), limit * 1000, apart=True, stood_us=done["stop_us"])
        over(victim)
        did("calls rolled back", CASES)


GOING = ("registers", "ended", "released")


def restore(ckpt: Ckpt, generation: str, told: list[dict[str, Any]], words: Sequence[str]) -> int:
    done = ckpt.json("restore", generation, *words)
    assert done["disturbed"] == []
    told.append(done)
    return int(done["pid"])


def test_restored(ckpt: Ckpt, calls: Callable[[int], Victim]) -> None:
    for round_ in range(times(1, 20)):
        limit = 3000
        victim = calls(limit)
        ckpt.snapshot(victim.pid, "--tag", f"round-{round_}")
        time.sleep(0.5)
        victim.kill()
        time.sleep(1)
        told: list[dict[str, Any]] = []
        victim.revive(partial(restore, ckpt, f"round-{round_}", told))
        wait_until(victim, time.monotonic(), limit)
        found = [said for said in report(victim) if said.name not in ROOM_AGAIN]
        stood_us, going_us = int(told[0]["total_ms"] * 1000), sum(told[0]["phases"][phase] for phase in GOING)
        judge(found, limit * 1000, apart=True, stood_us=stood_us, going_us=going_us)
        over(victim)
        did("calls restored", CASES)
