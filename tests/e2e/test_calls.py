"""Each blocking call in each form (tests/workloads/calls.c) through snapshots, a rollback and a restore while it blocks: its result, its
end in time, its argument registers and its memory are what they would have been.

In time: the deadline counts from the call's beginning, what the program stood still in a snapshot included. After a rollback or a
restore only the time counts that the program was running. How much that is the kernel tells by itself: ppoll, select and pselect6 have
what remains in the program's memory. `SLACK` on top, and in a snapshot by how much the waits until an instant, in which ckpt has no
hand, were late on this machine at that moment.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median

import pytest

from tests.harness import Ckpt, Victim, build, did, times
from tests.harness.victim import BIN

EINTR, EAGAIN, ETIMEDOUT = -4, -11, -110
CASES = 57
SLACK_US = 20_000
EARLY_US = 1_500  #: a millisecond's rounding, and the clock of a socket's time-out
WHEEL = 8  #: a socket's time-out may come late by this part of it (the kernel's timer wheel); kept by us it does not
#: Results by name; what is not here gives 0 (its time is over), or what it was woken with.
RESULTS: Mapping[str, int] = {
    **dict.fromkeys(("futex", "futex/private", "futex/instant", "futex/realtime", "futex/pi", "futex_waitv"), ETIMEDOUT),
    **dict.fromkeys(("semtimedop", "rt_sigtimedwait"), EAGAIN),
    **dict.fromkeys(("epoll_wait/endless", "epoll_pwait2/endless", "poll/endless", "ppoll/endless", "select/endless"), 1),
    **dict.fromkeys(("read/pipe", "read/eventfd", "read/timerfd", "recvfrom", "recvfrom/waitall-endless", "recvmsg", "msgrcv"), 8),
    **dict.fromkeys(("splice", "tee"), 8),
    **dict.fromkeys(("sendto", "write/pipe"), 100),
    **dict.fromkeys(("pause", "rt_sigsuspend"), EINTR),
    "read/signalfd": 128,
}


@dataclass(frozen=True)
class Said:
    name: str
    kind: str
    result: int
    elapsed_us: int
    changed: str


def report(victim: Victim) -> list[Said]:
    found, line = [], victim.ask("report")
    while line != "END":
        name, kind, result, elapsed, changed = line.split()
        found.append(Said(name, kind, int(result), int(elapsed), changed))
        line = victim.line()
    return found


def limited(name: str) -> bool:
    """By SO_RCVTIMEO or SO_SNDTIMEO."""
    return name.endswith(("timeo", "/waitall", "/udp", "/unix"))


def right_result(said: Said) -> bool:
    if said.name in ("accept", "rt_sigtimedwait/endless"):
        return said.result > 0
    return said.result == RESULTS.get(said.name, EAGAIN if limited(said.name) else 0)


BY_THE_KERNEL = ("ppoll", "select", "pselect6")
#: Begun anew by each stop; a keeper ends them.
KEPT_BY_US = (
    *("epoll_wait", "epoll_pwait", "epoll_pwait2", "semtimedop", "rt_sigtimedwait", "read", "readv", "recvfrom", "recvmsg", "recvmmsg"),
    *("accept", "accept4", "write", "sendto", "sendmsg"),
)
#: A connection that is made again counts what lies in its queue otherwise: there may be room for more at once.
ROOM_AGAIN = ("write/sndtimeo", "sendto/sndtimeo", "sendmsg/sndtimeo")


def judge(found: list[Said], limit_us: int, *, stood_us: int = 0, apart: bool = False, alone: bool = False, anew: int = 0) -> list[str]:
    """What is wrong. `apart`: a rollback or a restore lies between, only the time that it ran counts. `alone`: without ckpt. `stood_us`:
    how long it stood still, which those that the kernel restarts with what remains do not count. `anew`: by so much those may come
    late that nobody keeps."""
    noise = 0 if apart else max(0, *(said.elapsed_us - limit_us for said in found if said.kind == "instant"))
    expected = median(said.elapsed_us for said in found if said.name in BY_THE_KERNEL) if apart else limit_us
    early, wrong = SLACK_US if apart else EARLY_US, []
    for said in found:
        late = said.elapsed_us - expected
        if not right_result(said):
            wrong.append(f"{said.name}: result {said.result}")
        if said.changed != "-":
            wrong.append(f"{said.name}: {said.changed}")
        allowed = SLACK_US + noise + (limit_us // WHEEL if alone and limited(said.name) else 0)
        allowed += stood_us if said.name in BY_THE_KERNEL else 0
        allowed += anew if said.name.split("/")[0] in KEPT_BY_US else 0
        if said.kind == "finite" and not -early <= late <= allowed:
            wrong.append(f"{said.name}: {late / 1000:+.1f} ms (noise {noise / 1000:.1f} ms)")
    return wrong


@pytest.fixture
def calls() -> Iterator[Callable[[int], Victim]]:
    build()
    started: list[Victim] = []

    def start(limit_ms: int) -> Victim:
        victim = Victim([str(BIN / "calls"), str(limit_ms)], timeout_s=90)
        started.append(victim)
        assert victim.ask("go") == "GONE"
        return victim

    yield start
    for victim in started:
        victim.end()
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
    assert judge(found, 1_000_000, alone=True) == []


@pytest.mark.parametrize("snapshots", [1, 3])
def test_through_snapshots(snapshots: int, ckpt: Ckpt, calls: Callable[[int], Victim]) -> None:
    for _ in range(times(1, 20)):
        limit = 6000
        begun = time.monotonic()
        victim = calls(limit)
        stood_us = sum(2 * ckpt.snapshot(victim.pid)["stop_us"] for _ in range(snapshots))  # also while a tracker is armed
        assert time.monotonic() - begun < limit / 1000, "the machine is too slow for this test"
        wait_until(victim, begun, limit)
        assert judge(report(victim), limit * 1000, stood_us=stood_us) == []
        victim.end()


def test_rolled_back(ckpt: Ckpt, calls: Callable[[int], Victim]) -> None:
    for _ in range(times(1, 20)):
        limit = 3000
        victim = calls(limit)
        made = ckpt.snapshot(victim.pid)
        time.sleep(limit / 1000)  # all that have an end have come to it
        done = ckpt.json("rollback", made["generation"], "--pid", victim.pid)
        assert done["disturbed"] == []
        wait_until(victim, time.monotonic(), limit)
        assert judge(report(victim), limit * 1000, apart=True) == []
        victim.end()
        did("calls rolled back", CASES)


def restore(ckpt: Ckpt, generation: str, words: Sequence[str]) -> int:
    return int(ckpt.json("restore", generation, *words)["pid"])


def test_restored(ckpt: Ckpt, calls: Callable[[int], Victim]) -> None:
    for round_ in range(times(1, 20)):
        limit = 3000
        victim = calls(limit)
        ckpt.snapshot(victim.pid, "--tag", f"round-{round_}")
        time.sleep(0.5)
        victim.kill()
        time.sleep(1)
        victim.revive(partial(restore, ckpt, f"round-{round_}"))
        wait_until(victim, time.monotonic(), limit)
        found = [said for said in report(victim) if said.name not in ROOM_AGAIN]
        # After a restore nobody keeps those: they come late by what they had waited, and the restore says so.
        assert judge(found, limit * 1000, apart=True, anew=limit * 1000) == []
        victim.end()
        did("calls restored", CASES)
