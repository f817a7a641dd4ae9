/* signals: counts them exactly. A thread queues numbered real-time signals to the process; the handler wants each number
 * once and in order. Bursts are queued while blocked and must all arrive when unblocked. A POSIX timer and an itimer tick.
 * Seen: a signal that is lost, doubled or out of order, a mask or a disposition that changed, a dead timer.
 */
#include "victim.h"
#include <sys/time.h>

static _Atomic uint64_t queued, handled, ticks, alarms, bursts, burst_handled;

static void numbered(int signal, siginfo_t *info, void *context) {
    (void)signal;
    (void)context;
    uint64_t number = (uint64_t)(uintptr_t)info->si_value.sival_ptr;
    if (number != handled)
        wrong("signal number %lu came, %lu was next", number, handled);
    handled = number + 1;
}

static void burst(int signal, siginfo_t *info, void *context) {
    (void)signal;
    (void)context;
    if ((uint64_t)info->si_value.sival_int != burst_handled % 5)
        wrong("burst: %d came, %lu was next", info->si_value.sival_int, burst_handled % 5);
    burst_handled++;
}

static void tick(int signal, siginfo_t *info, void *context) {
    (void)signal;
    (void)context;
    ticks += 1 + (uint64_t)info->si_overrun;
}

static void alarmed(int signal) {
    (void)signal;
    alarms++;
}

static void *sender(void *argument) {
    (void)argument;
    for (;;) {
        union sigval number = {.sival_ptr = (void *)(uintptr_t)queued};
        if (queued - handled < 64 && sigqueue(getpid(), SIGRTMIN + 1, number) == 0)
            queued++;
        else
            usleep(100);
        if (queued % 8 == 0)
            usleep(200);
    }
    return NULL;
}

/* EINTR is right here: this program has handlers that run. */
static void rest(long ns) {
    struct timespec time = {0, ns};
    nanosleep(&time, NULL);
}

static void one_burst(void) {
    sigset_t set, pending;
    sigemptyset(&set);
    sigaddset(&set, SIGRTMIN + 2);
    pthread_sigmask(SIG_BLOCK, &set, NULL);
    uint64_t before = burst_handled;
    for (int i = 0; i < 5; i++)
        need(sigqueue(getpid(), SIGRTMIN + 2, (union sigval){.sival_int = i}) == 0, "sigqueue");
    rest(2000000);
    sigpending(&pending);
    if (burst_handled != before || !sigismember(&pending, SIGRTMIN + 2))
        wrong("a blocked signal was handled or is not pending");
    pthread_sigmask(SIG_UNBLOCK, &set, NULL);
    if (burst_handled != before + 5)
        wrong("%lu of 5 blocked signals arrived", burst_handled - before);
    bursts++;
}

static void handle(int signal, void (*action)(int, siginfo_t *, void *)) {
    struct sigaction how = {.sa_sigaction = action, .sa_flags = SA_SIGINFO | SA_RESTART};
    sigaction(signal, &how, NULL);
}

static void check(void) {
    uint64_t until = queued, deadline = clock_ns() + 5000000000u, ticked = ticks, rang = alarms;
    while ((handled < until || ticks == ticked || alarms == rang) && clock_ns() < deadline && !victim_reason[0])
        rest(1000000);
    if (handled < until)
        wrong("%lu signals were queued, %lu handled", until, handled);
    if (ticks == ticked || alarms == rang)
        wrong("a timer stands still");
    if (burst_handled != bursts * 5)
        wrong("%lu bursts, %lu handled", bursts, burst_handled);
}

int main(void) {
    handle(SIGRTMIN + 1, numbered);
    handle(SIGRTMIN + 2, burst);
    handle(SIGRTMIN + 3, tick);
    signal(SIGALRM, alarmed);
    struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGRTMIN + 3};
    timer_t timer;
    need(timer_create(CLOCK_MONOTONIC, &event, &timer) == 0, "timer_create");
    struct itimerspec period = {{0, 5000000}, {0, 5000000}};
    need(timer_settime(timer, 0, &period, NULL) == 0, "timer_settime");
    struct itimerval interval = {{0, 7000}, {0, 7000}};
    need(setitimer(ITIMER_REAL, &interval, NULL) == 0, "setitimer");
    sigset_t all, old; /* the sender is born with everything blocked: signals are the main thread's */
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    pthread_t thread;
    need(pthread_create(&thread, NULL, sender, NULL) == 0, "pthread_create");
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    one_burst();
    ready();
    for (;;) {
        one_burst();
        struct pollfd in = {0, POLLIN, 0};
        if (poll(&in, 1, 0) > 0) {
            check();
            answer();
        }
    }
}
