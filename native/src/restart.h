/* restart.h: the row format of restart_table.inc, which is generated from ckpt/syscalls/table.py and committed. */
#ifndef CKPT_RESTART_H
#define CKPT_RESTART_H

#include <stdint.h>

enum { NO_ARG = 7 };

/* What a call may show at a stop; or-ed. */
enum restart_family {
    FAMILY_EINTR = 1,   /* -4 is the freeze's own doing: -514 lets the kernel decide */
    FAMILY_PARTIAL = 2, /* a positive result below what was wanted may be the freeze's doing */
    FAMILY_FULL = 4,    /* -514, but a restart begins a finite wait anew */
};

/* Where a finite wait is told from an infinite one. */
enum timeout_form {
    TIMEOUT_NONE,     /* there is none, or it is an instant: a restart changes nothing */
    TIMEOUT_MS,       /* an int in milliseconds, negative = infinite */
    TIMEOUT_TIMESPEC, /* a pointer to struct timespec or timeval, NULL = infinite */
    TIMEOUT_SOCKET,   /* SO_RCVTIMEO or SO_SNDTIMEO: without one the call does not show -4, so finite */
    TIMEOUT_EXT_ARG,  /* io_uring_enter: finite may be when flags (timeout_arg) hold IORING_ENTER_EXT_ARG */
};

struct restart_row {
    int64_t nr;
    uint8_t family;
    uint8_t timeout_arg, timeout_form;
    /* PARTIAL only: result < arg[wanted_arg] (NO_ARG: any positive result), all bits of flags_need in arg[flags_arg] and
     * none of flags_veto. */
    uint8_t wanted_arg, flags_arg;
    uint32_t flags_need, flags_veto;
};

#endif
