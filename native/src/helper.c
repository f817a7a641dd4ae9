/* helper.c: one more thread for scanning and copying while the target stands still.
 *
 * It sleeps on a futex before the freeze, so that the frozen window pays a wake, not a creation. It blocks every signal
 * (the program around us is somebody's Python) and never calls ptrace, which binds to the thread that seized.
 *
 * Invariants
 *  1. `state` goes IDLE -> GO (caller) -> IDLE (helper), or IDLE -> QUIT (caller). work and argument are written before GO.
 *     READY (caller) in front of GO only wakes it: waking another CPU takes some 45 us, which pass while the caller does other things.
 *  2. After a piece of work, and when READY, the helper spins for some time before it sleeps: the next piece comes within microseconds.
 *     After a piece that READY announced it sleeps at once: there threads of the target run next, and may want this CPU.
 *  3. It may run anywhere, but for the time from helper_off() to helper_rest(): what it has looked at before the freeze is in one
 *     CPU's cache (PAGEMAP_SCAN of CPython: 90 us there, 140-200 on the other one).
 *  4. A real-time policy that the caller has while it freezes is lent by helper_lend() or at the first work, and taken back by helper_rest().
 */
#define _GNU_SOURCE
#include "scan.h"
#include <errno.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>

enum { IDLE, READY, GO, QUIT };
enum { SPINS = 4000, LONG_SPINS = 20000, STACK_AHEAD = 96 << 10 };

struct helper {
    pthread_t thread;
    uint32_t state;
    pid_t tid;
    bool lent;
    int off; /* the CPU that it keeps off, or -1 */
    bool announced; /* by helper_ready(); until helper_rest() */
    void (*work)(void *);
    void *argument;
};

void helper_tell(uint32_t *word, uint32_t value) {
    __atomic_store_n(word, value, __ATOMIC_RELEASE);
    syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
}

static uint32_t await_change(uint32_t *word, uint32_t old, int spins) {
    uint32_t value;
    for (int i = 0; (value = __atomic_load_n(word, __ATOMIC_ACQUIRE)) == old; i++) {
        if (i < spins)
            __builtin_ia32_pause();
        else
            syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, old, NULL, NULL, 0);
    }
    return value;
}

uint32_t helper_await(uint32_t *word, uint32_t old) { return await_change(word, old, SPINS); }

static void change(struct helper *helper, uint32_t state) { helper_tell(&helper->state, state); }

void stack_touch(void) {
    volatile char room[STACK_AHEAD];
    for (size_t at = 0; at < sizeof room; at += CKPT_PAGE)
        room[at] = 0;
}

/* cpu < 0: anywhere. tid 0: the caller. */
static bool run_anywhere_but(pid_t tid, int cpu) {
    cpu_set_t cpus;
    memset(&cpus, 0xff, sizeof cpus);
    if (cpu >= 0)
        CPU_CLR((size_t)cpu, &cpus);
    return sched_setaffinity(tid, sizeof cpus, &cpus) == 0;
}

static void *helper_main(void *argument) {
    struct helper *helper = argument;
    run_anywhere_but(0, -1); /* made while frozen it would inherit the one CPU that pace.c chose */
    stack_touch();
    __atomic_store_n(&helper->tid, (pid_t)syscall(SYS_gettid), __ATOMIC_RELEASE);
    for (;;) {
        uint32_t state = await_change(&helper->state, IDLE, __atomic_load_n(&helper->announced, __ATOMIC_RELAXED) ? 0 : SPINS);
        if (state == READY)
            state = helper_await(&helper->state, READY);
        if (state == QUIT)
            return NULL;
        if (state != GO)
            continue;
        helper->work(helper->argument);
        change(helper, IDLE);
    }
}

int helper_new(struct helper **ret_helper) {
    _cleanup_free_ struct helper *helper = calloc(1, sizeof *helper);
    if (!helper)
        return -ENOMEM;
    helper->off = -1;
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int error = -pthread_create(&helper->thread, NULL, helper_main, helper);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (error)
        return error;
    *ret_helper = take_ptr(&helper);
    return 0;
}

void helper_free(struct helper *helper) {
    if (!helper)
        return;
    change(helper, QUIT);
    pthread_join(helper->thread, NULL);
    free(helper);
}

void helper_lend(struct helper *helper) {
    struct sched_param param;
    int policy = sched_getscheduler(0);
    pid_t tid = __atomic_load_n(&helper->tid, __ATOMIC_ACQUIRE);
    if (helper->lent || tid <= 0 || policy < 0 || sched_getparam(0, &param) < 0)
        return;
    if ((policy & ~SCHED_RESET_ON_FORK) == SCHED_FIFO)
        helper->lent = sched_setscheduler(tid, SCHED_FIFO | SCHED_RESET_ON_FORK, &param) == 0;
}

void helper_off(struct helper *helper, int cpu) {
    pid_t tid = __atomic_load_n(&helper->tid, __ATOMIC_ACQUIRE);
    if (helper->off != cpu && tid > 0)
        helper->off = run_anywhere_but(tid, cpu) ? cpu : -1;
}

void helper_run(struct helper *helper, void (*work)(void *), void *argument) {
    helper_lend(helper);
    helper->work = work;
    helper->argument = argument;
    change(helper, GO);
}

void helper_ready(struct helper *helper) {
    __atomic_store_n(&helper->announced, true, __ATOMIC_RELAXED);
    change(helper, READY);
}

void helper_wait(struct helper *helper) { await_change(&helper->state, GO, LONG_SPINS); }

void helper_rest(struct helper *helper) {
    struct sched_param param = {0};
    if (!helper)
        return;
    if (helper->lent)
        sched_setscheduler(helper->tid, SCHED_OTHER, &param);
    helper->lent = false;
    helper_off(helper, -1);
    __atomic_store_n(&helper->announced, false, __ATOMIC_RELAXED);
    if (__atomic_load_n(&helper->state, __ATOMIC_ACQUIRE) == READY)
        change(helper, IDLE);
}
