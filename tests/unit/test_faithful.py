"""What a restored thread may say otherwise: a wait that begins anew, by every name that a snapshot has for it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ckpt.compare.faithful import unfaithful
from ckpt.model import Snapshot, SyscallState
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
