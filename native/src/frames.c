/* frames.c: handlers that have interrupted a transfer which went on (transfer.c): their frames return into its slot, and are made to return to
 * the program's own code, with the short count that a signal leaves.
 *
 * Invariants
 *  1. Done in each freeze, when all stand still and before anybody looks at memory: so no generation holds an address of a slot, and slots can
 *     be taken anew.
 *  2. A frame is looked for from the thread's stack pointer on, 256 KiB, on the stack that a handler with one of its own has left, and below
 *     where the stack pointer stood as the slot was taken, which is where the kernel puts it, whatever its handler has on the stack. A
 *     frame on a stack that the program has put aside by itself (swapcontext in a handler) is not seen, nor one that lies further up on a
 *     stack of a handler's own.
 */
#define _GNU_SOURCE
#include "restart.h"
#include "transfer.h"
#include <errno.h>
#include <fcntl.h>
#include <linux/kcmp.h>
#include <stddef.h>
#include <stdlib.h>

enum { STACK_BYTES = 256 * 1024, FRAME_BYTES = 32 * 1024 /* with AMX a frame has some 11 KiB */, USER64_CS = 0x33 };

/* A signal frame's registers, around its rip (arch/x86/include/uapi/asm/sigcontext.h), in words. */
enum { F_R10 = -14, F_R8 = -16, F_R9 = -15, F_RDI = -8, F_RSI = -7, F_RDX = -4, F_RAX = -3, F_RCX = -2, F_RIP = 0, F_CS = 2, F_BEFORE = 16, F_WORDS = 19 };

static int patch_frame(const struct task *owner, const struct slot *slot, ckpt_addr_t at, uint64_t *rip, ckpt_addr_t place) {
    static const int args[6] = {F_RDI, F_RSI, F_RDX, F_R10, F_R8, F_R9};
    rip[F_RAX] = slot_count_at(slot, rip[F_RIP] - at, (int64_t)rip[F_RAX]);
    rip[F_RIP] = rip[F_RCX] = slot->back;
    if (slot->buffer_arg != NO_ARG)
        rip[args[slot->buffer_arg]] = slot->buffer;
    rip[args[slot->count_arg]] = slot->count;
    size_t bytes = F_WORDS * sizeof *rip;
    ssize_t put = sys_pwrite(owner->mem, rip - F_BEFORE, bytes, place - F_BEFORE * sizeof *rip);
    return put == (ssize_t)bytes ? 0 : put < 0 ? (int)put : -EFAULT;
}

/* A frame of a handler, by the segments that the kernel writes behind rip: 64-bit code, none, none, the stack's. */
#define FRAME_SEGMENTS UINT64_C(0x002b000000000033)
enum { F_RSP = -1, FRAMES_DEEP = 4 };

/* Frames on a stack that return into a slot; also on the stack that a handler with its own one has left (sigaltstack). */
static int patch_stack(const struct task *owner, ckpt_addr_t from, size_t bytes, const struct slot *slots, unsigned count, unsigned deep) {
    _cleanup_free_ uint64_t *stack = malloc(bytes);
    if (!stack)
        return -ENOMEM;
    ckpt_addr_t begin = slot_place(&owner->bridge, count - 1);
    ssize_t words = sys_pread(owner->mem, stack, bytes, from &= ~UINT64_C(7)) / 8;
    int error = 0;
    for (ssize_t i = F_BEFORE; i + F_CS < words && !error; i++) {
        uint64_t left = stack[i + F_RSP], at = stack[i] - begin;
        const struct slot *slot = &slots[count - 1 - at / TRANSFER_SLOT % count];
        if (at < count * TRANSFER_SLOT && at % TRANSFER_SLOT < BACK && (uint16_t)stack[i + F_CS] == USER64_CS && slot->magic == SLOT_MAGIC)
            error = patch_frame(owner, slot, begin + at / TRANSFER_SLOT * TRANSFER_SLOT, stack + i, from + (uint64_t)i * 8);
        else if (stack[i + F_CS] == FRAME_SEGMENTS && deep && left - from >= STACK_BYTES)
            error = patch_stack(owner, left, STACK_BYTES, slots, count, deep - 1);
    }
    return error;
}

int frames_patch(const struct task *owner, ckpt_addr_t from, const struct slot *slots, unsigned count, unsigned index) {
    ckpt_addr_t stood = (ckpt_addr_t)slots[index].stack << STACK_UNIT, above = stood + (1U << STACK_UNIT);
    int error = patch_stack(owner, from, STACK_BYTES, slots, count, FRAMES_DEEP);
    if (error || !stood || (from < above && above - from <= STACK_BYTES))
        return error;
    return patch_stack(owner, stood - FRAME_BYTES, FRAME_BYTES + (1U << STACK_UNIT), slots, count, 0);
}

/* ---- when all stand still ---- */

/* A thread that is not of the tree and has this very memory. One that lives with another memory is a parent whose fork has copied its slots: nobody
 * is in these. Where kcmp is not built in, it counts as one with this memory. */
static bool lives_here(const struct task *task, pid_t tid) {
    char name[NAME_ROOM];
    int order = sys_kcmp(task->pid, tid, KCMP_VM, 0, 0);
    if (order >= 0 || order == -ESRCH)
        return order == 0;
    _cleanup_close_ int fd = sys_openat(AT_FDCWD, proc_name(name, "/proc/", (uint64_t)tid, ""), O_PATH | O_DIRECTORY);
    return fd >= 0;
}

static void forget_owner(const struct task *owner, struct slot *slot, unsigned index) {
    static const int32_t nobody = 0;
    if (sys_pwrite(owner->mem, &nobody, sizeof nobody, slot_place(&owner->bridge, index) + offsetof(struct slot, tid)) == sizeof nobody)
        slot->tid = nobody;
}

/* Whose frames may return into a slot: its thread's, or those of a child that a handler has forked there, whose only thread leads. */
static int settle_slot(ckpt_tree *tree, struct task *task, struct task *owner, struct slot slots[TRANSFER_SLOTS], unsigned count, unsigned index) {
    const struct thread *thread = tree_thread(tree, slots[index].tid);
    const struct task *its = thread ? tree_task(tree, thread->pid) : NULL;
    bool here = its && memory_owner(tree, its) == owner, runs = here ? thread->state != THREAD_STOPPED : !thread && lives_here(task, slots[index].tid);
    const struct thread *heir = here ? thread : tree_leader(tree, task->pid);
    if (runs)
        owner->bridge.transfers |= 1U << index; /* of a process that has this memory and does not stand still */
    int error = 0;
    if (heir && heir->state == THREAD_STOPPED)
        error = frames_patch(owner, heir->regs.rsp, slots, count, index);
    if (!error && !runs)
        forget_owner(owner, &slots[index], index);
    return error;
}

int transfer_settle(ckpt_tree *tree, struct task *task) {
    struct task *owner = memory_owner(tree, task);
    struct slot slots[TRANSFER_SLOTS];
    if (vdso_tail(tree, owner) < 0) { /* nowhere to have been sent to */
        tree_fault_clear(tree);
        return 0;
    }
    owner->bridge.transfers = 0;
    task->bridge.settled = true;
    int count = slots_read(owner, slots), error = 0;
    for (int i = 0; i < count && !error; i++)
        if (slots[i].magic == SLOT_MAGIC && slots[i].tid)
            error = settle_slot(tree, task, owner, slots, (unsigned)count, (unsigned)i);
    return error ? tree_fail(tree, error, "a handler's frame", task->pid, 0, -1, 0, NULL) : 0;
}
