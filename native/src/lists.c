/* lists.c: what is left of a call that writes or sends several buffers (writev, pwritev2, sendmsg), as a list of our own.
 *
 * The program's list begins with what has been done, and is the program's: so who goes on (transfer.c) gets a shorter one, in a second slot
 * whose code is never run. There is room for four buffers, or for a message of one: of its struct msghdr sendmsg does not read the last field,
 * so the buffer's address and length may overlap it. (recvmsg writes it, and the program may not write there: EFAULT, with the bytes taken.)
 *
 * Invariants
 *  1. Only what is left is in it, each byte once, in order; what has no room there does not go on.
 *  2. A message with a name or with control data is not sent in two: those went with its first part.
 *  3. pwritev2 only at the file's own position and without flags: as writev.
 */
#define _GNU_SOURCE
#include "restart.h"
#include "transfer.h"
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>

enum { BATCH = 32, MOST_PIECES = 1024 /* UIO_MAXIOV */, MOST_LEFT = BACK / sizeof(struct iovec), OVERLAP = offsetof(struct msghdr, msg_flags) };
_Static_assert(OVERLAP + sizeof(struct iovec) == BACK, "a message and its buffer fit a slot");

static bool copy(const struct task *owner, uint64_t from, void *to, size_t bytes) { return sys_pread(owner->mem, to, bytes, from) == (ssize_t)bytes; }

/* Buffers that hold something behind `done` bytes; 0 = none, more than `most`, or it cannot be known. */
static unsigned rest(const struct task *owner, uint64_t at, uint64_t pieces, uint64_t done, struct iovec *ret_left, unsigned most) {
    struct iovec batch[BATCH];
    uint64_t all = 0;
    unsigned count = 0;
    if (pieces > MOST_PIECES)
        return 0;
    for (uint64_t some; pieces; at += some * sizeof *batch, pieces -= some) {
        some = pieces < BATCH ? pieces : BATCH;
        if (!copy(owner, at, batch, some * sizeof *batch))
            return 0;
        for (uint64_t i = 0; i < some; i++) {
            uint64_t skip = done < batch[i].iov_len ? done : batch[i].iov_len;
            done -= skip;
            all += batch[i].iov_len;
            if (skip == batch[i].iov_len)
                continue;
            if (count == most || all > INT32_MAX)
                return 0;
            ret_left[count++] = (struct iovec){(uint8_t *)batch[i].iov_base + skip, batch[i].iov_len - skip};
        }
    }
    return count;
}

unsigned list_left(const struct task *owner, const struct restart_row *row, const uint64_t arg[6], uint64_t done, ckpt_addr_t at, uint8_t ret_list[BACK]) {
    struct iovec left[MOST_LEFT] = {{0}};
    struct msghdr message;
    if (row->vector == VECTOR_IOVEC) {
        bool plain = row->nr != SYS_pwritev2 || ((int64_t)arg[3] == -1 && !arg[5]);
        unsigned count = plain ? rest(owner, arg[1], arg[2], done, left, MOST_LEFT) : 0;
        memcpy(ret_list, left, BACK);
        return count;
    }
    if (row->vector != VECTOR_MSGHDR || !copy(owner, arg[1], &message, sizeof message) || (message.msg_name && message.msg_namelen) || message.msg_controllen)
        return 0;
    unsigned count = rest(owner, (uintptr_t)message.msg_iov, message.msg_iovlen, done, left, 1);
    message = (struct msghdr){.msg_iov = (void *)(uintptr_t)(at + OVERLAP), .msg_iovlen = 1};
    memcpy(ret_list, &message, sizeof message);
    memcpy(ret_list + OVERLAP, left, sizeof *left);
    return count;
}
