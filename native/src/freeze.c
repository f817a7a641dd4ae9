/* freeze.c: all threads of a tree, or of one process: stop them all, let them all go.
 *
 * Freeze:  1. wait (outside the window) until no thread is in an uninterruptible sleep, such as a vfork parent
 *          2. seize every thread that is known, then interrupt every one, nobody waited for
 *          3. collect the stops, in whatever order they come
 *          4. look for threads and children that came meanwhile; if there are any, go on at 2
 *
 * Invariants
 *  1. Success: every thread of every task is STOPPED, and a pass of discovery after the last stop found nothing new.
 *  2. Failure: everybody who was stopped is detached with its decided rax; the caller's scheduling is put back.
 *  3. A thread that will not stop (state D) is never waited for while others stand still: they are let go first, because it
 *     may be waiting for one of them (a vfork parent for its child), then all is tried again, freeze_retries times.
 *  4. The caller runs as SCHED_FIFO on the target's CPU inside the window where it may (pace.c): detaching 64 spinning threads takes
 *     0.1 ms instead of 56 ms, because the freed ones cannot push the tracer off its CPU; a stop and go takes 3 us instead of 34-700.
 *  5. frozen_at is taken on arrival on that CPU, thawed_at after the last detach: what the target loses outside is a switch of
 *     context (its own clock says the same within some per cent: make bench). Seizing comes before, since nobody notices it.
 */
#define _GNU_SOURCE
#include "internal.h"
#include <errno.h>
#include <time.h>

enum { NEW_FOR_NS = 2000 * 1000 * 1000, RETRY_NS = 10 * 1000 * 1000, FIRST_RETRY_NS = 500 * 1000, LET_GO_POLLS = 400 };

static bool concerns(const struct thread *thread, pid_t pid) { return !pid || thread->pid == pid; }

static int seize_all(ckpt_tree *tree, pid_t pid) {
    for (size_t i = 0; i < tree->thread_count; i++) {
        struct thread *thread = &tree->threads[i];
        if (thread->state == THREAD_PARTING) { /* an attempt that has failed has let it go: it is ours still */
            thread->state = THREAD_SEIZED;
            thread->interrupted = false;
        }
        if (!concerns(thread, pid) || thread->state != THREAD_FREE)
            continue;
        int error = thread_seize(tree, thread);
        if (error && error != -ESRCH)
            return error;
    }
    return 0;
}

/* The first effect on the target is that we take its CPU; on the way there (30-50 us) we are nowhere, and it runs. */
static int interrupt_all(ckpt_tree *tree, pid_t pid, int cpu) {
    pace_move(&tree->pace, cpu);
    if (!tree->frozen_at)
        tree->frozen_at = now_ns();
    int shut = pid ? 0 : freezer_shut(tree);
    if (shut)
        return shut;
    for (size_t i = 0; i < tree->thread_count; i++) {
        struct thread *thread = &tree->threads[i];
        if (!concerns(thread, pid) || thread->state != THREAD_SEIZED || thread->interrupted)
            continue;
        wait_looked_at_last(tree, thread);
        int error = thread_interrupt(tree, thread);
        if (error)
            return error;
    }
    return 0;
}

/* One pass over those that have not stopped, waiting for the first of them where the clock ticks; *ret_left as many as still have not, *ret_slow one of them. */
static int poll_all(ckpt_tree *tree, pid_t pid, size_t *ret_left, struct thread **ret_slow, bool *ret_progress) {
    *ret_left = 0;
    *ret_progress = false;
    for (size_t i = 0; i < tree->thread_count; i++) {
        struct thread *thread = &tree->threads[i];
        if (!concerns(thread, pid) || thread->state != THREAD_SEIZED)
            continue;
        int got = thread_poll(tree, thread, !*ret_left);
        if (got < 0 && got != -ESRCH)
            return got;
        if (got) {
            *ret_progress = true;
            continue;
        }
        ++*ret_left;
        *ret_slow = thread;
    }
    return 0;
}

/* -EAGAIN with *ret_slow: that one is in an uninterruptible sleep. */
static int collect(ckpt_tree *tree, pid_t pid, struct thread **ret_slow) {
    struct backoff wait = {0};
    uint64_t since = now_ns();
    for (;;) {
        size_t left;
        bool progress;
        int error = poll_all(tree, pid, &left, ret_slow, &progress);
        if (error || !left)
            return error;
        if (progress) {
            wait = (struct backoff){0};
            since = now_ns();
            continue;
        }
        if (!tree->pace.ticking)
            backoff(&wait);
        error = thread_look(tree, *ret_slow, since);
        if (error && error != -ESRCH)
            return error;
    }
}

static int discover(ckpt_tree *tree, pid_t pid) {
    if (!pid)
        return tree_discover(tree);
    struct task *task = tree_task(tree, pid);
    int found = task ? task_discover(tree, task) : 0; /* it has ended and its row is gone: check_alive() says so */
    return found < 0 ? tree_fail(tree, found, "list threads", pid, 0, -1, 0, NULL) : found;
}

/* What is read from here on is true, if the pass of discovery that follows finds nobody: waking another CPU takes as long as that. */
static void stands(ckpt_tree *tree) {
    scan_stopped(tree);
    if (tree->told.stands)
        tree->told.stands(tree->told.argument);
}

static void falls(ckpt_tree *tree) {
    if (tree->told.falls)
        tree->told.falls(tree->told.argument);
}

static int stop_all(ckpt_tree *tree, pid_t pid, int cpu, pid_t *ret_slow) {
    struct backoff wait = {0};
    for (uint64_t begin = now_ns(); now_ns() - begin < NEW_FOR_NS;) {
        struct thread *slow = NULL;
        int error = seize_all(tree, pid);
        if (!error)
            error = interrupt_all(tree, pid, cpu);
        if (!error)
            error = collect(tree, pid, &slow);
        *ret_slow = error == -EAGAIN ? slow->tid : 0;
        if (error)
            return error;
        stands(tree);
        int found = discover(tree, pid);
        if (found <= 0)
            return found;
        falls(tree);
        tree_drop_gone(tree); /* a child that has exited stays listed, as a zombie, while its parent stands still */
        backoff(&wait);       /* a thread that is exiting may need the CPU that we hold */
    }
    return tree_fail(tree, -EBUSY, "list threads", pid, 0, -1, 0, "new threads appear faster than they can be stopped");
}

/* Lets everybody go. Those that were interrupted and have not stopped yet are waited for a while, because only a stopped
 * thread can be detached; one that never stops stays seized, runs on undisturbed, and is freed by the next thaw, by
 * closing the tree, or by the kernel when ckpt ends. */
static int release(ckpt_tree *tree, pid_t pid) {
    int error = pid ? 0 : freezer_leave(tree);
    struct backoff wait = {0};
    size_t left = 1;
    for (int polls = 0; left && polls < LET_GO_POLLS; polls++) {
        left = 0;
        for (size_t i = 0; i < tree->thread_count; i++) {
            struct thread *thread = &tree->threads[i];
            if (!concerns(thread, pid))
                continue;
            if (thread->state == THREAD_SEIZED)
                thread_poll(tree, thread, false);
            int failed = thread_detach(tree, thread);
            error = error ? error : failed;
            left += thread->state == THREAD_SEIZED;
        }
        if (left)
            backoff(&wait);
    }
    return error;
}

static void pause_ns(uint64_t ns) { nanosleep(&(struct timespec){.tv_nsec = (long)ns}, NULL); }

/* A thread in state D cannot be stopped, and what it waits for may be in the tree: better not begin. *ret_cpu: where the first
 * thread that runs is; if all sleep, where the tracer is expected, or the first of all was. */
static pid_t unstoppable(ckpt_tree *tree, pid_t pid, int *ret_cpu) {
    char name[NAME_ROOM];
    bool runs = false;
    *ret_cpu = -1;
    for (size_t i = 0; i < tree->thread_count; i++) {
        struct thread *thread = &tree->threads[i];
        struct proc_stat stat;
        if (!concerns(thread, pid) || thread->state != THREAD_FREE)
            continue;
        if (proc_stat(tree_task(tree, thread->pid)->dir, proc_name(name, "task/", (uint64_t)thread->tid, "/stat"), &stat))
            thread->state = THREAD_GONE;
        else if (stat.state == 'D')
            return thread->tid;
        else
            thread->start_ticks = stat.start_ticks;
        if (thread->state == THREAD_FREE && (*ret_cpu < 0 || (stat.state == 'R' && !runs))) {
            *ret_cpu = stat.cpu;
            runs = stat.state == 'R';
        }
    }
    if (!runs && tree->expected)
        *ret_cpu = tree->expected_cpu;
    return 0;
}

static int busy(ckpt_tree *tree, pid_t tid) {
    struct thread *thread = tree_thread(tree, tid);
    return tree_fail(tree, -EBUSY, "interrupt", thread ? thread->pid : 0, tid, -1, 0, "uninterruptible sleep (a vfork parent?)");
}

/* Everybody dead is not "frozen": the tree is gone, and if it lingers it is a zombie. */
static int check_alive(ckpt_tree *tree, pid_t pid) {
    pid_t wanted = pid ? pid : tree->root;
    tree_drop_gone(tree);
    if (tree_leader(tree, wanted))
        return 0;
    struct task *task = tree_task(tree, wanted);
    return tree_fail(tree, -ESRCH, task && task->zombie ? "zombie" : "freeze", wanted, 0, -1, 0, NULL);
}

/* What a killed ckpt left inside the processes goes before anybody looks at them (settle.c). */
static int settle(ckpt_tree *tree, pid_t pid) {
    int error = 0;
    for (size_t i = 0; i < tree->task_count && !error; i++)
        if (!tree->tasks[i].zombie && (!pid || tree->tasks[i].pid == pid))
            error = remote_settle(tree, &tree->tasks[i]);
    for (size_t i = 0; i < tree->task_count && !error; i++)
        if (!tree->tasks[i].zombie && (!pid || tree->tasks[i].pid == pid))
            error = transfer_settle(tree, &tree->tasks[i]);
    if (!error)
        transfer_withdraw(tree);
    return error;
}

static int attempt(ckpt_tree *tree, pid_t pid, pid_t *ret_slow) {
    int cpu;
    tree_moves(tree);
    *ret_slow = unstoppable(tree, pid, &cpu);
    if (*ret_slow)
        return -EAGAIN;
    tree_drop_gone(tree);
    for (size_t i = 0; i < tree->task_count; i++)
        tree->tasks[i].bridge.promised = tree->tasks[i].bridge.settled = 0;
    pace_begin(&tree->pace);
    scan_freezing(tree, cpu);
    pace_ticking(&tree->pace, true);
    int error = stop_all(tree, pid, cpu, ret_slow);
    pace_ticking(&tree->pace, false);
    if (!error && !pid)
        error = freezer_open(tree);
    if (!error)
        error = check_alive(tree, pid);
    if (!error && !pid)
        error = tree_index_memories(tree);
    tree_stands(tree);
    if (!error)
        error = settle(tree, pid);
    if (error) {
        falls(tree);
        release(tree, pid);
        pace_end(&tree->pace);
        tree->frozen_at = 0;
    }
    return error;
}

/* The waits grow from 0.5 to 10 ms: a program that keeps spawning by vfork is stoppable most of the time, only not always. */
int task_freeze(ckpt_tree *tree, pid_t pid) {
    pid_t slow = 0;
    uint64_t wait = FIRST_RETRY_NS, give_up = now_ns() + (uint64_t)tree->freeze_retries * RETRY_NS;
    tree->frozen_at = 0;
    for (;;) {
        int error = attempt(tree, pid, &slow);
        if (error == -EAGAIN && now_ns() < give_up) {
            pause_ns(wait);
            wait = wait * 2 < RETRY_NS ? wait * 2 : RETRY_NS;
            continue;
        }
        if (error == -EAGAIN)
            return busy(tree, slow);
        if (!error)
            tree->frozen = true;
        return error;
    }
}

int task_thaw(ckpt_tree *tree, pid_t pid) {
    tree_moves(tree);
    int error = release(tree, pid);
    tree->thawed_at = now_ns();
    pace_end(&tree->pace);
    tree->frozen = false;
    tree->frozen_at = 0;
    for (size_t i = 0; i < tree->task_count; i++) {
        close_fd(&tree->tasks[i].mem);
        tree->tasks[i].mem = -1;
        tree->tasks[i].vdso = tree->tasks[i].vdso_end = 0;
    }
    return error;
}

int freeze_expect(ckpt_tree *tree) {
    tree->expected = false;
    tree->expected = !unstoppable(tree, 0, &tree->expected_cpu) && tree->expected_cpu >= 0;
    return tree->expected ? tree->expected_cpu : -1;
}

void ckpt_tree_aside(ckpt_tree *tree) {
    cpu_set_t targets;
    CPU_ZERO(&targets);
    for (size_t i = 0; i < tree->thread_count; i++) {
        const struct thread *thread = &tree->threads[i];
        char name[NAME_ROOM];
        struct proc_stat stat;
        proc_name(name, "task/", (uint64_t)thread->tid, "/stat");
        if (thread->state == THREAD_FREE && !proc_stat(tree_task(tree, thread->pid)->dir, name, &stat) && stat.state == 'R')
            CPU_SET((size_t)stat.cpu, &targets);
    }
    pace_aside(&tree->pace, &targets);
}

int ckpt_tree_freeze(ckpt_tree *tree) {
    tree_fault_clear(tree);
    if (tree->frozen)
        return 0;
    return task_freeze(tree, 0);
}

int ckpt_tree_thaw(ckpt_tree *tree) {
    tree_fault_clear(tree);
    return task_thaw(tree, 0);
}
