/* threads.c: threads of a frozen process, ended and made by remote calls, and the state of one thread put in place.
 *
 * Invariants
 *  1. A thread is ended by itself (exit, never exit_group), after it gave up its clear_child_tid and its robust list: its end then
 *     writes nothing into the process's memory.
 *  2. New threads are born traced (CLONE_PTRACE) and stop before their first instruction, at EVENT_STOP, where a -51x in rax is
 *     honoured. Until ckpt_thread_set() gives them registers they stand inside the bridge with all signals blocked; without a tracer
 *     they exit.
 *  3. A number is free only when the kernel has let go of it: wait for that, and ask again when it was too early.
 */
#define _GNU_SOURCE
#include "inject.h"
#include "restart.h"
#include <errno.h>
#include <fcntl.h>
#include <linux/elf.h>
#include <linux/sched.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>

enum { AT_ONCE = 256, FREE_WAIT_NS = 200000, FREE_ROUNDS = 5000 };

static int opened(ckpt_tree *tree, struct task *task, size_t data_bytes, bool *ret_own) {
    *ret_own = !memory_owner(tree, task)->bridge.code;
    return *ret_own ? ckpt_remote_begin(tree, task->pid, NULL, 0, data_bytes) : 0;
}

static int closed(ckpt_tree *tree, pid_t pid, bool own, int error) {
    if (!own)
        return error;
    struct ckpt_fault first = tree->fault;
    int ended = ckpt_remote_end(tree, pid);
    if (!error)
        return ended;
    tree->fault = first;
    return error;
}

static int end_one(ckpt_tree *tree, pid_t tid) {
    struct ckpt_call calls[] = {
        {.nr = SYS_set_tid_address, .may_fail = 1},
        {.nr = SYS_set_robust_list, .arg = {0, 24}, .may_fail = 1},
        {.nr = SYS_exit},
    };
    struct thread *thread = tree_thread(tree, tid);
    if (!thread || thread->state == THREAD_GONE)
        return 0;
    int ran = ckpt_remote(tree, tid, calls, 3, NULL, 0);
    if (thread->state == THREAD_GONE)
        return 0;
    return ran < 0 ? ran : tree_fail(tree, -EIO, "end thread", thread->pid, tid, -1, 0, "exit");
}

int ckpt_threads_end(ckpt_tree *tree, int32_t pid, const int32_t *tids, size_t count) {
    struct task *task = tree_task(tree, pid);
    bool own;
    tree_fault_clear(tree);
    if (!task)
        return tree_fail(tree, -ESRCH, "end thread", pid, 0, -1, 0, NULL);
    for (size_t i = 0; i < count; i++)
        if (tids[i] == pid)
            return tree_fail(tree, -EINVAL, "end thread", pid, pid, -1, 0, "the leader");
    int error = opened(tree, task, 0, &own);
    for (size_t i = 0; i < count && !error; i++)
        error = end_one(tree, tids[i]);
    error = closed(tree, pid, own, error);
    tree_fault_clear(tree);
    return error;
}

/* ---- new ones ---- */

static bool number_is_free(pid_t tid) {
    char name[NAME_ROOM];
    _cleanup_close_ int fd = sys_openat(AT_FDCWD, proc_name(name, "/proc/", (uint64_t)tid, ""), O_PATH | O_DIRECTORY);
    return fd < 0;
}

static int wait_free(ckpt_tree *tree, pid_t pid, const int32_t *tids, size_t count) {
    for (size_t i = 0, rounds = 0; i < count; rounds++) {
        if (!tids[i] || number_is_free(tids[i])) {
            i++;
            continue;
        }
        if (rounds > FREE_ROUNDS)
            return tree_fail(tree, -EEXIST, "make thread", pid, tids[i], -1, 0, "its number is taken");
        nanosleep(&(struct timespec){.tv_nsec = FREE_WAIT_NS}, NULL);
    }
    return 0;
}

struct birth { /* per thread, in the data area */
    struct clone_args args;
    uint64_t tid;
};

static const uint64_t thread_flags =
    CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD | CLONE_SYSVSEM | CLONE_PTRACE;

/* The first stop of each that was born, and its number as we see it. */
static int welcome_all(ckpt_tree *tree, pid_t pid, const struct ckpt_call *calls, int count, int32_t *ret_tids) {
    int first = 0;
    for (int i = 0; i < count; i++) {
        pid_t tid = thread_number(tree, tree_task(tree, pid), (pid_t)calls[i].ret);
        int error = tid < 0 ? tree_fail(tree, tid, "make thread", pid, 0, -1, 0, "task") : thread_welcome(tree, pid, tid);
        first = first ? first : error;
        ret_tids[i] = tid;
    }
    return first;
}

static int spawn_some(ckpt_tree *tree, pid_t pid, const int32_t *tids, size_t count, struct ckpt_call *calls, struct birth *births,
                      int32_t *ret_tids) {
    for (size_t i = 0; i < count; i++) {
        births[i] = (struct birth){.args = {.flags = thread_flags, .set_tid_size = tids[i] != 0}, .tid = (uint64_t)tids[i]};
        calls[i] = (struct ckpt_call){.nr = SYS_clone3, .arg = {i * sizeof *births, sizeof births->args}, .form = {CKPT_ARG_DATA}};
    }
    struct thread *maker = task_any_thread(tree, tree_task(tree, pid));
    if (!maker)
        return tree_fail(tree, -ESRCH, "make thread", pid, 0, -1, 0, NULL);
    /* set_tid is a pointer inside the structure: where the data area stands is known by now. */
    const struct bridge *bridge = &memory_owner(tree, tree_task(tree, pid))->bridge;
    size_t bytes = count * sizeof *births;
    ckpt_addr_t data = bridge->data + bridge_room(bridge) - ((bytes + 63) & ~(size_t)63);
    for (size_t i = 0; i < count; i++)
        births[i].args.set_tid = tids[i] ? data + i * sizeof *births + offsetof(struct birth, tid) : 0;
    int ran = ckpt_remote(tree, maker->tid, calls, count, (uint8_t *)births, bytes);
    if (ran < 0)
        return ran;
    int born = 0;
    while (born < ran && calls[born].ret > 0)
        born++;
    int error = welcome_all(tree, pid, calls, born, ret_tids);
    if (!error && born < (int)count && calls[born].ret != -EEXIST)
        error = tree_fail(tree, (int)calls[born].ret, "make thread", pid, tids[born], -1, 0, "clone3");
    return error ? error : born;
}

int ckpt_threads_spawn(ckpt_tree *tree, int32_t pid, const int32_t *tids, size_t count, int32_t *ret_tids) {
    struct task *task = tree_task(tree, pid);
    tree_fault_clear(tree);
    if (!task)
        return tree_fail(tree, -ESRCH, "make thread", pid, 0, -1, 0, NULL);
    size_t at_once = count < AT_ONCE ? count : AT_ONCE;
    _cleanup_free_ struct ckpt_call *calls = calloc(at_once + 1, sizeof *calls);
    _cleanup_free_ struct birth *births = calloc(at_once + 1, sizeof *births);
    bool own = false;
    int error = calls && births ? opened(tree, task, at_once * sizeof *births, &own) : -ENOMEM;
    const struct bridge *bridge = &memory_owner(tree, task)->bridge;
    size_t room = error ? 1 : (bridge_room(bridge) - SLOT_HEADER - 64) / (sizeof *births + sizeof *calls);
    at_once = room < at_once ? room : at_once;
    for (size_t i = 0, tries = 0; i < count && !error;) {
        size_t part = count - i < at_once ? count - i : at_once;
        error = task_same_numbers(task) ? wait_free(tree, pid, tids + i, part) : 0;
        int born = error ? error : spawn_some(tree, pid, tids + i, part, calls, births, ret_tids + i);
        if (born < 0)
            error = born;
        else if (born == 0 && ++tries > 100)
            error = tree_fail(tree, -EEXIST, "make thread", pid, tids[i], -1, 0, "its number is taken");
        else
            i += (size_t)born;
    }
    return closed(tree, pid, own, error);
}

/* ---- the state of one ---- */

static int stopped_thread(ckpt_tree *tree, pid_t tid, struct thread **ret_thread) {
    tree_fault_clear(tree);
    struct thread *thread = tree_thread(tree, tid);
    if (!thread || thread->state != THREAD_STOPPED)
        return tree_fail(tree, -ESRCH, "thread", 0, tid, -1, 0, NULL);
    *ret_thread = thread;
    return 0;
}

/* -516 needs the kernel's restart_block, which belongs to the call that this thread really was in. The call is begun anew instead, from its
 * arguments in the registers: it waits its whole time again. A call that had been restarted before (219, by int 0x80: 0) names no call any more: EINTR. */
static int64_t continue_with(const struct ckpt_decision *decision) {
    enum { RESTART_BLOCK = -516, NO_HANDLER = -514, RESTART_SYSCALL = 219 };
    if (decision->value != RESTART_BLOCK)
        return decision->value;
    return decision->nr == RESTART_SYSCALL || decision->nr == INT80 ? -EINTR : NO_HANDLER;
}

int ckpt_thread_set(ckpt_tree *tree, int32_t tid, const uint64_t *regs, const struct ckpt_decision *decision, const uint8_t *xstate,
                    size_t xstate_bytes, const uint64_t *sigmask) {
    struct thread *thread;
    int error = stopped_thread(tree, tid, &thread);
    if (error)
        return error;
    if (regs) {
        struct user_regs_struct own;
        memcpy(&thread->regs, regs, sizeof thread->regs);
        thread->decision = decision ? *decision
                                    : (struct ckpt_decision){.nr = (int64_t)thread->regs.orig_rax,
                                                             .shown = (int64_t)thread->regs.rax,
                                                             .value = (int64_t)thread->regs.rax};
        thread->decision.value = continue_with(&thread->decision);
        memset(&thread->wait, 0, sizeof thread->wait);
        thread->wait.stops = 1; /* what a look has seen was another wait */
        thread->wait.placed = true;
        thread->regs.orig_rax = restart_orig_rax(thread->decision.nr);
        own_registers(thread, &own);
        error = (int)sys_ptrace(PTRACE_SETREGS, tid, 0, (uintptr_t)&own);
        if (error)
            return tree_fail(tree, error, "registers", thread->pid, tid, -1, own.rip, "PTRACE_SETREGS");
    }
    if (xstate) {
        struct iovec area = {(void *)(uintptr_t)xstate, xstate_bytes};
        error = (int)sys_ptrace(PTRACE_SETREGSET, tid, NT_X86_XSTATE, (uintptr_t)&area);
        if (error)
            return tree_fail(tree, error, "xstate", thread->pid, tid, -1, 0, "PTRACE_SETREGSET");
    }
    if (sigmask) {
        error = (int)sys_ptrace(PTRACE_SETSIGMASK, tid, sizeof *sigmask, (uintptr_t)sigmask);
        if (error)
            return tree_fail(tree, error, "signal mask", thread->pid, tid, -1, 0, "PTRACE_SETSIGMASK");
        thread->sigmask = *sigmask;
    }
    return 0;
}

int ckpt_threads_set(ckpt_tree *tree, const struct ckpt_thread_state *states, size_t count, const uint8_t *xstates) {
    int error = 0;
    for (size_t i = 0; i < count && !error; i++) {
        const struct ckpt_thread_state *state = &states[i];
        error = ckpt_thread_set(tree, state->tid, state->regs, &state->decision, xstates + state->xstate, state->xstate_bytes, &state->sigmask);
    }
    return error;
}

int ckpt_thread_get(ckpt_tree *tree, int32_t tid, uint64_t *ret_regs, uint8_t *ret_xstate, size_t cap, uint64_t *ret_sigmask) {
    struct thread *thread;
    struct iovec area = {ret_xstate, cap};
    int error = stopped_thread(tree, tid, &thread);
    if (error)
        return error;
    if (ret_xstate) {
        error = (int)sys_ptrace(PTRACE_GETREGSET, tid, NT_X86_XSTATE, (uintptr_t)&area);
        if (error)
            return tree_fail(tree, error, "xstate", thread->pid, tid, -1, 0, "PTRACE_GETREGSET");
    }
    if (ret_regs)
        memcpy(ret_regs, &thread->regs, sizeof thread->regs);
    if (ret_sigmask)
        *ret_sigmask = thread->sigmask;
    return ret_xstate ? (int)area.iov_len : 0;
}
