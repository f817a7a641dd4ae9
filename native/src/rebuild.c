/* rebuild.c: a thread that a rollback or a restore has put into a sleep, poll or futex wait gets the kernel's own memory of that wait.
 *
 * The restart block cannot be written from outside, but the kernel writes it when such a call is interrupted. So the thread begins the
 * call with what remains of its time and with an interrupt already there: the call returns -516 at once, without sleeping, and from
 * there the thread goes on as one that was never anything else.
 *
 *  1. SETSIGMASK (all blocked), SETREGS: rip on the syscall instruction, rax = nr, the remaining time in the argument, or in
 *     the program's own timespec while everybody stands still
 *  2. PTRACE_SYSCALL, to the entry stop; PTRACE_INTERRUPT there; PTRACE_CONT, to EVENT_STOP
 *  3. the timespec as it was, registers as they were with rax = -516 and orig_rax = nr, the mask as it was
 *
 * Invariants
 *  1. A call that does not give -516 has its result (a descriptor is ready, a futex's word is another): the thread goes on with that.
 *  2. A death of ours in the middle leaves a thread in a group stop whose rollback is not finished (or a newborn that dies with us):
 *     memory and registers are put in place again by whoever finishes it.
 *  3. The time runs from step 2 on; what passes until the thaw is a few milliseconds of it.
 */
#define _GNU_SOURCE
#include "inject.h"
#include "restart.h"
#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/wait.h>

enum { RESTART_BLOCK = -516, SYSCALL_BYTES = 2, SYSCALL_STOP = SIGTRAP | 0x80, MILLION = 1000000, BILLION = 1000000000 };

struct remains { /* where the time stands in memory, what it was, what it is for a moment; at = 0: it is in a register */
    ckpt_addr_t at;
    int64_t was[2], is[2];
};

static void set_argument(struct user_regs_struct *regs, unsigned index, uint64_t value) {
    unsigned long long *const args[6] = {&regs->rdi, &regs->rsi, &regs->rdx, &regs->r10, &regs->r8, &regs->r9};
    *args[index] = value;
}

static int prepare(ckpt_tree *tree, const struct thread *thread, const struct restart_row *row, uint64_t ns, struct user_regs_struct *regs,
                   struct remains *remains) {
    uint64_t arg[6];
    restart_arguments(regs, arg);
    if (row->timeout_form == TIMEOUT_MS) {
        set_argument(regs, row->timeout_arg, (ns + MILLION - 1) / MILLION);
        return 0;
    }
    int mem = task_mem(tree, tree_task(tree, thread->pid));
    *remains = (struct remains){.at = arg[row->timeout_arg], .is = {(int64_t)(ns / BILLION), (int64_t)(ns % BILLION)}};
    if (mem < 0 || sys_pread(mem, remains->was, sizeof remains->was, remains->at) != sizeof remains->was ||
        sys_pwrite(mem, remains->is, sizeof remains->is, remains->at) != sizeof remains->is)
        return -EFAULT;
    return 0;
}

static int wait_stop(const struct thread *thread, int *ret_status) {
    int got = sys_wait(thread->tid, ret_status, 0);
    return got < 0 ? got : WIFSTOPPED(*ret_status) ? 0 : -ESRCH;
}

/* Runs to the entry of the call and into the interrupt that waits there. */
static int begin_and_stop(struct thread *thread, struct user_regs_struct *regs) {
    const uint64_t all = ~UINT64_C(0);
    int status;
    long error = sys_ptrace(PTRACE_SETSIGMASK, thread->tid, sizeof all, (uintptr_t)&all);
    if (!error)
        error = sys_ptrace(PTRACE_SETREGS, thread->tid, 0, (uintptr_t)regs);
    for (bool entered = false; !error;) {
        error = sys_ptrace(entered ? PTRACE_CONT : PTRACE_SYSCALL, thread->tid, 0, 0);
        if (!error)
            error = wait_stop(thread, &status);
        if (error)
            break;
        if (!entered && WSTOPSIG(status) == SYSCALL_STOP) {
            entered = true;
            error = sys_ptrace(PTRACE_INTERRUPT, thread->tid, 0, 0);
        } else if (entered && status >> 16 == PTRACE_EVENT_STOP) {
            return (int)sys_ptrace(PTRACE_GETREGS, thread->tid, 0, (uintptr_t)regs);
        }
    }
    return (int)error;
}

int ckpt_thread_rebuild(ckpt_tree *tree, int32_t tid, uint64_t ns) {
    tree_fault_clear(tree);
    struct thread *thread = tree_thread(tree, tid);
    if (!thread || thread->state != THREAD_STOPPED)
        return tree_fail(tree, -ESRCH, "thread", 0, tid, -1, 0, NULL);
    const struct restart_row *row = restart_row(thread->decision.nr);
    uint64_t arg[6];
    restart_arguments(&thread->regs, arg);
    if (!row || !(row->family & FAMILY_BLOCK) || !restart_finite(row, arg))
        return 0;
    struct user_regs_struct regs = thread->regs;
    struct remains remains = {0};
    regs.rip -= SYSCALL_BYTES;
    regs.rax = (uint64_t)thread->decision.nr;
    regs.orig_rax = ~UINT64_C(0);
    int error = prepare(tree, thread, row, ns, &regs, &remains);
    if (error)
        return 0; /* its time cannot be written: it begins anew */
    error = begin_and_stop(thread, &regs);
    if (remains.at) {
        ssize_t put = sys_pwrite(task_mem(tree, tree_task(tree, thread->pid)), remains.was, sizeof remains.was, remains.at);
        error = error || put == sizeof remains.was ? error : -EFAULT;
    }
    if (error)
        return tree_fail(tree, error, "begin a wait", thread->pid, tid, -1, 0, NULL);
    thread->decision.value = (int64_t)regs.rax;
    if (thread->decision.value != RESTART_BLOCK)
        thread->decision.action = CKPT_KEEP;
    own_registers(thread, &regs);
    error = (int)sys_ptrace(PTRACE_SETREGS, tid, 0, (uintptr_t)&regs);
    if (!error)
        error = (int)sys_ptrace(PTRACE_SETSIGMASK, tid, sizeof thread->sigmask, (uintptr_t)&thread->sigmask);
    return error ? tree_fail(tree, error, "registers", thread->pid, tid, -1, regs.rip, "begin a wait") : 1;
}
