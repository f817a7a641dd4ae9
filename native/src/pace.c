/* pace.c: the caller's own scheduling while a tree is being stopped and stands still: priority, CPU, and a clock that ends waits.
 *
 * What a stop costs is decided by which CPU the tracer stands on (one thread, spinning or asleep; microseconds, median of 40, a
 * machine with two busy CPUs; stop / stop and go):
 *
 *   SCHED_FIFO, wherever it is                387 / 156   (the stopped thread wakes a processor, or waits for its turn there)
 *   SCHED_FIFO, other CPU than the target     256 / 235
 *   SCHED_FIFO, the CPU that the target is on   5.5 / 3.2
 *   the same, but polling in place of blocking 25 / 1300   (it keeps the target off the CPU that it waits for)
 *
 * So the tracer goes to the CPU where the target runs, and blocks in waitpid() there: the target gets the CPU at once, stops,
 * and gives it back. At the thaw the tracer leaves that CPU first, then its priority.
 *
 * Invariants
 *  1. Only the caller's own thread is changed: never the target's affinity or policy. All is put back by pace_end(); what a
 *     kill leaves is gone with the process. RESET_ON_FORK keeps children out of the priority.
 *  2. A blocked waitpid() ends: the clock sends this thread a signal every TICK_NS while pace_ticking(). Its handler does nothing;
 *     it is installed on a signal that nobody uses, and stays installed (a late tick must not meet the default, which ends us).
 *  3. Around the freeze the caller is aside: on no CPU where the target was running. The scheduler would take a spinning thread off its
 *     CPU for some milliseconds to let ckpt copy and hash there, several times what the stop takes.
 *  4. Where something is not permitted the work is done all the same, only slower; without a clock nobody blocks.
 */
#define _GNU_SOURCE
#include "internal.h"
#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <time.h>

enum { TICK_NS = 2 * 1000 * 1000 };

#ifndef sigev_notify_thread_id
#define sigev_notify_thread_id _sigev_un._tid
#endif

static void tick(int signal) { (void)signal; }

/* A real-time signal without a handler, or with ours; 0 = none. */
static int free_signal(void) {
    for (int sig = SIGRTMAX; sig >= SIGRTMIN; sig--) {
        struct sigaction now;
        if (sigaction(sig, NULL, &now) || (now.sa_flags & SA_SIGINFO))
            continue;
        if (now.sa_handler == tick)
            return sig;
        struct sigaction ours = {.sa_handler = tick}; /* no SA_RESTART: a tick ends the wait */
        if (now.sa_handler == SIG_DFL && !sigaction(sig, &ours, NULL))
            return sig;
    }
    return 0;
}

static void clock_new(struct pace *pace) {
    pace->signal = free_signal();
    struct sigevent event = {.sigev_notify = SIGEV_THREAD_ID, .sigev_signo = pace->signal};
    event.sigev_notify_thread_id = (pid_t)syscall(SYS_gettid);
    pace->clocked = pace->signal && !timer_create(CLOCK_MONOTONIC, &event, &pace->clock);
    if (!pace->clocked)
        return;
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, pace->signal);
    pthread_sigmask(SIG_UNBLOCK, &set, NULL);
}

bool pace_ticking(struct pace *pace, bool on) {
    if (!pace->clocked || pace->ticking == on)
        return pace->ticking;
    struct timespec every = {.tv_nsec = on ? TICK_NS : 0};
    timer_settime(pace->clock, 0, &(struct itimerspec){.it_interval = every, .it_value = every}, NULL);
    return pace->ticking = on;
}

static void raise_priority(struct pace *pace) {
    struct sched_param now;
    pace->policy = sched_getscheduler(0);
    if (pace->policy < 0 || sched_getparam(0, &now) || (pace->policy & ~SCHED_RESET_ON_FORK) == SCHED_FIFO)
        return;
    struct sched_param wanted = {.sched_priority = 1};
    pace->priority = now.sched_priority;
    pace->slack = prctl(PR_GET_TIMERSLACK);
    prctl(PR_SET_TIMERSLACK, 1);
    pace->raised = sched_setscheduler(0, SCHED_FIFO | SCHED_RESET_ON_FORK, &wanted) == 0;
}

/* Without the priority the CPU of a busy target would be shared with it in turns of milliseconds. */
void pace_move(struct pace *pace, int cpu) {
    cpu_set_t one;
    if (!pace->raised || pace->moved || cpu < 0 || cpu >= CPU_SETSIZE)
        return;
    if (pace->aside)
        pace->cpus = pace->home;
    else if (sched_getaffinity(0, sizeof pace->cpus, &pace->cpus))
        return;
    if (!CPU_ISSET(cpu, &pace->cpus))
        return;
    CPU_ZERO(&one);
    CPU_SET(cpu, &one);
    pace->moved = sched_setaffinity(0, sizeof one, &one) == 0;
    pace->cpu = cpu;
}

void pace_begin(struct pace *pace) {
    if (pace->begun)
        return;
    *pace = (struct pace){.begun = true, .aside = pace->aside, .home = pace->home};
    clock_new(pace);
    raise_priority(pace);
}

/* Away from the target's CPU first: it is waiting for it. */
void pace_end(struct pace *pace) {
    if (!pace->begun)
        return;
    if (pace->moved) {
        cpu_set_t others = pace->cpus;
        CPU_CLR(pace->cpu, &others);
        if (CPU_COUNT(&others))
            sched_setaffinity(0, sizeof others, &others);
    }
    if (pace->raised)
        sched_setscheduler(0, pace->policy, &(struct sched_param){.sched_priority = pace->priority});
    if (pace->moved && !pace->aside)
        sched_setaffinity(0, sizeof pace->cpus, &pace->cpus);
    if (pace->slack > 0)
        prctl(PR_SET_TIMERSLACK, pace->slack);
    if (pace->clocked)
        timer_delete(pace->clock);
    *pace = (struct pace){.aside = pace->aside, .home = pace->home};
}

void pace_aside(struct pace *pace, const cpu_set_t *targets) {
    if (!pace->aside && sched_getaffinity(0, sizeof pace->home, &pace->home))
        return;
    cpu_set_t others, taken;
    CPU_AND(&taken, &pace->home, targets);
    CPU_XOR(&others, &pace->home, &taken);
    if (CPU_COUNT(&taken) && CPU_COUNT(&others))
        pace->aside = sched_setaffinity(0, sizeof others, &others) == 0;
}

void pace_back(struct pace *pace) {
    if (pace->aside)
        sched_setaffinity(0, sizeof pace->home, &pace->home);
    pace->aside = false;
}
