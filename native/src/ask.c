/* ask.c: questions to every process and every thread of a frozen tree, all threads at the same time.
 *
 * Each memory gets one bridge with a slot per thread; every thread's list of calls is loaded by one write per memory; then all threads are
 * started, then all are waited for; answers come back by one read per memory.
 *
 * Invariants
 *  1. A question with an answer buffer gets a zeroed buffer of its own in the slot; the answer is recorded whole, whatever the call returned.
 *  2. A question may fail; the next is asked all the same.
 *  3. What is known is not asked, its answer is made here: the disposition of a signal that is not caught (status says whether it is
 *     ignored, and nothing else of it has an effect; SIGCHLD's flags have: it is always asked), and timers where /proc shows none.
 *     Slots have no room for it: each page of them is a fault inside the target.
 *  4. Whatever fails here, every thread that was started is waited for, and every bridge that was opened is closed.
 */
#define _GNU_SOURCE
#include "inject.h"
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>

#define NOWHERE SIZE_MAX

struct asked { /* one thread */
    struct flight flight;
    pid_t pid;
    uint32_t slot;
    bool whole;   /* answers for its process as well */
    bool flying, answered;
    struct user_regs_struct regs;
};

struct round {
    ckpt_tree *tree;
    const struct ckpt_question *questions;
    size_t count, slot_bytes; /* slot_bytes: of a thread; one that answers for its process too takes whole_slots of them */
    uint32_t whole_slots;
    struct asked *asked; /* one per thread of the tree, in its order */
    uint8_t *slots;      /* the data part of one memory at a time */
    uint8_t *code;
    uint8_t *own;        /* what they stand in, if the tree's text buffer is too small */
    size_t *answer_at;   /* per question: its buffer behind the slot's calls; NOWHERE: everybody's answer is known */
    size_t calls[2];     /* questions that a thread gets; one that answers for its process */
};

static bool wants(const struct round *round, const struct asked *asked, size_t question) {
    return round->questions[question].per_thread || asked->whole;
}

/* Answers of threads come first, so that a thread's slot needs no room for those of the process. */
static size_t answer_of(const struct round *round, const struct asked *asked, size_t question) {
    return SLOT_HEADER + round->calls[asked->whole] * sizeof(struct ckpt_call) + round->answer_at[question];
}

static bool is_uncaught(const struct ckpt_question *question, const struct task *task) {
    uint64_t sig = question->arg[0];
    return question->nr == SYS_rt_sigaction && sig >= 1 && sig <= 64 && sig != SIGCHLD && !(task->bridge.caught & (UINT64_C(1) << (sig - 1)));
}

static bool is_timerless(const struct ckpt_question *question, const struct task *task) {
    return question->nr == SYS_timer_gettime && task->timerless;
}

static bool is_known(const struct ckpt_question *question, const struct task *task) {
    return is_uncaught(question, task) || is_timerless(question, task);
}

static size_t load_calls(const struct round *round, const struct asked *asked, const struct task *task, struct ckpt_call *calls) {
    size_t used = 0;
    for (size_t q = 0; q < round->count; q++) {
        const struct ckpt_question *question = &round->questions[q];
        if (!wants(round, asked, q) || is_known(question, task))
            continue;
        struct ckpt_call call = {.nr = question->nr, .may_fail = 1};
        memcpy(call.arg, question->arg, sizeof call.arg);
        if (question->answer_arg < 6) {
            call.arg[question->answer_arg] = answer_of(round, asked, q);
            call.form[question->answer_arg] = CKPT_ARG_DATA;
        }
        calls[used++] = call;
    }
    return used;
}

static bool of_memory(ckpt_tree *tree, const struct thread *thread, const struct task *owner) {
    struct task *task = tree_task(tree, thread->pid);
    return thread->state == THREAD_STOPPED && task && memory_owner(tree, task) == owner;
}

/* Opens a bridge for one memory and loads every thread of it; nobody runs yet. */
static int load_memory(const struct round *round, struct task *owner) {
    ckpt_tree *tree = round->tree;
    uint32_t slots = 0;
    for (size_t i = 0; i < tree->thread_count; i++)
        if (of_memory(tree, &tree->threads[i], owner)) {
            int error = inject_refused(tree, &tree->threads[i]);
            if (error)
                return error;
            round->asked[i].slot = slots;
            slots += round->asked[i].whole ? round->whole_slots : 1;
        }
    struct thread *first = task_any_thread(tree, owner);
    if (!slots || !first)
        return 0;
    int error = bridge_open(tree, owner, first, NULL, 0, slots, round->slot_bytes);
    if (error)
        return error;
    struct bridge *bridge = &owner->bridge;
    memset(round->slots, 0, slots * bridge->slot_bytes);
    for (size_t i = 0; i < tree->thread_count; i++) {
        if (!of_memory(tree, &tree->threads[i], owner))
            continue;
        struct asked *asked = &round->asked[i];
        uint8_t *slot = round->slots + asked->slot * bridge->slot_bytes;
        ckpt_addr_t at = data_slot_at(bridge, asked->slot);
        struct slot_header head;
        struct task *task = tree_task(tree, tree->threads[i].pid);
        if (task != owner && (error = inject_prepare(tree, task)))
            return error;
        error = bridge_aim(bridge, asked->slot, task, &tree->threads[i], round->code + (size_t)asked->slot * STUB_BYTES, &asked->flight, &head,
                           &asked->regs);
        if (error)
            return tree_fail(tree, error, "stub", task->pid, tree->threads[i].tid, -1, 0, NULL);
        head.calls = at + SLOT_HEADER;
        head.calls_end = head.calls + load_calls(round, asked, task, (void *)(slot + SLOT_HEADER)) * sizeof(struct ckpt_call);
        head.data = at;
        memcpy(slot, &head, sizeof head);
    }
    if (sys_pwrite(owner->mem, round->code, slots * (size_t)STUB_BYTES, code_slot_at(bridge, 0)) != (ssize_t)(slots * (size_t)STUB_BYTES) ||
        sys_pwrite(owner->mem, round->slots, slots * bridge->slot_bytes, bridge->data) != (ssize_t)(slots * bridge->slot_bytes))
        return tree_fail(tree, -EFAULT, "write bridge", owner->pid, 0, -1, bridge->data, "mem");
    return 0;
}

static int fly(const struct round *round) {
    ckpt_tree *tree = round->tree;
    int first_error = ckpt_mark("batch");
    for (size_t i = 0; i < tree->thread_count && !first_error; i++) {
        struct asked *asked = &round->asked[i];
        if (tree->threads[i].state != THREAD_STOPPED || !asked->regs.rip)
            continue;
        first_error = flight_start(tree, &asked->flight, &asked->regs);
        asked->flying = !first_error;
    }
    for (size_t i = 0; i < tree->thread_count; i++) {
        struct asked *asked = &round->asked[i];
        int64_t ran = 0;
        if (!asked->flying)
            continue;
        int error = flight_wait(tree, &asked->flight, &ran);
        if (!error && ran < 0)
            error = tree_fail(tree, (int)ran, "open bridge", asked->pid, asked->flight.tid, -1, 0, "mprotect");
        asked->answered = !error;
        if (error < 0 && !first_error)
            first_error = error;
    }
    return first_error;
}

/* What the call would have answered. */
static int record_known(const struct round *round, const struct asked *asked, size_t q, const struct task *task, ckpt_sink *sink) {
    const struct ckpt_question *question = &round->questions[q];
    struct { int64_t ret; uint64_t answer[4]; } known = {0};
    if (is_timerless(question, task))
        known.ret = -EINVAL;
    else
        known.answer[0] = task->bridge.ignored >> (question->arg[0] - 1) & 1 ? (uintptr_t)SIG_IGN : (uintptr_t)SIG_DFL;
    size_t size = question->answer_size < sizeof known.answer ? question->answer_size : sizeof known.answer;
    return sink_record(sink, CKPT_R_ANSWER, asked->pid, 0, -1, (int)q, &known, sizeof known.ret + size);
}

static int record(const struct round *round, const struct asked *asked, const uint8_t *slot, ckpt_sink *sink) {
    const struct task *task = tree_task(round->tree, asked->pid);
    const struct ckpt_call *call = (const void *)(slot + SLOT_HEADER);
    for (size_t q = 0; q < round->count; q++) {
        const struct ckpt_question *question = &round->questions[q];
        size_t size = question->answer_arg < 6 ? question->answer_size : 0;
        if (!wants(round, asked, q))
            continue;
        if (is_known(question, task)) {
            int error = record_known(round, asked, q, task, sink);
            if (error)
                return error;
            continue;
        }
        pid_t tid = question->per_thread ? asked->flight.tid : 0; /* 0: the answer is the process's */
        uint8_t *bytes = sink_record_begin(sink, CKPT_R_ANSWER, asked->pid, tid, -1, (int)q, sizeof call->ret + size);
        if (!bytes)
            return -ENOMEM;
        memcpy(bytes, &call->ret, sizeof call->ret);
        memcpy(bytes + sizeof call->ret, slot + answer_of(round, asked, q), size);
        sink_record_commit(sink, sizeof call->ret + size);
        call++;
    }
    return 0;
}

static int collect(const struct round *round, struct task *owner, ckpt_sink *sink) {
    ckpt_tree *tree = round->tree;
    struct bridge *bridge = &owner->bridge;
    size_t bytes = bridge->slots * bridge->slot_bytes;
    if (sys_pread(owner->mem, round->slots, bytes, bridge->data) != (ssize_t)bytes)
        return tree_fail(tree, -EFAULT, "read bridge", owner->pid, 0, -1, bridge->data, "mem");
    for (size_t i = 0; i < tree->thread_count; i++)
        if (round->asked[i].answered && of_memory(tree, &tree->threads[i], owner)) {
            int error = record(round, &round->asked[i], round->slots + round->asked[i].slot * bridge->slot_bytes, sink);
            if (error)
                return error;
        }
    return 0;
}

/* Status and timers of every process, before anybody runs for us. */
static int look_at_all(const struct round *round) {
    ckpt_tree *tree = round->tree;
    int error = 0;
    for (size_t t = 0; t < tree->task_count && !error; t++) {
        struct task *task = &tree->tasks[t];
        task->timerless = tree_knows(tree, task->timerless_at);
        error = task_any_thread(tree, task) ? inject_prepare(tree, task) : 0;
    }
    return error;
}

static bool is_asked(const struct round *round, size_t question) {
    for (size_t t = 0; t < round->tree->task_count; t++)
        if (task_any_thread(round->tree, &round->tree->tasks[t]) && !is_known(&round->questions[question], &round->tree->tasks[t]))
            return true;
    return false;
}

static int measure(struct round *round) {
    size_t at = 0, bytes[2] = {0};
    for (uint32_t of_process = 0; of_process < 2; of_process++) {
        round->calls[of_process] = of_process ? round->calls[0] : 0;
        for (size_t q = 0; q < round->count; q++) {
            if (round->questions[q].per_thread == of_process)
                continue;
            round->answer_at[q] = NOWHERE;
            if (!is_asked(round, q))
                continue;
            round->calls[of_process]++;
            round->answer_at[q] = at;
            if (round->questions[q].answer_arg < 6)
                at += (round->questions[q].answer_size + 15) & ~(size_t)15;
        }
        bytes[of_process] = (SLOT_HEADER + round->calls[of_process] * sizeof(struct ckpt_call) + at + 63) & ~(size_t)63;
    }
    round->slot_bytes = bytes[0];
    round->whole_slots = (uint32_t)((bytes[1] + bytes[0] - 1) / bytes[0]);
    size_t slots = round->tree->thread_count + round->tree->task_count * round->whole_slots;
    size_t code = slots * STUB_BYTES, all = code + slots * round->slot_bytes;
    round->own = all > TEXT_BYTES ? malloc(all) : NULL;
    round->code = round->own ? round->own : (uint8_t *)round->tree->text; /* touched ahead, and nobody's while threads are asked */
    round->slots = round->code + code;
    return all > TEXT_BYTES && !round->own ? -ENOMEM : 0;
}

static void who_answers(const struct round *round) {
    ckpt_tree *tree = round->tree;
    for (size_t i = 0; i < tree->thread_count; i++)
        round->asked[i].pid = tree->threads[i].pid;
    for (size_t t = 0; t < tree->task_count; t++) {
        struct thread *thread = task_any_thread(tree, &tree->tasks[t]);
        if (thread)
            round->asked[thread - tree->threads].whole = true;
    }
}

static int ask(struct round *round, ckpt_sink *sink) {
    ckpt_tree *tree = round->tree;
    int error = look_at_all(round);
    if (!error)
        error = measure(round);
    who_answers(round);
    for (size_t t = 0; t < tree->task_count && !error; t++)
        if (memory_owner(tree, &tree->tasks[t]) == &tree->tasks[t])
            error = load_memory(round, &tree->tasks[t]);
    if (!error)
        error = fly(round);
    for (size_t t = 0; t < tree->task_count; t++) {
        struct task *task = &tree->tasks[t];
        if (!task->bridge.code || task->bridge.persistent)
            continue;
        if (!error)
            error = collect(round, task, sink);
        struct thread *thread = task_any_thread(tree, task);
        int closed = thread ? bridge_close(tree, task, thread) : 0;
        error = error ? error : closed;
    }
    return error;
}

int remote_ask(ckpt_tree *tree, const struct ckpt_question *questions, size_t count, ckpt_sink *sink) {
    if (!count || !tree->thread_count)
        return 0;
    _cleanup_free_ struct asked *asked = calloc(tree->thread_count, sizeof *asked);
    _cleanup_free_ size_t *answer_at = calloc(count, sizeof *answer_at);
    struct round round = {.tree = tree, .questions = questions, .count = count, .asked = asked, .answer_at = answer_at};
    int error = asked && answer_at ? ask(&round, sink) : -ENOMEM;
    free(round.own);
    return error;
}
