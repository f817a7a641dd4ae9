/* births.c: new tasks of a tree that is frozen, made by a remote clone3: processes here, threads in threads.c.
 *
 * Invariants
 *  1. What is born is born traced (CLONE_PTRACE) with our options, and stops before its first instruction, at EVENT_STOP, where a -51x in rax is
 *     honoured.
 *  2. A new process has a copy of its parent's memory less the bridge (MADV_DONTFORK): where it stands there is no code any more. Until
 *     ckpt_thread_set() gives it registers it can only stand still, and without a tracer it is killed (EXITKILL), whatever its tree is.
 *  3. The note in the vdso's tail is copied with the memory: it is wiped there, or the next freeze would look for a killed ckpt's bridge.
 */
#define _GNU_SOURCE
#include "inject.h"
#include <errno.h>
#include <fcntl.h>
#include <linux/sched.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/wait.h>

/* The first stop of a newborn, and its row. */
int thread_welcome(ckpt_tree *tree, pid_t pid, pid_t tid) {
    struct thread *old = tree_thread(tree, tid);
    if (old)
        old->state = THREAD_FREE;
    int status, added = tree_add_thread(tree, pid, tid);
    struct thread *thread = tree_thread(tree, tid);
    if (added < 0 || !thread)
        return tree_fail(tree, added < 0 ? added : -ESRCH, "make task", pid, tid, -1, 0, NULL);
    int got = sys_wait(tid, &status, 0);
    if (got < 0 || !WIFSTOPPED(status)) {
        thread->state = THREAD_GONE;
        return tree_fail(tree, got < 0 ? got : -ESRCH, "make task", pid, tid, -1, 0, NULL);
    }
    long error = sys_ptrace(PTRACE_GETREGS, tid, 0, (uintptr_t)&thread->regs);
    if (!error)
        error = sys_ptrace(PTRACE_GETSIGMASK, tid, sizeof thread->sigmask, (uintptr_t)&thread->sigmask);
    if (error)
        return tree_fail(tree, (int)error, "make task", pid, tid, -1, 0, NULL);
    thread->regs.orig_rax = ~UINT64_C(0);
    thread->decision = (struct ckpt_decision){.nr = -1, .shown = (int64_t)thread->regs.rax, .value = (int64_t)thread->regs.rax};
    thread->state = THREAD_STOPPED;
    thread->group_stopped = 0;
    return 0;
}

/* A child of `pid` that is not in the tree yet, among those that hang under one of its threads; 0 = none. */
static pid_t unknown_child(ckpt_tree *tree, const struct task *parent, pid_t tid) {
    char name[NAME_ROOM];
    ssize_t bytes = proc_read(parent->dir, proc_name(name, "task/", (uint64_t)tid, "/children"), tree->text, TEXT_BYTES - 1);
    if (bytes < 0)
        return (pid_t)bytes;
    tree->text[bytes] = 0;
    for (char *at = tree->text, *end; *at; at = end) {
        long pid = strtol(at, &end, 10);
        if (end == at)
            break;
        if (!tree_task(tree, (pid_t)pid))
            return (pid_t)pid;
    }
    return 0;
}

/* The kernel answers with a number of the task's own pid namespace; ours is found among the children of the process that it hangs
 * under: the one that cloned, or with CLONE_PARENT that one's parent. */
static pid_t our_number(ckpt_tree *tree, const struct task *maker, uint64_t flags) {
    struct proc_stat stat = {.ppid = maker->pid};
    int error = flags & CLONE_PARENT ? proc_stat(maker->dir, "stat", &stat) : 0;
    struct task *parent = error ? NULL : tree_task(tree, stat.ppid);
    pid_t found = error;
    for (size_t i = 0; parent && !found && i < tree->thread_count; i++)
        if (tree->threads[i].pid == parent->pid && tree->threads[i].state != THREAD_GONE)
            found = unknown_child(tree, parent, tree->threads[i].tid);
    return found ? found : -ESRCH;
}

/* ---- the same number on either side of a pid namespace ---- */

bool task_same_numbers(const struct task *task) {
    char ours[NAME_ROOM], theirs[NAME_ROOM];
    ssize_t a = sys_readlinkat(AT_FDCWD, "/proc/self/ns/pid", ours, sizeof ours), b = sys_readlinkat(task->dir, "ns/pid", theirs, sizeof theirs);
    return a > 0 && a == b && !memcmp(ours, theirs, (size_t)a);
}

/* The last word of the line "NSpid:" in a status text: the number in the innermost namespace. */
static long innermost(const char *text, size_t bytes) {
    const char *line = memmem(text, bytes, "\nNSpid:", 7), *end = line ? memchr(line + 1, '\n', (size_t)(text + bytes - line - 1)) : NULL;
    while (end && end > line && end[-1] >= '0' && end[-1] <= '9')
        end--;
    return end ? strtol(end, NULL, 10) : 0;
}

struct hunt {
    ckpt_tree *tree;
    struct task *task;
    pid_t inner, found;
};

static int hunted(void *context, pid_t tid) {
    struct hunt *hunt = context;
    char name[NAME_ROOM];
    if (tree_thread(hunt->tree, tid))
        return 0;
    ssize_t bytes = proc_read(hunt->task->dir, proc_name(name, "task/", (uint64_t)tid, "/status"), hunt->tree->text, TEXT_BYTES);
    if (bytes > 0 && innermost(hunt->tree->text, (size_t)bytes) == hunt->inner)
        hunt->found = tid;
    return hunt->found != 0;
}

pid_t thread_number(ckpt_tree *tree, struct task *task, pid_t inner) {
    struct hunt hunt = {.tree = tree, .task = task, .inner = inner};
    if (task_same_numbers(task))
        return inner;
    _cleanup_close_ int dir = sys_openat(task->dir, "task", O_RDONLY | O_DIRECTORY);
    int error = dir < 0 ? dir : proc_each_number(dir, hunted, &hunt);
    return error < 0 ? error : hunt.found ? hunt.found : -ESRCH;
}

/* ---- processes ---- */

struct birth {
    struct clone_args args;
    uint64_t pid;
};

/* Where its memory stands apart from its parent's, the copied note goes. */
static int settle_in(ckpt_tree *tree, pid_t pid) {
    int error = tree_index_memories(tree);
    struct task *task = tree_task(tree, pid);
    if (error || memory_owner(tree, task) != task)
        return error;
    error = vdso_tail(tree, task);
    return error ? error : tail_clear(tree, task);
}

int ckpt_task_spawn(ckpt_tree *tree, int32_t parent, int32_t pid, uint64_t flags, int32_t *ret_pid) {
    tree_fault_clear(tree);
    struct task *task = tree_task(tree, parent);
    struct thread *maker = task ? task_any_thread(tree, task) : NULL;
    if (!maker || !tree->frozen)
        return tree_fail(tree, -ESRCH, "make task", parent, 0, -1, 0, NULL);
    pid_t tid = maker->tid;
    bool own = !memory_owner(tree, task)->bridge.code;
    int error = own ? ckpt_remote_begin(tree, parent, NULL, 0, 4096) : 0;
    if (error)
        return error;
    const uint64_t end_signal = flags & CSIGNAL;
    struct birth birth = {.args = {.flags = (flags & ~end_signal) | CLONE_PTRACE, .exit_signal = end_signal}, .pid = (uint64_t)pid};
    int64_t data = ckpt_remote_data(tree, tid, sizeof birth);
    if (pid) {
        birth.args.set_tid = (uint64_t)data + offsetof(struct birth, pid);
        birth.args.set_tid_size = 1;
    }
    struct ckpt_call call = {.nr = SYS_clone3, .arg = {0, sizeof birth.args}, .form = {CKPT_ARG_DATA}, .may_fail = 1};
    int ran = ckpt_remote(tree, tid, &call, 1, (uint8_t *)&birth, sizeof birth);
    error = ran < 0 ? ran : call.ret < 0 ? tree_fail(tree, (int)call.ret, "make task", parent, 0, -1, 0, "clone3") : 0;
    pid_t born = error ? error : our_number(tree, tree_task(tree, parent), flags);
    if (born > 0) {
        error = tree_add_task(tree, born);
        error = error < 0 ? error : thread_welcome(tree, born, born);
        if (!error)
            error = (int)sys_ptrace(PTRACE_SETOPTIONS, born, 0, PTRACE_O_TRACESYSGOOD | PTRACE_O_EXITKILL);
        if (!error)
            error = settle_in(tree, born);
    } else if (!error) {
        error = tree_fail(tree, born, "make task", parent, 0, -1, 0, "children");
    }
    if (own) {
        int closed = ckpt_remote_end(tree, parent);
        error = error ? error : closed;
    }
    if (!error)
        *ret_pid = born;
    return error;
}

/* Drops EXITKILL. The caller has seen to it that the process stays in a group stop without a tracer. */
int ckpt_task_keep(ckpt_tree *tree, int32_t pid) {
    tree_fault_clear(tree);
    for (size_t i = 0; i < tree->thread_count; i++) {
        struct thread *thread = &tree->threads[i];
        if (thread->pid != pid || thread->state != THREAD_STOPPED)
            continue;
        long error = sys_ptrace(PTRACE_SETOPTIONS, thread->tid, 0, PTRACE_O_TRACESYSGOOD);
        if (error)
            return tree_fail(tree, (int)error, "keep", pid, thread->tid, -1, 0, NULL);
    }
    return 0;
}
