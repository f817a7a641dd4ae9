/* fdsocket.c: what a kind wants of one socket: addresses, options, queued data, the kernel's diag answer. Formats: descriptors.c.
 *
 * Invariants
 *  1. A peek never goes past the end of a queue on a socket with a pending error: it would eat the error (ECONNRESET). Of messages
 *     the first peek would: that queue is said to be unreadable.
 *  2. Descriptors in a message are not received: the control buffer has room for credentials at most (exactly that, and only
 *     where SO_PASSCRED is set), so a message that carries more only says MSG_CTRUNC.
 *  3. SO_PEEK_OFF belongs to the target's socket: it is set only to walk a queue of messages, and put back at once. The kernel passes
 *     over a datagram without bytes that has been peeked at once (net/core/datagram.c, __skb_try_recv_from_queue): a second
 *     capture does not see it any more.
 *  4. A stream is peeked in one call; the kernel stops where descriptors are attached, and the message is then flagged.
 *  5. Only options that the socket may have are asked for, and what is zero gives no record (but for IPv6, where zero may be chosen):
 *     an answer costs some 0.1 us, there are many, and most of them are zero.
 *  6. SO_GET_FILTER counts in instructions, gives how many there are where it is asked for none, and EACCES where the program is eBPF, which
 *     cannot be had back (net/core/filter.c, sk_get_filter): then the record is empty.
 */
#define _GNU_SOURCE
#include "capture.h"
#include <errno.h>
#include <linux/netlink.h>
#include <linux/sock_diag.h>
#include <linux/unix_diag.h>
#include <netinet/in.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>

#ifndef SOL_NETLINK
#define SOL_NETLINK 270
#endif

enum {
    FIONREAD_NR = 0x541b,
    TIOCOUTQ_NR = 0x5411,
    OPTION_ROOM = 4096,
    MESSAGE_ROOM = 256 << 10,
    DIAG_ROOM = 8 << 10,
    CREDENTIALS_ROOM = 32,
    FLAG_CONTROL = 1,
    FLAG_UNREADABLE = 2,
    PEEK_HEAD = 12,
    FILTER_UNIT = 8, /* bytes of a struct sock_filter */
    TCP_QUEUE_ROOM = 32 << 20, /* of more than this nothing is read */
};

static int32_t number_option(int fd, int name) {
    int32_t value = 0;
    size_t size = sizeof value;
    int error = sys_getsockopt(fd, SOL_SOCKET, name, &value, &size);
    return error ? error : value;
}

static int32_t queue_size(int fd, unsigned long request) {
    int value = 0;
    int error = sys_ioctl(fd, request, &value);
    return error < 0 ? error : value;
}

static int socket_state(struct window *window, const struct open_fd *entry, int dup) {
    struct sockaddr_storage local, peer;
    int32_t head[8] = {number_option(dup, SO_DOMAIN),     number_option(dup, SO_TYPE),   number_option(dup, SO_PROTOCOL),
                       number_option(dup, SO_ACCEPTCONN), queue_size(dup, FIONREAD_NR), queue_size(dup, TIOCOUTQ_NR)};
    head[6] = sys_sockname(dup, 0, &local, sizeof local);
    head[7] = sys_sockname(dup, 1, &peer, sizeof peer);
    size_t n_local = head[6] > 0 ? (size_t)head[6] : 0, n_peer = head[7] > 0 ? (size_t)head[7] : 0;
    char bytes[sizeof head + sizeof local + sizeof peer];
    memcpy(bytes, head, sizeof head);
    memcpy(bytes + sizeof head, &local, n_local);
    memcpy(bytes + sizeof head + n_local, &peer, n_peer);
    return sink_record(window->sink, CKPT_R_FD_WORK, entry->pid, 0, entry->fd, CKPT_W_SOCKET, bytes, sizeof head + n_local + n_peer);
}

static bool may_have(int32_t domain, int32_t type, int32_t protocol, const struct ckpt_sockopt *option) {
    bool inet = domain == AF_INET || domain == AF_INET6;
    if ((option->domain && option->domain != domain) || (option->type && option->type != type))
        return false;
    switch (option->level) {
    case IPPROTO_TCP:
    case IPPROTO_UDP:
        return inet && protocol == option->level;
    case IPPROTO_IP:
        return inet;
    case IPPROTO_IPV6:
        return domain == AF_INET6;
    default:
        return option->level != SOL_NETLINK || domain == AF_NETLINK;
    }
}

static bool is_zero(const char *bytes, size_t size) {
    for (size_t i = 0; i < size; i++)
        if (bytes[i])
            return false;
    return true;
}

static int filter(struct window *window, const struct open_fd *entry, int dup, int index) {
    size_t count = 0;
    int error = sys_getsockopt(dup, SOL_SOCKET, SO_GET_FILTER, NULL, &count);
    if (error == -EACCES)
        return sink_record(window->sink, CKPT_R_FD_OPTION, entry->pid, 0, entry->fd, index, "", 0);
    if (error || !count)
        return 0;
    char *room = sink_record_begin(window->sink, CKPT_R_FD_OPTION, entry->pid, 0, entry->fd, index, count * FILTER_UNIT);
    if (!room)
        return -ENOMEM;
    if (!sys_getsockopt(dup, SOL_SOCKET, SO_GET_FILTER, room, &count))
        sink_record_commit(window->sink, count * FILTER_UNIT);
    return 0;
}

static int options(struct window *window, const struct open_fd *entry, int dup, const struct ckpt_want *want) {
    int32_t domain = number_option(dup, SO_DOMAIN), protocol = number_option(dup, SO_PROTOCOL), type = number_option(dup, SO_TYPE);
    for (uint32_t i = 0; i < want->option_count; i++) {
        char value[OPTION_ROOM];
        if (!may_have(domain, type, protocol, &want->options[i]))
            continue;
        if (want->options[i].level == SOL_SOCKET && want->options[i].name == SO_GET_FILTER) {
            int error = filter(window, entry, dup, (int)i);
            if (error)
                return error;
            continue;
        }
        size_t size = want->options[i].size > 0 && want->options[i].size < OPTION_ROOM ? (size_t)want->options[i].size : OPTION_ROOM;
        if (sys_getsockopt(dup, want->options[i].level, want->options[i].name, value, &size))
            continue;
        if (want->options[i].level != IPPROTO_IPV6 && is_zero(value, size))
            continue;
        int error = sink_record(window->sink, CKPT_R_FD_OPTION, entry->pid, 0, entry->fd, (int)i, value, size);
        if (error)
            return error;
    }
    return 0;
}

/* ---- queued data ---- */

struct peek {
    struct window *window;
    const struct open_fd *entry;
    int dup;
    size_t control; /* bytes of control buffer, see invariant 2 */
    bool senders;   /* each message has a sender with a name */
    char *room;     /* the record's payload */
    size_t used, cap;
};

/* One message behind those already read; bytes of it, or a negative errno. */
static ssize_t peek_one(struct peek *peek, size_t want) {
    char control[CREDENTIALS_ROOM];
    struct sockaddr_storage from;
    if (peek->used + PEEK_HEAD + want + sizeof from > peek->cap)
        return -ENOSPC;
    char *head = peek->room + peek->used; /* messages follow each other unaligned: heads are copied, never dereferenced */
    struct iovec data = {.iov_base = head + PEEK_HEAD, .iov_len = want};
    struct msghdr message = {.msg_iov = &data, .msg_iovlen = 1, .msg_control = control, .msg_controllen = peek->control};
    if (peek->senders) {
        message.msg_name = &from;
        message.msg_namelen = sizeof from;
    }
    ssize_t got = sys_recvmsg(peek->dup, &message, MSG_PEEK | MSG_DONTWAIT);
    if (got < 0)
        return got;
    if (message.msg_flags & MSG_TRUNC)
        return -EMSGSIZE;
    uint32_t fixed[3] = {(uint32_t)got, message.msg_flags & MSG_CTRUNC ? FLAG_CONTROL : 0, peek->senders ? message.msg_namelen : 0};
    memcpy(head, fixed, sizeof fixed);
    memcpy(head + PEEK_HEAD + got, &from, fixed[2]);
    peek->used += PEEK_HEAD + (size_t)got + fixed[2];
    return got;
}

/* connected: the queue's total is known, so the end is never passed; else -EAGAIN marks it (no error is pending then). */
static int peek_messages(struct peek *peek, bool connected) {
    int32_t old = number_option(peek->dup, SO_PEEK_OFF);
    int32_t zero = 0;
    int error = sys_setsockopt(peek->dup, SOL_SOCKET, SO_PEEK_OFF, &zero, sizeof zero);
    if (error)
        return error;
    int32_t total = connected ? queue_size(peek->dup, FIONREAD_NR) : 0;
    int32_t seen = 0;
    ssize_t got = 0;
    while (!connected || seen < total) {
        got = peek_one(peek, MESSAGE_ROOM);
        if (got < 0)
            break;
        seen += (int32_t)got;
    }
    sys_setsockopt(peek->dup, SOL_SOCKET, SO_PEEK_OFF, &old, sizeof old);
    return got < 0 && got != -EAGAIN ? (int)got : 0;
}

static int peek_stream(struct peek *peek, int32_t waiting) {
    if (waiting <= 0)
        return 0;
    ssize_t got = peek_one(peek, (size_t)waiting);
    if (got < 0 || got == waiting)
        return got < 0 ? (int)got : 0;
    uint32_t head[3] = {(uint32_t)got, FLAG_CONTROL, 0}; /* stopped before descriptors: there is more that we may not read */
    memcpy(peek->room, head, sizeof head);
    return 0;
}

static int queued(struct window *window, const struct open_fd *entry, int dup) {
    int32_t type = number_option(dup, SO_TYPE), waiting = queue_size(dup, FIONREAD_NR);
    struct pollfd state = {.fd = dup, .events = POLLIN};
    if (number_option(dup, SO_ACCEPTCONN) > 0 || waiting < 0 || sys_poll(&state, 1, 0) < 0)
        return 0;
    bool empty = !(state.revents & POLLIN) || (type == SOCK_STREAM && waiting == 0);
    if (!empty && type != SOCK_STREAM && (state.revents & POLLERR)) {
        uint32_t unreadable[3] = {0, FLAG_UNREADABLE, 0};
        return sink_record(window->sink, CKPT_R_FD_WORK, entry->pid, 0, entry->fd, CKPT_W_PEEK, unreadable, sizeof unreadable);
    }
    size_t cap = empty ? 0 : type == SOCK_STREAM ? (size_t)waiting + PEEK_HEAD + sizeof(struct sockaddr_storage) : MESSAGE_ROOM * 4;
    struct peek peek = {.window = window, .entry = entry, .dup = dup, .cap = cap, .senders = type == SOCK_DGRAM};
    peek.control = number_option(dup, SO_PASSCRED) > 0 ? CREDENTIALS_ROOM : 0;
    for (;;) {
        peek.used = 0;
        peek.room = sink_record_begin(window->sink, CKPT_R_FD_WORK, entry->pid, 0, entry->fd, CKPT_W_PEEK, peek.cap);
        if (!peek.room)
            return -ENOMEM;
        int error = empty ? 0 : type == SOCK_STREAM ? peek_stream(&peek, waiting) : peek_messages(&peek, type == SOCK_SEQPACKET);
        if (error == -ENOSPC) {
            peek.cap *= 4;
            continue;
        }
        if (error)
            return error == -EOPNOTSUPP ? 0 : tree_fail(window->tree, error, "queued data", entry->pid, 0, entry->fd, 0, NULL);
        sink_record_commit(window->sink, peek.used);
        return 0;
    }
}

/* ---- sock_diag ---- */

int diag_open(void) { return sys_socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_SOCK_DIAG); }

/* The kernel's answer about one socket, which stands behind `head`; -1: none, now. */
static ssize_t ask_unix(int diag, uint32_t ino, char *reply, size_t room) {
    struct {
        struct nlmsghdr head;
        struct unix_diag_req request;
    } ask = {.head = {.nlmsg_len = sizeof ask, .nlmsg_type = SOCK_DIAG_BY_FAMILY, .nlmsg_flags = NLM_F_REQUEST},
             .request = {.sdiag_family = AF_UNIX, .udiag_states = ~0u, .udiag_ino = ino, .udiag_show = 0x7f, .udiag_cookie = {~0u, ~0u}}};
    ssize_t got = diag < 0 ? -1 : sys_diag(diag, &ask, sizeof ask, reply, room);
    const struct nlmsghdr *head = (const void *)reply;
    const struct unix_diag_msg *about = (const void *)(head + 1);
    bool right = got >= (ssize_t)(sizeof *head + sizeof *about) && head->nlmsg_type == SOCK_DIAG_BY_FAMILY && head->nlmsg_len <= (size_t)got;
    return right && about->udiag_ino == ino ? (ssize_t)(head->nlmsg_len - sizeof *head) : -1;
}

/* Once in many thousand captures there was no answer about a socket that was there, nobody knows why: it is asked again. */
static int unix_diag(struct window *window, const struct open_fd *entry) {
    enum { TRIES = 3 };
    _Alignas(8) char reply[DIAG_ROOM];
    ssize_t bytes = -1;
    for (int i = 0; i < TRIES && bytes < 0; i++)
        bytes = ask_unix(window->diag, (uint32_t)entry->ino, reply, sizeof reply);
    if (bytes < 0)
        return 0; /* in another network namespace, or not allowed */
    return sink_record(window->sink, CKPT_R_FD_WORK, entry->pid, 0, entry->fd, CKPT_W_UNIX_DIAG, (const struct nlmsghdr *)(void *)reply + 1, (size_t)bytes);
}

static bool is_loopback(const struct sockaddr_in *name) { return ntohl(name->sin_addr.s_addr) >> 24 == IN_LOOPBACKNET; }

/* Of the network's sockets the queue is wanted of UDP, and of a TCP connection whose ends have one address, or who calls a loopback address
 * (127.0.0.1 calls 127.0.0.2): its peer may be in the tree. */
static bool wants_queue(int fd) {
    int32_t domain = number_option(fd, SO_DOMAIN);
    if (domain != AF_INET && domain != AF_INET6)
        return false;
    if (number_option(fd, SO_PROTOCOL) == IPPROTO_UDP)
        return true;
    struct sockaddr_storage local = {0}, peer = {0};
    int waiting = queue_size(fd, FIONREAD_NR);
    if (number_option(fd, SO_TYPE) != SOCK_STREAM || waiting < 0 || waiting > TCP_QUEUE_ROOM)
        return false;
    if (sys_sockname(fd, 0, &local, sizeof local) <= 0 || sys_sockname(fd, 1, &peer, sizeof peer) <= 0 || local.ss_family != peer.ss_family)
        return false;
    const struct sockaddr_in *four[2] = {(void *)&local, (void *)&peer};
    const struct sockaddr_in6 *six[2] = {(void *)&local, (void *)&peer};
    if (local.ss_family == AF_INET)
        return four[0]->sin_addr.s_addr == four[1]->sin_addr.s_addr || (is_loopback(four[0]) && is_loopback(four[1]));
    return local.ss_family == AF_INET6 && !memcmp(&six[0]->sin6_addr, &six[1]->sin6_addr, sizeof six[0]->sin6_addr);
}

int fd_socket(struct window *window, const struct open_fd *entry, int dup, const struct ckpt_want *want) {
    int error = 0;
    bool local = dup >= 0 && number_option(dup, SO_DOMAIN) == AF_UNIX;
    if (dup >= 0 && (want->work & CKPT_W_SOCKET))
        error = socket_state(window, entry, dup);
    if (!error && dup >= 0)
        error = options(window, entry, dup, want);
    if (!error && dup >= 0 && (want->work & CKPT_W_PEEK) && (local || wants_queue(dup)))
        error = queued(window, entry, dup);
    if (!error && dup >= 0 && !local && (want->work & CKPT_W_SENDING) && wants_queue(dup))
        error = fd_sending(window, entry, dup);
    if (!error && dup >= 0 && (want->work & CKPT_W_GROUPS) && number_option(dup, SO_PROTOCOL) == IPPROTO_UDP)
        error = fd_groups(window, entry, dup, number_option(dup, SO_DOMAIN));
    if (!error && local && (want->work & CKPT_W_UNIX_DIAG))
        error = unix_diag(window, entry);
    return error;
}
