/* fdsending.c: what a TCP socket has been given to send and the other end may not have got yet: all from the first byte that was not acknowledged.
 *
 * Only repair mode shows it (TCP_REPAIR; wants CAP_NET_ADMIN in the network's user namespace), and in repair mode a socket serves nobody: its
 * program would get EPERM and EINVAL. So:
 *
 *  1. It is entered while the program stands still, and only where bytes wait to be sent or are sent again: a full window.
 *  2. Looking is the work of a process of its own, which shares our memory and nothing else, while we wait for it (CLONE_VM | CLONE_VFORK): a kill
 *     of ours, at whatever moment, does not reach it, and the socket comes out of repair mode all the same.
 *  3. Leaving it takes SO_REUSEADDR away: it is put back. No probe is sent at the end (-1), nothing is seen outside.
 *  4. The send queue is chosen for the peek alone: what is acknowledged while it is chosen (a probe of a full window, the other end's late
 *     answer) makes all that waits count as under way, without a look at window or congestion, and it is sent only when it times out
 *     (net/ipv4/tcp_output.c, tcp_write_xmit). tcpi_bytes_sent does not count it, then or later: seen once in a hundred looks at
 *     a full window, and any program that looks so does it, too.
 *  5. So how much was written is told as what was acknowledged and what was not (tcpi_bytes_acked, SIOCOUTQ), which nothing disturbs. Where that
 *     is more than was sent, or waits to be, by more than a SYN, the connection is looked at as one with a full window.
 *
 * Record: u64 `written` (struct outgoing), and the bytes that were asked for, if they could be had.
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
    ESTABLISHED = 1, FIN_WAIT1 = 4, FIN_WAIT2 = 5, CLOSE_WAIT = 8, /* include/net/tcp_states.h */
    /* in struct tcp_info; trouble: ca_state, retransmits, probes, backoff */
    STATE = 0, TROUBLE = 1, TROUBLE_END = 5, ACKED = 120, NOTSENT = 144, SENT = 200, SENT_AGAIN = 208, INFO_BYTES = 216,
    TRIES = 16,
    TIOCOUTQ_NR = 0x5411,
    STACK_BYTES = 64 << 10,
};

struct looking {
    int fd;
    char *room;
    size_t size;
    ssize_t got; /* what it has learnt */
};

/* `written`: all that its program has given it, and one more where it is the end that connected (its SYN was acknowledged, too). */
struct outgoing {
    uint64_t written;
    int waiting; /* bytes of it that are not acknowledged */
    bool stuck;
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

static int look_apart(struct looking *looking) {
    _cleanup_free_ char *stack = malloc(STACK_BYTES);
    if (!stack)
        return -ENOMEM;
    looking->got = -ECHILD;
    sigset_t all, before;
    sigfillset(&all);
    sigprocmask(SIG_SETMASK, &all, &before);
    pid_t child = clone(look, stack + STACK_BYTES, CLONE_VM | CLONE_VFORK, looking);
    int status;
    while (child > 0 && waitpid(child, &status, __WALL) < 0 && errno == EINTR)
        ;
    sigprocmask(SIG_SETMASK, &before, NULL);
    return 0;
}

/* What the connection says of the stream that its program writes: read until nothing was acknowledged in between. */
static int outgoing(int fd, struct outgoing *out) {
    uint8_t info[INFO_BYTES] = {0};
    size_t size = sizeof info;
    int before = -1, after = 0;
    for (int tries = 0; before != after; tries++) {
        if (tries == TRIES || sys_ioctl(fd, TIOCOUTQ_NR, &before) < 0 || sys_getsockopt(fd, IPPROTO_TCP, TCP_INFO_NR, info, &size) ||
            size < sizeof info || sys_ioctl(fd, TIOCOUTQ_NR, &after) < 0)
            return -EAGAIN;
    }
    uint32_t notsent;
    uint64_t acked, sent, again;
    memcpy(&notsent, info + NOTSENT, sizeof notsent);
    memcpy(&acked, info + ACKED, sizeof acked);
    memcpy(&sent, info + SENT, sizeof sent);
    memcpy(&again, info + SENT_AGAIN, sizeof again);
    if (info[STATE] != ESTABLISHED && info[STATE] != CLOSE_WAIT && info[STATE] != FIN_WAIT1 && info[STATE] != FIN_WAIT2)
        return -ENOTCONN;
    *out = (struct outgoing){.waiting = after - (info[STATE] == FIN_WAIT1), .stuck = notsent > 0};
    out->written = acked + (uint64_t)after - (info[STATE] == FIN_WAIT1 || info[STATE] == FIN_WAIT2);
    for (int at = TROUBLE; at < TROUBLE_END; at++)
        out->stuck |= info[at] != 0;
    out->stuck |= out->written > sent - again + notsent + 1;
    return 0;
}

int fd_sending(struct window *window, const struct open_fd *entry, int dup) {
    struct outgoing out;
    if (outgoing(dup, &out))
        return 0; /* the kind says what is not known */
    size_t most = out.stuck && out.waiting > 0 ? (size_t)out.waiting : 0;
    char *room = sink_record_begin(window->sink, CKPT_R_FD_WORK, entry->pid, 0, entry->fd, CKPT_W_SENDING, sizeof out.written + most);
    if (!room)
        return -ENOMEM;
    memcpy(room, &out.written, sizeof out.written);
    struct looking looking = {.fd = dup, .room = room + sizeof out.written, .size = most};
    int error = most ? look_apart(&looking) : 0;
    if (!error) /* fewer: it may not be looked at, and the kind says how much is under way */
        sink_record_commit(window->sink, sizeof out.written + (looking.got == (ssize_t)most ? most : 0));
    return error;
}
