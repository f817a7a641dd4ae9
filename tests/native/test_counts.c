/* test_counts.c: does whole.c tell a count that is all from one that is a part? Its own memory stands for the stopped thread's. */
#define _GNU_SOURCE
#include "check.h"
#include "restart.h"
#include <stdbool.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>

enum { PIECES = 150, EACH = 7 };

static bool whole(long nr, const void *second, uint64_t third, int64_t count) {
    struct user_regs_struct regs = {.orig_rax = (uint64_t)nr, .rdi = 3, .rsi = (uintptr_t)second, .rdx = third};
    return restart_whole(getpid(), &regs, count);
}

int main(void) {
    struct iovec pieces[PIECES];
    for (int i = 0; i < PIECES; i++)
        pieces[i] = (struct iovec){(void *)0x1000, i % 2 ? 0 : EACH}; /* empty ones between them */
    const int64_t all = PIECES / 2 * EACH;
    struct msghdr message = {.msg_iov = pieces, .msg_iovlen = PIECES};
    struct mmsghdr two[2] = {{message, EACH}, {message, (unsigned)all}};

    CHECK(whole(SYS_writev, pieces, PIECES, all) && !whole(SYS_writev, pieces, PIECES, all - 1));
    CHECK(whole(SYS_writev, pieces, 1, EACH) && !whole(SYS_writev, pieces, 1, 1));
    CHECK(whole(SYS_pwritev2, pieces, PIECES, all) && !whole(SYS_pwritev2, pieces, PIECES, EACH));
    CHECK(whole(SYS_sendmsg, &message, 0, all) && !whole(SYS_sendmsg, &message, 0, all - 1));
    CHECK(whole(SYS_recvmsg, &message, MSG_WAITALL, all) && !whole(SYS_recvmsg, &message, MSG_WAITALL, all - 1));
    CHECK(whole(SYS_sendmmsg, two, 2, 2) && !whole(SYS_sendmmsg, two, 1, 1) && !whole(SYS_sendmmsg, two, 3, 2));
    CHECK(whole(SYS_recvmmsg, two, 2, 2) && !whole(SYS_recvmmsg, two, 1, 1));

    CHECK(!whole(SYS_writev, pieces, PIECES, 0) && !whole(SYS_writev, pieces, PIECES, -4)); /* no count */
    CHECK(!whole(SYS_write, pieces, PIECES, PIECES - 1) && !whole(SYS_read, pieces, PIECES, 1)); /* no vector */
    CHECK(!whole(9999, pieces, PIECES, all));
    CHECK(!whole(SYS_writev, pieces, 1 << 20, INT64_MAX)); /* more than the kernel takes: it has been changed */

    char *gone = mmap(NULL, 2 * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(gone != MAP_FAILED && munmap(gone + 4096, 4096) == 0);
    struct iovec *last = (void *)(gone + 4096 - sizeof *last);
    *last = (struct iovec){NULL, 5};
    CHECK(whole(SYS_writev, last, 1, 5) && !whole(SYS_writev, last, 2, 5)); /* the second one cannot be read */
    message.msg_iov = (void *)(gone + 4096);
    CHECK(!whole(SYS_sendmsg, &message, 0, all) && !whole(SYS_sendmsg, gone + 4096, 0, all) && !whole(SYS_sendmmsg, gone + 4096, 2, 2));
    puts("PASS");
}
