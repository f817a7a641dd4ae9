"""What a thread goes on with when its wait's continuation is the kernel's and cannot be given back."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ckpt.live.continuation import CODE_BEFORE, continuation
from ckpt.model import Action, RetvalDecision, SyscallState, Thread
from ckpt.syscalls import int80

RIP = 0x401000


def thread(rax: int, nr: int, value: int, remaining_ns: int | None = None, call: int = 0) -> Thread:
    regs = bytearray(27 * 8)
    regs[80:88] = (rax & 2**64 - 1).to_bytes(8, "little")
    regs[128:136] = RIP.to_bytes(8, "little")
    state = SyscallState("user" if nr < 0 else "call", nr, (), rax, remaining_ns, {"call": call} if call else {})
    return Thread(7, 1, bytes(regs), b"", 0, (), state, RetvalDecision(Action.RESTART, value, ""))


def code(*parts: bytes) -> bytes:
    return b"".join(parts).rjust(CODE_BEFORE, b"\x90")


POLL = code(b"\xb8\x07\0\0\0", b"\x48\x89\xdf", b"\x0f\x05")
OTHER = code(b"\x48\x31\xc0", b"\x0f\x05")


POLL_32 = code(b"\xb8\xa8\0\0\0", b"\x89\xfb", b"\xcd\x80")


def test_calls_by_int80_have_their_own_numbers() -> None:
    """restart_syscall is 0 there; 219, and poll's number 7, are other calls."""
    restart, poll = int80.RESTART_SYSCALL, int80.BASE + 168
    again = thread(-516, restart, -516)
    assert continuation(again, lambda _at, _size: POLL_32)[1:] == (poll, again.decision)
    _regs, nr, decision = continuation(again, lambda _at, _size: OTHER)
    assert (nr, decision.action, decision.value) == (restart, Action.KEEP, 0)
    regs, nr, decision = continuation(thread(0, -1, 0), lambda _at, _size: POLL_32)
    assert (words(regs), nr, decision.value) == ((168, RIP), -1, 168)
    plain = thread(0, -1, 0)
    assert continuation(plain, lambda _at, _size: POLL)[0] == plain.regs, "a zero in rax is nothing else"


def words(regs: bytes) -> tuple[int, int]:
    """rax, rip."""
    return int.from_bytes(regs[80:88], "little"), int.from_bytes(regs[128:136], "little")


def test_what_is_no_such_wait_is_left_alone() -> None:
    for one in (thread(-514, 232, -514), thread(-516, 7, -516), thread(5, -1, 5)):
        assert continuation(one, lambda _at, _size: POLL) == (one.regs, one.syscall.nr, one.decision)


def test_interrupted_again() -> None:
    one = thread(-516, 219, -516)
    assert continuation(one, lambda at, size: POLL if (at, size) == (RIP - CODE_BEFORE, CODE_BEFORE) else b"") == (
        one.regs,
        7,
        one.decision,
    )
    _regs, nr, decision = continuation(one, lambda _at, _size: OTHER)
    assert (nr, decision.action, decision.value) == (219, Action.KEEP, 0)


def test_what_remains_of_a_wait_is_given_to_it() -> None:
    for nr, call in ((7, 0), (219, 202)):
        one = thread(-516, nr, -516, 700_000_000, call)
        _regs, found, decision = continuation(one, lambda _at, _size: b"")
        assert (found, decision.action, decision.value) == (call or nr, Action.REBUILD, -516)


def test_the_snapshot_knows_the_call_better_than_its_code() -> None:
    assert continuation(thread(-516, 219, -516, call=35), lambda _at, _size: POLL)[1] == 35


def test_stopped_once_more_before_it_went_on() -> None:
    """219 in rax and rip on the instruction: a restored thread would get EINTR from restart_syscall."""
    one = thread(219, -1, 219)

    def read(at: int, size: int) -> bytes:
        return POLL if (at, size) == (RIP + 2 - CODE_BEFORE, CODE_BEFORE) else b""

    regs, nr, decision = continuation(one, read)
    assert (words(regs), nr, decision.value) == ((7, RIP), -1, 7)
    regs, nr, decision = continuation(one, lambda _at, _size: OTHER)
    assert (words(regs), nr, decision.value) == ((0, RIP + 2), -1, 0)


@pytest.mark.parametrize("found", [b"", b"\x90" * CODE_BEFORE])
def test_a_program_may_have_that_number_in_a_register(found: bytes) -> None:
    one = thread(219, -1, 219)
    assert continuation(one, lambda _at, _size: found) == (one.regs, -1, one.decision)
    assert replace(one) == one
