/* flight.c: one thread sent through a self-restoring sequence (stub.c) and back.
 *
 * Invariants
 *  1. Start: SETREGS, then SETSIGMASK, then CONT. End: SETSIGMASK, then SETREGS. (Why: stub.c, invariants 1 and 2.)
 *  2. Whatever the thread meets on the way is not lost: SIGSTOP is passed on, a group stop is left again, a fault of our
 *     code is swallowed and reported. SIGKILL makes it GONE.
 */
#define _GNU_SOURCE
#include "inject.h"
#include <errno.h>
#include <signal.h>
#include <sys/ptrace.h>
#include <sys/wait.h>

enum { NOT_CALLED = -1, EVENT_STOP = PTRACE_EVENT_STOP };

static int write_all(ckpt_tree *tree, struct task *task, ckpt_addr_t at, const void *bytes, size_t size) {
    int mem = task_mem(tree, task);
    if (mem < 0)
        return mem;
    ssize_t put = sys_pwrite(mem, bytes, size, at);
    if (put != (ssize_t)size)
        return tree_fail(tree, put < 0 ? (int)put : -EFAULT, "write code", task->pid, 0, -1, at, "mem");
    return 0;
}

static int flight_resume(const struct flight *flight, int sig) {
    int request = flight->sig || flight->leaving ? PTRACE_CONT : PTRACE_SYSCALL;
    return (int)sys_ptrace(request, flight->tid, 0, (uintptr_t)sig);
}

int flight_start(ckpt_tree *tree, struct flight *flight, const struct user_regs_struct *regs) {
    struct thread *thread = tree_thread(tree, flight->tid);
    wait_stopped(tree, thread);
    thread->rseq.pointer = 0; /* it may change */
    tree_moves(tree);
    uint64_t mask = flight->sig ? ~(UINT64_C(1) << (flight->sig - 1)) : ~UINT64_C(0);
    long error = 0;
    if (!flight->sig)
        error = sys_ptrace(PTRACE_SETOPTIONS, flight->tid, 0, PTRACE_O_TRACESYSGOOD | (tree->doomed ? PTRACE_O_EXITKILL : 0));
    if (!error)
        error = sys_ptrace(PTRACE_SETREGS, flight->tid, 0, (uintptr_t)regs);
    if (!error)
        error = sys_ptrace(PTRACE_SETSIGMASK, flight->tid, sizeof mask, (uintptr_t)&mask);
    if (!error)
        error = flight_resume(flight, 0);
    return error ? tree_fail(tree, (int)error, "inject", 0, flight->tid, -1, regs->rip, NULL) : 0;
}

static int give_back(struct thread *thread) {
    struct user_regs_struct regs;
    own_registers(thread, &regs);
    long error = sys_ptrace(PTRACE_SETSIGMASK, thread->tid, sizeof thread->sigmask, (uintptr_t)&thread->sigmask);
    return error ? (int)error : (int)sys_ptrace(PTRACE_SETREGS, thread->tid, 0, (uintptr_t)&regs);
}

enum step { GO_ON, ARRIVED, FAILED };

/* One stop on the way: where does it leave us? */
static enum step flight_step(struct thread *thread, struct flight *flight, int status, struct user_regs_struct *regs, int *ret_error) {
    int sig = WSTOPSIG(status), event = status >> 16, pass = 0;
    long error = sys_ptrace(PTRACE_GETREGS, flight->tid, 0, (uintptr_t)regs);
    if (!error && event == 0 && sig == flight->sig && regs->rip == flight->park)
        return ARRIVED;
    if (event == EVENT_STOP && sig != SIGTRAP)
        thread->group_stopped = sig; /* by a signal that came after the freeze */
    if (!error && event == EVENT_STOP && flight->leaving && regs->rip == flight->park)
        return ARRIVED;
    if (!error && event == 0 && sig == (SIGTRAP | 0x80)) {
        if (regs->rip == flight->park && (int64_t)regs->rax != -ENOSYS) {
            flight->leaving = true;
            error = sys_ptrace(PTRACE_INTERRUPT, flight->tid, 0, 0);
        }
    } else if (!error && event == 0 && sig != flight->sig) {
        if (sig == SIGSEGV || sig == SIGBUS || sig == SIGILL || sig == SIGFPE || sig == SIGTRAP || sig == SIGSYS) {
            *ret_error = sig == SIGSYS ? -EPERM : -EFAULT; /* our own doing: not passed on */
            return FAILED;
        }
        pass = sig; /* SIGSTOP: nothing else gets through the mask */
    }
    if (!error)
        error = flight_resume(flight, pass);
    *ret_error = (int)error;
    return error ? FAILED : GO_ON;
}

int flight_wait(ckpt_tree *tree, struct flight *flight, int64_t *ret_value) {
    struct thread *thread = tree_thread(tree, flight->tid);
    struct user_regs_struct regs = {0};
    int status, error = 0;
    enum step step;
    do {
        int got = sys_wait(flight->tid, &status, 0); /* blocks: the thread wants this CPU (pace.c) */
        if (got < 0 || WIFEXITED(status) || WIFSIGNALED(status)) {
            thread->state = THREAD_GONE;
            return 1;
        }
        step = flight_step(thread, flight, status, &regs, &error);
    } while (step == GO_ON);
    if (error == -ESRCH) { /* killed under our hands: the next wait tells */
        thread->state = sys_wait(flight->tid, &status, 0) < 0 || !WIFSTOPPED(status) ? THREAD_GONE : thread->state;
        return 1;
    }
    ckpt_mark("batch-done");
    int back = give_back(thread);
    if (step == FAILED || back)
        return tree_fail(tree, step == FAILED ? error : back, "injected code", thread->pid, thread->tid, -1, regs.rip, NULL);
    *ret_value = (int64_t)regs.rbx;
    return 0;
}

int stub_call(ckpt_tree *tree, struct task *task, struct thread *thread, ckpt_addr_t bridge, uint64_t bytes, int64_t nr,
              const uint64_t arg[6], int64_t *ret_value) {
    struct task *owner = memory_owner(tree, task);
    struct { struct inject_note note; uint8_t code[STUB_BYTES]; } tail = {.note = {NOTE_MAGIC, bridge, bytes, 0}};
    struct flight flight;
    struct user_regs_struct regs;
    int error = inject_refused(tree, thread);
    if (error)
        return error;
    own_registers(thread, &regs);
    regs.rip = emit_stub(tail.code, owner->bridge.tail + NOTE_BYTES, task, thread, true, &flight);
    if (!regs.rip)
        return tree_fail(tree, -ENOSPC, "stub", task->pid, thread->tid, -1, 0, NULL);
    regs.rax = (uint64_t)nr;
    regs.orig_rax = (uint64_t)NOT_CALLED;
    regs.rdi = arg[0], regs.rsi = arg[1], regs.rdx = arg[2], regs.r10 = arg[3], regs.r8 = arg[4], regs.r9 = arg[5];
    error = write_all(tree, owner, owner->bridge.tail, &tail, sizeof tail);
    if (!error)
        error = ckpt_mark("inject");
    if (!error)
        error = flight_start(tree, &flight, &regs);
    if (!error)
        error = flight_wait(tree, &flight, ret_value);
    ckpt_mark("injected");
    return error > 0 ? tree_fail(tree, -ESRCH, "inject", task->pid, flight.tid, -1, 0, NULL) : error;
}

int tail_clear(ckpt_tree *tree, struct task *task) {
    static const uint8_t zero[NOTE_BYTES + STUB_BYTES];
    struct task *owner = memory_owner(tree, task);
    return write_all(tree, owner, owner->bridge.tail, zero, sizeof zero);
}

int remote_call(ckpt_tree *tree, struct thread *thread, int64_t nr, const uint64_t arg[6], int64_t *ret_value) {
    struct task *task = tree_task(tree, thread->pid);
    const struct bridge *bridge = &memory_owner(tree, task)->bridge;
    int error = inject_prepare(tree, task);
    if (error)
        return error;
    error = stub_call(tree, task, thread, bridge->code, bridge->code ? bridge->code_bytes + bridge->data_bytes : 0, nr, arg, ret_value);
    if (!error && !bridge->code)
        error = tail_clear(tree, task);
    return error;
}
