/* rseq.c: a thread that stops inside a restartable sequence goes on at its abort handler, as it would without us.
 *
 * The kernel aborts the sequence when a thread that was off its CPU comes back to user mode (kernel/rseq.c, rseq_ip_fixup), so for a stopped one
 * it is certain. But when a call of ours runs in that thread, the kernel finds rip outside the sequence and clears rseq_cs: the thread would go on in
 * the middle of it, perhaps on another CPU, with what it had read there. The same holds for one that is put in place by a rollback or a restore.
 * So the abort is done at the stop, before anything runs or is read.
 *
 * Invariants
 *  1. Only in user mode (orig_rax = -1): a call in a sequence is forbidden, and before a handler is entered the kernel has aborted it.
 *  2. rip first, rseq_cs second: a death of ours between the two leaves what the kernel then clears by itself.
 *  3. What is not a sequence as the kernel wants it is left to the kernel, which ends the program for it.
 */
#define _GNU_SOURCE
#include "internal.h"
#include <stddef.h>
#include <sys/ptrace.h>

#ifndef PTRACE_GET_RSEQ_CONFIGURATION
#define PTRACE_GET_RSEQ_CONFIGURATION 0x420f
#endif

enum { CS_AT = 8 }; /* of struct rseq */

struct sequence { /* struct rseq_cs */
    uint32_t version, flags;
    uint64_t start, length, abort;
};

static bool reads(pid_t pid, void *to, size_t bytes, ckpt_addr_t from) {
    const struct iovec here = {to, bytes}, there = {(void *)(uintptr_t)from, bytes};
    return sys_vm_readv(pid, &here, 1, &there, 1) == (ssize_t)bytes;
}

bool rseq_place(const struct thread *thread, struct rseq_place *ret_place) {
    return sys_ptrace(PTRACE_GET_RSEQ_CONFIGURATION, thread->tid, sizeof *ret_place, (uintptr_t)ret_place) == sizeof *ret_place;
}

int rseq_abort(ckpt_tree *tree, struct thread *thread) {
    struct rseq_place at;
    ckpt_addr_t cs = 0;
    struct sequence sequence;
    thread->rseq.pointer = 0;
    if ((int64_t)thread->regs.orig_rax >= 0 || !rseq_place(thread, &at) || !at.pointer)
        return 0;
    thread->rseq = at;
    if (!reads(thread->pid, &cs, sizeof cs, at.pointer + CS_AT) || !cs || !reads(thread->pid, &sequence, sizeof sequence, cs))
        return 0;
    if (sequence.version || sequence.flags || thread->regs.rip - sequence.start >= sequence.length)
        return 0;
    uint32_t signature = 0;
    if (!reads(thread->pid, &signature, sizeof signature, sequence.abort - sizeof signature) || signature != at.signature)
        return 0;
    long error = sys_ptrace(PTRACE_POKEUSER, thread->tid, offsetof(struct user, regs.rip), sequence.abort);
    if (error)
        return tree_fail(tree, (int)error, "registers", thread->pid, thread->tid, -1, sequence.abort, "restartable sequence");
    thread->regs.rip = sequence.abort;
    cs = 0;
    const struct iovec here = {&cs, sizeof cs}, there = {(void *)(uintptr_t)(at.pointer + CS_AT), sizeof cs};
    sys_vm_writev(thread->pid, &here, 1, &there, 1);
    return 0;
}
