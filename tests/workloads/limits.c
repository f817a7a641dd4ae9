/* limits: a thread in each kind of finite wait. "begin MS" puts all of them into their wait for so long and answers, one line for all,
 * "name tid began" each (CLOCK_MONOTONIC, ns, just before the call); "end" waits for them and answers "name result errno lasted".
 * With an argument also in one of asynchronous i/o, which no snapshot takes.
 */
#include "victim.h"
#include <linux/aio_abi.h>
#include <linux/futex.h>
#include <sys/epoll.h>
#include <sys/sem.h>
#include <sys/socket.h>

enum kind { NANOSLEEP, CLOCK_NANOSLEEP, BOOT_SLEEP, POLL, EPOLL, EPOLL_2, FUTEX, SEMAPHORE, SIGNAL, RECEIVE, AIO, KINDS };
static const char *const names[KINDS] = {"nanosleep", "clock_nanosleep", "boottime", "poll", "epoll_wait", "epoll_pwait2", "futex",
                                         "semtimedop", "rt_sigtimedwait", "recvfrom", "io_getevents"};

static struct waiter {
    pthread_t thread;
    _Atomic pid_t tid;
    _Atomic uint64_t began;
    uint64_t lasted;
    long got;
    int error;
} waiters[KINDS];
static int pipes[2], pairs[2], epolls, semaphores;
static uint32_t word;
static aio_context_t context;
static struct timespec limit;
static int kinds = AIO;

static long wait_once(enum kind kind) {
    struct epoll_event event;
    struct pollfd one = {pipes[0], POLLIN, 0};
    struct sembuf down = {0, -1, 0};
    struct io_event done;
    int ms = (int)(limit.tv_sec * 1000 + limit.tv_nsec / 1000000);
    sigset_t set;
    char byte;
    sigemptyset(&set);
    sigaddset(&set, SIGRTMIN + 5);
    switch (kind) {
    case NANOSLEEP: return syscall(SYS_nanosleep, &limit, NULL);
    case CLOCK_NANOSLEEP: return syscall(SYS_clock_nanosleep, CLOCK_MONOTONIC, 0, &limit, NULL);
    case BOOT_SLEEP: return syscall(SYS_clock_nanosleep, CLOCK_BOOTTIME, 0, &limit, NULL);
    case POLL: return poll(&one, 1, ms);
    case EPOLL: return epoll_wait(epolls, &event, 1, ms);
    case EPOLL_2: return syscall(SYS_epoll_pwait2, epolls, &event, 1, &limit, NULL, 0);
    case FUTEX: return syscall(SYS_futex, &word, FUTEX_WAIT, 0, &limit, NULL, 0);
    case SEMAPHORE: return semtimedop(semaphores, &down, 1, &limit);
    case SIGNAL: return sigtimedwait(&set, NULL, &limit);
    case RECEIVE: return recv(pairs[0], &byte, 1, 0);
    default: return syscall(SYS_io_getevents, context, 1, 1, &done, &limit);
    }
}

static void *run(void *argument) {
    enum kind kind = (enum kind)(intptr_t)argument;
    struct waiter *waiter = &waiters[kind];
    waiter->tid = (pid_t)syscall(SYS_gettid);
    errno = 0;
    waiter->began = clock_ns();
    waiter->got = wait_once(kind);
    waiter->lasted = clock_ns() - waiter->began;
    waiter->error = waiter->got < 0 ? errno : 0;
    return NULL;
}

static void begin(long ms) {
    struct timeval time = {ms / 1000, ms % 1000 * 1000};
    char line[KINDS * 64];
    int used = 0;
    limit = (struct timespec){ms / 1000, ms % 1000 * 1000000};
    need(setsockopt(pairs[0], SOL_SOCKET, SO_RCVTIMEO, &time, sizeof time) == 0, "SO_RCVTIMEO");
    for (intptr_t kind = 0; kind < kinds; kind++) {
        waiters[kind] = (struct waiter){0};
        need(pthread_create(&waiters[kind].thread, NULL, run, (void *)kind) == 0, "pthread_create");
        while (!waiters[kind].began)
            usleep(100);
    }
    usleep(20000); /* everybody sleeps */
    for (int kind = 0; kind < kinds; kind++)
        used += snprintf(line + used, sizeof line - (size_t)used, "%s %d %lu ", names[kind], waiters[kind].tid, waiters[kind].began);
    say("%s", line);
}

static void end(void) {
    char line[KINDS * 64];
    int used = 0;
    for (int kind = 0; kind < kinds; kind++) {
        struct waiter *waiter = &waiters[kind];
        need(pthread_join(waiter->thread, NULL) == 0, "pthread_join");
        used += snprintf(line + used, sizeof line - (size_t)used, "%s %ld %d %lu ", names[kind], waiter->got, waiter->error, waiter->lasted);
    }
    say("%s", line);
}

int main(int argc, char **argv) {
    (void)argv;
    struct epoll_event event = {.events = EPOLLIN};
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGRTMIN + 5);
    sigprocmask(SIG_BLOCK, &set, NULL);
    need(pipe(pipes) == 0 && socketpair(AF_UNIX, SOCK_STREAM, 0, pairs) == 0, "pipe");
    epolls = epoll_create1(0);
    need(epoll_ctl(epolls, EPOLL_CTL_ADD, pipes[0], &event) == 0, "epoll_ctl");
    semaphores = semget(IPC_PRIVATE, 1, 0600);
    need(semaphores >= 0, "semget");
    if (argc > 1) {
        need(syscall(SYS_io_setup, 4, &context) == 0, "io_setup");
        kinds = KINDS;
    }
    ready();
    while (asked(-1)) {
        char line[64] = "";
        ssize_t got = read(0, line, sizeof line - 1); /* as question(), but the semaphores must be removed at the end */
        if (got <= 0)
            break;
        if (!strncmp(line, "begin ", 6))
            begin(strtol(line + 6, NULL, 10));
        else
            end();
    }
    semctl(semaphores, 0, IPC_RMID);
    return 0;
}
