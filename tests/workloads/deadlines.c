/* deadlines: threads that wait with random limits (epoll_wait, epoll_pwait2, sigtimedwait, futex, poll, a receive with SO_RCVTIMEO), and one
 * that wakes them at random. A wait that ends by its time before its time, an EINTR, or a wake-up that is lost shows at "verify".
 */
#include "victim.h"
#include <linux/futex.h>
#include <stdatomic.h>
#include <sys/epoll.h>
#include <sys/socket.h>

enum { KINDS = 6, WAITERS = 2 * KINDS, LONGEST_MS = 120, EARLY_NS = 1100000 };
enum kind { EPOLL, EPOLL_2, SIGNAL, FUTEX, POLL, RECEIVE };
static const char *const names[KINDS] = {"epoll_wait", "epoll_pwait2", "rt_sigtimedwait", "futex", "poll", "recv"};

static struct waiter {
    pthread_t thread;
    int pair[2], epoll;
    _Atomic uint32_t word;            /* FUTEX: 1 = woken */
    _Atomic uint64_t sent, received;  /* wake-ups */
    uint64_t random;
} waiters[WAITERS];

static long wait_once(struct waiter *waiter, enum kind kind, long ms) {
    struct epoll_event event;
    struct pollfd one = {waiter->pair[0], POLLIN, 0};
    struct timespec limit = {ms / 1000, ms % 1000 * 1000000};
    struct timeval time = {ms / 1000, ms % 1000 * 1000};
    sigset_t set;
    char byte;
    sigemptyset(&set);
    sigaddset(&set, SIGRTMIN + 7);
    switch (kind) {
    case EPOLL: return epoll_wait(waiter->epoll, &event, 1, (int)ms);
    case EPOLL_2: return syscall(SYS_epoll_pwait2, waiter->epoll, &event, 1, &limit, NULL, 0);
    case SIGNAL: return sigtimedwait(&set, NULL, &limit) > 0 ? 1 : errno == EAGAIN ? 0 : -1;
    case FUTEX:
        if (syscall(SYS_futex, &waiter->word, FUTEX_WAIT, 0, &limit, NULL, 0) < 0 && errno == ETIMEDOUT)
            return 0;
        return errno == EINTR ? -1 : 1;
    case POLL: return poll(&one, 1, (int)ms);
    default:
        setsockopt(waiter->pair[0], SOL_SOCKET, SO_RCVTIMEO, &time, sizeof time);
        return recv(waiter->pair[0], &byte, 1, MSG_PEEK) == 1 ? 1 : errno == EAGAIN ? 0 : -1;
    }
}

/* One wake-up is taken; false where there was none (a wait may have ended at the same moment). */
static bool take(struct waiter *waiter, enum kind kind) {
    char byte;
    if (kind == SIGNAL)
        return true; /* sigtimedwait has taken it */
    if (kind == FUTEX)
        return atomic_exchange(&waiter->word, 0) == 1;
    return recv(waiter->pair[0], &byte, 1, MSG_DONTWAIT) == 1;
}

static void *run(void *argument) {
    struct waiter *waiter = argument;
    enum kind kind = (enum kind)((waiter - waiters) % KINDS);
    for (;;) {
        long ms = 1 + (long)(draw(&waiter->random) % LONGEST_MS);
        uint64_t begun = clock_ns();
        errno = 0;
        long got = wait_once(waiter, kind, ms);
        uint64_t waited = clock_ns() - begun;
        if (got < 0)
            wrong("%s: %s", names[kind], strerror(errno));
        else if (got == 0 && waited + EARLY_NS < (uint64_t)ms * 1000000)
            wrong("%s: its %ld ms were over after %lu us", names[kind], ms, waited / 1000);
        else if (got > 0 && take(waiter, kind))
            waiter->received++;
    }
    return NULL;
}

static void wake(struct waiter *waiter) {
    enum kind kind = (enum kind)((waiter - waiters) % KINDS);
    if (waiter->sent != waiter->received)
        return; /* one at a time: signals and words do not add up */
    waiter->sent++;
    if (kind == SIGNAL)
        pthread_kill(waiter->thread, SIGRTMIN + 7);
    else if (kind == FUTEX) {
        waiter->word = 1;
        syscall(SYS_futex, &waiter->word, FUTEX_WAKE, 1, NULL, NULL, 0);
    } else
        need(send(waiter->pair[1], "x", 1, 0) == 1, "send");
}

static void all_taken(void) {
    uint64_t until = clock_ns() + 5000000000u;
    for (int i = 0; i < WAITERS; i++) {
        while (waiters[i].sent != waiters[i].received && clock_ns() < until)
            usleep(1000);
        if (waiters[i].sent != waiters[i].received)
            wrong("%s: a wake-up was lost", names[i % KINDS]);
    }
}

int main(void) {
    sigset_t set;
    uint64_t random = 7;
    sigemptyset(&set);
    sigaddset(&set, SIGRTMIN + 7);
    sigprocmask(SIG_BLOCK, &set, NULL);
    for (int i = 0; i < WAITERS; i++) {
        struct epoll_event event = {.events = EPOLLIN};
        waiters[i].random = (uint64_t)i + 1;
        waiters[i].epoll = epoll_create1(0);
        need(socketpair(AF_UNIX, SOCK_STREAM, 0, waiters[i].pair) == 0, "socketpair");
        need(epoll_ctl(waiters[i].epoll, EPOLL_CTL_ADD, waiters[i].pair[0], &event) == 0, "epoll_ctl");
    }
    for (int i = 0; i < WAITERS; i++)
        need(pthread_create(&waiters[i].thread, NULL, run, &waiters[i]) == 0, "pthread_create");
    ready();
    for (;;) {
        if (asked((int)(draw(&random) % 30))) {
            all_taken();
            answer();
        }
        wake(&waiters[draw(&random) % WAITERS]);
    }
}
