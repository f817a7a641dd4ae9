/* settle.c: what a ckpt that was killed in the middle of an injection left in a process.
 *
 * The note in the vdso's tail (inject.h) says so with one read. Then
 *  1. a thread whose rip stands inside the stub or the bridge runs on until it is itself again (some microseconds, or until the one call returns that it waits in); injecting over it would save the stub's registers as its own, for ever;
 *  2. a thread in a group stop does not run: it may stand in a memory that is rolled back by half (ckpt/live/journal.py), where its own
 *     code must not execute a single instruction. What the sequence would give back at its end is read out of it and set from here;
 *     calls of the batch that are left are not made (the next rollback makes them all again);
 *  3. nothing is taken away while a signal handler would return into it (an address of ours on the thread's stack): the handler is run
 *     to its end, and if it takes long, everything stays and this process is not injected this time (bridge.blocked);
 *  4. a bridge is unmapped, if one stands where the note says (a child inherits the note by fork, but not the bridge);
 *  5. the tail is zeroed.
 * Every freeze calls this, whatever it freezes for: a generation must not hold a thread inside our code.
 */
#define _GNU_SOURCE
#include "inject.h"
#include <errno.h>
#include <stdlib.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <time.h>

enum { PATIENCE_NS = 2000 * 1000 * 1000, FRAME_PATIENCE_NS = 100 * 1000 * 1000, PAUSE_NS = 50 * 1000, STACK_BYTES = 256 * 1024 };

struct remains {
    struct task *owner;
    struct inject_note note;
    uint64_t *stack; /* STACK_BYTES */
};

static bool ours(const struct remains *remains, uint64_t at) {
    const struct bridge *tail = &remains->owner->bridge;
    const struct inject_note *note = &remains->note;
    return (at >= tail->tail && at < tail->tail + NOTE_BYTES + STUB_BYTES) || (note->bridge && at >= note->bridge && at < note->bridge + note->bytes);
}

/* The stub's end sets the thread's own mask: a signal that waited runs its handler there, and returns into the stub. */
static bool returns_inside(const struct remains *remains, const struct thread *thread) {
    ssize_t bytes = sys_pread(remains->owner->mem, remains->stack, STACK_BYTES, (thread->regs.rsp - 128) & ~UINT64_C(7));
    for (ssize_t i = 0; i < bytes / 8; i++)
        if (ours(remains, remains->stack[i]))
            return true;
    return false;
}

/* Where the thread's sequence stands: in the tail, in its slot, or as its slot's header says while it walks the loop. */
static ckpt_addr_t sequence_of(const struct remains *remains, const struct thread *thread) {
    const struct bridge *tail = &remains->owner->bridge;
    const struct inject_note *note = &remains->note;
    uint64_t rip = thread->regs.rip;
    if (rip >= tail->tail && rip < tail->tail + NOTE_BYTES + STUB_BYTES)
        return tail->tail + NOTE_BYTES;
    if (rip >= note->bridge + CODE_SLOTS)
        return note->bridge + CODE_SLOTS + (rip - note->bridge - CODE_SLOTS) / STUB_BYTES * STUB_BYTES;
    struct slot_header header;
    if (sys_pread(remains->owner->mem, &header, sizeof header, thread->regs.r15) != sizeof header)
        return 0;
    return header.epilogue - STUB_CONSTANTS;
}

/* Group-stopped: made itself again without running (invariant 2). */
static int set_out(ckpt_tree *tree, struct thread *thread, const struct remains *remains) {
    uint8_t code[STUB_BYTES];
    struct user_regs_struct regs = thread->regs;
    uint64_t mask;
    ckpt_addr_t at = sequence_of(remains, thread);
    ssize_t got = at ? sys_pread(remains->owner->mem, code, sizeof code, at) : -ENOENT;
    long error = got == sizeof code ? stub_own(code, &regs, &mask) : got < 0 ? got : -EFAULT;
    if (!error)
        error = sys_ptrace(PTRACE_SETSIGMASK, thread->tid, sizeof mask, (uintptr_t)&mask);
    if (!error)
        error = sys_ptrace(PTRACE_SETREGS, thread->tid, 0, (uintptr_t)&regs);
    tree_moves(tree);
    if (error)
        return tree_fail(tree, (int)error, "leave stub", thread->pid, thread->tid, -1, thread->regs.rip, "stopped inside it");
    thread->regs = regs;
    thread->sigmask = mask;
    thread->decision = (struct ckpt_decision){.nr = -1, .shown = (int64_t)regs.rax, .value = (int64_t)regs.rax};
    return 0;
}

/* 0 = nothing of the thread stands in our code, -EAGAIN = only a handler returns there, which takes its time. */
static int run_out(ckpt_tree *tree, struct thread *thread, const struct remains *remains) {
    uint64_t began = now_ns(), came_out = 0;
    for (;;) {
        bool inside = ours(remains, thread->regs.rip);
        if (inside && thread->group_stopped)
            return set_out(tree, thread, remains);
        if (!inside && !returns_inside(remains, thread))
            return 0;
        if (thread->group_stopped)
            return -EAGAIN;
        uint64_t now = now_ns();
        came_out = inside || came_out ? came_out : now;
        if (!inside && now - came_out > FRAME_PATIENCE_NS)
            return -EAGAIN;
        if (now - began > PATIENCE_NS)
            return tree_fail(tree, -EBUSY, "leave stub", thread->pid, thread->tid, -1, thread->regs.rip, NULL);
        tree_moves(tree);
        long error = sys_ptrace(PTRACE_CONT, thread->tid, 0, 0);
        if (error && error != -ESRCH)
            return tree_fail(tree, (int)error, "leave stub", thread->pid, thread->tid, -1, 0, NULL);
        thread->state = THREAD_SEIZED;
        nanosleep(&(struct timespec){.tv_nsec = PAUSE_NS}, NULL);
        error = thread_stop(tree, thread);
        if (error)
            return error == -ESRCH ? 0 : (int)error;
    }
}

static int run_all_out(ckpt_tree *tree, const struct remains *remains) {
    for (size_t i = 0; i < tree->thread_count; i++) {
        struct thread *thread = &tree->threads[i];
        struct task *its = tree_task(tree, thread->pid);
        if (thread->state != THREAD_STOPPED || !its || memory_owner(tree, its) != remains->owner)
            continue;
        int error = run_out(tree, thread, remains);
        if (error)
            return error;
    }
    return 0;
}

static int clean(ckpt_tree *tree, struct task *task, const struct remains *remains) {
    const struct inject_note *note = &remains->note;
    struct thread *thread = task_any_thread(tree, task);
    if (!thread)
        return 0;
    if (note->bridge && bridge_is_ours(tree, remains->owner, note->bridge, note->bytes)) {
        const uint64_t arg[6] = {note->bridge, note->bytes};
        int64_t got;
        int error = inject_prepare(tree, task);
        if (!error)
            error = stub_call(tree, task, thread, note->bridge, note->bytes, SYS_munmap, arg, &got);
        if (error)
            return error;
    }
    return tail_clear(tree, task);
}

int remote_settle(ckpt_tree *tree, struct task *task) {
    struct remains remains = {.owner = memory_owner(tree, task)};
    struct bridge *bridge = &remains.owner->bridge;
    if (bridge->code) /* ours, in use */
        return 0;
    bridge->blocked = false;
    if (vdso_tail(tree, remains.owner) < 0) { /* nowhere to have injected */
        tree_fault_clear(tree);
        return 0;
    }
    struct inject_note *note = &remains.note;
    if (sys_pread(remains.owner->mem, note, sizeof *note, bridge->tail) != sizeof *note || note->magic != NOTE_MAGIC)
        return 0;
    _cleanup_free_ uint64_t *stack = malloc(STACK_BYTES);
    remains.stack = stack;
    int error = stack ? run_all_out(tree, &remains) : -ENOMEM;
    bridge->blocked = error == -EAGAIN;
    if (error)
        return bridge->blocked ? 0 : error;
    return clean(tree, task, &remains);
}
