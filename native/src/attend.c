/* attend.c: a doomed tree that runs: we stay its tracer, so that our death is its death, and are otherwise not there.
 *
 * Signals are passed on, group stops are kept (PTRACE_LISTEN), and whoever is born is ours as well (TRACEFORK, TRACEVFORK, TRACECLONE), until
 * everybody is let go. All of this is one thread's work: the one that seized them.
 *
 * Invariants
 *  1. A stop is answered at once: nobody stands still for us.
 *  2. EXITKILL holds for every task from its birth until it is let go.
 *  3. Letting go stops each thread once (PTRACE_INTERRUPT) and detaches at EVENT_STOP, so that an interrupted call goes on as stop.c decides.
 */
#define _GNU_SOURCE
#include "inject.h"
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/ptrace.h>
#include <sys/wait.h>

static const uintptr_t watching = PTRACE_O_TRACESYSGOOD | PTRACE_O_EXITKILL | PTRACE_O_TRACEFORK | PTRACE_O_TRACEVFORK | PTRACE_O_TRACECLONE;

/* ---- whom we trace ---- */

static int note(ckpt_tree *tree, pid_t tid) {
    for (size_t i = 0; i < tree->attended_count; i++)
        if (tree->attended[i] == tid)
            return 0;
    if (tree->attended_count == tree->attended_cap) {
        size_t cap = tree->attended_cap ? tree->attended_cap * 2 : 64;
        pid_t *grown = reallocarray(tree->attended, cap, sizeof *grown);
        if (!grown)
            return -ENOMEM;
        tree->attended = grown;
        tree->attended_cap = cap;
    }
    tree->attended[tree->attended_count++] = tid;
    return 0;
}

static void forget(ckpt_tree *tree, pid_t tid) {
    for (size_t i = 0; i < tree->attended_count; i++)
        if (tree->attended[i] == tid)
            tree->attended[i--] = tree->attended[--tree->attended_count];
}

int ckpt_tree_run(ckpt_tree *tree) {
    tree_fault_clear(tree);
    if (!tree->doomed || !tree->frozen)
        return tree_fail(tree, -EINVAL, "run", tree->root, 0, -1, 0, NULL);
    int error = 0;
    for (size_t i = 0; i < tree->thread_count && !error; i++) {
        struct thread *thread = &tree->threads[i];
        if (thread->state != THREAD_STOPPED)
            continue;
        error = note(tree, thread->tid);
        long failed = error ? error : sys_ptrace(PTRACE_SETOPTIONS, thread->tid, 0, watching);
        if (!failed)
            transfer_go_on(tree, thread);
        if (!failed)
            failed = sys_ptrace(thread->group_stopped ? PTRACE_LISTEN : PTRACE_CONT, thread->tid, 0, 0);
        if (failed && failed != -ESRCH)
            error = tree_fail(tree, (int)failed, "run", thread->pid, thread->tid, -1, 0, NULL);
        thread->state = THREAD_GONE; /* to the tables of a frozen tree; it is attended from here on */
    }
    for (size_t i = 0; i < tree->task_count; i++)
        tree->tasks[i].bridge.settled = false;
    tree->thawed_at = now_ns();
    pace_end(&tree->pace);
    tree->frozen = false;
    return error;
}

static bool stops_group(int signal) { return signal == SIGSTOP || signal == SIGTSTP || signal == SIGTTIN || signal == SIGTTOU; }

/* A birth is told by its parent, before the parent goes on: so nobody is missed. */
static int born(ckpt_tree *tree, pid_t parent) {
    unsigned long tid = 0;
    long error = sys_ptrace(PTRACE_GETEVENTMSG, parent, 0, (uintptr_t)&tid);
    return error ? 0 : note(tree, (pid_t)tid);
}

/* The process of a thread; of one that nobody here knows, the thread itself will do. */
static pid_t process_of(ckpt_tree *tree, pid_t tid) {
    char name[NAME_ROOM], text[4096];
    proc_name(name, "/proc/", (uint64_t)tid, "/status");
    ssize_t bytes = proc_read(AT_FDCWD, name, text, sizeof text);
    pid_t pid = bytes > 0 ? (pid_t)proc_field(text, (size_t)bytes, "Tgid", 10, (uint64_t)tid) : tid;
    return tree_task(tree, pid) ? pid : tid;
}

/* Passes one stop on. letting_go: a thread at EVENT_STOP is detached. */
static int answer(ckpt_tree *tree, pid_t tid, int status, bool letting_go) {
    int event = status >> 16, signal = WSTOPSIG(status), error = note(tree, tid);
    if (event == PTRACE_EVENT_FORK || event == PTRACE_EVENT_VFORK || event == PTRACE_EVENT_CLONE)
        error = born(tree, tid);
    if (event == PTRACE_EVENT_STOP && letting_go) {
        struct thread thread = {.pid = process_of(tree, tid), .tid = tid, .state = THREAD_SEIZED};
        if (thread_at_stop(tree, &thread, signal) == 1) {
            forget(tree, tid);
            return thread_detach(tree, &thread);
        }
        return error;
    }
    if (event == PTRACE_EVENT_STOP && stops_group(signal))
        sys_ptrace(PTRACE_LISTEN, tid, 0, 0);
    else
        sys_ptrace(PTRACE_CONT, tid, 0, (uintptr_t)(event || signal == (SIGTRAP | 0x80) ? 0 : signal));
    return error;
}

/* One status. 1 = answered, 0 = none came (a signal did, or nothing waits), -ECHILD = nobody is left. */
static int answer_one(ckpt_tree *tree, bool wait, bool letting_go) {
    int status;
    int got = wait ? sys_wait_once(-1, &status) : sys_wait(-1, &status, WNOHANG);
    if (got <= 0)
        return got;
    if (WIFSTOPPED(status)) {
        int error = answer(tree, got, status, letting_go);
        return error < 0 ? error : 1;
    }
    forget(tree, got);
    return 1;
}

int ckpt_tree_attend(ckpt_tree *tree) {
    tree_fault_clear(tree);
    while (tree->attended_count) {
        int got = answer_one(tree, true, false);
        if (got == 0)
            return 1;
        if (got == -ECHILD)
            break;
        if (got < 0)
            return tree_fail(tree, got, "attend", tree->root, 0, -1, 0, NULL);
    }
    return 0;
}

/* Asks everybody to stop; drops those that are gone. */
static void interrupt_all(ckpt_tree *tree) {
    for (size_t i = 0; i < tree->attended_count; i++)
        if (sys_ptrace(PTRACE_INTERRUPT, tree->attended[i], 0, 0) == -ESRCH)
            tree->attended[i--] = tree->attended[--tree->attended_count];
}

int ckpt_tree_leave(ckpt_tree *tree) {
    tree_fault_clear(tree);
    struct backoff pause = {0};
    while (tree->attended_count) {
        interrupt_all(tree);
        int got = 1;
        while (got == 1)
            got = answer_one(tree, false, true);
        if (got < 0 && got != -ECHILD)
            return tree_fail(tree, got, "leave", tree->root, 0, -1, 0, NULL);
        backoff(&pause);
    }
    return 0;
}
