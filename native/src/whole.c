/* whole.c: whether a count that a stopped thread's call has shown is all that the call wanted, where that stands in memory.
 *
 * Buffers of writev and sendmsg are a list in the program's memory, so by registers alone any count may be short. The list is read
 * while the thread stands still, only after a positive result (rare: most calls that a stop meets show a restart). What cannot be
 * read, or has been changed by another thread since, is not called whole.
 */
#define _GNU_SOURCE
#include "restart.h"
#include "sys.h"
#include <stddef.h>
#include <sys/socket.h>
#include <sys/uio.h>

enum { BATCH = 64, MOST_PIECES = 1024 /* UIO_MAXIOV */ };

static bool copy(pid_t tid, uint64_t from, void *to, size_t bytes) {
    struct iovec local = {to, bytes}, remote = {(void *)(uintptr_t)from, bytes};
    return sys_vm_readv(tid, &local, 1, &remote, 1) == (ssize_t)bytes;
}

static bool hold_no_more(pid_t tid, uint64_t at, uint64_t pieces, uint64_t count) {
    struct iovec batch[BATCH];
    if (pieces > MOST_PIECES)
        return false;
    for (uint64_t some; pieces; at += some * sizeof *batch, pieces -= some) {
        some = pieces < BATCH ? pieces : BATCH;
        if (!copy(tid, at, batch, some * sizeof *batch))
            return false;
        for (uint64_t i = 0; i < some; i++) {
            if (batch[i].iov_len > count)
                return false;
            count -= batch[i].iov_len;
        }
    }
    return true;
}

static bool one_message(pid_t tid, uint64_t at, uint64_t count) {
    struct msghdr message;
    return copy(tid, at, &message, sizeof message) && hold_no_more(tid, (uintptr_t)message.msg_iov, message.msg_iovlen, count);
}

static bool last_message(pid_t tid, uint64_t at, uint64_t messages) {
    struct mmsghdr last;
    at += (messages - 1) * sizeof last;
    return copy(tid, at, &last, sizeof last) && one_message(tid, at + offsetof(struct mmsghdr, msg_hdr), last.msg_len);
}

bool restart_whole(pid_t tid, const struct user_regs_struct *regs, int64_t count) {
    const struct restart_row *row = restart_row((int64_t)regs->orig_rax);
    uint64_t arg[6];
    restart_arguments(regs, arg);
    if (!row || count <= 0 || (row->wanted_arg != NO_ARG && (uint64_t)count < arg[row->wanted_arg]))
        return false;
    switch ((enum restart_vector)row->vector) {
    case VECTOR_NONE: return false;
    case VECTOR_IOVEC: return hold_no_more(tid, arg[1], arg[2], (uint64_t)count);
    case VECTOR_MSGHDR: return one_message(tid, arg[1], (uint64_t)count);
    case VECTOR_MMSGHDR: return last_message(tid, arg[1], (uint64_t)count);
    }
    return false;
}
