/* restart.h: the row format of restart_table.inc, which is generated from ckpt/syscalls/table.py and committed. */
#ifndef CKPT_RESTART_H
#define CKPT_RESTART_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>
#include <sys/user.h>

enum {
    NO_ARG = 7,
    INT80 = 1 << 16, /* decision.nr of a call by int 0x80: its number there + this (int80.c) */
};

/* What a call may show at a stop; or-ed. */
enum restart_family {
    FAMILY_EINTR = 1,   /* -4 is the freeze's own doing: -514 lets the kernel decide */
    FAMILY_PARTIAL = 2, /* a positive result below what was wanted may be the freeze's doing */
    FAMILY_FULL = 4,    /* -514, but a restart begins a finite wait anew */
    FAMILY_BLOCK = 8,   /* -516: the kernel remembers the deadline of a finite wait */
    FAMILY_EXPIRES = 16, /* `expired` is all that belongs to the end of its time */
};

/* Where a finite wait is told from an infinite one. */
enum timeout_form {
    TIMEOUT_NONE,     /* there is none, or it is an instant: a restart changes nothing */
    TIMEOUT_MS,       /* an int in milliseconds, negative = infinite */
    TIMEOUT_TIMESPEC, /* a pointer to struct timespec, NULL = infinite */
    TIMEOUT_TIMEVAL,  /* a pointer to struct timeval, NULL = infinite */
    TIMEOUT_RECEIVE,  /* SO_RCVTIMEO of the socket arg[0]: without one the call does not show -4, so finite */
    TIMEOUT_SEND,     /* SO_SNDTIMEO, likewise */
    TIMEOUT_EXT_ARG,  /* io_uring_enter: finite may be when flags (timeout_arg) hold IORING_ENTER_EXT_ARG */
};

/* What a call with several buffers wanted; they are told by the second argument. */
enum restart_vector {
    VECTOR_NONE,
    VECTOR_IOVEC,   /* struct iovec, counted by the third */
    VECTOR_MSGHDR,  /* in one struct msghdr */
    VECTOR_MMSGHDR, /* struct mmsghdr, the result counts those that went: the last of them may be a part */
};

enum { GOES_ON_NOT, GOES_ON_FROM_BUFFER /* at arg[wanted_arg - 1] */, GOES_ON_BY_COUNT /* it keeps the place itself */, GOES_ON_LIST /* of several buffers */ };

struct restart_row {
    int64_t nr;
    uint8_t family;
    uint8_t timeout_arg, timeout_form;
    uint8_t absolute_arg; /* any of absolute_bits there: the timeout is an instant (NO_ARG: never) */
    uint32_t absolute_bits;
    int32_t expired;      /* EXPIRES only: the result when its time is over */
    /* PARTIAL only: result < arg[wanted_arg] (NO_ARG: any positive result), all bits of flags_need in arg[flags_arg] and
     * none of flags_veto. With a vector memory tells (whole.c); MMSGHDR: the last message counts only with all bits of last_need. */
    uint8_t wanted_arg, flags_arg, vector;
    uint8_t goes_on; /* GOES_ON_*: how what is left of a transfer is asked for */
    uint32_t flags_need, flags_veto, last_need;
};

/* NULL: the table does not know the call. */
const struct restart_row *restart_row(int64_t nr);
/* Whether the call would give up by itself after a time that runs from its start. arg: its six arguments. */
bool restart_finite(const struct restart_row *row, const uint64_t arg[6]);
void restart_arguments(const struct user_regs_struct *regs, uint64_t ret_arg[6]);

/* whole.c: whether a count that may be short by registers alone is all that the call wanted, by the thread's memory. */
bool restart_whole(pid_t tid, const struct user_regs_struct *regs, int64_t count);

/* int80.c: whether a stopped thread's call was made by int 0x80; the registers that `syscall` would show. */
bool int80_made(pid_t pid, const struct user_regs_struct *regs);
void int80_as_syscall(const struct user_regs_struct *regs, struct user_regs_struct *ret_regs);
/* decision.nr as the kernel has it in orig_rax. */
static inline uint64_t restart_orig_rax(int64_t nr) { return (uint64_t)(nr >= INT80 && nr < 2 * INT80 ? nr - INT80 : nr); }

#endif
