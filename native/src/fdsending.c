/* fdsending.c: what a TCP socket has been given to send and the other end may not have got yet: all from the first byte that was not acknowledged.
 *
 * Only repair mode shows it (TCP_REPAIR; wants CAP_NET_ADMIN in the network's user namespace), and in repair mode a socket serves nobody: its
 * program would get EPERM and EINVAL. So:
 *
 *  1. It is entered while the program stands still, and only where bytes wait to be sent or are sent again: a full window.
 *  2. Looking is the work of a process of its own, which shares our memory and nothing else, while we wait for it (CLONE_VM | CLONE_VFORK): a kill
 *     of ours, at whatever moment, does not reach it, and the socket comes out of repair mode all the same.
 *  3. Leaving it takes SO_REUSEADDR away: it is put back. No probe is sent at the end (-1), nothing is seen outside.
 *  4. The send queue is chosen for the peek alone: what is acknowledged while it is chosen would count as sent (net/ipv4/tcp_output.c,
 *     tcp_write_xmit), and be sent again only when it times out.
 */
#define _GNU_SOURCE
#include "capture.h"
#include <errno.h>
#include <netinet/in.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>

enum {
    TCP_INFO_NR = 11, REPAIR = 19, REPAIR_QUEUE = 20, /* include/uapi/linux/tcp.h */
    NO_QUEUE = 0, SEND_QUEUE = 2, ON = 1, OFF_NO_PROBE = -1,
    INFO_BYTES = 148, ESTABLISHED = 1, FIN_WAIT1 = 4, CLOSE_WAIT = 8, /* include/net/tcp_states.h */
    STATE = 0, TROUBLE = 1, TROUBLE_END = 5, NOTSENT = 144, /* in struct tcp_info; trouble: ca_state, retransmits, probes, backoff */
    TIOCOUTQ_NR = 0x5411,
    STACK_BYTES = 64 << 10,
};

struct looking {
    int fd;
    char *room;
    size_t size;
    ssize_t got; /* what it has learnt */
};

static int repair(int fd, int option, int value) { return sys_setsockopt(fd, IPPROTO_TCP, option, &value, sizeof value); }

static int look(void *argument) {
    struct looking *looking = argument;
    int reuse = 0;
    size_t size = sizeof reuse;
    struct iovec data = {.iov_base = looking->room, .iov_len = looking->size};
    struct msghdr message = {.msg_iov = &data, .msg_iovlen = 1};
    int error = sys_getsockopt(looking->fd, SOL_SOCKET, SO_REUSEADDR, &reuse, &size);
    if (!error)
        error = repair(looking->fd, REPAIR, ON);
    if (error) {
        looking->got = error;
        return 0;
    }
    ckpt_mark("sending");
    error = repair(looking->fd, REPAIR_QUEUE, SEND_QUEUE);
    looking->got = error ? error : sys_recvmsg(looking->fd, &message, MSG_PEEK | MSG_DONTWAIT);
    repair(looking->fd, REPAIR_QUEUE, NO_QUEUE);
    repair(looking->fd, REPAIR, OFF_NO_PROBE);
    sys_setsockopt(looking->fd, SOL_SOCKET, SO_REUSEADDR, &reuse, sizeof reuse);
    return 0;
}

/* A full window, or something that has to be sent again. `fin`: of what waits to be acknowledged the last is no byte. */
static bool is_stuck(int fd, bool *fin) {
    uint8_t info[INFO_BYTES] = {0};
    size_t size = sizeof info;
    uint32_t notsent;
    if (sys_getsockopt(fd, IPPROTO_TCP, TCP_INFO_NR, info, &size) || size < sizeof info)
        return false;
    memcpy(&notsent, info + NOTSENT, sizeof notsent);
    bool trouble = false;
    for (int at = TROUBLE; at < TROUBLE_END; at++)
        trouble |= info[at] != 0;
    *fin = info[STATE] == FIN_WAIT1;
    return (info[STATE] == ESTABLISHED || info[STATE] == CLOSE_WAIT || *fin) && (notsent || trouble);
}

int fd_sending(struct window *window, const struct open_fd *entry, int dup) {
    int waiting = 0;
    bool fin;
    if (!is_stuck(dup, &fin) || sys_ioctl(dup, TIOCOUTQ_NR, &waiting) < 0 || (waiting -= fin) <= 0)
        return 0;
    _cleanup_free_ char *stack = malloc(STACK_BYTES);
    struct looking looking = {.fd = dup, .size = (size_t)waiting, .got = -ECHILD};
    looking.room = sink_record_begin(window->sink, CKPT_R_FD_WORK, entry->pid, 0, entry->fd, CKPT_W_SENDING, (size_t)waiting);
    if (!looking.room || !stack)
        return -ENOMEM;
    sigset_t all, before;
    sigfillset(&all);
    sigprocmask(SIG_SETMASK, &all, &before);
    pid_t child = clone(look, stack + STACK_BYTES, CLONE_VM | CLONE_VFORK, &looking);
    int status;
    while (child > 0 && waitpid(child, &status, __WALL) < 0 && errno == EINTR)
        ;
    sigprocmask(SIG_SETMASK, &before, NULL);
    if (looking.got == waiting) /* else it may not be looked at, and the kind says how much is under way */
        sink_record_commit(window->sink, (size_t)waiting);
    return 0;
}
