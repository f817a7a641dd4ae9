"""The table of blocking calls, the decisions drawn from it, and that C draws the same."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import pytest

from ckpt.model import Action
from ckpt.syscalls import emit
from ckpt.syscalls.decide import ARGS, ORIG_RAX, RAX, RCX, RIP, decide, finite, unpack
from ckpt.syscalls.names import NUMBERS, name, nr
from ckpt.syscalls.table import BY_NR, ROWS, Timeout

MASK = 2**64 - 1


def regs(call: str | int, shown: int, args: tuple[int, ...] = (), *, rip: int = 0x401000, rcx: int = 0x401000) -> list[int]:
    words = [0] * 27
    words[ORIG_RAX] = (nr(call) if isinstance(call, str) else call) & MASK
    words[RAX], words[RIP], words[RCX] = shown & MASK, rip, rcx
    for position, number in zip(ARGS, args, strict=False):
        words[position] = number & MASK
    return words


@pytest.mark.parametrize(("call", "number"), [("read", 0), ("rseq", 334), ("io_uring_enter", 426), ("futex_wait", 455), ("mseal", 462)])
def test_numbers(call: str, number: int) -> None:
    assert nr(call) == number
    assert name(number) == call


def test_names_are_one_to_one() -> None:
    assert len(set(NUMBERS.values())) == len(NUMBERS)
    assert name(-1) == "user space"
    assert name(9999) == "call 9999"


def test_every_number_has_one_row() -> None:
    assert len(BY_NR) == len(ROWS)
    for row in ROWS:
        takes_argument = row.timeout not in (Timeout.NONE, Timeout.SOCKOPT)
        assert takes_argument == (row.timeout_arg < 6), row.name


def test_user_space_and_handler_entry_are_kept() -> None:
    assert decide(regs(-1, -4), False).action is Action.KEEP
    entered = decide(regs("epoll_wait", -4, rcx=7), False)
    assert (entered.action, entered.value) == (Action.KEEP, -4)


@pytest.mark.parametrize("code", [-512, -513, -514, -516])
def test_kernel_restarts_are_left_to_it(code: int) -> None:
    for call in ("read", "nanosleep", "restart_syscall", "getpid"):
        decision = decide(regs(call, code, (1, 1, 1, 1, 1)), False)
        assert (decision.action, decision.value, decision.disturbed) == (Action.RESTART, code, False)


def test_infinite_epoll_wait_restarts_unseen() -> None:
    decision = decide(regs("epoll_wait", -4, (3, 0x7000, 64, 0xFFFFFFFF)), False)
    assert (decision.action, decision.value, decision.disturbed) == (Action.RESTART, -514, False)


def test_finite_epoll_wait_says_that_it_may_be_late() -> None:
    decision = decide(regs("epoll_wait", -4, (3, 0x7000, 64, 250)), False)
    assert (decision.action, decision.value, decision.disturbed) == (Action.RESTART, -514, True)
    assert "late" in decision.reason


def test_eintr_of_another_call_is_genuine() -> None:
    decision = decide(regs("close", -4, (3,)), False)
    assert (decision.action, decision.value, decision.disturbed) == (Action.KEEP, -4, False)


@pytest.mark.parametrize(
    ("call", "args", "count", "disturbed"),
    [
        ("write", (1, 0x7000, 100), 40, True),
        ("write", (1, 0x7000, 100), 100, False),
        ("write", (1, 0x7000, 100), 0, False),
        ("write", (1, 0x7000, 100), -11, False),
        ("recvfrom", (1, 0x7000, 10, 0x100), 3, True),
        ("recvfrom", (1, 0x7000, 10, 0), 3, False),
        ("recvfrom", (1, 0x7000, 10, 0x140), 3, False),
        ("recvmsg", (1, 0x7000, 0x100), 3, True),
        ("io_uring_enter", (4, 1, 1, 1), 1, True),
        ("read", (1, 0x7000, 10), 3, False),
        ("io_getevents", (1, 5, 10, 0, 0), 3, True),
        ("getrandom", (0x7000, 10), 3, False),
    ],
)
def test_short_counts(call: str, args: tuple[int, ...], count: int, disturbed: bool) -> None:
    decision = decide(regs(call, count, args), False)
    assert (decision.action, decision.value, decision.disturbed) == (Action.KEEP, count, disturbed)
    assert not decide(regs(call, count, args), True).disturbed


def test_io_pgetevents_with_a_timeout_starts_it_anew() -> None:
    assert decide(regs("io_pgetevents", -514, (1, 1, 1, 0x7000, 0x7100)), False).disturbed
    assert not decide(regs("io_pgetevents", -514, (1, 1, 1, 0x7000, 0)), False).disturbed


def test_unpack() -> None:
    words = regs("epoll_wait", -4, (3, 4, 5, 6, 7, 8))
    assert list(unpack(struct.pack("<27Q", *words))) == words


def test_committed_c_table_is_the_emitted_one() -> None:
    assert emit.TARGET.read_text() == emit.text(), "run: python -m ckpt.syscalls.emit"


def cases() -> Iterator[tuple[list[int], bool]]:
    """Every row and some calls without one x results x finite and infinite x a handler pending or not."""
    endless, limited = (0, 0, 0, 0, 0, 0), (250,) * 6
    for call in [*sorted(BY_NR), nr("close"), nr("restart_syscall"), nr("getpid"), -1, 9999]:
        for args in (endless, limited, (MASK,) * 6, (0x7000,) * 6, (1, 1, 10, 0x108, 0xFFFFFFFF, 0)):
            for shown in (-512, -513, -514, -515, -516, -4, -11, 0, 1, 5, 249, 250, 251, 0x7000):
                for deliverable in (False, True):
                    yield regs(call, shown, args), deliverable
                    yield regs(call, shown, args, rcx=0), deliverable


def test_c_and_python_decide_the_same() -> None:
    native = pytest.importorskip("native._native", reason="the capture core is not built")
    if not hasattr(native.lib, "ckpt_decide"):
        pytest.skip("the capture core has no ckpt_decide yet")
    actions = {Action.KEEP: 0, Action.RESTART: 1, Action.REBUILD: 2, Action.LINGER: 3}
    wrong, tried, late = [], 0, 0
    answer = native.ffi.new("struct ckpt_decision *")
    for words, deliverable in cases():
        ours = decide(words, deliverable)
        assert native.lib.ckpt_decide(native.ffi.new("uint64_t[27]", words), int(deliverable), answer) == 0
        theirs = (answer.action, answer.value, answer.disturbed, answer.shown)
        tried, late = tried + 1, late + ours.disturbed
        if theirs != (actions[ours.action], ours.value, int(ours.disturbed), words[RAX] - (words[RAX] >> 63 << 64)):
            wrong.append((name(words[ORIG_RAX]), words, deliverable, ours, theirs))
    assert not wrong[:3]
    assert tried > 10_000
    assert late > 100


def test_finite_by_form() -> None:
    assert finite(BY_NR[nr("select")], (0, 0, 0, 0, 0x7000, 0))
    assert not finite(BY_NR[nr("select")], (0, 0, 0, 0, 0, 0))
    assert not finite(BY_NR[nr("mq_timedsend")], (0, 0, 0, 0, 0x7000, 0))
    assert finite(BY_NR[nr("io_uring_enter")], (0, 0, 1, 9, 0, 0))
    assert not finite(BY_NR[nr("io_uring_enter")], (0, 0, 1, 1, 0, 0))
    assert not finite(BY_NR[nr("semop")], (250,) * 6)
    assert finite(BY_NR[nr("read")], (0,) * 6)
