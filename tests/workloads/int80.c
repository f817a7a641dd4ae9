/* int80: a 64-bit program whose threads wait by `int 0x80`: numbers, registers and restart_syscall are those of a 32-bit one.
 * Each wait is checked for its result, and that it did not end before its time: finite ones (nanosleep, poll, futex, epoll_wait,
 * clock_nanosleep of 64-bit times), endless ones that somebody wakes (epoll_wait, read, futex).
 * Seen: a restart under a wrong number (219 is madvise here), an EINTR, a result or a wake-up that is lost, an early end.
 */
#include "victim.h"
#include <sys/epoll.h>

enum { NANOSLEEP = 162, POLL = 168, READ = 3, EPOLL_WAIT = 256, FUTEX = 240, CLOCK_NANOSLEEP_64 = 407, GETPID = 20 };
enum { WAITERS = 8, SLEEP_MS = 150 };

struct shared { /* below 4 GiB: the calls have 32-bit pointers */
    int32_t nap32[2];
    int64_t nap64[2];
    struct pollfd never;
    struct epoll_event event[2];
    int32_t word[2], wait32[2];
    char byte[2];
};
static struct shared *low;
static _Atomic uint64_t rounds[WAITERS];
static int pipes[2][2], epolls[2];
static _Atomic uint64_t sent[2], got[2];

static long call(long nr, uintptr_t a, uintptr_t b, uintptr_t c, uintptr_t d, uintptr_t e) {
    long result;
    register uintptr_t four __asm__("rsi") = d, five __asm__("rdi") = e;
    __asm__ volatile("int $0x80"
                     : "=a"(result)
                     : "a"(nr), "b"(a), "c"(b), "d"(c), "r"(four), "r"(five)
                     : "memory", "r8", "r9", "r10", "r11");
    return (int)result;
}

static uintptr_t at(void *address) { return (uintptr_t)address; }

static long wait_for(int which) {
    switch (which) {
    case 0: return call(NANOSLEEP, at(low->nap32), 0, 0, 0, 0);
    case 1: return call(POLL, at(&low->never), 1, SLEEP_MS, 0, 0);
    case 2: return call(FUTEX, at(&low->word[0]), 0, 0, at(low->wait32), 0) == -ETIMEDOUT ? 0 : -1;
    case 3: return call(EPOLL_WAIT, (uintptr_t)epolls[0], at(&low->event[0]), 1, SLEEP_MS, 0);
    case 4: return call(CLOCK_NANOSLEEP_64, CLOCK_MONOTONIC, 0, at(low->nap64), 0, 0);
    default: return 0;
    }
}

static void *limited(void *argument) {
    int which = (int)(uintptr_t)argument;
    for (;;) {
        uint64_t begin = clock_ns();
        long result = wait_for(which);
        uint64_t took = clock_ns() - begin;
        if (result != 0)
            wrong("wait %d gave %ld", which, result);
        if (took < (SLEEP_MS - 1) * 1000000ull)
            wrong("wait %d ended after %lu us", which, took / 1000);
        rounds[which]++;
    }
    return NULL;
}

static void *by_read(void *argument) {
    (void)argument;
    for (;; rounds[5]++) {
        long result = call(READ, (uintptr_t)pipes[0][0], at(&low->byte[0]), 1, 0, 0);
        if (result != 1 || low->byte[0] != (char)got[0])
            wrong("read gave %ld, %d for %d", result, low->byte[0], (char)got[0]);
        got[0]++;
    }
    return NULL;
}

static void *by_epoll(void *argument) {
    (void)argument;
    for (;; rounds[6]++) {
        long result = call(EPOLL_WAIT, (uintptr_t)epolls[1], at(&low->event[1]), 1, (uintptr_t)-1, 0);
        if (result != 1)
            wrong("endless epoll_wait gave %ld", result);
        if (read(pipes[1][0], &low->byte[1], 1) != 1 || low->byte[1] != (char)got[1])
            wrong("message %lu is another", got[1]);
        got[1]++;
    }
    return NULL;
}

static void *busy(void *argument) { /* a result in rax, not a wait */
    (void)argument;
    long pid = getpid();
    for (;; rounds[7]++)
        if (call(GETPID, 0, 0, 0, 0, 0) != pid)
            wrong("getpid gave another number");
    return NULL;
}

static void *sender(void *argument) {
    (void)argument;
    for (;;) {
        for (int i = 0; i < 2; i++)
            if (sent[i] - got[i] < 4) {
                char byte = (char)sent[i];
                if (write(pipes[i][1], &byte, 1) == 1)
                    sent[i]++;
            }
        struct timespec rest = {0, 40000000};
        clock_nanosleep(CLOCK_MONOTONIC, 0, &rest, NULL);
    }
    return NULL;
}

/* Where 32-bit calls are switched off, `int 0x80` is a fault. */
static bool there_are_any(void) {
    pid_t child = fork();
    if (!child)
        _exit(call(GETPID, 0, 0, 0, 0, 0) == getpid() ? 0 : 1);
    int status = 1;
    return child > 0 && waitpid(child, &status, 0) == child && !status;
}

static void check(void) {
    uint64_t before[WAITERS], deadline = clock_ns() + 10000000000ull;
    for (int i = 0; i < WAITERS; i++)
        before[i] = rounds[i];
    for (int i = 0; i < WAITERS; i++)
        while (rounds[i] == before[i] && !victim_reason[0]) {
            if (clock_ns() > deadline)
                wrong("wait %d stands still", i);
            usleep(1000);
        }
}

int main(void) {
    if (!there_are_any())
        skip("no 32-bit system calls here (CONFIG_IA32_EMULATION)");
    low = mmap((void *)0x20000000, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
    need(low != MAP_FAILED, "mmap");
    for (int i = 0; i < 2; i++)
        need(pipe(pipes[i]) == 0, "pipe");
    int silent[2];
    need(pipe(silent) == 0, "pipe");
    *low = (struct shared){.nap32 = {0, SLEEP_MS * 1000000}, .nap64 = {0, SLEEP_MS * 1000000}, .never = {silent[0], POLLIN, 0}, .wait32 = {0, SLEEP_MS * 1000000}};
    for (int i = 0; i < 2; i++) {
        struct epoll_event event = {.events = EPOLLIN};
        epolls[i] = epoll_create1(0);
        need(epoll_ctl(epolls[i], EPOLL_CTL_ADD, i ? pipes[1][0] : silent[0], &event) == 0, "epoll_ctl");
    }
    pthread_t thread;
    for (uintptr_t i = 0; i < 5; i++)
        need(pthread_create(&thread, NULL, limited, (void *)i) == 0, "pthread_create");
    need(pthread_create(&thread, NULL, by_read, NULL) == 0, "pthread_create");
    need(pthread_create(&thread, NULL, by_epoll, NULL) == 0, "pthread_create");
    need(pthread_create(&thread, NULL, busy, NULL) == 0, "pthread_create");
    need(pthread_create(&thread, NULL, sender, NULL) == 0, "pthread_create");
    ready();
    for (;;) {
        asked(-1);
        check();
        answer();
    }
}
