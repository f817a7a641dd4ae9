/* calls: a thread in each blocking call and form, waiting for its time to be over or to be woken.
 *
 *   calls MS        the finite ones last so long
 *   go              each thread enters its call; answered "GONE" once all sleep there
 *   wake            wakes each endless one, once
 *   report          when all have returned: a line "NAME KIND RESULT ELAPSED_us CHANGED" each, then "END"
 *
 * KIND: finite (from its beginning), instant, endless. CHANGED: argument registers or memory that are not what they were; "-" = none.
 */
#include "victim.h"
#include <linux/futex.h>
#include <netinet/in.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/msg.h>
#include <sys/select.h>
#include <sys/sem.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <sys/un.h>

enum { ROOM = 96, WATCHED = 64 };
enum kind { FINITE, INSTANT, ENDLESS };
static const char *const kinds[] = {"finite", "instant", "endless"};

struct test {
    const char *name;
    enum kind kind;
    void (*setup)(struct test *test);
    void (*wake)(struct test *test);
    long nr;
    long arg[6];
    long after[6];
    long result;
    uint64_t begun, ended;
    int fd[2];
    void *watched;  /* memory that the call must leave alone */
    size_t bytes;
    char copy[WATCHED];
    pthread_t thread;
    pid_t tid;
    _Atomic int state; /* 1 = about to call, 2 = returned */
    /* what calls point to */
    union {
        struct timespec time;
        struct timeval timeval;
    };
    struct pollfd poll;
    fd_set set;
    struct epoll_event event;
    struct sembuf sem;
    sigset_t signals;
    uint32_t word;
    char bytes_in[8192];
    struct iovec vector;
    struct mmsghdr messages[2];
    struct sockaddr_un address;
    socklen_t length;
    struct futex_waitv waiter;
    struct { uint64_t set, size; } mask;
    struct { long type; char text[8]; } note;
};

static long limit_ms;
static pid_t holder; /* of PI futexes: a thread that never lets go, or does when told */

/* The call with nothing between it and the registers. */
static long enter(const long arg[6], long nr, long after[6]) {
    register long r10 __asm__("r10") = arg[3], r8 __asm__("r8") = arg[4], r9 __asm__("r9") = arg[5];
    long rdi = arg[0], rsi = arg[1], rdx = arg[2], rax = nr;
    __asm__ volatile("syscall" : "+a"(rax), "+D"(rdi), "+S"(rsi), "+d"(rdx), "+r"(r10), "+r"(r8), "+r"(r9) : : "rcx", "r11", "memory");
    const long seen[6] = {rdi, rsi, rdx, r10, r8, r9};
    memcpy(after, seen, sizeof seen);
    return rax;
}

static void call(struct test *test, long nr, long a, long b, long c, long d, long e, long f) {
    const long arg[6] = {a, b, c, d, e, f};
    test->nr = nr;
    memcpy(test->arg, arg, sizeof arg);
}
static long at(const void *pointer) { return (long)pointer; }

static void watch(struct test *test, void *memory, size_t bytes) {
    test->watched = memory;
    test->bytes = bytes;
}

/* ---- limits ---- */

static long relative(struct test *test) {
    test->time = (struct timespec){limit_ms / 1000, limit_ms % 1000 * 1000000};
    watch(test, &test->time, sizeof test->time);
    return at(&test->time);
}

static long instant(struct test *test, clockid_t clock) {
    clock_gettime(clock, &test->time);
    test->time.tv_nsec += limit_ms % 1000 * 1000000;
    test->time.tv_sec += limit_ms / 1000 + test->time.tv_nsec / 1000000000;
    test->time.tv_nsec %= 1000000000;
    watch(test, &test->time, sizeof test->time);
    return at(&test->time);
}

static void limit_socket(int fd, int option) {
    struct timeval time = {limit_ms / 1000, limit_ms % 1000 * 1000};
    need(setsockopt(fd, SOL_SOCKET, option, &time, sizeof time) == 0, "setsockopt");
}

static int pair(struct test *test, int type, bool finite) {
    need(socketpair(AF_UNIX, type, 0, test->fd) == 0, "socketpair");
    if (finite)
        limit_socket(test->fd[0], SO_RCVTIMEO), limit_socket(test->fd[0], SO_SNDTIMEO);
    return test->fd[0];
}

static int filled(struct test *test, bool finite) {
    int fd = pair(test, SOCK_STREAM, finite);
    while (send(fd, test->bytes_in, sizeof test->bytes_in, MSG_DONTWAIT) > 0)
        ;
    return fd;
}

static int readable(struct test *test) {
    need(pipe(test->fd) == 0, "pipe");
    return test->fd[0];
}

static int pool(struct test *test) {
    struct epoll_event event = {.events = EPOLLIN};
    int fd = epoll_create1(0);
    need(epoll_ctl(fd, EPOLL_CTL_ADD, readable(test), &event) == 0, "epoll_ctl");
    return fd;
}

static int listening(int domain, bool finite) {
    uint32_t host = INADDR_LOOPBACK + 256 * (uint32_t)(getpid() & 0x7fff); /* where no stranger calls a port of now that had been his */
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(host)};
    struct sockaddr_un local = {.sun_family = AF_UNIX};
    int fd = socket(domain, SOCK_STREAM, 0);
    bool inet = domain == AF_INET;
    need(bind(fd, inet ? (void *)&address : (void *)&local, inet ? sizeof address : sizeof(sa_family_t)) == 0 && listen(fd, 0) == 0, "listen");
    if (finite)
        limit_socket(fd, SO_RCVTIMEO);
    return fd;
}

static void lets_in(struct test *test) { /* test->fd[0]: a listener */
    test->length = sizeof test->address;
    getsockname(test->fd[0], (void *)&test->address, &test->length);
    test->fd[1] = socket(test->address.sun_family, SOCK_STREAM, 0);
    need(connect(test->fd[1], (void *)&test->address, test->length) == 0, "connect");
}
static void writes(struct test *test) { need(write(test->fd[1], "12345678", 8) == 8, "write"); }
static void drains(struct test *test) {
    char piece[4096];
    while (recv(test->fd[1], piece, sizeof piece, MSG_DONTWAIT) > 0)
        ;
}

/* ---- those whose time ends ---- */

static void s_nanosleep(struct test *t) { call(t, SYS_nanosleep, relative(t), 0, 0, 0, 0, 0); }
static void s_sleep_clock(struct test *t) { call(t, SYS_clock_nanosleep, CLOCK_MONOTONIC, 0, relative(t), 0, 0, 0); }
static void s_sleep_real(struct test *t) { call(t, SYS_clock_nanosleep, CLOCK_REALTIME, 0, relative(t), 0, 0, 0); }
static void s_sleep_until(struct test *t) { call(t, SYS_clock_nanosleep, CLOCK_MONOTONIC, TIMER_ABSTIME, instant(t, CLOCK_MONOTONIC), 0, 0, 0); }
static void poll_one(struct test *t) {
    t->poll = (struct pollfd){readable(t), POLLIN, 0};
    watch(t, &t->poll, sizeof t->poll);
}
static void s_poll(struct test *t) { poll_one(t), call(t, SYS_poll, at(&t->poll), 1, limit_ms, 0, 0, 0); }
static void s_poll_none(struct test *t) { call(t, SYS_poll, 0, 0, limit_ms, 0, 0, 0); }
static void s_ppoll(struct test *t) {
    relative(t), poll_one(t);
    call(t, SYS_ppoll, at(&t->poll), 1, at(&t->time), 0, 8, 0);
}
static void s_select(struct test *t) {
    t->timeval = (struct timeval){limit_ms / 1000, limit_ms % 1000 * 1000};
    FD_ZERO(&t->set);
    call(t, SYS_select, 0, at(&t->set), 0, 0, at(&t->timeval), 0);
}
static void s_pselect(struct test *t) {
    relative(t), watch(t, NULL, 0);
    call(t, SYS_pselect6, 0, 0, 0, 0, at(&t->time), 0);
}
static void s_epoll(struct test *t) { call(t, SYS_epoll_wait, pool(t), at(&t->event), 1, limit_ms, 0, 0); }
static void s_epoll_p(struct test *t) { sigemptyset(&t->signals), call(t, SYS_epoll_pwait, pool(t), at(&t->event), 1, limit_ms, at(&t->signals), 8); }
static void s_epoll_2(struct test *t) { call(t, SYS_epoll_pwait2, pool(t), at(&t->event), 1, relative(t), 0, 8); }
static void s_futex(struct test *t) { call(t, SYS_futex, at(&t->word), FUTEX_WAIT, 0, relative(t), 0, 0); }
static void s_futex_private(struct test *t) { call(t, SYS_futex, at(&t->word), FUTEX_WAIT | FUTEX_PRIVATE_FLAG, 0, relative(t), 0, 0); }
static void s_futex_until(struct test *t) { call(t, SYS_futex, at(&t->word), FUTEX_WAIT_BITSET, 0, instant(t, CLOCK_MONOTONIC), 0, 0xffffffff); }
static void s_futex_real(struct test *t) {
    call(t, SYS_futex, at(&t->word), FUTEX_WAIT_BITSET | FUTEX_CLOCK_REALTIME, 0, instant(t, CLOCK_REALTIME), 0, 0xffffffff);
}
static void s_futex_pi(struct test *t) {
    t->word = (uint32_t)holder;
    call(t, SYS_futex, at(&t->word), FUTEX_LOCK_PI, 0, instant(t, CLOCK_REALTIME), 0, 0);
}
static void s_waitv(struct test *t) {
    t->waiter = (struct futex_waitv){.uaddr = (uint64_t)at(&t->word), .flags = FUTEX_32};
    call(t, SYS_futex_waitv, at(&t->waiter), 1, 0, instant(t, CLOCK_MONOTONIC), CLOCK_MONOTONIC, 0);
}
static int semaphores, queue;
static void s_semtimed(struct test *t) {
    t->sem = (struct sembuf){0, -1, 0};
    call(t, SYS_semtimedop, semaphores, at(&t->sem), 1, relative(t), 0, 0);
}
static void s_sigtimed(struct test *t) {
    sigemptyset(&t->signals);
    sigaddset(&t->signals, SIGRTMIN + 4);
    call(t, SYS_rt_sigtimedwait, at(&t->signals), 0, relative(t), 8, 0, 0);
}
static void s_read_limited(struct test *t) { call(t, SYS_read, pair(t, SOCK_STREAM, true), at(t->bytes_in), 10, 0, 0, 0); }
static void s_readv_limited(struct test *t) {
    t->vector = (struct iovec){t->bytes_in, 10};
    call(t, SYS_readv, pair(t, SOCK_STREAM, true), at(&t->vector), 1, 0, 0, 0);
}
static void s_recv_limited(struct test *t) { call(t, SYS_recvfrom, pair(t, SOCK_DGRAM, true), at(t->bytes_in), 10, 0, 0, 0); }
static void s_recv_all_limited(struct test *t) { call(t, SYS_recvfrom, pair(t, SOCK_STREAM, true), at(t->bytes_in), 10, MSG_WAITALL, 0, 0); }
static void s_recv_udp(struct test *t) {
    t->fd[0] = socket(AF_INET, SOCK_DGRAM, 0);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    need(bind(t->fd[0], (void *)&address, sizeof address) == 0, "bind");
    limit_socket(t->fd[0], SO_RCVTIMEO);
    call(t, SYS_recvfrom, t->fd[0], at(t->bytes_in), 10, 0, 0, 0);
}
static void message(struct test *t) {
    t->vector = (struct iovec){t->bytes_in, 10};
    t->messages[0].msg_hdr = (struct msghdr){.msg_iov = &t->vector, .msg_iovlen = 1};
    t->messages[1] = t->messages[0];
}
static void s_recvmsg_limited(struct test *t) { message(t), call(t, SYS_recvmsg, pair(t, SOCK_SEQPACKET, true), at(&t->messages[0].msg_hdr), 0, 0, 0, 0); }
static void s_recvmmsg_limited(struct test *t) { message(t), call(t, SYS_recvmmsg, pair(t, SOCK_DGRAM, true), at(t->messages), 2, 0, 0, 0); }
static void s_accept_limited(struct test *t) { call(t, SYS_accept, listening(AF_INET, true), 0, 0, 0, 0, 0); }
static void s_accept_unix(struct test *t) { call(t, SYS_accept4, listening(AF_UNIX, true), 0, 0, SOCK_CLOEXEC, 0, 0); }
static void s_write_limited(struct test *t) { call(t, SYS_write, filled(t, true), at(t->bytes_in), 8192, 0, 0, 0); }
static void s_send_limited(struct test *t) { call(t, SYS_sendto, filled(t, true), at(t->bytes_in), 8192, 0, 0, 0); }
static void s_sendmsg_limited(struct test *t) {
    t->vector = (struct iovec){t->bytes_in, 8192};
    t->messages[0].msg_hdr = (struct msghdr){.msg_iov = &t->vector, .msg_iovlen = 1};
    call(t, SYS_sendmsg, filled(t, true), at(&t->messages[0].msg_hdr), 0, 0, 0, 0);
}

/* ---- those that are woken ---- */

static void s_epoll_endless(struct test *t) { call(t, SYS_epoll_wait, pool(t), at(&t->event), 1, -1, 0, 0); }
static void s_epoll_2_endless(struct test *t) { call(t, SYS_epoll_pwait2, pool(t), at(&t->event), 1, 0, 0, 8); }
static void s_poll_endless(struct test *t) { poll_one(t), watch(t, NULL, 0), call(t, SYS_poll, at(&t->poll), 1, -1, 0, 0, 0); }
static void s_ppoll_endless(struct test *t) { poll_one(t), watch(t, NULL, 0), call(t, SYS_ppoll, at(&t->poll), 1, 0, 0, 8, 0); }
static void s_select_endless(struct test *t) {
    int fd = readable(t);
    FD_ZERO(&t->set);
    FD_SET(fd, &t->set);
    call(t, SYS_select, fd + 1, at(&t->set), 0, 0, 0, 0);
}
static void s_read_pipe(struct test *t) { call(t, SYS_read, readable(t), at(t->bytes_in), 8, 0, 0, 0); }
static void s_read_event(struct test *t) { t->fd[0] = t->fd[1] = eventfd(0, 0), call(t, SYS_read, t->fd[0], at(t->bytes_in), 8, 0, 0, 0); }
static void s_read_timer(struct test *t) { t->fd[0] = timerfd_create(CLOCK_MONOTONIC, 0), call(t, SYS_read, t->fd[0], at(t->bytes_in), 8, 0, 0, 0); }
static void w_timer(struct test *t) { timerfd_settime(t->fd[0], 0, &(struct itimerspec){.it_value.tv_nsec = 1}, NULL); }
static void s_recv(struct test *t) { call(t, SYS_recvfrom, pair(t, SOCK_STREAM, false), at(t->bytes_in), 8, 0, 0, 0); }
static void s_recv_all(struct test *t) { call(t, SYS_recvfrom, pair(t, SOCK_STREAM, false), at(t->bytes_in), 8, MSG_WAITALL, 0, 0); }
static void s_recvmsg(struct test *t) { message(t), call(t, SYS_recvmsg, pair(t, SOCK_DGRAM, false), at(&t->messages[0].msg_hdr), 0, 0, 0, 0); }
static void s_accept(struct test *t) { t->fd[0] = listening(AF_UNIX, false), call(t, SYS_accept, t->fd[0], 0, 0, 0, 0, 0); }
static void s_send(struct test *t) { call(t, SYS_sendto, filled(t, false), at(t->bytes_in), 100, 0, 0, 0); }
static void s_write_pipe(struct test *t) {
    need(pipe(t->fd) == 0, "pipe");
    fcntl(t->fd[1], F_SETFL, O_NONBLOCK);
    while (write(t->fd[1], t->bytes_in, 4096) > 0)
        ;
    fcntl(t->fd[1], F_SETFL, 0);
    call(t, SYS_write, t->fd[1], at(t->bytes_in), 100, 0, 0, 0);
}
static void w_read_pipe(struct test *t) {
    char piece[8192];
    need(read(t->fd[0], piece, sizeof piece) > 0, "read");
}
static void s_futex_endless(struct test *t) { call(t, SYS_futex, at(&t->word), FUTEX_WAIT, 0, 0, 0, 0); }
static void s_futex_bits_endless(struct test *t) { call(t, SYS_futex, at(&t->word), FUTEX_WAIT_BITSET, 0, 0, 0, 0xffffffff); }
static void s_waitv_endless(struct test *t) {
    t->waiter = (struct futex_waitv){.uaddr = (uint64_t)at(&t->word), .flags = FUTEX_32};
    call(t, SYS_futex_waitv, at(&t->waiter), 1, 0, 0, 0, 0);
}
static void w_futex(struct test *t) {
    t->word = 1;
    syscall(SYS_futex, &t->word, FUTEX_WAKE, 1, NULL, NULL, 0);
}
static void s_semop(struct test *t) {
    t->sem = (struct sembuf){1, -1, 0};
    call(t, SYS_semop, semaphores, at(&t->sem), 1, 0, 0, 0);
}
static void w_semop(struct test *t) {
    (void)t;
    semop(semaphores, &(struct sembuf){1, 1, 0}, 1);
}
static void s_sigwait(struct test *t) {
    sigemptyset(&t->signals);
    sigaddset(&t->signals, SIGRTMIN + 5);
    call(t, SYS_rt_sigtimedwait, at(&t->signals), 0, 0, 8, 0, 0);
}
static void w_sigwait(struct test *t) { pthread_kill(t->thread, SIGRTMIN + 5); }
static void handled(int number) { (void)number; }
static void s_pause(struct test *t) { call(t, SYS_pause, 0, 0, 0, 0, 0, 0); }
static void s_sigsuspend(struct test *t) { sigemptyset(&t->signals), call(t, SYS_rt_sigsuspend, at(&t->signals), 8, 0, 0, 0, 0); }
static void w_handled(struct test *t) { pthread_kill(t->thread, SIGUSR2); }
static void s_msgrcv(struct test *t) { call(t, SYS_msgrcv, queue, at(&t->note), sizeof t->note.text, 1, 0, 0); }
static void w_msgrcv(struct test *t) {
    struct { long type; char text[8]; } note = {1, "1234567"};
    (void)t;
    need(msgsnd(queue, &note, 8, 0) == 0, "msgsnd");
}
static void s_read_signalfd(struct test *t) {
    sigemptyset(&t->signals);
    sigaddset(&t->signals, SIGRTMIN + 6);
    t->fd[0] = signalfd(-1, &t->signals, 0);
    call(t, SYS_read, t->fd[0], at(t->bytes_in), 128, 0, 0, 0);
}
static void w_signalfd(struct test *t) { pthread_kill(t->thread, SIGRTMIN + 6); }
static void s_splice(struct test *t) {
    int other[2];
    need(pipe(other) == 0, "pipe");
    call(t, SYS_splice, readable(t), 0, other[1], 0, 8, 0);
}
static void s_tee(struct test *t) {
    int other[2];
    need(pipe(other) == 0, "pipe");
    call(t, SYS_tee, readable(t), other[1], 8, 0, 0, 0);
}

#define ENDS(label, sort, make) {.name = label, .kind = sort, .setup = make}
#define WOKEN(label, make, waker) {.name = label, .kind = ENDLESS, .setup = make, .wake = waker}
static struct test tests[ROOM] = {
    ENDS("nanosleep", FINITE, s_nanosleep),
    ENDS("clock_nanosleep", FINITE, s_sleep_clock),
    ENDS("clock_nanosleep/realtime", FINITE, s_sleep_real),
    ENDS("clock_nanosleep/instant", INSTANT, s_sleep_until),
    ENDS("poll", FINITE, s_poll),
    ENDS("poll/none", FINITE, s_poll_none),
    ENDS("ppoll", FINITE, s_ppoll),
    ENDS("select", FINITE, s_select),
    ENDS("pselect6", FINITE, s_pselect),
    ENDS("epoll_wait", FINITE, s_epoll),
    ENDS("epoll_pwait", FINITE, s_epoll_p),
    ENDS("epoll_pwait2", FINITE, s_epoll_2),
    ENDS("futex", FINITE, s_futex),
    ENDS("futex/private", FINITE, s_futex_private),
    ENDS("futex/instant", INSTANT, s_futex_until),
    ENDS("futex/realtime", INSTANT, s_futex_real),
    ENDS("futex/pi", INSTANT, s_futex_pi),
    ENDS("futex_waitv", INSTANT, s_waitv),
    ENDS("semtimedop", FINITE, s_semtimed),
    ENDS("rt_sigtimedwait", FINITE, s_sigtimed),
    ENDS("read/rcvtimeo", FINITE, s_read_limited),
    ENDS("readv/rcvtimeo", FINITE, s_readv_limited),
    ENDS("recvfrom/rcvtimeo", FINITE, s_recv_limited),
    ENDS("recvfrom/waitall", FINITE, s_recv_all_limited),
    ENDS("recvfrom/udp", FINITE, s_recv_udp),
    ENDS("recvmsg/rcvtimeo", FINITE, s_recvmsg_limited),
    ENDS("recvmmsg/rcvtimeo", FINITE, s_recvmmsg_limited),
    ENDS("accept/rcvtimeo", FINITE, s_accept_limited),
    ENDS("accept4/unix", FINITE, s_accept_unix),
    ENDS("write/sndtimeo", FINITE, s_write_limited),
    ENDS("sendto/sndtimeo", FINITE, s_send_limited),
    ENDS("sendmsg/sndtimeo", FINITE, s_sendmsg_limited),
    WOKEN("epoll_wait/endless", s_epoll_endless, writes),
    WOKEN("epoll_pwait2/endless", s_epoll_2_endless, writes),
    WOKEN("poll/endless", s_poll_endless, writes),
    WOKEN("ppoll/endless", s_ppoll_endless, writes),
    WOKEN("select/endless", s_select_endless, writes),
    WOKEN("read/pipe", s_read_pipe, writes),
    WOKEN("read/eventfd", s_read_event, writes),
    WOKEN("read/timerfd", s_read_timer, w_timer),
    WOKEN("read/signalfd", s_read_signalfd, w_signalfd),
    WOKEN("recvfrom", s_recv, writes),
    WOKEN("recvfrom/waitall-endless", s_recv_all, writes),
    WOKEN("recvmsg", s_recvmsg, writes),
    WOKEN("accept", s_accept, lets_in),
    WOKEN("sendto", s_send, drains),
    WOKEN("write/pipe", s_write_pipe, w_read_pipe),
    WOKEN("futex/endless", s_futex_endless, w_futex),
    WOKEN("futex/bitset-endless", s_futex_bits_endless, w_futex),
    WOKEN("futex_waitv/endless", s_waitv_endless, w_futex),
    WOKEN("semop", s_semop, w_semop),
    WOKEN("rt_sigtimedwait/endless", s_sigwait, w_sigwait),
    WOKEN("pause", s_pause, w_handled),
    WOKEN("rt_sigsuspend", s_sigsuspend, w_handled),
    WOKEN("msgrcv", s_msgrcv, w_msgrcv),
    WOKEN("splice", s_splice, writes),
    WOKEN("tee", s_tee, writes),
};

static size_t count(void) {
    size_t n = 0;
    while (n < ROOM && tests[n].name)
        n++;
    return n;
}

static void *run(void *argument) {
    struct test *test = argument;
    sigset_t all;
    sigfillset(&all);
    if (test->nr == SYS_pause)
        sigdelset(&all, SIGUSR2);
    pthread_sigmask(SIG_SETMASK, &all, NULL);
    test->tid = (pid_t)syscall(SYS_gettid);
    if (test->bytes)
        memcpy(test->copy, test->watched, test->bytes);
    test->begun = clock_ns();
    test->state = 1;
    test->result = enter(test->arg, test->nr, test->after);
    test->ended = clock_ns();
    test->state = 2;
    return NULL;
}

static bool asleep(const struct test *test) {
    char path[64], text[256];
    snprintf(path, sizeof path, "/proc/self/task/%d/syscall", test->tid);
    int fd = open(path, O_RDONLY);
    ssize_t got = read(fd, text, sizeof text - 1);
    close(fd);
    text[got > 0 ? got : 0] = 0;
    return atol(text) == test->nr && strncmp(text, "running", 7) != 0;
}

static void go(void) {
    for (size_t i = 0; i < count(); i++) {
        tests[i].setup(&tests[i]);
        need(pthread_create(&tests[i].thread, NULL, run, &tests[i]) == 0, "pthread_create");
    }
    for (size_t i = 0; i < count(); i++)
        while (tests[i].state == 0 || (tests[i].state == 1 && !asleep(&tests[i])))
            usleep(500);
    say("GONE");
}

static void report(void) {
    for (size_t i = 0; i < count(); i++) {
        struct test *test = &tests[i];
        for (int wait = 0; test->state != 2 && wait < 30000; wait++)
            usleep(1000);
        const char *changed = test->bytes && memcmp(test->copy, test->watched, test->bytes) ? "memory" : "-";
        changed = memcmp(test->arg, test->after, sizeof test->arg) ? "registers" : changed;
        if (test->state != 2)
            changed = "waits-still";
        say("%s %s %ld %ld %s", test->name, kinds[test->kind], test->result, (long)(test->ended - test->begun) / 1000, changed);
    }
    say("END");
}

int main(int argc, char **argv) {
    limit_ms = argc > 1 ? atol(argv[1]) : 2000;
    holder = getpid();
    signal(SIGUSR2, handled);
    semaphores = semget(IPC_PRIVATE, 2, 0600);
    queue = msgget(IPC_PRIVATE, 0600);
    need(semaphores >= 0 && queue >= 0, "System V ipc");
    ready();
    while (asked(-1)) {
        char line[64];
        ssize_t got = read(0, line, sizeof line - 1); /* as question(), but the System V objects must be removed at the end */
        if (got <= 0)
            break;
        line[got] = 0;
        if (!strncmp(line, "go", 2))
            go();
        else if (!strncmp(line, "wake", 4)) {
            for (size_t i = 0; i < count(); i++)
                if (tests[i].wake)
                    tests[i].wake(&tests[i]);
            say("WOKEN");
        } else
            report();
    }
    semctl(semaphores, 0, IPC_RMID);
    msgctl(queue, IPC_RMID, NULL);
    return 0;
}
