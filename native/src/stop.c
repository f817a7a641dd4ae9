/* stop.c: one thread: seize, ask it to stop, see it stopped, let it go.
 *
 * A wait for a stop may last for ever: a dead leader with living threads, a vfork parent. So it blocks only while the tree's
 * clock ticks (pace.c); else it polls, at first without pause, then with short sleeps that give the CPU away.
 *
 * Invariants
 *  1. A STOPPED thread is at PTRACE_EVENT_STOP, inside get_signal(): a -51x in rax is honoured on detach.
 *  2. The decided rax is written at once, in thread_poll(): from then on the death of ckpt at any moment is harmless. In the
 *     microseconds between a stop and this, the death of ckpt leaves what the kernel left: a call of the EINTR family shows EINTR.
 *  3. A signal that was being delivered when the stop came is passed on exactly once: PTRACE_CONT with the same number keeps
 *     its siginfo, the handler's frame is built (or the default is done), and the pending trap stops the thread there.
 *  4. A thread in a group stop (SIGSTOP) counts as STOPPED and stays in its group stop at detach. A -EINTR that it shows is
 *     SIGSTOP's doing, not ours: it is kept.
 *  5. A thread that exits is GONE and has been waited for, so no zombie of ours stays behind.
 */
#define _GNU_SOURCE
#include "inject.h"
#include "restart.h"
#include "waits.h"
#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <sys/ptrace.h>
#include <sys/wait.h>
#include <time.h>

enum {
    USER64_CS = 0x33,
    LOOK_AFTER_NS = 2 * 1000 * 1000, /* no stop for so long: see what the thread is doing */
    GIVE_UP_FACTOR = 2500,           /* 5 s for a thread that runs but does not stop */
};

static int gone(struct thread *thread) {
    thread->state = THREAD_GONE;
    thread->interrupted = false;
    return -ESRCH;
}

static int proc_stat_of(ckpt_tree *tree, const struct thread *thread, struct proc_stat *ret_stat) {
    char name[NAME_ROOM];
    return proc_stat(tree_task(tree, thread->pid)->dir, proc_name(name, "task/", (uint64_t)thread->tid, "/stat"), ret_stat);
}

/* Why a seize was refused: a tracer is there, the thread is dying, or the rights are missing. */
static int refused(ckpt_tree *tree, struct thread *thread) {
    struct proc_stat stat;
    if (proc_stat_of(tree, thread, &stat) || stat.state == 'Z' || stat.state == 'X')
        return gone(thread);
    char name[NAME_ROOM], tracer[NAME_ROOM];
    proc_name(name, "task/", (uint64_t)thread->tid, "/status");
    ssize_t bytes = proc_read(tree_task(tree, thread->pid)->dir, name, tree->text, TEXT_BYTES);
    uint64_t by = bytes > 0 ? proc_field(tree->text, (size_t)bytes, "TracerPid", 10, 0) : 0;
    if (by)
        return tree_fail(tree, -EPERM, "traced", thread->pid, thread->tid, -1, 0, proc_name(tracer, "", by, ""));
    return tree_fail(tree, -EPERM, "seize", thread->pid, thread->tid, -1, 0, NULL);
}

int thread_seize(ckpt_tree *tree, struct thread *thread) {
    long error = sys_ptrace(PTRACE_SEIZE, thread->tid, 0, PTRACE_O_TRACESYSGOOD | (tree->doomed ? PTRACE_O_EXITKILL : 0));
    if (error == -ESRCH)
        return gone(thread);
    if (error == -EPERM)
        return refused(tree, thread);
    if (error)
        return tree_fail(tree, (int)error, "seize", thread->pid, thread->tid, -1, 0, NULL);
    thread->state = THREAD_SEIZED;
    thread->interrupted = false;
    thread->group_stopped = 0;
    return 0;
}

int thread_interrupt(ckpt_tree *tree, struct thread *thread) {
    long error = sys_ptrace(PTRACE_INTERRUPT, thread->tid, 0, 0);
    if (error == -ESRCH)
        return 0; /* it is exiting: thread_poll() will see that */
    if (error)
        return tree_fail(tree, (int)error, "interrupt", thread->pid, thread->tid, -1, 0, NULL);
    thread->interrupted = true;
    return 0;
}

/* Only a positive result can need it: a short count with a handler pending is genuine. */
static int deliverable(ckpt_tree *tree, const struct thread *thread) {
    char name[NAME_ROOM];
    const struct task *task = tree_task(tree, thread->pid);
    proc_name(name, "task/", (uint64_t)thread->tid, "/status");
    ssize_t bytes = task ? proc_read(task->dir, name, tree->text, TEXT_BYTES) : -ESRCH;
    if (bytes < 0)
        return 0;
    uint64_t pending = proc_field(tree->text, (size_t)bytes, "SigPnd", 16, 0) | proc_field(tree->text, (size_t)bytes, "ShdPnd", 16, 0);
    return (pending & ~thread->sigmask & proc_field(tree->text, (size_t)bytes, "SigCgt", 16, 0)) != 0;
}

static int decide(ckpt_tree *tree, struct thread *thread) {
    struct ckpt_decision *decision = &thread->decision;
    struct user_regs_struct regs = thread->regs;
    bool int80 = int80_made(thread->pid, &thread->regs);
    if (int80)
        int80_as_syscall(&thread->regs, &regs);
    ckpt_decide((const uint64_t *)(const void *)&regs, 0, decision);
    if (decision->disturbed && decision->shown > 0 && (restart_whole(thread->tid, &regs, decision->shown) || deliverable(tree, thread)))
        decision->disturbed = 0;
    if (decision->disturbed && !int80 && !thread->group_stopped && transfer_can_go_on(tree, thread, &regs)) {
        decision->action = CKPT_GO_ON;
        decision->disturbed = 0;
    }
    if (int80)
        decision->nr = (int64_t)thread->regs.orig_rax + INT80;
    if (thread->group_stopped && decision->shown == -EINTR) {
        decision->action = CKPT_KEEP;
        decision->value = decision->shown;
        decision->disturbed = 0;
    }
    if (decision->value == decision->shown)
        return 0;
    return (int)sys_ptrace(PTRACE_POKEUSER, thread->tid, offsetof(struct user, regs.rax), (uintptr_t)decision->value);
}

static bool is_group_stop(int signal) { return signal == SIGSTOP || signal == SIGTSTP || signal == SIGTTIN || signal == SIGTTOU; }

/* At EVENT_STOP. -ESRCH here means a SIGKILL on the way: the exit is still to be waited for, so "not yet". */
int thread_at_stop(ckpt_tree *tree, struct thread *thread, int signal) {
    thread->group_stopped = is_group_stop(signal) ? signal : 0;
    thread->wait.stops++;
    thread->wait.stopped = 0;
    long error = sys_ptrace(PTRACE_GETREGS, thread->tid, 0, (uintptr_t)&thread->regs);
    if (!error)
        error = sys_ptrace(PTRACE_GETSIGMASK, thread->tid, sizeof thread->sigmask, (uintptr_t)&thread->sigmask);
    if (!error)
        error = transfer_met(thread);
    if (!error)
        error = decide(tree, thread);
    if (!error)
        error = rseq_abort(tree, thread);
    if (error == -ESRCH)
        return 0;
    thread->state = THREAD_STOPPED;
    thread->interrupted = false;
    if (error)
        return tree_fail(tree, (int)error, "registers", thread->pid, thread->tid, -1, 0, NULL);
    if (thread->regs.cs != USER64_CS)
        return tree_fail(tree, -EOPNOTSUPP, "32-bit", thread->pid, thread->tid, -1, 0, NULL);
    return 1;
}

int thread_poll(ckpt_tree *tree, struct thread *thread, bool wait) {
    int status;
    int got = wait && tree->pace.ticking ? sys_wait_once(thread->tid, &status) : sys_wait(thread->tid, &status, WNOHANG);
    if (got == 0)
        return 0;
    if (got == -ECHILD)
        return gone(thread); /* another thread's exec took its place, or its number */
    if (got < 0)
        return tree_fail(tree, got, "wait", thread->pid, thread->tid, -1, 0, NULL);
    if (!WIFSTOPPED(status))
        return gone(thread);
    int event = status >> 16, signal = WSTOPSIG(status);
    if (event == PTRACE_EVENT_STOP)
        return thread_at_stop(tree, thread, signal);
    int pass = event || signal == (SIGTRAP | 0x80) ? 0 : signal;
    long error = sys_ptrace(PTRACE_CONT, thread->tid, 0, (uintptr_t)pass);
    if (error && error != -ESRCH)
        return tree_fail(tree, (int)error, "continue", thread->pid, thread->tid, -1, 0, NULL);
    return 0;
}

void backoff(struct backoff *wait) {
    if (wait->polls++ < 16)
        return;
    wait->ns = wait->ns ? wait->ns * 2 : 2000;
    if (wait->ns > 500 * 1000)
        wait->ns = 500 * 1000;
    nanosleep(&(struct timespec){.tv_nsec = (long)wait->ns}, NULL);
}

/* No stop came for a while: gone without a word, in a sleep that nothing interrupts, or only starved of CPU? */
int thread_look(ckpt_tree *tree, struct thread *thread, uint64_t since) {
    uint64_t waited = now_ns() - since;
    if (waited < LOOK_AFTER_NS)
        return 0;
    struct proc_stat stat;
    if (proc_stat_of(tree, thread, &stat) || stat.state == 'Z' || stat.state == 'X')
        return gone(thread);
    if (stat.state == 'D')
        return -EAGAIN;
    if (waited > (uint64_t)LOOK_AFTER_NS * GIVE_UP_FACTOR)
        return tree_fail(tree, -ETIMEDOUT, "interrupt", thread->pid, thread->tid, -1, 0, "does not stop");
    return 0;
}

int thread_stop(ckpt_tree *tree, struct thread *thread) {
    int error = thread->state == THREAD_FREE ? thread_seize(tree, thread) : 0;
    if (!error)
        error = thread_interrupt(tree, thread);
    struct backoff wait = {0};
    for (uint64_t since = now_ns(); !error;) {
        int got = thread_poll(tree, thread, false);
        if (got)
            return got < 0 ? got : 0;
        backoff(&wait);
        error = thread_look(tree, thread, since);
    }
    return error;
}

int thread_wait(ckpt_tree *tree, struct thread *thread, int *ret_status) {
    struct backoff wait = {0};
    for (uint64_t since = now_ns();;) {
        int got = sys_wait(thread->tid, ret_status, WNOHANG);
        if (got > 0 && !WIFSTOPPED(*ret_status))
            return gone(thread);
        if (got > 0)
            return 0;
        if (got < 0)
            return got == -ECHILD ? gone(thread) : got;
        backoff(&wait);
        struct proc_stat stat;
        if (now_ns() - since < LOOK_AFTER_NS)
            continue;
        if (proc_stat_of(tree, thread, &stat) || stat.state == 'Z' || stat.state == 'X')
            return gone(thread);
        since = now_ns();
    }
}

int thread_detach(ckpt_tree *tree, struct thread *thread) {
    if (thread->state != THREAD_STOPPED)
        return 0;
    wait_let_go(tree, thread);
    transfer_go_on(tree, thread);
    if (parting_wanted(tree, thread) && !parting_begin(tree, thread))
        return 0;
    long error = sys_ptrace(PTRACE_DETACH, thread->tid, 0, 0);
    thread->state = THREAD_FREE;
    if (error == -ESRCH) { /* killed while it was stopped */
        if (thread->tid != thread->pid)
            thread->state = THREAD_SEIZED; /* its end is still to be waited for: its leader cannot be, before */
        else
            gone(thread); /* its parent waits for it, which may be us */
        return 0;
    }
    return error ? tree_fail(tree, (int)error, "detach", thread->pid, thread->tid, -1, 0, NULL) : 0;
}
