"""What a restored program may say otherwise: a wait that begins anew, by every name that a snapshot has for it; a timer that went on."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ckpt.compare.faithful import unfaithful
from ckpt.model import Descriptor, OpenFile, Snapshot, SyscallState
from tests.unit import samples

BASE = samples.snapshot()
TASK = BASE.tasks[0]


def standing(rax: int) -> Snapshot:
    """No call is under way in the first thread, and rax holds this: what capture makes of such a thread."""
    regs = bytearray(TASK.threads[0].regs)
    regs[80:88] = rax.to_bytes(8, "little")
    one = replace(TASK.threads[0], regs=bytes(regs), syscall=SyscallState("user", -1, (), rax, None, {}))
    return replace(BASE, tasks=(replace(TASK, threads=(one, *TASK.threads[1:])),))


@pytest.mark.parametrize("number", [7, 35, 202, 230])
def test_a_wait_that_was_about_to_go_on_begins_anew(number: int) -> None:
    assert unfaithful(standing(219), standing(number), 0) == []


@pytest.mark.parametrize(("before", "after"), [(219, 0), (219, 1), (7, 219), (5, 7)])
def test_another_number_is_a_fault(before: int, after: int) -> None:
    (found,) = unfaithful(standing(before), standing(after), 0)
    assert {field.name for field in found.fields} == {"rax", "syscall.raw_retval"}


MS = 1_000_000


def timing(ticks: int, remaining: int, interval: int, expires: int = 0, absolute: int = False) -> Snapshot:
    """With one timerfd; times in ms."""
    state = {"clock": 1, "absolute": bool(expires) or absolute, "cancel": False, "ticks": ticks}
    state |= {"remaining": remaining * MS, "interval": interval * MS, "expires": expires * MS}
    file = OpenFile(7, "timerfd", 2, 0, state)
    return replace(BASE, tasks=(replace(TASK, descriptors=(Descriptor(5, False, 7),)),), files=(file,))


@pytest.mark.parametrize(
    ("before", "after", "passed", "faithful"),
    [
        ((0, 30, 200), (0, 10, 200), 25, True),
        ((0, 30, 200), (1, 190, 200), 45, True),  # it has expired, and began anew
        ((0, 30, 20), (3, 15, 20), 100, True),
        ((0, 30, 200), (2, 190, 200), 45, False),  # so often it cannot have
        ((1, 30, 200), (0, 30, 200), 45, False),
        ((0, 30, 0), (1, 0, 0), 45, True),
        ((0, 300, 0), (1, 0, 0), 45, False),
        ((0, 30, 200, 9000), (1, 190, 200, 9200), 45, True),
        ((0, 30, 200, 9000), (1, 190, 200, 9300), 45, False),
        ((0, 30, 0, 9000), (1, 0, 0, 0, True), 45, True),
    ],
)
def test_a_timer_goes_on_for_as_long_as_has_passed(before: tuple[int, ...], after: tuple[int, ...], passed: int, faithful: bool) -> None:
    assert (unfaithful(timing(*before), timing(*after), passed * MS) == []) is faithful
