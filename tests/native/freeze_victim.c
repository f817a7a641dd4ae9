/* freeze_victim MODE: a program that notices if a freeze is not invisible. Says READY, works until SIGTERM, checks itself, says PASS.
 *
 *   busy     8 threads: arithmetic with its own check, a ping-pong over pipes, epoll_wait and semop without limit (EINTR = fail),
 *            nanosleep (an early return or EINTR = fail)
 *   signals  4 threads take queued real-time signals; each carries a number, every number must come once and in order
 *   churn    threads come and go, children are forked, exit and are waited for; a vfork child execs
 *   vfork    the main thread stands in vfork() for a second at a time
 *   idle     two threads in pause()
 */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ipc.h>
#include <sys/sem.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static atomic_bool stop;
static atomic_long failures, rounds;
static atomic_long counts[16];

static void fail(const char *what) {
    failures++;
    dprintf(1, "FAIL %s errno %d\n", what, errno);
}

static void on_term(int signal) { stop = true; }

/* The same value by two ways; a register or a flag that a freeze spoiled makes them differ. */
static void *arithmetic(void *argument) {
    uint64_t seed = (uint64_t)(uintptr_t)argument + 1;
    while (!stop) {
        uint64_t a = seed, b = seed, sum = 0;
        double x = 1.0;
        for (int i = 1; i < 20000; i++) {
            a = a * 6364136223846793005ull + 1442695040888963407ull;
            sum += a >> 33;
            x = x * 1.0000001 + (double)i;
        }
        uint64_t again = 0;
        double y = 1.0;
        for (int i = 1; i < 20000; i++) {
            b = b * 6364136223846793005ull + 1442695040888963407ull;
            again += b >> 33;
            y = y * 1.0000001 + (double)i;
        }
        if (a != b || sum != again || x != y)
            fail("arithmetic");
        counts[0]++;
        seed = a;
    }
    return NULL;
}

static int ping[2], pong[2];

static void *echo(void *argument) {
    long number;
    while (read(ping[0], &number, sizeof number) == sizeof number && write(pong[1], &number, sizeof number) == sizeof number)
        ;
    return NULL;
}

static void *ping_pong(void *argument) {
    for (long number = 0; !stop; number++) {
        long back = -1;
        if (write(ping[1], &number, sizeof number) != sizeof number || read(pong[0], &back, sizeof back) != sizeof back || back != number)
            fail("ping-pong");
        counts[1]++;
    }
    close(ping[1]);
    return NULL;
}

static void *endless_epoll(void *argument) {
    int epoll = epoll_create1(EPOLL_CLOEXEC);
    struct epoll_event event;
    epoll_wait(epoll, &event, 1, -1);
    fail("epoll_wait came back");
    return NULL;
}

static void *endless_semop(void *argument) {
    int set = *(int *)argument;
    struct sembuf down = {.sem_num = 0, .sem_op = -1};
    int result = semop(set, &down, 1);
    if (!stop || (result < 0 && errno != EIDRM && errno != EINVAL)) /* EINVAL: it was restarting as the set went */
        fail("semop came back");
    return NULL;
}

static int64_t now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1000000000ll + time.tv_nsec;
}

static void *sleeper(void *argument) {
    while (!stop) {
        struct timespec wish = {.tv_nsec = 20 * 1000 * 1000};
        int64_t begin = now();
        if (nanosleep(&wish, NULL))
            fail("nanosleep EINTR");
        if (now() - begin < 20 * 1000 * 1000)
            fail("nanosleep early");
        counts[2]++;
    }
    return NULL;
}

static void start(void *(*body)(void *), void *argument) {
    pthread_t thread;
    if (pthread_create(&thread, NULL, body, argument))
        fail("pthread_create");
}

static void wait_for_term(void) {
    sigset_t none;
    sigfillset(&none);
    sigdelset(&none, SIGTERM);
    while (!stop)
        sigsuspend(&none);
}

static void busy(void) {
    int set = semget(IPC_PRIVATE, 1, 0600);
    if (pipe(ping) || pipe(pong) || set < 0)
        fail("setup");
    for (long i = 0; i < 3; i++)
        start(arithmetic, (void *)i);
    start(echo, NULL);
    start(ping_pong, NULL);
    start(endless_epoll, NULL);
    start(endless_semop, &set);
    start(sleeper, NULL);
    dprintf(1, "READY\n");
    wait_for_term();
    semctl(set, 0, IPC_RMID);
    usleep(100 * 1000);
    for (int i = 0; i < 3; i++)
        if (!counts[i])
            fail("a thread stood still");
}

/* ---- signals ---- */

static atomic_long last = 0;

static void on_number(int signal, siginfo_t *info, void *context) {
    long number = info->si_value.sival_int;
    if (number != atomic_fetch_add(&last, 1) + 1)
        fail("a signal was lost or doubled");
}

static void *take_signals(void *argument) {
    while (!stop) {
        struct timespec nap = {.tv_nsec = 1000 * 1000};
        nanosleep(&nap, NULL);
        counts[3]++;
    }
    return NULL;
}

static void signals(void) {
    struct sigaction action = {.sa_sigaction = on_number, .sa_flags = SA_SIGINFO | SA_RESTART};
    sigset_t others;
    sigaction(SIGRTMIN + 3, &action, NULL);
    start(take_signals, NULL);
    sigemptyset(&others);
    sigaddset(&others, SIGRTMIN + 3); /* only one thread takes them, so that their order is told */
    pthread_sigmask(SIG_BLOCK, &others, NULL);
    for (long i = 0; i < 3; i++)
        start(arithmetic, (void *)i);
    dprintf(1, "READY\n");
    while (!stop)
        usleep(10 * 1000);
    usleep(100 * 1000);
    dprintf(1, "signals %ld\n", last);
}

/* ---- churn ---- */

static void *brief(void *argument) {
    atomic_fetch_add(&rounds, 1);
    return argument;
}

static void *makes_threads(void *argument) {
    while (!stop) {
        pthread_t thread;
        void *back = NULL;
        if (pthread_create(&thread, NULL, brief, &stop) || pthread_join(thread, &back) || back != &stop)
            fail("thread");
        counts[4]++;
    }
    return NULL;
}

static void *makes_children(void *argument) {
    while (!stop) {
        int status;
        pid_t child = fork();
        if (child == 0)
            _exit(42);
        if (child < 0 || waitpid(child, &status, 0) != child || !WIFEXITED(status) || WEXITSTATUS(status) != 42)
            fail("child");
        counts[5]++;
    }
    return NULL;
}

static void *makes_programs(void *argument) {
    while (!stop) {
        int status;
        pid_t child = vfork();
        if (child == 0) {
            execl("/bin/true", "true", NULL);
            _exit(127);
        }
        if (child < 0 || waitpid(child, &status, 0) != child || status)
            fail("program");
        counts[6]++;
    }
    return NULL;
}

static void churn(void) {
    start(makes_threads, NULL);
    start(makes_threads, NULL);
    start(makes_children, NULL);
    start(makes_programs, NULL);
    dprintf(1, "READY\n");
    wait_for_term();
    usleep(200 * 1000);
    for (int i = 4; i < 7; i++)
        if (!counts[i])
            fail("a thread stood still");
}

static void stands_in_vfork(void) {
    dprintf(1, "READY\n");
    while (!stop) {
        int status;
        pid_t child = vfork();
        if (child == 0) {
            struct timespec second = {.tv_sec = 0, .tv_nsec = 300 * 1000 * 1000};
            nanosleep(&second, NULL);
            _exit(7);
        }
        if (waitpid(child, &status, 0) != child || WEXITSTATUS(status) != 7)
            fail("vfork");
        usleep(100 * 1000);
    }
}

static void *pauses(void *argument) {
    for (;;)
        pause();
    return NULL;
}

static void idle(void) {
    start(pauses, NULL);
    dprintf(1, "READY\n");
    wait_for_term();
}

int main(int count, char **words) {
    sigset_t term;
    const char *mode = count > 1 ? words[1] : "";
    signal(SIGTERM, on_term);
    signal(SIGPIPE, SIG_IGN);
    sigemptyset(&term);
    sigaddset(&term, SIGTERM);
    bool blocks = strcmp(mode, "signals") && strcmp(mode, "vfork");
    if (blocks)
        pthread_sigmask(SIG_BLOCK, &term, NULL); /* only sigsuspend() of the main thread takes it */
    if (!strcmp(mode, "busy"))
        busy();
    else if (!strcmp(mode, "signals"))
        signals();
    else if (!strcmp(mode, "churn"))
        churn();
    else if (!strcmp(mode, "vfork"))
        stands_in_vfork();
    else
        idle();
    if (failures)
        return 1;
    dprintf(1, "PASS\n");
    fflush(stdout);
    _exit(0);
}
