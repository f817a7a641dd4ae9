/* helper.c: one more thread for scanning and copying while the target stands still.
 *
 * It sleeps on a futex before the freeze, so that the frozen window pays a wake, not a creation. It blocks every signal
 * (the program around us is somebody's Python) and never calls ptrace, which binds to the thread that seized.
 *
 * Invariants
 *  1. `state` goes IDLE -> GO (caller) -> IDLE (helper), or IDLE -> QUIT (caller). work and argument are written before GO.
 *  2. After a piece of work the helper spins for some time before it sleeps: the next piece comes within microseconds.
 *  3. A real-time policy that the caller has while it freezes is lent at the first work and taken back by helper_rest().
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

enum { IDLE, GO, QUIT };
enum { SPINS = 4000 };

struct helper {
    pthread_t thread;
    uint32_t state;
    pid_t tid;
    bool lent;
    void (*work)(void *);
    void *argument;
};

static uint32_t load(struct helper *helper) { return __atomic_load_n(&helper->state, __ATOMIC_ACQUIRE); }

static void change(struct helper *helper, uint32_t state) {
    __atomic_store_n(&helper->state, state, __ATOMIC_RELEASE);
    syscall(SYS_futex, &helper->state, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
}

/* Until state is no longer `old`: a short spin, then asleep. */
static uint32_t await_change(struct helper *helper, uint32_t old) {
    uint32_t state;
    for (int i = 0; (state = load(helper)) == old; i++) {
        if (i < SPINS)
            __builtin_ia32_pause();
        else
            syscall(SYS_futex, &helper->state, FUTEX_WAIT_PRIVATE, old, NULL, NULL, 0);
    }
    return state;
}

static void *helper_main(void *argument) {
    struct helper *helper = argument;
    cpu_set_t all;
    memset(&all, 0xff, sizeof all); /* made while frozen it would inherit the one CPU that pace.c chose */
    sched_setaffinity(0, sizeof all, &all);
    __atomic_store_n(&helper->tid, (pid_t)syscall(SYS_gettid), __ATOMIC_RELEASE);
    while (await_change(helper, IDLE) == GO) {
        helper->work(helper->argument);
        change(helper, IDLE);
    }
    return NULL;
}

int helper_new(struct helper **ret_helper) {
    _cleanup_free_ struct helper *helper = calloc(1, sizeof *helper);
    if (!helper)
        return -ENOMEM;
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

static void lend_policy(struct helper *helper) {
    struct sched_param param;
    int policy = sched_getscheduler(0);
    pid_t tid = __atomic_load_n(&helper->tid, __ATOMIC_ACQUIRE);
    if (helper->lent || tid <= 0 || policy < 0 || sched_getparam(0, &param) < 0)
        return;
    if ((policy & ~SCHED_RESET_ON_FORK) == SCHED_FIFO)
        helper->lent = sched_setscheduler(tid, SCHED_FIFO | SCHED_RESET_ON_FORK, &param) == 0;
}

void helper_run(struct helper *helper, void (*work)(void *), void *argument) {
    lend_policy(helper);
    helper->work = work;
    helper->argument = argument;
    change(helper, GO);
}

void helper_wait(struct helper *helper) { await_change(helper, GO); }

void helper_rest(struct helper *helper) {
    struct sched_param param = {0};
    if (helper && helper->lent)
        sched_setscheduler(helper->tid, SCHED_OTHER, &param);
    if (helper)
        helper->lent = false;
}
