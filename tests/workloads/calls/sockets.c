/* sockets.c: receives, sends, accepts and connects, with time-outs of their sockets and without. */
#include "calls.h"

static int pair(struct test *t, int type, bool finite) {
    need(socketpair(AF_UNIX, type, 0, t->fd) == 0, "socketpair");
    if (finite)
        limit_socket(t->fd[0], SO_RCVTIMEO), limit_socket(t->fd[0], SO_SNDTIMEO);
    return t->fd[0];
}
static int filled(struct test *t, int type, bool finite) {
    int fd = pair(t, type, finite);
    fill(fd);
    return fd;
}
static int listening(int domain, bool finite) {
    uint32_t host = INADDR_LOOPBACK + 256 * (uint32_t)(getpid() & 0x7fff); /* where no stranger calls a port of now that had been his */
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(host)};
    struct sockaddr_un local = {.sun_family = AF_UNIX};
    int fd = socket(domain, SOCK_STREAM, 0);
    bool inet = domain == AF_INET;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &(int){1}, sizeof(int)); /* after a SIGKILL connections of then still have the port */
    need(bind(fd, inet ? (void *)&address : (void *)&local, inet ? sizeof address : sizeof(sa_family_t)) == 0 && listen(fd, 0) == 0, "listen");
    if (finite)
        limit_socket(fd, SO_RCVTIMEO);
    return fd;
}
static void lets_in(struct test *t) { /* fd[0]: a listener */
    t->length = sizeof t->address;
    getsockname(t->fd[0], (void *)&t->address, &t->length);
    t->fd[1] = socket(t->address.sun_family, SOCK_STREAM, 0);
    need(connect(t->fd[1], (void *)&t->address, t->length) == 0, "connect");
}
static void gather(struct test *t, size_t bytes) {
    t->vector[0] = (struct iovec){t->bytes_in, bytes};
    t->messages[0].msg_hdr = (struct msghdr){.msg_iov = t->vector, .msg_iovlen = 1};
    t->messages[1] = t->messages[0];
}
static long message(struct test *t, size_t bytes) {
    gather(t, bytes);
    return at(&t->messages[0].msg_hdr);
}
static long messages(struct test *t, size_t bytes) {
    gather(t, bytes);
    return at(t->messages);
}
static long vector(struct test *t, size_t bytes) {
    gather(t, bytes);
    return at(t->vector);
}

/* ---- until their time-out ---- */

static void s_read(struct test *t) { call(t, SYS_read, pair(t, SOCK_STREAM, true), at(t->bytes_in), 10, 0, 0, 0); }
static void s_readv(struct test *t) { call(t, SYS_readv, pair(t, SOCK_STREAM, true), vector(t, 10), 1, 0, 0, 0); }
static void s_recv(struct test *t) { call(t, SYS_recvfrom, pair(t, SOCK_DGRAM, true), at(t->bytes_in), 10, 0, 0, 0); }
static void s_recv_stream(struct test *t) { call(t, SYS_recvfrom, pair(t, SOCK_STREAM, true), at(t->bytes_in), 10, 0, 0, 0); }
static void s_recv_all(struct test *t) { call(t, SYS_recvfrom, pair(t, SOCK_STREAM, true), at(t->bytes_in), 10, MSG_WAITALL, 0, 0); }
static void s_recv_peek(struct test *t) { call(t, SYS_recvfrom, pair(t, SOCK_STREAM, true), at(t->bytes_in), 10, MSG_PEEK, 0, 0); }
static void s_recv_udp(struct test *t) {
    t->fd[0] = socket(AF_INET, SOCK_DGRAM, 0);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    need(bind(t->fd[0], (void *)&address, sizeof address) == 0, "bind");
    limit_socket(t->fd[0], SO_RCVTIMEO);
    call(t, SYS_recvfrom, t->fd[0], at(t->bytes_in), 10, 0, 0, 0);
}
static void s_recv_tcp(struct test *t) {
    int listener = t->fd[0] = listening(AF_INET, false);
    lets_in(t);
    t->fd[0] = accept(listener, NULL, NULL);
    limit_socket(t->fd[0], SO_RCVTIMEO);
    call(t, SYS_recvfrom, t->fd[0], at(t->bytes_in), 10, 0, 0, 0);
}
static void s_recvmsg(struct test *t) { call(t, SYS_recvmsg, pair(t, SOCK_SEQPACKET, true), message(t, 10), 0, 0, 0, 0); }
static void s_recvmsg_stream(struct test *t) { call(t, SYS_recvmsg, pair(t, SOCK_STREAM, true), message(t, 10), MSG_WAITALL, 0, 0, 0); }
static void s_recvmmsg(struct test *t) { call(t, SYS_recvmmsg, pair(t, SOCK_DGRAM, true), messages(t, 10), 2, 0, 0, 0); }
static void s_accept(struct test *t) { call(t, SYS_accept, listening(AF_INET, true), 0, 0, 0, 0, 0); }
static void s_accept_unix(struct test *t) { call(t, SYS_accept4, listening(AF_UNIX, true), 0, 0, SOCK_CLOEXEC, 0, 0); }
static void s_write(struct test *t) { call(t, SYS_write, filled(t, SOCK_STREAM, true), at(t->bytes_in), 8192, 0, 0, 0); }
static void s_writev(struct test *t) { call(t, SYS_writev, filled(t, SOCK_STREAM, true), vector(t, 8192), 1, 0, 0, 0); }
static void s_preadv2(struct test *t) { call(t, SYS_preadv2, pair(t, SOCK_STREAM, true), vector(t, 10), 1, -1, -1, 0); }
static void s_pwritev2(struct test *t) { call(t, SYS_pwritev2, filled(t, SOCK_STREAM, true), vector(t, 8192), 1, -1, -1, 0); }
static void s_send(struct test *t) { call(t, SYS_sendto, filled(t, SOCK_STREAM, true), at(t->bytes_in), 8192, 0, 0, 0); }
static void s_send_packet(struct test *t) { call(t, SYS_sendto, filled(t, SOCK_DGRAM, true), at(t->bytes_in), 4096, 0, 0, 0); }
static void s_sendmsg(struct test *t) { call(t, SYS_sendmsg, filled(t, SOCK_STREAM, true), message(t, 8192), 0, 0, 0, 0); }
static void s_sendmmsg(struct test *t) { call(t, SYS_sendmmsg, filled(t, SOCK_STREAM, true), messages(t, 8192), 2, 0, 0, 0); }

/* A listener of whom one waits already: its queue is full. */
static void connect_full(struct test *t, bool finite) {
    t->fd[0] = listening(AF_UNIX, false);
    lets_in(t);
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    if (finite)
        limit_socket(fd, SO_SNDTIMEO);
    call(t, SYS_connect, fd, at(&t->address), t->length, 0, 0, 0);
}
static void s_connect(struct test *t) { connect_full(t, true); }
static void s_connect_endless(struct test *t) { connect_full(t, false); }
static void w_accept(struct test *t) { need(accept(t->fd[0], NULL, NULL) >= 0, "accept"); }

/* ---- until they are woken ---- */

static void s_read_endless(struct test *t) { call(t, SYS_read, pair(t, SOCK_STREAM, false), at(t->bytes_in), 8, 0, 0, 0); }
static void s_recv_endless(struct test *t) { call(t, SYS_recvfrom, pair(t, SOCK_STREAM, false), at(t->bytes_in), 8, 0, 0, 0); }
static void s_recv_all_endless(struct test *t) { call(t, SYS_recvfrom, pair(t, SOCK_STREAM, false), at(t->bytes_in), 8, MSG_WAITALL, 0, 0); }
static void s_recvmsg_endless(struct test *t) { call(t, SYS_recvmsg, pair(t, SOCK_DGRAM, false), message(t, 10), 0, 0, 0, 0); }
static void s_recvmmsg_endless(struct test *t) { call(t, SYS_recvmmsg, pair(t, SOCK_DGRAM, false), messages(t, 10), 2, MSG_WAITFORONE, 0, 0); }
static void s_accept_endless(struct test *t) { t->fd[0] = listening(AF_UNIX, false), call(t, SYS_accept, t->fd[0], 0, 0, 0, 0, 0); }
static void s_accept_inet(struct test *t) { t->fd[0] = listening(AF_INET, false), call(t, SYS_accept4, t->fd[0], 0, 0, SOCK_CLOEXEC, 0, 0); }
static void s_send_endless(struct test *t) { call(t, SYS_sendto, filled(t, SOCK_STREAM, false), at(t->bytes_in), 100, 0, 0, 0); }
static void s_write_endless(struct test *t) { call(t, SYS_write, filled(t, SOCK_STREAM, false), at(t->bytes_in), 100, 0, 0, 0); }
static void s_sendmsg_endless(struct test *t) { call(t, SYS_sendmsg, filled(t, SOCK_SEQPACKET, false), message(t, 100), 0, 0, 0, 0); }

const struct test sockets[] = {
    ENDS("read/timeo", FINITE, s_read, -EAGAIN),
    ENDS("readv/timeo", FINITE, s_readv, -EAGAIN),
    ENDS("preadv2/timeo", FINITE, s_preadv2, -EAGAIN),
    ENDS("recvfrom/timeo", FINITE, s_recv, -EAGAIN),
    ENDS("recvfrom/stream-timeo", FINITE, s_recv_stream, -EAGAIN),
    ENDS("recvfrom/waitall-timeo", FINITE, s_recv_all, -EAGAIN),
    ENDS("recvfrom/peek-timeo", FINITE, s_recv_peek, -EAGAIN),
    ENDS("recvfrom/udp-timeo", FINITE, s_recv_udp, -EAGAIN),
    ENDS("recvfrom/tcp-timeo", FINITE, s_recv_tcp, -EAGAIN),
    ENDS("recvmsg/timeo", FINITE, s_recvmsg, -EAGAIN),
    ENDS("recvmsg/waitall-timeo", FINITE, s_recvmsg_stream, -EAGAIN),
    ENDS("recvmmsg/timeo", FINITE, s_recvmmsg, -EAGAIN),
    ENDS("accept/timeo", FINITE, s_accept, -EAGAIN),
    ENDS("accept4/timeo", FINITE, s_accept_unix, -EAGAIN),
    ENDS("write/timeo", FINITE, s_write, -EAGAIN),
    ENDS("writev/timeo", FINITE, s_writev, -EAGAIN),
    ENDS("pwritev2/timeo", FINITE, s_pwritev2, -EAGAIN),
    ENDS("sendto/timeo", FINITE, s_send, -EAGAIN),
    ENDS("sendto/packet-timeo", FINITE, s_send_packet, -EAGAIN),
    ENDS("sendmsg/timeo", FINITE, s_sendmsg, -EAGAIN),
    ENDS("sendmmsg/timeo", FINITE, s_sendmmsg, -EAGAIN),
    ENDS("connect/timeo", FINITE, s_connect, -EAGAIN),
    GIVES("read/socket", s_read_endless, writes, 8, got_eight),
    GIVES("recvfrom", s_recv_endless, writes, 8, got_eight),
    GIVES("recvfrom/waitall", s_recv_all_endless, writes, 8, got_eight),
    GIVES("recvmsg", s_recvmsg_endless, writes, 8, got_eight),
    GIVES("recvmmsg", s_recvmmsg_endless, writes, 1, got_eight),
    WOKEN("accept", s_accept_endless, lets_in, ANY),
    WOKEN("accept4", s_accept_inet, lets_in, ANY),
    WOKEN("sendto", s_send_endless, drains, 100),
    WOKEN("write/socket", s_write_endless, drains, 100),
    WOKEN("sendmsg", s_sendmsg_endless, drains, 100),
    WOKEN("connect", s_connect_endless, w_accept, 0),
    {0},
};
