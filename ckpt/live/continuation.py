"""How a thread that is put in place goes on, where the kernel's memory of its interrupted wait is another's (or nobody's).

poll, nanosleep, futex and clock_nanosleep with a time-out leave their continuation in the thread's restart block, which no one can
set. A rolled-back or restored thread has that of now, or none (restart_syscall would give EINTR). So the call is begun anew, from
its arguments in the registers: with what remained of its time where the generation knows that (REBUILD, native/src/rebuild.c), else
with its whole time. Three states have to be told apart:

 1. interrupted for the first time: rax = -516, orig_rax = the call. The core begins it anew (native/src/threads.c).
 2. interrupted again: rax = -516, orig_rax = 219. Which call it was the snapshot may know from before its first freeze (evidence);
    else the code before the `syscall` instruction tells.
 3. about to go on: the kernel has put 219 into rax and rip back onto the `syscall` instruction, and the thread was stopped once
    more before it ran (two freezes in a row, on a busy machine). No call is under way; rax becomes the call's number again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from ckpt.model import Action, RetvalDecision, Thread
from ckpt.syscalls import int80

RESTART_BLOCK, NR_RESTART_SYSCALL = -516, 219
RESTART_BLOCK_CALLS = (7, 35, 202, 230)  #: poll, nanosleep, futex, clock_nanosleep
MOV_EAX, CODE_BEFORE = 0xB8, 48
SYSCALL, INT80 = b"\x0f\x05", b"\xcd\x80"
_RAX, _RIP = slice(80, 88), slice(128, 136)  #: struct user_regs_struct

#: (address, bytes) -> code of the process; shorter where nothing is mapped
Read = Callable[[int, int], bytes]


def continuation(thread: Thread, read: Read) -> tuple[bytes, int, RetvalDecision]:
    """Registers, number of the call and decision, as the core is to set them."""
    nr, decision, regs = thread.syscall.nr, thread.decision, thread.regs
    rip, rax = int.from_bytes(regs[_RIP], "little"), int.from_bytes(regs[_RAX], "little")
    if nr < 0 and rax in (NR_RESTART_SYSCALL, int80.RESTART_SYSCALL - int80.BASE):
        return _about_to_go_on(thread, rip, read)
    if decision.value == RESTART_BLOCK and thread.syscall.remaining_ns is not None:
        decision = replace(decision, action=Action.REBUILD)
    if decision.value != RESTART_BLOCK or nr not in (NR_RESTART_SYSCALL, int80.RESTART_SYSCALL):
        return regs, nr, decision
    found = thread.syscall.evidence.get("call") or call_before(read(rip - CODE_BEFORE, CODE_BEFORE))
    if found is None:  # a wake-up that nobody caused is something that each of these calls allows
        return regs, nr, replace(decision, action=Action.KEEP, value=0)
    return regs, found, decision


def _about_to_go_on(thread: Thread, rip: int, read: Read) -> tuple[bytes, int, RetvalDecision]:
    code = read(rip + len(SYSCALL) - CODE_BEFORE, CODE_BEFORE)
    restarts = int.from_bytes(thread.regs[_RAX], "little") == NR_RESTART_SYSCALL
    if not code.endswith(SYSCALL if restarts else INT80):
        return thread.regs, thread.syscall.nr, thread.decision  # it is just a number of the program's
    found = call_before(code)
    rax, at = (found % int80.BASE, rip) if found is not None else (0, rip + len(SYSCALL))
    regs = bytearray(thread.regs)
    regs[_RAX], regs[_RIP] = rax.to_bytes(8, "little"), at.to_bytes(8, "little")
    return bytes(regs), thread.syscall.nr, replace(thread.decision, value=rax)


def call_before(code: bytes) -> int | None:
    """The number in the last `mov $nr, %eax` of the bytes that end with `syscall` (or `int 0x80`: with its base), if it is of a call
    that uses restart blocks."""
    base = int80.BASE if code.endswith(INT80) else 0
    if not code.endswith((SYSCALL, INT80)):
        return None
    for at in range(len(code) - 7, -1, -1):
        number = base + int.from_bytes(code[at + 1 : at + 5], "little")
        if code[at] == MOV_EAX and number in (int80.RESTART_BLOCK_CALLS if base else RESTART_BLOCK_CALLS):
            return number
    return None
