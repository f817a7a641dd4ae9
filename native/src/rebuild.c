/* rebuild.c: a thread that a rollback or a restore has put into a sleep, poll or futex wait gets the kernel's own memory of that wait.
 *
 * The restart block cannot be written from outside, but the kernel writes it when such a call is interrupted. So the thread begins the
 * call with what remains of its time and with an interrupt already there: the call returns -516 at once, without sleeping, and from
 * there the thread goes on as one that was never anything else.
 *
 * For all threads of a tree together: each step is taken by all of them before the next one is, so that nobody waits for one thread's
 * stop while the others could run.
 *
 *  1. SETSIGMASK (all blocked), SETREGS: rip on the syscall instruction, rax = nr, the remaining time in the argument, or in
 *     the program's own timespec while everybody stands still
 *  2. PTRACE_SYSCALL, to the entry stop; PTRACE_INTERRUPT there; PTRACE_CONT, to EVENT_STOP
 *  3. the timespec, and what an interrupted sleep has left, as they were, registers as they were with rax = -516 and orig_rax = nr, the mask as it was
 *
 * Invariants
 *  1. A call that does not give -516 has its result (a descriptor is ready, a futex's word is another): the thread goes on with that.
 *  2. A death of ours in the middle leaves a thread in a group stop whose rollback is not finished (or a newborn that dies with us):
 *     memory and registers are put in place again by whoever finishes it.
 *  3. The time runs from step 2 on; what passes until the thaw is a few milliseconds of it.
 *  4. Threads whose times stand in the same place of a memory (a constant of the program's) go one after the other: each needs its own there.
 *  5. Whatever fails, every thread that was started is waited for, and every place has its own bytes again.
 */
#define _GNU_SOURCE
#include "inject.h"
#include "restart.h"
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/wait.h>

enum { RESTART_BLOCK = -516, SYSCALL_BYTES = 2, SYSCALL_STOP = SIGTRAP | 0x80, MILLION = 1000000, BILLION = 1000000000 };

struct remains { /* where the time stands in memory, what it was, what it is for a moment; at = 0: it is in a register */
    ckpt_addr_t at;
    int64_t was[2], is[2];
    ckpt_addr_t rest; /* where an interrupted sleep leaves what remains; 0: nowhere */
    int64_t rest_was[2];
};

static void set_argument(struct user_regs_struct *regs, unsigned index, uint64_t value) {
    unsigned long long *const args[6] = {&regs->rdi, &regs->rsi, &regs->rdx, &regs->r10, &regs->r8, &regs->r9};
    *args[index] = value;
}

/* nanosleep(request, rest), clock_nanosleep(clock, flags, request, rest): the kernel writes there when it is interrupted. */
static void note_rest(int mem, const struct thread *thread, const struct restart_row *row, const uint64_t arg[6], struct remains *remains) {
    if (thread->decision.nr != SYS_nanosleep && thread->decision.nr != SYS_clock_nanosleep)
        return;
    ckpt_addr_t at = arg[row->timeout_arg + 1];
    if (at && sys_pread(mem, remains->rest_was, sizeof remains->rest_was, at) == sizeof remains->rest_was)
        remains->rest = at;
}

/* Both places as they were. */
static int put_back(int mem, const struct remains *remains) {
    size_t bytes = sizeof remains->was;
    if (remains->rest && sys_pwrite(mem, remains->rest_was, bytes, remains->rest) != (ssize_t)bytes)
        return -EFAULT;
    return remains->at && sys_pwrite(mem, remains->was, bytes, remains->at) != (ssize_t)bytes ? -EFAULT : 0;
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
    if (mem < 0 || sys_pread(mem, remains->was, sizeof remains->was, remains->at) != sizeof remains->was)
        return -EFAULT;
    note_rest(mem, thread, row, arg, remains);
    if (sys_pwrite(mem, remains->is, sizeof remains->is, remains->at) != sizeof remains->is)
        return -EFAULT;
    return 0;
}

/* One thread on its way into its wait. */
struct trip {
    struct ckpt_remaining *wait;
    struct remains remains;
    int error;
    bool going; /* started: it is waited for, whatever becomes of the others */
};

static int wait_stop(pid_t tid, int *ret_status) {
    int got = sys_wait(tid, ret_status, 0);
    return got < 0 ? got : WIFSTOPPED(*ret_status) ? 0 : -ESRCH;
}

/* Whether the place of its time is another's already, in this memory: then it has to wait for its turn. */
static bool taken(ckpt_tree *tree, const struct trip *trips, size_t count, const struct thread *thread, const struct restart_row *row) {
    uint64_t arg[6];
    if (row->timeout_form == TIMEOUT_MS)
        return false;
    restart_arguments(&thread->regs, arg);
    ckpt_addr_t at = arg[row->timeout_arg];
    for (size_t i = 0; i < count; i++) {
        ckpt_addr_t other = trips[i].remains.at;
        if (other && other < at + sizeof trips->remains.is && at < other + sizeof trips->remains.is) {
            const struct thread *owner = tree_thread(tree, trips[i].wait->tid);
            if (owner->pid == thread->pid || memory_owner(tree, tree_task(tree, owner->pid)) == memory_owner(tree, tree_task(tree, thread->pid)))
                return true;
        }
    }
    return false;
}

/* Everything but the running: 1 = it goes, 0 = it begins anew with its whole time, -EAGAIN = in the next round. */
static int start(ckpt_tree *tree, struct trip *trips, size_t count, struct ckpt_remaining *wait) {
    const uint64_t all = ~UINT64_C(0);
    struct thread *thread = tree_thread(tree, wait->tid);
    if (!thread || thread->state != THREAD_STOPPED)
        return tree_fail(tree, -ESRCH, "thread", 0, wait->tid, -1, 0, NULL);
    const struct restart_row *row = restart_row(thread->decision.nr);
    uint64_t arg[6];
    restart_arguments(&thread->regs, arg);
    if (!row || !(row->family & FAMILY_BLOCK) || !restart_finite(row, arg))
        return 0;
    if (taken(tree, trips, count, thread, row))
        return -EAGAIN;
    struct trip *trip = &trips[count];
    struct user_regs_struct regs = thread->regs;
    *trip = (struct trip){.wait = wait};
    regs.rip -= SYSCALL_BYTES;
    regs.rax = (uint64_t)thread->decision.nr;
    regs.orig_rax = ~UINT64_C(0);
    if (prepare(tree, thread, row, wait->ns, &regs, &trip->remains))
        return 0; /* its time cannot be written */
    tree_moves(tree);
    long error = sys_ptrace(PTRACE_SETSIGMASK, wait->tid, sizeof all, (uintptr_t)&all);
    if (!error)
        error = sys_ptrace(PTRACE_SETREGS, wait->tid, 0, (uintptr_t)&regs);
    if (!error)
        error = sys_ptrace(PTRACE_SYSCALL, wait->tid, 0, 0);
    trip->error = (int)error;
    trip->going = !error;
    return 1;
}

static bool at_entry(int status) { return status >> 16 == 0 && WSTOPSIG(status) == SYSCALL_STOP; }
static bool at_event(int status) { return status >> 16 == PTRACE_EVENT_STOP; }

/* Until the stop that is meant; what else comes on the way is passed over. */
static int await(pid_t tid, int request, bool (*meant)(int status)) {
    for (int status;;) {
        int error = wait_stop(tid, &status);
        if (error || meant(status))
            return error;
        error = (int)sys_ptrace(request, tid, 0, 0);
        if (error)
            return error;
    }
}

/* At the entry of its call: into the interrupt that waits there. */
static void interrupt(struct trip *trip) {
    pid_t tid = trip->wait->tid;
    trip->error = await(tid, PTRACE_SYSCALL, at_entry);
    if (!trip->error)
        trip->error = (int)sys_ptrace(PTRACE_INTERRUPT, tid, 0, 0);
    if (!trip->error)
        trip->error = (int)sys_ptrace(PTRACE_CONT, tid, 0, 0);
    trip->going = !trip->error;
}

static void arrive(ckpt_tree *tree, struct trip *trip) {
    pid_t tid = trip->wait->tid;
    struct thread *thread = tree_thread(tree, tid);
    struct user_regs_struct regs;
    if (trip->going)
        trip->error = await(tid, PTRACE_CONT, at_event);
    if (!trip->error)
        trip->error = (int)sys_ptrace(PTRACE_GETREGS, tid, 0, (uintptr_t)&regs);
    if (trip->remains.at) {
        int put = put_back(task_mem(tree, tree_task(tree, thread->pid)), &trip->remains);
        trip->error = trip->error ? trip->error : put;
    }
    if (trip->error)
        return;
    thread->decision.value = (int64_t)regs.rax;
    if (thread->decision.value != RESTART_BLOCK)
        thread->decision.action = CKPT_KEEP;
    own_registers(thread, &regs);
    trip->error = (int)sys_ptrace(PTRACE_SETREGS, tid, 0, (uintptr_t)&regs);
    if (!trip->error)
        trip->error = (int)sys_ptrace(PTRACE_SETSIGMASK, tid, sizeof thread->sigmask, (uintptr_t)&thread->sigmask);
    trip->wait->done = !trip->error;
}

/* Those whose turn it is; the others are moved to the front of `waits`, and counted. */
static int run_round(ckpt_tree *tree, struct trip *trips, struct ckpt_remaining **waits, size_t count, size_t *ret_left) {
    size_t going = 0, left = 0;
    int first = 0;
    for (size_t i = 0; i < count && !first; i++) {
        int started = start(tree, trips, going, waits[i]);
        if (started == -EAGAIN)
            waits[left++] = waits[i];
        else if (started < 0)
            first = started;
        else
            going += (size_t)started;
    }
    for (size_t i = 0; i < going; i++)
        if (trips[i].going)
            interrupt(&trips[i]);
    for (size_t i = 0; i < going; i++) {
        arrive(tree, &trips[i]);
        if (trips[i].error && !first)
            first = tree_fail(tree, trips[i].error, "begin a wait", 0, trips[i].wait->tid, -1, 0, NULL);
    }
    *ret_left = left;
    return first;
}

int ckpt_threads_rebuild(ckpt_tree *tree, struct ckpt_remaining *waits, size_t count) {
    tree_fault_clear(tree);
    _cleanup_free_ struct trip *trips = calloc(count + 1, sizeof *trips);
    _cleanup_free_ struct ckpt_remaining **turns = calloc(count + 1, sizeof *turns);
    if (!trips || !turns)
        return -ENOMEM;
    for (size_t i = 0; i < count; i++) {
        waits[i].done = 0;
        turns[i] = &waits[i];
    }
    int error = 0;
    for (size_t left = count; left && !error;)
        error = run_round(tree, trips, turns, left, &left);
    return error;
}
