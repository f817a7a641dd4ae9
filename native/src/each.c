/* each.c: batches of calls in several threads of one process at the same time.
 *
 * What each thread is told about itself is a handful of calls, and most of what they cost is around them: the bridge is looked after, its
 * slot written, its answers read. Here that is done once for as many threads as the bridge has room for: 500 threads of seven calls
 * take 5 ms in place of 16.
 *
 * Invariants
 *  1. The bridge is one that ckpt_remote_begin() mapped. A lot takes a sequence of the code part and as much of the data part as it needs:
 *     header, calls, data.
 *  2. Whatever fails here, every thread that was started is waited for.
 */
#define _GNU_SOURCE
#include "inject.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>

struct trip { /* one thread's */
    struct flight flight;
    struct user_regs_struct regs;
    size_t at; /* of its slot in the data part */
    bool flying;
};

struct round {
    ckpt_tree *tree;
    struct task *task, *owner;
    struct trip trips[BRIDGE_SLOTS];
    uint8_t code[BRIDGE_SLOTS * STUB_BYTES];
    uint8_t *load; /* the data part */
    size_t used;   /* of it */
    size_t count;  /* lots of this round */
};

static size_t slot_bytes(const struct ckpt_lot *lot) {
    return (SLOT_HEADER + lot->calls * sizeof(struct ckpt_call) + lot->data_bytes + 63) & ~(size_t)63;
}

static int load_lot(struct round *round, const struct ckpt_lot *lot, const struct ckpt_call *calls, const uint8_t *data) {
    ckpt_tree *tree = round->tree;
    struct bridge *bridge = &round->owner->bridge;
    struct trip *trip = &round->trips[round->count];
    struct thread *thread = tree_thread(tree, lot->tid);
    struct slot_header head;
    if (!thread || thread->state != THREAD_STOPPED || thread->pid != round->task->pid)
        return tree_fail(tree, -ESRCH, "batch", round->task->pid, lot->tid, -1, 0, NULL);
    int error = inject_refused(tree, thread);
    if (error)
        return error;
    error = bridge_aim(bridge, (uint32_t)round->count, round->task, thread, round->code + round->count * STUB_BYTES, &trip->flight, &head, &trip->regs);
    if (error)
        return tree_fail(tree, error, "stub", thread->pid, lot->tid, -1, 0, NULL);
    uint8_t *slot = round->load + round->used;
    trip->at = round->used;
    trip->flying = false;
    trip->regs.r15 = bridge->data + trip->at;
    head.calls = trip->regs.r15 + SLOT_HEADER;
    head.calls_end = head.data = head.calls + lot->calls * sizeof *calls;
    memcpy(slot, &head, sizeof head);
    memcpy(slot + SLOT_HEADER, calls, lot->calls * sizeof *calls);
    memcpy(slot + SLOT_HEADER + lot->calls * sizeof *calls, data, lot->data_bytes);
    round->used += slot_bytes(lot);
    round->count++;
    return 0;
}

static int put(const struct round *round, ckpt_addr_t at, const void *bytes, size_t size) {
    ssize_t got = sys_pwrite(round->owner->mem, bytes, size, at);
    return got == (ssize_t)size ? 0 : tree_fail(round->tree, got < 0 ? (int)got : -EFAULT, "write bridge", round->task->pid, 0, -1, at, "mem");
}

static int fly(struct round *round, struct ckpt_lot *lots) {
    ckpt_tree *tree = round->tree;
    int first_error = ckpt_mark("batch");
    for (size_t i = 0; i < round->count && !first_error; i++) {
        first_error = flight_start(tree, &round->trips[i].flight, &round->trips[i].regs);
        round->trips[i].flying = !first_error;
    }
    for (size_t i = 0; i < round->count; i++) {
        int64_t ran = 0;
        if (!round->trips[i].flying)
            continue;
        int error = flight_wait(tree, &round->trips[i].flight, &ran);
        if (error > 0)
            error = tree_fail(tree, -ESRCH, "batch", round->task->pid, lots[i].tid, -1, 0, NULL);
        else if (!error && (ran < 0 || ran > lots[i].calls))
            error = tree_fail(tree, ran < 0 ? (int)ran : -EFAULT, "open bridge", round->task->pid, lots[i].tid, -1, 0, "mprotect");
        lots[i].ran = error ? 0 : (uint32_t)ran;
        first_error = first_error ? first_error : error;
    }
    return first_error;
}

static int take_answers(const struct round *round, const struct ckpt_lot *lots, struct ckpt_call *calls, uint8_t *data) {
    ssize_t got = sys_pread(round->owner->mem, round->load, round->used, round->owner->bridge.data);
    if (got != (ssize_t)round->used)
        return tree_fail(round->tree, got < 0 ? (int)got : -EFAULT, "read bridge", round->task->pid, 0, -1, round->owner->bridge.data, "mem");
    for (size_t i = 0; i < round->count; i++) {
        const uint8_t *slot = round->load + round->trips[i].at + SLOT_HEADER;
        const struct ckpt_call *answered = (const void *)slot;
        for (uint32_t c = 0; c < lots[i].calls; c++)
            calls[c].ret = answered[c].ret, calls[c].done = answered[c].done;
        memcpy(data, slot + lots[i].calls * sizeof *calls, lots[i].data_bytes);
        calls += lots[i].calls;
        data += lots[i].data_bytes;
    }
    return 0;
}

/* As many lots as there is room for; how many those were. */
static int run_round(struct round *round, struct ckpt_lot *lots, size_t count, struct ckpt_call *calls, uint8_t *data) {
    struct bridge *bridge = &round->owner->bridge;
    struct ckpt_call *call = calls;
    uint8_t *bytes = data;
    int error = 0;
    round->count = round->used = 0;
    while (!error && round->count < count && round->count < bridge->slots && round->used + slot_bytes(&lots[round->count]) <= bridge->data_bytes) {
        const struct ckpt_lot *lot = &lots[round->count];
        error = load_lot(round, lot, call, bytes);
        call += lot->calls;
        bytes += lot->data_bytes;
    }
    if (!error && !round->count)
        error = tree_fail(round->tree, -E2BIG, "batch", round->task->pid, lots->tid, -1, lots->data_bytes, NULL);
    if (!error)
        error = put(round, code_slot_at(bridge, 0), round->code, round->count * STUB_BYTES);
    if (!error)
        error = put(round, bridge->data, round->load, round->used);
    if (!error)
        error = fly(round, lots);
    if (error)
        return error;
    bridge->writable = true;
    error = take_answers(round, lots, calls, data);
    return error ? error : (int)round->count;
}

int ckpt_remote_each(ckpt_tree *tree, int32_t pid, struct ckpt_lot *lots, size_t count, struct ckpt_call *calls, uint8_t *data) {
    tree_fault_clear(tree);
    struct task *task = tree_task(tree, pid);
    if (!task || !memory_owner(tree, task)->bridge.persistent)
        return tree_fail(tree, -ENOENT, "bridge", pid, 0, -1, 0, NULL);
    _cleanup_free_ struct round *round = calloc(1, sizeof *round);
    _cleanup_free_ uint8_t *load = calloc(1, memory_owner(tree, task)->bridge.data_bytes);
    int error = round && load ? inject_prepare(tree, task) : -ENOMEM;
    if (error)
        return error;
    *round = (struct round){.tree = tree, .task = task, .owner = memory_owner(tree, task), .load = load};
    for (size_t first = 0; first < count;) {
        int ran = run_round(round, lots + first, count - first, calls, data);
        if (ran < 0)
            return ran;
        for (int i = 0; i < ran; i++, first++) {
            calls += lots[first].calls;
            data += lots[first].data_bytes;
        }
    }
    return 0;
}
