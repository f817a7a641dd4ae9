"""How a thread continues after a freeze: from the registers at its stop to a decision with a reason in words. Pure.

At PTRACE_EVENT_STOP a thread is inside get_signal(), so a -51x in rax makes the kernel itself decide: a handler is pending,
then the call ends with EINTR; none is, then it restarts. -514 (ERESTARTNOHAND) is therefore what a call of the EINTR family
gets: 3605 freezes against random handlers gave 0 spurious and 0 lost EINTR, where leaving -4 alone gave 2230 spurious ones.

Rules, in order (native/src/restart.c has the same; a test compares them row by row):

1. Not returning from a SYSCALL instruction (orig_rax = -1, or rcx != rip: a handler's entry): KEEP.
2. -516 of a call that waits without a limit or until an instant: RESTART with -514, it begins anew under its own number. Other
   -516, -512, -513, -514: RESTART with the value shown.
3. -4 of a call of the EINTR family: RESTART with -514. A finite timeout begins anew: where its deadline is known it is LINGER, somebody
   ends it then (native/src/keeper.c); else its end comes late: disturbed.
4. A short count of a call that would have gone on: GO_ON where the rest can be asked for (native/src/transfer.c), else KEEP, disturbed;
   unless a handler is pending, which would have cut it too. Where what it wanted stands in memory any count may be short, until the
   memory says that it is whole (native/src/whole.c).
5. Anything else: KEEP.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

from ckpt.model import Action, RetvalDecision
from ckpt.syscalls.names import name
from ckpt.syscalls.table import (
    BY_NR,
    EINTR,
    ERESTART_RESTARTBLOCK,
    ERESTARTNOHAND,
    IORING_ENTER_EXT_ARG,
    NO_ARG,
    RESTART_CODES,
    Row,
    Timeout,
    Vector,
)
from ckpt.syscalls.told import Told

#: Positions in struct user_regs_struct
RAX, RCX, ORIG_RAX, RIP = 10, 11, 15, 16
ARGS = (14, 13, 12, 7, 9, 8)  #: rdi rsi rdx r10 r8 r9
WORDS = 27


def unpack(regs: bytes) -> tuple[int, ...]:
    """model.Thread.regs -> 27 unsigned words."""
    return struct.unpack(f"<{WORDS}Q", regs)


def arguments(regs: Sequence[int]) -> tuple[int, ...]:
    return tuple(regs[position] for position in ARGS)


def _signed(value: int, bits: int) -> int:
    value &= (1 << bits) - 1
    return value - (1 << bits) if value >> (bits - 1) else value


def finite(row: Row, args: Sequence[int]) -> bool:
    """Whether the call would give up by itself after a time that runs from its start."""
    if row.absolute_arg != NO_ARG and args[row.absolute_arg] & row.absolute_bits:
        return False
    match row.timeout:
        case Timeout.NONE | Timeout.TIMESPEC_ABS:
            return False
        case Timeout.MS:
            return _signed(args[row.timeout_arg], 32) >= 0
        case Timeout.TIMESPEC | Timeout.TIMEVAL:
            return args[row.timeout_arg] != 0
        case Timeout.RCVTIMEO | Timeout.SNDTIMEO:
            return True
        case Timeout.EXT_ARG:
            return bool(args[row.timeout_arg] & IORING_ENTER_EXT_ARG)


def short(row: Row, args: Sequence[int], count: int) -> bool:
    """Whether `count` may be less than what the call would have gone on for; by registers alone."""
    flags = args[row.flags_arg] if row.flags_arg != NO_ARG else 0
    if not row.partial or count <= 0 or flags & row.flags_need != row.flags_need or flags & row.flags_veto:
        return False
    if row.vector is Vector.MMSGHDR and flags & row.last_need == row.last_need:
        return True
    return row.wanted_arg == NO_ARG or count < args[row.wanted_arg]


@dataclass(frozen=True, slots=True)
class Waited:
    """What is known of the end of a finite wait."""

    remaining_ns: int | None  #: from the stop on, as it was reckoned; None: not known
    source: str  #: how it is known, or why it is not
    nr: int = 0  #: the call, where the kernel shows another number for it; 0: not known
    fresh: bool = False  #: it had only just begun: its whole time is what remains
    kept: bool = True  #: somebody ends it at its deadline, where the kernel does not
    told: Told | None = None  #: what remained by the kernel's own timer, which eBPF saw at the stop

    @property
    def left_ns(self) -> int | None:
        return self.told.with_reckoned(self.remaining_ns) if self.told is not None else self.remaining_ns

    @property
    def words(self) -> str:
        return self.told.words if self.told is not None else self.source


def decide(
    regs: Sequence[int], deliverable: bool, waited: Waited | None = None, *, whole: bool = False, goes_on: bool = False
) -> RetvalDecision:
    """`deliverable`: a signal that has a handler is pending and not blocked (procfs.Status.deliverable). `whole`: memory has said that
    a count is all that was wanted. `goes_on`: the core sends the thread on with the rest of its transfer."""
    nr, shown = _signed(regs[ORIG_RAX], 64), _signed(regs[RAX], 64)
    if nr < 0:
        return RetvalDecision(Action.KEEP, shown, "in user space")
    if regs[RCX] != regs[RIP]:
        return RetvalDecision(Action.KEEP, shown, "not at the end of a call: a handler has been entered")
    row, args = BY_NR.get(nr), arguments(regs)
    if shown in RESTART_CODES:
        return _restarted_by_kernel(nr, shown, row, args, waited)
    if shown == EINTR and row is not None and row.eintr:
        return _interrupted(nr, row, args, waited)
    if shown == EINTR:
        return RetvalDecision(Action.KEEP, shown, f"{name(nr)} was interrupted by a signal of its own")
    if row is not None and not whole and short(row, args, shown):
        return _cut(row, args, shown, deliverable, goes_on)
    return RetvalDecision(Action.KEEP, shown, f"{name(nr)} had its result")


def _cut(row: Row, args: Sequence[int], count: int, deliverable: bool, goes_on: bool) -> RetvalDecision:
    if row.wanted_arg != NO_ARG and count < args[row.wanted_arg]:
        done = f"{count} of {args[row.wanted_arg]}"
    else:
        done = f"{count}, the last of them in part" if row.vector is Vector.MMSGHDR else f"{count}"
    if goes_on:
        return RetvalDecision(Action.GO_ON, count, f"{row.name} had done {done}: it goes on with the rest")
    if deliverable:
        return RetvalDecision(Action.KEEP, count, f"{row.name} was cut short by a signal of its own")
    reason = f"{row.name} had done {done}: the caller sees a short count"
    return RetvalDecision(Action.KEEP, count, reason, disturbed=True)


def _ms(ns: int) -> str:
    return f"{ns / 1e6:.1f} ms"


def _restarted_by_kernel(nr: int, shown: int, row: Row | None, args: Sequence[int], waited: Waited | None) -> RetvalDecision:
    if shown == ERESTART_RESTARTBLOCK and row is not None and row.block and not finite(row, args):
        return RetvalDecision(Action.RESTART, ERESTARTNOHAND, f"{name(nr)} waits without a limit or until an instant: it restarts unseen")
    if shown == ERESTART_RESTARTBLOCK and waited is not None:
        nr = waited.nr or nr
        left = "what remains is not known" if waited.left_ns is None else f"{_ms(waited.left_ns)} remain"
        return RetvalDecision(Action.RESTART, shown, f"the kernel restarts {name(nr)} with its deadline; {left}: {waited.words}")
    if shown == ERESTARTNOHAND and row is not None and row.full and finite(row, args):
        reason = f"the kernel restarts {name(nr)} with its whole timeout: it may end late by the time already waited"
        return RetvalDecision(Action.RESTART, shown, reason, disturbed=True)
    return RetvalDecision(Action.RESTART, shown, f"the kernel restarts {name(nr)}")


def _interrupted(nr: int, row: Row, args: Sequence[int], waited: Waited | None) -> RetvalDecision:
    if finite(row, args) and waited is not None and waited.fresh:
        return RetvalDecision(Action.RESTART, ERESTARTNOHAND, f"{name(nr)} had only just begun: it restarts with its whole timeout")
    if finite(row, args) and row.expired is not None and waited is not None and waited.left_ns is not None and waited.kept:
        reason = f"{name(nr)} restarts, and is ended at its deadline, {_ms(waited.left_ns)} after the stop: {waited.words}"
        return RetvalDecision(Action.LINGER, ERESTARTNOHAND, reason)
    if finite(row, args):
        why = f" ({waited.words})" if waited is not None else ""
        reason = f"{name(nr)} restarts with its whole timeout: it may end late by the time already waited{why}"
        return RetvalDecision(Action.RESTART, ERESTARTNOHAND, reason, disturbed=True)
    return RetvalDecision(Action.RESTART, ERESTARTNOHAND, f"{name(nr)} waits without a limit: it restarts unseen")
