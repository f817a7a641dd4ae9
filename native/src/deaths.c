/* deaths.c: processes of a frozen tree that are ended, and collected by their parents.
 *
 * Invariants
 *  1. A tracer's wait comes first: only when it has seen every thread end does the parent learn of it (kernel/exit.c,
 *     wait_task_zombie: EXIT_TRACE). So all ends are waited for here, the leader's last.
 *  2. Who is to die of a signal other than SIGKILL does so by its default action: disposition reset, not dumpable, nothing blocked.
 *     It does not run before that: the signal is pending when it is let go of, and is delivered first of all.
 *  3. A memory that others share keeps its bridge: the row that owns it is another one then.
 *  4. The parent gets its SIGCHLD; whoever rolls it back drains that (ckpt/live/execute.py).
 */
#define _GNU_SOURCE
#include "inject.h"
#include <errno.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/wait.h>

enum { SIGNAL_BITS = 0x7f, SIGSET_BYTES = 8, REAP_ROUNDS = 2000 };

struct action { /* struct kernel_sigaction */
    uint64_t handler, flags, restorer, mask;
};

/* Waits until the thread has ended; of what it meets on the way only `signal` is passed on. */
static int wait_end(ckpt_tree *tree, struct thread *thread, int signal) {
    tree_moves(tree);
    for (;;) {
        int status, got = sys_wait(thread->tid, &status, 0); /* blocks: it wants this CPU (pace.c) */
        if (got < 0 || !WIFSTOPPED(status)) {
            thread->state = THREAD_GONE;
            return got < 0 && got != -ECHILD ? tree_fail(tree, got, "end task", thread->pid, thread->tid, -1, 0, "wait") : 0;
        }
        int pass = status >> 16 == 0 && WSTOPSIG(status) == signal ? signal : 0;
        long error = sys_ptrace(PTRACE_CONT, thread->tid, 0, (uintptr_t)pass);
        if (error && error != -ESRCH)
            return tree_fail(tree, (int)error, "end task", thread->pid, thread->tid, -1, 0, "continue");
    }
}

static int wait_all(ckpt_tree *tree, pid_t pid, int signal) {
    int error = 0;
    for (int leader = 0; leader < 2 && !error; leader++)
        for (size_t i = 0; i < tree->thread_count && !error; i++) {
            struct thread *thread = &tree->threads[i];
            if (thread->pid == pid && (thread->tid == pid) == leader && thread->state != THREAD_GONE)
                error = wait_end(tree, thread, signal);
        }
    return error;
}

static int end_by_exit(ckpt_tree *tree, pid_t pid, struct thread *thread, int code) {
    struct ckpt_call call = {.nr = SYS_exit_group, .arg = {(uint64_t)code}};
    int ran = ckpt_remote(tree, thread->tid, &call, 1, NULL, 0);
    if (ran < 0 && ran != -ESRCH)
        return ran;
    tree_fault_clear(tree);
    return wait_all(tree, pid, 0);
}

static int make_mortal(ckpt_tree *tree, struct thread *thread, int signal) {
    struct action plain = {0};
    struct ckpt_call calls[] = {
        {.nr = SYS_prctl, .arg = {PR_SET_DUMPABLE}, .may_fail = 1},
        {.nr = SYS_rt_sigaction, .arg = {(uint64_t)signal, 0, 0, SIGSET_BYTES}, .form = {0, CKPT_ARG_DATA}},
    };
    int ran = ckpt_remote(tree, thread->tid, calls, 2, (uint8_t *)&plain, sizeof plain);
    if (ran == 2 && !calls[1].ret)
        return 0;
    return ran < 0 ? ran : tree_fail(tree, -EINVAL, "end task", thread->pid, thread->tid, -1, 0, "rt_sigaction");
}

static int let_go(const struct thread *thread) {
    uint64_t open = 0;
    long error = sys_ptrace(PTRACE_SETSIGMASK, thread->tid, sizeof open, (uintptr_t)&open);
    return error ? (int)error : (int)sys_ptrace(PTRACE_CONT, thread->tid, 0, 0);
}

static int end_by_signal(ckpt_tree *tree, pid_t pid, struct thread *thread, int signal) {
    bool killed = signal == SIGKILL;
    int error = killed ? 0 : make_mortal(tree, thread, signal);
    if (error)
        return error;
    error = sys_pidfd_signal(tree_task(tree, pid)->pidfd, signal);
    if (!error && !killed)
        error = let_go(thread);
    if (error && error != -ESRCH)
        return tree_fail(tree, error, "end task", pid, 0, -1, 0, "signal");
    return wait_all(tree, pid, killed ? 0 : signal);
}

/* Its thread rows go; a bridge in a memory that it shared finds its new owner. */
static int forget(ckpt_tree *tree, pid_t pid) {
    struct task *task = tree_task(tree, pid);
    struct bridge bridge = task->bridge;
    int32_t place = (int32_t)(task - tree->tasks);
    pid_t heir = 0;
    for (size_t i = (size_t)place + 1; task->mm == place && i < tree->task_count && !heir; i++)
        if (tree->tasks[i].mm == place)
            heir = tree->tasks[i].pid;
    task->bridge = (struct bridge){0};
    tree_drop_gone(tree);
    int error = tree_index_memories(tree);
    if (!error && heir)
        tree_task(tree, heir)->bridge = bridge;
    return error;
}

int ckpt_task_end(ckpt_tree *tree, int32_t pid, int32_t status) {
    tree_fault_clear(tree);
    struct task *task = tree_task(tree, pid);
    if (!task || !tree->frozen || pid == tree->root)
        return tree_fail(tree, -ESRCH, "end task", pid, 0, -1, 0, NULL);
    struct thread *thread = task->zombie ? NULL : task_any_thread(tree, task);
    if (!thread)
        return 0;
    int signal = status & SIGNAL_BITS;
    int error = signal ? end_by_signal(tree, pid, thread, signal) : end_by_exit(tree, pid, thread, status >> 8 & 0xff);
    return error ? error : forget(tree, pid);
}

int ckpt_task_reap(ckpt_tree *tree, int32_t parent, int32_t pid, int32_t number) {
    tree_fault_clear(tree);
    struct backoff wait = {0};
    for (int round = 0; round < REAP_ROUNDS; round++) {
        tree_drop_gone(tree);
        if (!tree_task(tree, pid))
            return tree_index_memories(tree);
        struct task *task = tree_task(tree, parent);
        struct thread *thread = task ? task_any_thread(tree, task) : NULL;
        struct ckpt_call call = {.nr = SYS_wait4, .arg = {(uint64_t)number, 0, __WALL | WNOHANG}, .may_fail = 1};
        int ran = thread ? ckpt_remote(tree, thread->tid, &call, 1, NULL, 0) : -ESRCH;
        if (ran < 0)
            return tree_fail(tree, ran, "collect task", pid, 0, -1, 0, NULL);
        backoff(&wait);
    }
    return tree_fail(tree, -EBUSY, "collect task", pid, 0, -1, 0, NULL);
}
