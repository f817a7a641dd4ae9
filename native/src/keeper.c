/* keeper.c: a small process that gives waits their end at their deadline, where a freeze has made them begin anew.
 *
 * The thread waits in its own call, with its own arguments, and nobody traces it. At the deadline the keeper stops it for some 50 us, and
 * if it is still that wait, its result becomes what its own timer would have given (0, EAGAIN, ...). Nothing of
 * the program was changed meanwhile: no register, no timespec, no socket option.
 *
 * Invariants
 *  1. Only the very wait is ended (waits.c, fact 2): the count of voluntary switches, the call, its arguments and its stack are
 *     compared before the stop and at it. Where any differs the thread goes on as after any other stop (stop.c). One that was woken, has
 *     begun the next wait and is stopped before it sleeps there has the same count: so it must be asleep just before it is asked to
 *     stop, and nothing may come between (we run as SCHED_FIFO then, where we may).
 *  2. The target's lock is held around that: another ckpt never meets us as a tracer. It knows the deadline by the record
 *     (ckpt/live/waits.py) and keeps it itself; we then find another count, and are done.
 *  3. Killed, or never run: the wait ends late, by the time that it had waited before the freeze. Killed at the stop: stop.c, fact 2.
 *  4. It lives no longer than the waits: it looks after them, ever more seldom, and ends when none is left.
 *  5. It has no descriptors, no terminal and no parent of ours: nobody waits for it.
 */
#define _GNU_SOURCE
#include "waits.h"
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { MOMENT_NS = 200 * 1000 };
enum { FIRST_LOOK_NS = 20 * 1000 * 1000, LAST_LOOK_NS = 2000 * 1000 * 1000 };

struct keeper {
    struct ckpt_tree tree; /* of no root: rows of the threads that are kept */
    struct ckpt_wait *waits;
    size_t count;
    const char *lock;
};

static bool same_call(const struct ckpt_wait *a, const struct ckpt_wait *b) {
    return a->nr == b->nr && a->sp == b->sp && a->pc == b->pc && !memcmp(a->arg, b->arg, sizeof a->arg);
}

/* It sleeps there, or has been let go and did not get that far yet. */
static bool may_be_there(struct keeper *keeper, const struct ckpt_wait *wait) {
    const struct thread *thread = tree_thread(&keeper->tree, wait->tid);
    uint64_t switches = thread ? voluntary_switches(&keeper->tree, thread) : 0;
    return switches && (switches == wait->switches || switches + 1 == wait->switches);
}

/* The kernel shows the call of one that sleeps; whoever slept in the next one by then would have another count afterwards. */
static bool sleeps_there(struct keeper *keeper, const struct ckpt_wait *wait) {
    struct ckpt_wait shown = {0};
    const struct thread *thread = tree_thread(&keeper->tree, wait->tid);
    return wait_shown(tree_task(&keeper->tree, wait->pid)->dir, wait->tid, &shown) && same_call(&shown, wait) &&
           voluntary_switches(&keeper->tree, thread) == wait->switches;
}

static bool stopped_there(struct keeper *keeper, const struct thread *thread, const struct ckpt_wait *wait) {
    struct ckpt_wait shown = {.nr = thread->decision.nr, .sp = thread->regs.rsp, .pc = thread->regs.rip};
    memcpy(shown.arg, (const uint64_t[]){thread->regs.rdi, thread->regs.rsi, thread->regs.rdx, thread->regs.r10, thread->regs.r8, thread->regs.r9},
           sizeof shown.arg);
    return !thread->wait.woken && wait_must_be_kept(thread) && same_call(&shown, wait) && voluntary_switches(&keeper->tree, thread) == wait->switches + 1;
}

/* Asked to stop; those of one moment are all asked before the first is waited for. */
static void begin_end(struct keeper *keeper, const struct ckpt_wait *wait) {
    struct thread *thread = tree_thread(&keeper->tree, wait->tid);
    if (!sleeps_there(keeper, wait))
        return;
    thread->state = THREAD_FREE;
    if (thread_seize(&keeper->tree, thread))
        return;
    uint64_t before = now_ns();
    bool there = sleeps_there(keeper, wait);
    thread_interrupt(&keeper->tree, thread);
    thread->wait.woken = !there || now_ns() - before > MOMENT_NS;
}

static void end_wait(struct keeper *keeper, const struct ckpt_wait *wait) {
    struct thread *thread = tree_thread(&keeper->tree, wait->tid);
    struct backoff pause = {0};
    int got = 0, error = 0;
    for (uint64_t since = now_ns(); thread->state == THREAD_SEIZED && !got && !error;) {
        got = thread_poll(&keeper->tree, thread, false);
        if (!got)
            backoff(&pause);
        error = got ? 0 : thread_look(&keeper->tree, thread, since);
    }
    if (thread->state != THREAD_STOPPED)
        return; /* our end, soon, lets it go */
    ckpt_mark("kept");
    if (stopped_there(keeper, thread, wait))
        sys_ptrace(PTRACE_POKEUSER, thread->tid, offsetof(struct user, regs.rax), (uintptr_t)wait->expired);
    thread_detach(&keeper->tree, thread);
}

static void drop(struct keeper *keeper, size_t index) { keeper->waits[index] = keeper->waits[--keeper->count]; }

static void hurry(bool on) {
    sched_setscheduler(0, on ? SCHED_FIFO | SCHED_RESET_ON_FORK : SCHED_OTHER, &(struct sched_param){.sched_priority = on});
}

/* Those whose time is over. */
static void end_due(struct keeper *keeper) {
    uint64_t now = now_ns();
    _cleanup_close_ int lock = open(keeper->lock, O_RDWR | O_CLOEXEC);
    bool ours = lock >= 0 && !flock(lock, LOCK_EX);
    hurry(true);
    for (size_t i = 0; i < keeper->count && ours; i++)
        if (keeper->waits[i].deadline <= now)
            begin_end(keeper, &keeper->waits[i]);
    for (size_t i = keeper->count; i-- > 0;) {
        if (keeper->waits[i].deadline > now)
            continue;
        if (ours)
            end_wait(keeper, &keeper->waits[i]);
        drop(keeper, i);
    }
    hurry(false);
}

static void sleep_until(uint64_t when) {
    when = own_instant(when);
    struct timespec time = {.tv_sec = (time_t)(when / 1000000000), .tv_nsec = (long)(when % 1000000000)};
    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &time, NULL) == EINTR)
        ;
}

static void keep(struct keeper *keeper) {
    for (uint64_t look = FIRST_LOOK_NS; keeper->count; look = look * 2 < LAST_LOOK_NS ? look * 2 : LAST_LOOK_NS) {
        size_t first = 0;
        for (size_t i = 0; i < keeper->count; i++)
            if (keeper->waits[i].deadline < keeper->waits[first].deadline)
                first = i;
        uint64_t now = now_ns(), due = keeper->waits[first].deadline;
        if (due <= now) {
            end_due(keeper);
            continue;
        }
        sleep_until(due < now + look ? due : now + look);
        for (size_t i = keeper->count; i-- > 0;)
            if (!may_be_there(keeper, &keeper->waits[i]))
                drop(keeper, i);
    }
}

static void know(struct keeper *keeper) {
    for (size_t i = keeper->count; i-- > 0;) {
        const struct ckpt_wait *wait = &keeper->waits[i];
        bool known = tree_add_task(&keeper->tree, wait->pid) >= 0 && tree_add_thread(&keeper->tree, wait->pid, wait->tid) >= 0 &&
                     tree_thread(&keeper->tree, wait->tid)->start_ticks == wait->start_ticks;
        if (!known)
            drop(keeper, i);
    }
}

__attribute__((noreturn)) static void live(const struct ckpt_wait *waits, size_t count, const char *lock) {
    static struct keeper keeper;
    sigset_t none;
    setsid();
    close_range(0, ~0U, 0);
    prctl(PR_SET_NAME, "ckpt-keeper");
    for (int number = 1; number < SIGRTMIN; number++)
        signal(number, SIG_DFL);
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    keeper = (struct keeper){.waits = malloc(count * sizeof *waits), .count = count, .lock = lock};
    keeper.tree.text = mmap(NULL, TEXT_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (keeper.waits && keeper.tree.text != MAP_FAILED && !chdir("/")) {
        memcpy(keeper.waits, waits, count * sizeof *waits);
        know(&keeper);
        keep(&keeper);
    }
    _exit(0);
}

int ckpt_keep(const struct ckpt_wait *waits, size_t count, const char *lock) {
    int status;
    pid_t child = fork();
    if (child < 0)
        return -errno;
    if (child > 0)
        return sys_wait(child, &status, 0) < 0 || !WIFEXITED(status) ? -ECHILD : -WEXITSTATUS(status);
    pid_t second = fork();
    if (second)
        _exit(second < 0 ? EAGAIN : 0);
    live(waits, count, lock);
}
