/* settle.c: what a ckpt that was killed in the middle of an injection left in a process.
 *
 * The note in the vdso's tail (inject.h) says so with one read. Then
 *  1. a thread whose rip stands inside the stub or the bridge runs on until it is itself again (some microseconds: there is no sleeping call in
 *     there); injecting over it would save the stub's registers as its own, for ever;
 *  2. a bridge is unmapped, if one stands where the note says (a child inherits the note by fork, but not the bridge);
 *  3. the tail is zeroed.
 * Every freeze calls this, whatever it freezes for: a generation must not hold a thread inside our code.
 */
#define _GNU_SOURCE
#include "inject.h"
#include <errno.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <time.h>

enum { ROUNDS = 2000 };

static bool inside(const struct thread *thread, const struct bridge *tail, const struct inject_note *note) {
    uint64_t rip = thread->regs.rip;
    return (rip >= tail->tail && rip < tail->tail_end) || (note->bridge && rip >= note->bridge && rip < note->bridge + note->bytes);
}

static int run_out(ckpt_tree *tree, struct thread *thread, const struct bridge *tail, const struct inject_note *note) {
    const struct timespec pause = {.tv_nsec = 50000};
    for (int round = 0; inside(thread, tail, note); round++) {
        if (round == ROUNDS)
            return tree_fail(tree, -EBUSY, "leave stub", thread->pid, thread->tid, -1, thread->regs.rip, NULL);
        long error = sys_ptrace(PTRACE_CONT, thread->tid, 0, 0);
        if (error && error != -ESRCH)
            return tree_fail(tree, (int)error, "leave stub", thread->pid, thread->tid, -1, 0, NULL);
        thread->state = THREAD_SEIZED;
        nanosleep(&pause, NULL);
        error = thread_stop(tree, thread);
        if (error)
            return error == -ESRCH ? 0 : (int)error;
    }
    return 0;
}

int remote_settle(ckpt_tree *tree, struct task *task) {
    struct task *owner = memory_owner(tree, task);
    struct inject_note note;
    if (owner->bridge.code) /* ours, in use */
        return 0;
    if (vdso_tail(tree, owner) < 0) { /* nowhere to have injected */
        tree_fault_clear(tree);
        return 0;
    }
    if (sys_pread(owner->mem, &note, sizeof note, owner->bridge.tail) != sizeof note || note.magic != NOTE_MAGIC)
        return 0;
    for (size_t i = 0; i < tree->thread_count; i++) {
        struct thread *thread = &tree->threads[i];
        struct task *its = tree_task(tree, thread->pid);
        if (thread->state != THREAD_STOPPED || !its || memory_owner(tree, its) != owner)
            continue;
        int error = run_out(tree, thread, &owner->bridge, &note);
        if (error)
            return error;
    }
    struct thread *thread = task_any_thread(tree, task);
    if (!thread)
        return 0;
    if (note.bridge && bridge_is_ours(tree, owner, note.bridge, note.bytes)) {
        const uint64_t arg[6] = {note.bridge, note.bytes};
        int64_t got;
        int error = inject_prepare(tree, task);
        if (!error)
            error = stub_call(tree, task, thread, note.bridge, note.bytes, SYS_munmap, arg, &got);
        if (error)
            return error;
    }
    return tail_clear(tree, task);
}
