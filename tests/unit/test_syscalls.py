"""The table of blocking calls, the decisions drawn from it, and that C draws the same."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import pytest

from ckpt.model import Action
from ckpt.syscalls import emit, int80
from ckpt.syscalls.decide import ARGS, ORIG_RAX, RAX, RCX, RIP, Waited, decide, finite, unpack
from ckpt.syscalls.names import NUMBERS, name, nr
from ckpt.syscalls.table import (
    BY_NR,
    EINTR,
    ERESTART_RESTARTBLOCK,
    ERESTARTNOHAND,
    NO_ARG,
    RESTART_CODES,
    ROWS,
    GoesOn,
    Row,
    Timeout,
    Vector,
)
from ckpt.syscalls.told import Told

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
        takes_argument = row.timeout not in (Timeout.NONE, Timeout.RCVTIMEO, Timeout.SNDTIMEO)
        assert takes_argument == (row.timeout_arg < 6), row.name


def test_user_space_and_handler_entry_are_kept() -> None:
    assert decide(regs(-1, -4), False).action is Action.KEEP
    entered = decide(regs("epoll_wait", -4, rcx=7), False)
    assert (entered.action, entered.value) == (Action.KEEP, -4)


@pytest.mark.parametrize("code", [-512, -513, -514, -516])
def test_kernel_restarts_are_left_to_it(code: int) -> None:
    for call in ("read", "nanosleep", "restart_syscall", "getpid"):
        decision = decide(regs(call, code, (1, 0, 1, 1, 1)), False)
        assert (decision.action, decision.value, decision.disturbed) == (Action.RESTART, code, False)


def limited(row: Row) -> list[int]:
    """Arguments that give this call a limit that runs from its start."""
    args = [1, 0, 250, 250, 0x7000, 0]
    if row.timeout in (Timeout.TIMESPEC, Timeout.TIMEVAL, Timeout.TIMESPEC_ABS, Timeout.MS):
        args[row.timeout_arg] = 250
    if row.timeout is Timeout.EXT_ARG:
        args[row.timeout_arg] = 8
    if row.absolute_arg != NO_ARG:
        args[row.absolute_arg] &= ~row.absolute_bits
    return args


def endless(row: Row) -> list[int] | None:
    """Arguments without one; None where -4 is shown only with a limit."""
    if row.timeout in (Timeout.RCVTIMEO, Timeout.SNDTIMEO):
        return None
    args = [1, 0, 0, 0, 0, 0]
    if row.timeout is Timeout.MS:
        args[row.timeout_arg] = -1
    elif row.timeout_arg != NO_ARG:
        args[row.timeout_arg] = 0
    return args


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_each_row(row: Row) -> None:
    """Each code that a freeze shows of it, with a limit and without, its end known and not."""
    known, unknown = Waited(700_000_000, "seen"), Waited(None, "nobody saw it begin")
    with_limit = tuple(limited(row))
    assert finite(row, with_limit) == (row.timeout not in (Timeout.NONE, Timeout.TIMESPEC_ABS))
    for shown in row.shown:
        late = decide(regs(row.name, shown, with_limit), False, unknown)
        kept = decide(regs(row.name, shown, with_limit), False, known)
        assert shown in RESTART_CODES or shown == EINTR
        assert late.value == (ERESTARTNOHAND if shown == EINTR else shown)
        assert kept.value == late.value
        if shown == EINTR and finite(row, with_limit):
            assert (late.action, late.disturbed) == (Action.RESTART, True)
            assert "nobody saw it begin" in late.reason
            ends = row.expired is not None
            assert (kept.action, kept.disturbed) == (Action.LINGER if ends else Action.RESTART, not ends)
        elif shown == ERESTART_RESTARTBLOCK:
            assert (kept.action, kept.disturbed) == (Action.RESTART, False)
            assert "700.0 ms remain" in kept.reason
        without = endless(row)
        if without is not None and shown != EINTR:
            unseen = decide(regs(row.name, shown, tuple(without)), False, known)
            assert (unseen.action, unseen.disturbed) == (Action.RESTART, False)
            assert unseen.value == (ERESTARTNOHAND if shown == ERESTART_RESTARTBLOCK else shown)


@pytest.mark.parametrize("row", [row for row in ROWS if row.eintr or row.block], ids=lambda row: row.name)
def test_each_finite_wait_can_be_ended_or_shortened(row: Row) -> None:
    """A row whose deadline nobody keeps must say so here: select and its kin have more than a result at their end."""
    if row.timeout is Timeout.NONE:
        return
    assert row.expired is not None or (row.block and row.shorten) or row.name in ("ppoll", "select", "pselect6")


def test_an_instant_is_no_limit_from_the_start() -> None:
    until = (0x7000, 9, 0, 0x7100, 0, MASK)  # FUTEX_WAIT_BITSET
    assert not finite(BY_NR[nr("futex")], until)
    assert not finite(BY_NR[nr("clock_nanosleep")], (1, 1, 0x7000))
    decision = decide(regs("futex", -516, until), False)
    assert (decision.action, decision.value, decision.disturbed) == (Action.RESTART, -514, False)


def test_a_wait_that_had_only_just_begun_is_not_late() -> None:
    decision = decide(regs("epoll_wait", -4, (3, 0x7000, 64, 250)), False, Waited(None, "it had begun just before the freeze", fresh=True))
    assert (decision.action, decision.value, decision.disturbed) == (Action.RESTART, -514, False)


def test_a_call_that_was_restarted_has_its_name() -> None:
    assert "nanosleep" in decide(regs("restart_syscall", -516, (0x7000,)), False, Waited(5_000_000, "seen", nr("nanosleep"))).reason


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


TOLD = Told(300_000_000, 300_000_000, "its timer", {})
JIFFIES = Told(296_000_000, 304_000_000, "its timer, which counts jiffies", {})


@pytest.mark.parametrize("row", [row for row in ROWS if row.block or row.expired is not None], ids=lambda row: row.name)
@pytest.mark.parametrize("reckoned", [None, 250_000_000, 700_000_000])
def test_the_kernels_word_goes_before_what_was_reckoned(row: Row, reckoned: int | None) -> None:
    shown = ERESTART_RESTARTBLOCK if row.block else EINTR
    words = regs(row.name, shown, tuple(limited(row)))
    told = decide(words, False, Waited(reckoned, "since it went to sleep", told=TOLD))
    assert "300.0 ms" in told.reason
    assert told.reason.endswith("eBPF saw its timer")
    assert "went to sleep" not in told.reason
    assert (told.action, told.disturbed) == (Action.RESTART if row.block else Action.LINGER, False)
    assert "eBPF" not in decide(words, False, Waited(reckoned, "since it went to sleep")).reason


def test_between_two_jiffies_the_reckoned_end_has_its_say() -> None:
    """It is never too early, and may be far too late."""
    for reckoned, left in ((None, 304_000_000), (100, 296_000_000), (299_000_000, 299_000_000), (900_000_000, 304_000_000)):
        assert Waited(reckoned, "since it went to sleep", told=JIFFIES).left_ns == left
        reason = decide(regs("recvfrom", EINTR, (3, 0x7000, 1)), False, Waited(reckoned, "", told=JIFFIES)).reason
        assert f"{left / 1e6:.1f} ms" in reason
        assert "jiffies" in reason


def test_told_times_run_from_the_stop_on() -> None:
    assert (JIFFIES.since(100_000_000).earliest, JIFFIES.since(300_000_000).earliest) == (196_000_000, 0)
    assert Waited(None, "", told=JIFFIES.since(400_000_000)).left_ns == 0


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
        ("getdents64", (1, 0x7000, 100), 3, False),
        ("getrandom", (0x7000, 10000), 4096, True),
        ("getrandom", (0x7000, 10000), 10000, False),
        ("copy_file_range", (3, 0, 4, 0, 10000), 4096, True),
        ("splice", (3, 0, 4, 0, 10000), 4096, True),
        ("splice", (3, 0, 4, 0, 10000), 10000, False),
        ("sendfile", (3, 4, 0, 10000), 4096, True),
        ("writev", (1, 0x7000, 2), 4096, True),
        ("writev", (1, 0x7000, 2), -11, False),
        ("pwritev2", (1, 0x7000, 2, MASK, MASK), 4096, True),
        ("pwritev", (1, 0x7000, 2, 0), 4096, False),
        ("readv", (1, 0x7000, 2), 3, False),
        ("preadv2", (1, 0x7000, 2, MASK, MASK), 3, False),
        ("sendmsg", (1, 0x7000, 0), 4096, True),
        ("sendmsg", (1, 0x7000, 0x40), 4096, False),
        ("sendmmsg", (1, 0x7000, 4, 0), 3, True),
        ("sendmmsg", (1, 0x7000, 4, 0), 4, True),
        ("sendmmsg", (1, 0x7000, 4, 0x40), 3, False),
        ("recvmmsg", (1, 0x7000, 4, 0), 3, True),
        ("recvmmsg", (1, 0x7000, 4, 0), 4, False),
        ("recvmmsg", (1, 0x7000, 4, 0x100), 4, True),
        ("recvmmsg", (1, 0x7000, 4, 0x10000), 3, False),
        ("tee", (1, 2, 10000), 4096, False),
        ("vmsplice", (1, 0x7000, 2), 4096, False),
    ],
)
def test_short_counts(call: str, args: tuple[int, ...], count: int, disturbed: bool) -> None:
    decision = decide(regs(call, count, args), False)
    assert (decision.action, decision.value, decision.disturbed) == (Action.KEEP, count, disturbed)
    assert not decide(regs(call, count, args), True).disturbed
    whole = decide(regs(call, count, args), False, whole=True)
    assert (whole.value, whole.disturbed, "short" in whole.reason) == (count, False, False)


@pytest.mark.parametrize(
    ("call", "args", "count", "words"),
    [
        ("write", (1, 0x7000, 100), 40, "write had done 40 of 100: the caller sees a short count"),
        ("writev", (1, 0x7000, 2), 40, "writev had done 40: the caller sees a short count"),
        ("sendmmsg", (1, 0x7000, 4), 3, "sendmmsg had done 3 of 4: the caller sees a short count"),
        ("sendmmsg", (1, 0x7000, 4), 4, "sendmmsg had done 4, the last of them in part: the caller sees a short count"),
    ],
)
def test_short_counts_in_words(call: str, args: tuple[int, ...], count: int, words: str) -> None:
    assert decide(regs(call, count, args), False).reason == words


def test_what_goes_on_is_no_short_count() -> None:
    decision = decide(regs("sendto", 4096, (3, 0x7000, 10000, 0)), False, goes_on=True)
    assert (decision.action, decision.value, decision.disturbed) == (Action.GO_ON, 4096, False)
    assert decision.reason == "sendto had done 4096 of 10000: it goes on with the rest"


@pytest.mark.parametrize("row", [row for row in ROWS if row.goes_on is not GoesOn.NOT], ids=lambda row: row.name)
def test_what_goes_on_has_one_buffer_and_a_count_or_a_list(row: Row) -> None:
    """native/src/transfer.c: both are in registers; lists.c: it is behind the second argument, and the third is put back."""
    assert row.partial
    assert (row.goes_on is GoesOn.LIST) == (row.vector in (Vector.IOVEC, Vector.MSGHDR))
    assert (row.goes_on is GoesOn.LIST) == (row.wanted_arg == NO_ARG)
    assert row.nr < 1 << 16


def test_what_goes_on_with_a_list_says_how_much_it_had_done() -> None:
    assert decide(regs("writev", 4096, (3, 0x7000, 4, 0)), False, goes_on=True).reason == "writev had done 4096: it goes on with the rest"


def test_io_pgetevents_with_a_timeout_starts_it_anew() -> None:
    assert decide(regs("io_pgetevents", -514, (1, 1, 1, 0x7000, 0x7100)), False).disturbed
    assert not decide(regs("io_pgetevents", -514, (1, 1, 1, 0x7000, 0)), False).disturbed


def test_unpack() -> None:
    words = regs("epoll_wait", -4, (3, 4, 5, 6, 7, 8))
    assert list(unpack(struct.pack("<27Q", *words))) == words


def test_committed_c_table_is_the_emitted_one() -> None:
    assert emit.TARGET.read_text() == emit.text(), "run: python -m ckpt.syscalls.emit"


def test_committed_table_of_int80_is_the_emitted_one() -> None:
    assert emit.INT80_TARGET.read_text() == emit.int80_text(), "run: python -m ckpt.syscalls.emit"


def by_int80(number: int, shown: int, args: tuple[int, ...]) -> list[int]:
    words = regs("close", shown, (0,) * 6, rcx=0)
    for position, value in zip((5, 11, 12, 13, 14, 4), (*args, 0, 0, 0, 0, 0, 0), strict=False):  # rbx rcx rdx rsi rdi rbp
        words[position] = value | 0xABC << 32  # the upper halves say nothing
    words[ORIG_RAX] = number - int80.BASE
    return words


def test_calls_by_int80_are_decided_as_the_same_calls() -> None:
    poll, epoll_wait, restart = int80.BASE + 168, int80.BASE + 256, int80.RESTART_SYSCALL
    for words, number, action, value, late in (
        (by_int80(168, -516, (0x7000, 1, 250)), poll, Action.RESTART, -516, False),
        (by_int80(168, -516, (0x7000, 1, 0xFFFFFFFF)), poll, Action.RESTART, -514, False),
        (by_int80(256, -4, (3, 0x7000, 64, 0xFFFFFFFF)), epoll_wait, Action.RESTART, -514, False),
        (by_int80(256, -4, (3, 0x7000, 64, 250)), epoll_wait, Action.RESTART, -514, True),
        (by_int80(0, -516, (0x7000, 1, 250)), restart, Action.RESTART, -516, False),
        (by_int80(117, -4, (1, 2, 3)), int80.BASE + 117, Action.KEEP, -4, False),
    ):
        decision = decide(int80.as_syscall(words, number), False)
        assert (decision.action, decision.value, decision.disturbed) == (action, value, late), number
    assert not int80.is_int80(-1)
    assert not int80.is_int80(nr("poll"))
    assert int80.is_int80(poll)
    assert name(poll) == "32-bit call 168 by int 0x80"


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
