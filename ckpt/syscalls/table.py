"""One row per blocking call of x86-64: what a freeze makes of it, and what tells how to continue it.

Measured by freezing each of them (PTRACE_INTERRUPT, then detach) on Linux 6.18. A call that has no row restarts by itself
(-512 and its kin) or never blocks. `python -m ckpt.syscalls.emit` turns the rows that matter to a decision into C, for in
the frozen window no Python runs; decide.py explains the same decisions afterwards, and a test holds the two equal.

1. A number has one row. Variants by an operation code (futex, fcntl) need none: they show -51x, which the kernel restarts.
2. Everything a decision needs stands in registers. Memory of the target is read only after it, to take back what registers cannot rule
   out: that a count is less than a vector of buffers wanted (`vector`, native/src/whole.c).
3. A wait keeps its deadline in one of two ways. `block`: the kernel's restart block holds it; a live thread has it, for another one
   the call is begun with what remains and interrupted at once (REBUILD; `shorten` says where its time stands). `expired`: nothing
   holds it; the call begins anew, and at its deadline somebody gives it the result that its own timer would have given (LINGER).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from ckpt.syscalls.names import NUMBERS

ERESTARTSYS = -512
ERESTARTNOINTR = -513
ERESTARTNOHAND = -514
ERESTART_RESTARTBLOCK = -516
EINTR = -4
RESTART_CODES = (ERESTARTSYS, ERESTARTNOINTR, ERESTARTNOHAND, ERESTART_RESTARTBLOCK)

EAGAIN, EINPROGRESS, ETIME = -11, -115, -62

MSG_DONTWAIT = 0x40
MSG_WAITALL = 0x100
MSG_WAITFORONE = 0x10000
IORING_ENTER_GETEVENTS = 1
IORING_ENTER_EXT_ARG, IORING_ENTER_ABS_TIMER = 8, 32
FUTEX_CMD_MASK = 0x7F  #: of the operation, without FUTEX_PRIVATE_FLAG and FUTEX_CLOCK_REALTIME; 0 is FUTEX_WAIT
TIMER_ABSTIME = 1
NO_ARG = 7  #: "none" where an argument's position stands


class Timeout(IntEnum):
    """How a call is told when to give up."""

    NONE = 0  #: never
    MS = 1  #: an int of milliseconds; negative: never
    TIMESPEC = 2  #: a pointer to a relative struct timespec; NULL: never
    TIMESPEC_ABS = 3  #: a pointer to an instant; NULL: never
    TIMEVAL = 4  #: a pointer to a relative struct timeval; NULL: never
    RCVTIMEO = 5  #: SO_RCVTIMEO of the socket that the first argument names, in jiffies; -4 is shown only where one is set
    SNDTIMEO = 6  #: SO_SNDTIMEO, likewise
    EXT_ARG = 7  #: io_uring_enter: in a struct, if the flags (timeout_arg) have IORING_ENTER_EXT_ARG


class Vector(IntEnum):
    """How a call is told its buffers, where it has more than one."""

    NONE = 0
    IOVEC = 1  #: the second argument points to them, the third counts them
    MSGHDR = 2  #: the second argument points to a struct msghdr, which has them
    MMSGHDR = 3  #: the second argument points to such messages, of which the result says how many went; the last of them may be a part


class GoesOn(IntEnum):
    """How a transfer that was cut short is begun again where it was (native/src/transfer.c)."""

    NOT = 0
    FROM_BUFFER = 1  #: the address is the argument before `wanted_arg`
    BY_COUNT = 2  #: the kernel keeps the place: only the count is less
    LIST = 3  #: a list of what is left stands in for the program's


@dataclass(frozen=True, slots=True)
class Row:
    name: str
    shown: tuple[int, ...]  #: rax at the stop, of those that a freeze can cause
    timeout: Timeout = Timeout.NONE
    timeout_arg: int = NO_ARG
    absolute_arg: int = NO_ARG  #: holds bits of which any says that the timeout is an instant
    absolute_bits: int = 0
    block: bool = False  #: shows -516: the kernel remembers its deadline
    expired: int | None = None  #: its result when its time is over; None: more than a result belongs to that
    eintr: bool = False  #: shows -4 where the kernel would not restart it: rax = -514 lets it decide about signals
    full: bool = False  #: a restart by the kernel begins the whole timeout again
    partial: bool = False  #: a result above 0 may be a part of what was wanted, under the conditions that follow
    wanted_arg: int = NO_ARG  #: holds the count asked for, which must be more than the result; NO_ARG: any result may be a part
    flags_arg: int = NO_ARG  #: holds flags that say whether it would have gone on
    flags_need: int = 0  #: all of these
    flags_veto: int = 0  #: none of these
    vector: Vector = Vector.NONE  #: what was wanted stands in memory
    last_need: int = 0  #: MMSGHDR: flags without which a last message that is not full is nothing unusual
    goes_on: GoesOn = GoesOn.NOT  #: how what a stop has left of it is asked for

    @property
    def nr(self) -> int:
        return NUMBERS[self.name]

    @property
    def decides(self) -> bool:
        """Whether the C table needs the row."""
        return self.eintr or self.full or self.partial or self.block

    @property
    def shorten(self) -> str:
        """Where the time that it may last is to be changed: "register", "memory", or "" where it is not ours to change."""
        if self.timeout is Timeout.MS:
            return "register"
        return "memory" if self.timeout in (Timeout.TIMESPEC, Timeout.TIMEVAL) else ""


_SYS, _NOINTR, _NOHAND, _BLOCK = RESTART_CODES
_T = Timeout
_V = Vector
_G = GoesOn
_ALL, _NOWAIT = MSG_WAITALL, MSG_DONTWAIT

ROWS: tuple[Row, ...] = (
    # sleeps and waits for signals
    Row("nanosleep", (_BLOCK,), _T.TIMESPEC, 0, block=True),
    Row("clock_nanosleep", (_BLOCK, _NOHAND), _T.TIMESPEC, 2, 1, TIMER_ABSTIME, block=True),
    Row("pause", (_NOHAND,)),
    Row("rt_sigsuspend", (_NOHAND,)),
    Row("rt_sigtimedwait", (EINTR,), _T.TIMESPEC, 2, expired=EAGAIN, eintr=True),
    # readiness
    Row("poll", (_BLOCK,), _T.MS, 2, block=True),
    Row("ppoll", (_NOHAND, EINTR), _T.TIMESPEC, 2, expired=0, eintr=True),  # -4: the timespec cannot be written back; revents are 0 by then
    Row("select", (_NOHAND, EINTR), _T.TIMEVAL, 4, eintr=True),
    Row("pselect6", (_NOHAND, EINTR), _T.TIMESPEC, 4, eintr=True),
    Row("epoll_wait", (EINTR,), _T.MS, 3, expired=0, eintr=True),
    Row("epoll_pwait", (EINTR,), _T.MS, 3, expired=0, eintr=True),
    Row("epoll_pwait2", (EINTR,), _T.TIMESPEC, 3, expired=0, eintr=True),
    # futexes: WAIT -512 or -516, LOCK_PI and WAIT_REQUEUE_PI -513
    Row("futex", (_SYS, _NOINTR, _BLOCK), _T.TIMESPEC, 3, 1, FUTEX_CMD_MASK, block=True),
    Row("futex_waitv", (_SYS,), _T.TIMESPEC_ABS, 3),
    Row("futex_wait", (_SYS,), _T.TIMESPEC_ABS, 4),
    # reads, and writes that may have done a part
    Row("read", (_SYS, EINTR), _T.RCVTIMEO, expired=EAGAIN, eintr=True),
    Row("readv", (_SYS, EINTR), _T.RCVTIMEO, expired=EAGAIN, eintr=True),
    Row("write", (_SYS, EINTR), _T.SNDTIMEO, expired=EAGAIN, eintr=True, partial=True, wanted_arg=2, goes_on=_G.FROM_BUFFER),
    Row("writev", (_SYS, EINTR), _T.SNDTIMEO, expired=EAGAIN, eintr=True, partial=True, vector=_V.IOVEC, goes_on=_G.LIST),
    Row("preadv2", (_SYS, EINTR), _T.RCVTIMEO, expired=EAGAIN, eintr=True),  # from where the file is: as readv, on a pipe or a socket
    Row("pwritev2", (_SYS, EINTR), _T.SNDTIMEO, expired=EAGAIN, eintr=True, partial=True, vector=_V.IOVEC, goes_on=_G.LIST),
    Row(
        "splice", (_SYS, EINTR), _T.RCVTIMEO, expired=EAGAIN, eintr=True, partial=True, wanted_arg=4, goes_on=_G.BY_COUNT
    ),  # a pipe to a socket
    Row("tee", (_SYS,)),
    Row("vmsplice", (_SYS,)),
    Row("sendfile", (_SYS, EINTR), _T.SNDTIMEO, expired=EAGAIN, eintr=True, partial=True, wanted_arg=3, goes_on=_G.BY_COUNT),
    Row("copy_file_range", (_SYS,), partial=True, wanted_arg=4, goes_on=_G.BY_COUNT),  # long, not blocking: it stops between two pieces
    Row("getrandom", (_SYS,), partial=True, wanted_arg=1, goes_on=_G.FROM_BUFFER),  # likewise, after each page
    # sockets
    Row("accept", (_SYS, EINTR), _T.RCVTIMEO, expired=EAGAIN, eintr=True),
    Row("accept4", (_SYS, EINTR), _T.RCVTIMEO, expired=EAGAIN, eintr=True),
    Row("connect", (_SYS, EINTR), _T.SNDTIMEO, expired=EINPROGRESS, eintr=True),  # of a unix socket: EAGAIN (native/src/waits.c)
    Row(
        "recvfrom",
        (_SYS, EINTR),
        _T.RCVTIMEO,
        expired=EAGAIN,
        eintr=True,
        partial=True,
        wanted_arg=2,
        flags_arg=3,
        flags_need=_ALL,
        flags_veto=_NOWAIT,
        goes_on=_G.FROM_BUFFER,
    ),
    Row(
        "recvmsg",
        (_SYS, EINTR),
        _T.RCVTIMEO,
        expired=EAGAIN,
        eintr=True,
        partial=True,
        flags_arg=2,
        flags_need=_ALL,
        flags_veto=_NOWAIT,
        vector=_V.MSGHDR,
    ),
    Row(
        "recvmmsg",
        (_SYS, EINTR),
        _T.RCVTIMEO,
        expired=EAGAIN,
        eintr=True,
        partial=True,
        wanted_arg=2,
        flags_arg=3,
        flags_veto=_NOWAIT | MSG_WAITFORONE,
        vector=_V.MMSGHDR,
        last_need=_ALL,
    ),
    Row(
        "sendto",
        (_SYS, EINTR),
        _T.SNDTIMEO,
        expired=EAGAIN,
        eintr=True,
        partial=True,
        wanted_arg=2,
        flags_arg=3,
        flags_veto=_NOWAIT,
        goes_on=_G.FROM_BUFFER,
    ),
    Row(
        "sendmsg",
        (_SYS, EINTR),
        _T.SNDTIMEO,
        expired=EAGAIN,
        eintr=True,
        partial=True,
        flags_arg=2,
        flags_veto=_NOWAIT,
        vector=_V.MSGHDR,
        goes_on=_G.LIST,
    ),
    Row(
        "sendmmsg",
        (_SYS, EINTR),
        _T.SNDTIMEO,
        expired=EAGAIN,
        eintr=True,
        partial=True,
        wanted_arg=2,
        flags_arg=3,
        flags_veto=_NOWAIT,
        vector=_V.MMSGHDR,
    ),
    # System V and POSIX queues
    Row("semop", (EINTR,), eintr=True),
    Row("semtimedop", (EINTR,), _T.TIMESPEC, 3, expired=EAGAIN, eintr=True),
    Row("msgrcv", (_NOHAND,)),
    Row("msgsnd", (_NOHAND,)),
    Row("mq_timedsend", (_SYS,), _T.TIMESPEC_ABS, 4),
    Row("mq_timedreceive", (_SYS,), _T.TIMESPEC_ABS, 4),
    # asynchronous i/o
    Row("io_getevents", (EINTR,), _T.TIMESPEC, 4, expired=0, eintr=True, partial=True, wanted_arg=1),
    Row("io_pgetevents", (_NOHAND,), _T.TIMESPEC, 4, full=True, partial=True, wanted_arg=1),
    Row(
        "io_uring_enter",
        (EINTR,),
        _T.EXT_ARG,
        3,
        3,
        IORING_ENTER_ABS_TIMER,
        expired=ETIME,
        eintr=True,
        partial=True,
        flags_arg=3,
        flags_need=IORING_ENTER_GETEVENTS,
    ),
    # children, locks, opening a FIFO
    Row("wait4", (_SYS,)),
    Row("waitid", (_SYS,)),
    Row("flock", (_SYS,)),
    Row("fcntl", (_SYS,)),
    Row("open", (_SYS,)),
    Row("openat", (_SYS,)),
)

BY_NR: dict[int, Row] = {row.nr: row for row in ROWS}
