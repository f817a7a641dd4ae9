"""Calls that a 64-bit program makes by `int 0x80`: they have the numbers and the registers of a 32-bit one.

The kernel restarts them as any other (rip back by two bytes, which `int 0x80` has as well, rax = the 32-bit number), so what a stop
shows needs nothing but its own name: restart_syscall is 0 there, and 219 is madvise. Here such a call is its number + BASE. A generation
holds it so, orig_rax as the kernel has it. A finite wait of theirs that is put in place by a rollback or a restore begins with its
whole time.

At a stop nothing but the code tells it (rcx is an argument; the kernel's own mark, TS_COMPAT, is gone once the thread has run a call for
us): `cd 80` before rip, orig_rax, and a result that only an interrupted call has (native/src/int80.c).

What is not here (ipc and socketcall, which are many calls in one) is left as the kernel shows it: perhaps EINTR.
"""

from __future__ import annotations

from collections.abc import Sequence

from ckpt.syscalls.names import INT80, nr

BASE = INT80
RESTART_SYSCALL = BASE  #: 0 in arch/x86/entry/syscalls/syscall_32.tbl

#: number there -> the call of x86-64 that takes the same arguments in the same order and waits in the same way
_SAME: dict[int, str] = {
    3: "read", 4: "write", 5: "open", 29: "pause", 55: "fcntl", 114: "wait4", 142: "select", 143: "flock", 145: "readv", 146: "writev",
    162: "nanosleep", 168: "poll", 177: "rt_sigtimedwait", 179: "rt_sigsuspend", 187: "sendfile", 221: "fcntl", 239: "sendfile",
    240: "futex", 247: "io_getevents", 256: "epoll_wait", 267: "clock_nanosleep", 279: "mq_timedsend", 280: "mq_timedreceive",
    284: "waitid", 295: "openat", 308: "pselect6", 309: "ppoll", 313: "splice", 315: "tee", 316: "vmsplice", 319: "epoll_pwait",
    337: "recvmmsg", 345: "sendmmsg", 362: "connect", 364: "accept4", 369: "sendto", 370: "sendmsg", 371: "recvfrom", 372: "recvmsg",
    385: "io_pgetevents", 400: "msgsnd", 401: "msgrcv", 407: "clock_nanosleep", 413: "pselect6", 414: "ppoll", 416: "io_pgetevents",
    417: "recvmmsg", 418: "mq_timedsend", 419: "mq_timedreceive", 420: "semtimedop", 421: "rt_sigtimedwait", 422: "futex",
    426: "io_uring_enter", 441: "epoll_pwait2", 449: "futex_waitv", 455: "futex_wait",
}  # fmt: skip
SAME: dict[int, int] = {number: nr(name) for number, name in _SAME.items()}
#: numbers (with BASE) of those whose deadline the kernel keeps in the thread's restart block
RESTART_BLOCK_CALLS = tuple(BASE + number for number, name in _SAME.items() if name in ("nanosleep", "poll", "futex", "clock_nanosleep"))

_ORIG_RAX, _RCX, _RIP = 15, 11, 16
_TO, _FROM = (14, 13, 12, 7, 9, 8), (5, 11, 12, 13, 14, 4)  #: rdi rsi rdx r10 r8 r9; rbx rcx rdx rsi rdi rbp


def is_int80(number: int) -> bool:
    return BASE <= number < 2 * BASE


def as_syscall(regs: Sequence[int], number: int) -> list[int]:
    """The registers that the same call would show if `syscall` had made it; a call that is not known has a number that nobody has."""
    found = list(regs)
    for to, source in zip(_TO, _FROM, strict=True):
        found[to] = regs[source] & 0xFFFFFFFF
    found[_RCX] = regs[_RIP]
    found[_ORIG_RAX] = nr("restart_syscall") if number == RESTART_SYSCALL else SAME.get(number - BASE, number)
    return found
