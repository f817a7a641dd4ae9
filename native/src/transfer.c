/* transfer.c: a transfer that a stop has cut short goes on behind its caller's back, and the caller gets the whole count.
 *
 * A stop ends a write, a send or a receive that has done a part: the kernel gives the count so far and remembers nothing. So the thread
 * is sent into a few instructions of its own in the vdso's tail ("slot"), which call for the rest, add what had been done, put the
 * argument registers back and jump to where the program goes on. No tracer is needed for that: nobody's death matters.
 *
 *     +0 syscall   +2 test rax,rax   +5 jns +19   +7 cmp eax,-EPIPE   +10 jl +25   +12 mov eax, DONE   +17 jmp +25
 *     +19 add rax, DONE   +25 the registers   +55 jmp back
 *
 * Invariants
 *  1. Outside of a thaw no thread of a stopped tree is in a slot: whoever is met there is put back at its call's end with the count that it
 *     would have by then (transfer_met), before anybody looks at its registers, and is sent on again when it is let go. So a generation
 *     holds an ordinary short count, and a death of ours leaves one.
 *  2. Nor does a handler's frame return there: such a frame gets the short count, which a signal would have left as well (frames.c).
 *  3. A slot is written before the thread is sent there, and taken again only when all threads that it may belong to stand still: until then it
 *     has its thread's number. Of those that are free it is the one that has been so for longest: a frame on a stack that a program has put
 *     aside by itself (swapcontext in a handler) is not seen.
 *  4. Only calls that a second one goes on with (cut.c). Where there is no slot the count stays short.
 *  5. An error ends it with what had been done. But who sends gets an error of the connection itself: the kernel tells it once, and has told
 *     it to us (without a stop the count would come first, and the error with the next call).
 *  6. It begins as an interrupted call does (ERESTARTNOHAND): a handler that became due since the stop ends it with the short count.
 *  7. No memory but the slot is touched, no flag that a system call leaves defined. A handler that comes meanwhile finds an address of the vdso.
 */
#define _GNU_SOURCE
#include "restart.h"
#include "transfer.h"
#include <errno.h>
#include <stddef.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/uio.h>

enum {
    CALLED = 2, TESTED = 5, FAILED = 7, CHOSEN = 10, GIVE = 12, GIVEN = 17, ADD = 19, ADDED = 25, JUMP = 55, /* offsets in a slot */
    ERESTARTNOHAND = 514, /* a signal that has come since the stop ends the call with the short count, as it would have; else it begins */
};

/* ---- registers ---- */

static unsigned long long *argument(struct user_regs_struct *regs, unsigned index) {
    unsigned long long *const args[6] = {&regs->rdi, &regs->rsi, &regs->rdx, &regs->r10, &regs->r8, &regs->r9};
    return args[index];
}

static void load(uint8_t *at, unsigned index, uint64_t value) { /* movabs argument, value */
    static const uint8_t rex[6] = {0x48, 0x48, 0x48, 0x49, 0x49, 0x49}, reg[6] = {7, 6, 2, 2, 0, 1};
    at[0] = rex[index];
    at[1] = 0xb8 | reg[index];
    memcpy(at + 2, &value, sizeof value);
}

static void write_code(struct slot *slot) {
    static const uint8_t begin[ADDED] = {0x0f, 0x05, 0x48, 0x85, 0xc0, 0x79, 0x0c, 0x83, 0xf8, 0xe0, 0x7c, 0x0d, 0xb8, 0, 0, 0, 0, 0xeb, 0x06, 0x48, 0x05};
    static const uint8_t nothing[2] = {0x66, 0x90}, jump[6] = {0xff, 0x25, BACK - JUMP - sizeof jump};
    unsigned first = slot->buffer_arg == NO_ARG ? slot->count_arg : slot->buffer_arg;
    memcpy(slot->code, begin, sizeof begin);
    if (!slot->sends)
        memcpy(slot->code + CHOSEN, nothing, sizeof nothing);
    memcpy(slot->code + GIVE + 1, &slot->done, sizeof slot->done);
    memcpy(slot->code + ADD + 2, &slot->done, sizeof slot->done);
    load(slot->code + ADDED, first, first == slot->count_arg ? slot->count : slot->buffer);
    load(slot->code + ADDED + 10, slot->count_arg, slot->count);
    slot->code[ADDED + 20] = 0x48; /* movabs rcx, back: what a syscall instruction there would have left */
    slot->code[ADDED + 21] = 0xb9;
    memcpy(slot->code + ADDED + 22, &slot->back, sizeof slot->back);
    memcpy(slot->code + JUMP, jump, sizeof jump);
}

/* Of a connection (ECONNRESET, ...), told once: not that this call has been interrupted, or found no room, nor what each later one is told, too. */
static bool ends(int64_t rax) { return rax < -EPIPE && rax > -512; }

/* What the program goes on with, of a thread at `at` in the slot's code. */
uint64_t slot_count_at(const struct slot *slot, size_t at, int64_t rax) {
    if (at == 0 || at == GIVE)
        return slot->done;
    if (at == GIVEN || at >= ADDED)
        return (uint64_t)rax;
    if (rax >= 0)
        return slot->done + (uint64_t)rax;
    return slot->sends && ends(rax) ? (uint64_t)rax : slot->done;
}

/* Which slot an address is in by its place alone: they are counted from the page's end. */
static ckpt_addr_t slot_around(ckpt_addr_t at) {
    ckpt_addr_t end = (at & ~(uint64_t)(CKPT_PAGE - 1)) + CKPT_PAGE;
    return end - ((end - 1 - at) / TRANSFER_SLOT + 1) * TRANSFER_SLOT;
}

static bool read_slot(pid_t tid, ckpt_addr_t at, struct slot *slot) {
    struct iovec here = {slot, sizeof *slot}, there = {(void *)(uintptr_t)at, sizeof *slot};
    return sys_vm_readv(tid, &here, 1, &there, 1) == sizeof *slot && slot->magic == SLOT_MAGIC;
}

/* By no lowest address: without a limit on the stack (and by `setarch -L`) the vdso lies below a third of the addresses, and with enough bits
 * of randomness (vm.mmap_rnd_bits) anywhere. */
int transfer_met(struct thread *thread) {
    struct user_regs_struct *regs = &thread->regs;
    struct slot slot;
    ckpt_addr_t at = slot_around(regs->rip);
    bool possible = regs->rip - at < BACK && CKPT_PAGE - at % CKPT_PAGE <= TRANSFER_SLOTS * TRANSFER_SLOT;
    if (!possible || !read_slot(thread->tid, at, &slot))
        return 0;
    size_t offset = regs->rip - at;
    bool inside = offset == 0 || (offset == CALLED && (int64_t)regs->orig_rax >= 0);
    regs->rax = slot_count_at(&slot, offset, (int64_t)regs->rax);
    regs->orig_rax = inside ? slot.nr : ~UINT64_C(0);
    regs->rip = regs->rcx = slot.back;
    if (slot.buffer_arg != NO_ARG)
        *argument(regs, slot.buffer_arg) = slot.buffer;
    *argument(regs, slot.count_arg) = slot.count;
    return (int)sys_ptrace(PTRACE_SETREGS, thread->tid, 0, (uintptr_t)regs);
}

/* ---- the slots of a memory ---- */

unsigned slot_count(const struct bridge *bridge) {
    ckpt_addr_t begin = bridge->tail + NOTE_BYTES + STUB_BYTES;
    unsigned count = begin < bridge->tail_end ? (unsigned)((bridge->tail_end - begin) / TRANSFER_SLOT) : 0;
    return count < TRANSFER_SLOTS ? count : TRANSFER_SLOTS;
}

int slots_read(const struct task *owner, struct slot slots[TRANSFER_SLOTS]) {
    unsigned count = slot_count(&owner->bridge);
    struct slot found[TRANSFER_SLOTS];
    size_t bytes = count * sizeof *found;
    if (!count || sys_pread(owner->mem, found, bytes, slot_place(&owner->bridge, count - 1)) != (ssize_t)bytes)
        return 0;
    for (unsigned i = 0; i < count; i++)
        slots[i] = found[count - 1 - i];
    return (int)count;
}

/* ---- and on ---- */

/* The one that has been free for longest (a program that changes stacks by itself may hold a frame that nobody has seen), but for `taken`; -1 =
 * none. Where not all stand still (a freeze that has failed, a doomed tree that is left), a slot that is another's may have its thread inside. */
static int take_slot(const struct task *task, struct task *owner, const struct thread *thread, int taken, uint32_t *ret_turn) {
    struct slot slots[TRANSFER_SLOTS];
    int count = slots_read(owner, slots), found = -1;
    *ret_turn = 1;
    for (int i = count - 1; i >= 0; i--) {
        bool own = slots[i].tid == thread->tid && !frames_patch(owner, thread->regs.rsp, slots, (unsigned)count, (unsigned)i);
        bool busy = i == taken || (task->bridge.settled ? owner->bridge.transfers & 1U << i : slots[i].tid && !own);
        bool again = found >= 0 && !task->bridge.settled && slots[found].tid == thread->tid; /* else it has two, and somebody none */
        if (!busy && !again && (found < 0 || own || slots[i].turn < slots[found].turn))
            found = i;
        if (slots[i].turn >= *ret_turn)
            *ret_turn = slots[i].turn + 1U;
    }
    if (found >= 0)
        owner->bridge.transfers |= 1U << found;
    return found;
}

/* A place in memory that is a slot like the others; its number, or -1. */
static int put_slot(const struct task *task, struct task *owner, struct slot *slot, int taken, const struct thread *thread, ckpt_addr_t *ret_at) {
    uint32_t turn;
    int index = take_slot(task, owner, thread, taken, &turn);
    if (index < 0)
        return -1;
    slot->magic = SLOT_MAGIC;
    slot->stack = thread->regs.rsp >> STACK_UNIT > UINT32_MAX ? 0 : (uint32_t)(thread->regs.rsp >> STACK_UNIT);
    slot->tid = thread->tid;
    slot->turn = turn & 0xffffff;
    *ret_at = slot_place(&owner->bridge, (unsigned)index);
    return sys_pwrite(owner->mem, slot, sizeof *slot, *ret_at) == sizeof *slot ? index : -1;
}

/* The rest of a list, in a slot of its own: its number. What is left to do by it goes into the registers. */
static int put_list(const struct task *task, struct task *owner, const struct thread *thread, const struct restart_row *row, struct user_regs_struct *regs) {
    struct slot slot = {.buffer_arg = NO_ARG, .count_arg = NO_ARG};
    ckpt_addr_t at;
    uint64_t arg[6];
    restart_arguments(regs, arg);
    int index = put_slot(task, owner, &slot, -1, thread, &at);
    unsigned left = index < 0 ? 0 : list_left(owner, row, arg, (uint64_t)thread->decision.value, at, slot.code);
    if (!left || sys_pwrite(owner->mem, slot.code, sizeof slot.code, at) != sizeof slot.code)
        return -1;
    regs->rsi = at;
    if (row->vector == VECTOR_IOVEC)
        regs->rdx = left;
    return index;
}

/* What the call is to be given for the rest, and what was in those registers. The number of a slot that goes with it, -1 = none; false: it cannot go on. */
static bool prepare(const struct task *task, struct task *owner, const struct thread *thread, const struct restart_row *row, struct user_regs_struct *regs,
                    struct slot *slot, int *ret_list) {
    uint64_t done = slot->done;
    slot->count_arg = row->goes_on == GOES_ON_LIST ? 2 : row->wanted_arg;
    slot->count = *argument(regs, slot->count_arg);
    slot->buffer_arg = row->goes_on == GOES_ON_BY_COUNT ? NO_ARG : slot->count_arg - 1;
    slot->buffer = slot->buffer_arg == NO_ARG ? 0 : *argument(regs, slot->buffer_arg);
    *ret_list = -1;
    if (row->goes_on == GOES_ON_LIST)
        return (*ret_list = put_list(task, owner, thread, row, regs)) >= 0;
    if (done >= slot->count)
        return false;
    if (slot->buffer_arg != NO_ARG)
        *argument(regs, slot->buffer_arg) += done;
    *argument(regs, slot->count_arg) -= done;
    return true;
}

void transfer_go_on(ckpt_tree *tree, struct thread *thread) {
    struct task *task = tree_task(tree, thread->pid);
    const struct restart_row *row = restart_row(thread->decision.nr);
    if (thread->decision.action != CKPT_GO_ON || !row || row->goes_on == GOES_ON_NOT || !task)
        return;
    struct task *owner = task->bridge.settled ? memory_owner(tree, task) : task; /* else nobody has looked who shares memory with whom */
    struct user_regs_struct regs = thread->regs;
    struct slot slot = {.back = regs.rip, .done = (uint32_t)thread->decision.value, .nr = (uint16_t)row->nr, .sends = row->timeout_form == TIMEOUT_SEND};
    ckpt_addr_t at;
    int list;
    bool can = !vdso_tail(tree, owner) && prepare(task, owner, thread, row, &regs, &slot, &list);
    tree_fault_clear(tree);
    if (!can)
        return;
    write_code(&slot);
    if (put_slot(task, owner, &slot, list, thread, &at) < 0)
        return;
    regs.rip = regs.rcx = at + CALLED;
    regs.orig_rax = (uint64_t)row->nr;
    regs.rax = (uint64_t)-ERESTARTNOHAND;
    sys_ptrace(PTRACE_SETREGS, thread->tid, 0, (uintptr_t)&regs); /* else it has the short count */
}

bool transfer_slots_only(const uint8_t *room, size_t size) {
    for (size_t left = size; left;) {
        const struct slot *slot = (const void *)(room + left - TRANSFER_SLOT);
        if (left >= TRANSFER_SLOT && slot->magic == SLOT_MAGIC) {
            left -= TRANSFER_SLOT;
            continue;
        }
        size_t part = left < TRANSFER_SLOT ? left : TRANSFER_SLOT;
        for (size_t i = left - part; i < left; i++)
            if (room[i])
                return false;
        left -= part;
    }
    return true;
}
