/* remote.c: batches of calls in a thread of a frozen tree, and questions to all threads at once. stub.c and bridge.c are the machinery and hold
 * the promise (the target survives a kill of ours at any instant); here is what is run.
 *
 * Measured (Linux 6.18, 2 virtual cores, quiet moments, median): one call by the stub 21-30 us, with finding the tail and status 40-60; a batch of
 * 1 / 101 getppid in an open bridge 40 / 72; bridge in and out 85-105; six questions to 1 / 64 threads 120 / 600-1000. All of it is waking the
 * other processor: with target and tracer on one CPU a stop and go costs 2.8 us instead of 34-77.
 *
 * Invariants
 *  1. A batch runs in one thread at a time through slot 0, and has the whole data part; questions, and what is told to each thread
 *     (each.c), use one slot per thread and all threads run at the same time.
 *  2. Calls that do not fit into the slot at once go in several pieces; a result that a later piece wants is then filled in here.
 *  3. Pointers into tree->threads and tree->tasks are not kept over a call that may grow them.
 */
#define _GNU_SOURCE
#include "inject.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>

enum { CALLS_AT_ONCE = 512 };

static int poke(ckpt_tree *tree, struct task *owner, ckpt_addr_t at, const void *bytes, size_t size) {
    ssize_t put = size ? sys_pwrite(owner->mem, bytes, size, at) : 0;
    return put == (ssize_t)size ? 0 : tree_fail(tree, put < 0 ? (int)put : -EFAULT, "write bridge", owner->pid, 0, -1, at, "mem");
}

static int peek(ckpt_tree *tree, struct task *owner, ckpt_addr_t at, void *bytes, size_t size) {
    ssize_t got = size ? sys_pread(owner->mem, bytes, size, at) : 0;
    return got == (ssize_t)size ? 0 : tree_fail(tree, got < 0 ? (int)got : -EFAULT, "read bridge", owner->pid, 0, -1, at, "mem");
}

static size_t slot_for(size_t calls, size_t data) { return SLOT_HEADER + calls * sizeof(struct ckpt_call) + ((data + 63) & ~(size_t)63); }

/* A piece of the batch starts at `first`: what it wants from before is known by now. */
static void fill_results(struct ckpt_call *piece, size_t count, const struct ckpt_call *calls, size_t first) {
    for (size_t i = 0; i < count; i++) {
        piece[i].done = 0;
        for (int a = 0; a < 6; a++) {
            if (piece[i].form[a] != CKPT_ARG_RESULT)
                continue;
            if (piece[i].arg[a] < first) {
                piece[i].arg[a] = (uint64_t)calls[piece[i].arg[a]].ret;
                piece[i].form[a] = CKPT_ARG_VALUE;
            } else {
                piece[i].arg[a] -= first;
            }
        }
    }
}

struct batch {
    struct task *task, *owner;
    struct thread *thread;
    ckpt_addr_t data; /* where the data area stands in the target */
};

/* Returns how many of the piece ran; 0 <= ran <= count; -ESRCH: the thread is gone. */
static int run_piece(ckpt_tree *tree, const struct batch *b, struct ckpt_call *piece, size_t count) {
    struct bridge *bridge = &b->owner->bridge;
    struct { struct slot_header head; struct ckpt_call calls[CALLS_AT_ONCE]; } load;
    uint8_t code[STUB_BYTES];
    struct flight flight;
    struct user_regs_struct regs;
    ckpt_addr_t slot = data_slot_at(bridge, 0);
    int error = bridge_aim(bridge, 0, b->task, b->thread, code, &flight, &load.head, &regs);
    if (error)
        return tree_fail(tree, error, "stub", b->task->pid, flight.tid, -1, 0, NULL);
    load.head.calls = slot + SLOT_HEADER;
    load.head.calls_end = load.head.calls + count * sizeof *piece;
    load.head.data = b->data;
    memcpy(load.calls, piece, count * sizeof *piece);
    error = poke(tree, b->owner, code_slot_at(bridge, 0), code, sizeof code);
    if (!error)
        error = poke(tree, b->owner, slot, &load, SLOT_HEADER + count * sizeof *piece);
    if (!error)
        error = ckpt_mark("batch");
    if (!error)
        error = flight_start(tree, &flight, &regs);
    int64_t ran = 0;
    if (!error)
        error = flight_wait(tree, &flight, &ran);
    if (error)
        return error > 0 ? -ESRCH : error;
    if (ran < 0 || (size_t)ran > count)
        return tree_fail(tree, ran < 0 ? (int)ran : -EFAULT, "open bridge", b->task->pid, flight.tid, -1, bridge->data, "mprotect");
    bridge->writable = true;
    error = peek(tree, b->owner, load.head.calls, piece, (size_t)ran * sizeof *piece);
    return error ? error : (int)ran;
}

static int run_all(ckpt_tree *tree, const struct batch *b, struct ckpt_call *calls, size_t count, size_t at_once) {
    struct ckpt_call piece[CALLS_AT_ONCE];
    size_t first = 0;
    while (first < count) {
        size_t part = count - first < at_once ? count - first : at_once;
        memcpy(piece, calls + first, part * sizeof *piece);
        fill_results(piece, part, calls, first);
        int ran = run_piece(tree, b, piece, part);
        if (ran < 0)
            return ran;
        for (int i = 0; i < ran; i++) {
            calls[first + (size_t)i].ret = piece[i].ret;
            calls[first + (size_t)i].done = 1;
        }
        first += (size_t)ran;
        if ((size_t)ran < part || (ran && calls[first - 1].ret < 0 && calls[first - 1].ret >= -4095 && !calls[first - 1].may_fail))
            break;
    }
    return (int)first;
}

static int check_forms(ckpt_tree *tree, const struct ckpt_call *calls, size_t count, size_t data_bytes) {
    for (size_t i = 0; i < count; i++)
        for (int a = 0; a < 6; a++)
            if (calls[i].form[a] > CKPT_ARG_DATA || (calls[i].form[a] == CKPT_ARG_RESULT && calls[i].arg[a] >= i) ||
                (calls[i].form[a] == CKPT_ARG_DATA && calls[i].arg[a] > data_bytes))
                return tree_fail(tree, -EINVAL, "batch", 0, 0, -1, calls[i].arg[a], "call");
    return 0;
}

/* At the end of the data part: the calls stand at its beginning. */
static ckpt_addr_t data_at(const struct bridge *bridge, size_t bytes) {
    return bridge->data + bridge_room(bridge) - ((bytes + 63) & ~(size_t)63);
}

int64_t ckpt_remote_data(ckpt_tree *tree, int32_t tid, size_t data_bytes) {
    tree_fault_clear(tree);
    struct thread *thread = tree_thread(tree, tid);
    struct task *task = thread ? tree_task(tree, thread->pid) : NULL;
    const struct bridge *bridge = task ? &memory_owner(tree, task)->bridge : NULL;
    if (!bridge || !bridge->code)
        return tree_fail(tree, -ENOENT, "bridge", 0, tid, -1, 0, NULL);
    return (int64_t)data_at(bridge, data_bytes);
}

int ckpt_remote(ckpt_tree *tree, int32_t tid, struct ckpt_call *calls, size_t count, uint8_t *data, size_t data_bytes) {
    tree_fault_clear(tree);
    struct thread *thread = tree_thread(tree, tid);
    if (!thread || thread->state != THREAD_STOPPED)
        return tree_fail(tree, -ESRCH, "batch", 0, tid, -1, 0, NULL);
    struct batch b = {.task = tree_task(tree, thread->pid), .thread = thread};
    b.owner = memory_owner(tree, b.task);
    struct bridge *bridge = &b.owner->bridge;
    size_t at_once = count < CALLS_AT_ONCE ? count : CALLS_AT_ONCE;
    int error = check_forms(tree, calls, count, data_bytes);
    if (!error)
        error = inject_refused(tree, thread);
    bool own = !error && !bridge->code;
    if (own)
        error = bridge_open(tree, b.task, thread, NULL, 0, 1, slot_for(at_once, data_bytes));
    else if (!error && slot_for(at_once, data_bytes) > bridge_room(bridge))
        error = tree_fail(tree, -E2BIG, "batch", thread->pid, tid, -1, data_bytes, NULL);
    else if (!error)
        error = inject_prepare(tree, b.task);
    if (error)
        return error;
    b.data = data_at(bridge, data_bytes);
    error = poke(tree, b.owner, b.data, data, data_bytes);
    int ran = error ? error : run_all(tree, &b, calls, count, at_once);
    if (ran >= 0 && (error = peek(tree, b.owner, b.data, data, data_bytes)) < 0)
        ran = error;
    if (own) {
        thread = ran == -ESRCH ? task_any_thread(tree, b.task) : b.thread;
        error = thread ? bridge_close(tree, b.task, thread) : 0;
    }
    return ran >= 0 && error < 0 ? error : ran;
}

int ckpt_remote_begin(ckpt_tree *tree, int32_t pid, const struct ckpt_range *avoid, size_t avoid_count, size_t data_bytes) {
    tree_fault_clear(tree);
    struct task *task = tree_task(tree, pid);
    struct thread *thread = task ? task_any_thread(tree, task) : NULL;
    if (!thread)
        return tree_fail(tree, -ESRCH, "bridge", pid, 0, -1, 0, NULL);
    size_t room = slot_for(CALLS_AT_ONCE, data_bytes); /* of one batch that runs alone */
    int error = bridge_open(tree, task, thread, avoid, avoid_count, BRIDGE_SLOTS, (room + BRIDGE_SLOTS - 1) / BRIDGE_SLOTS);
    if (!error)
        memory_owner(tree, task)->bridge.persistent = true;
    return error;
}

int ckpt_remote_end(ckpt_tree *tree, int32_t pid) {
    tree_fault_clear(tree);
    struct task *task = tree_task(tree, pid);
    struct thread *thread = task ? task_any_thread(tree, task) : NULL;
    return thread ? bridge_close(tree, task, thread) : tree_fail(tree, -ESRCH, "bridge", pid, 0, -1, 0, NULL);
}
