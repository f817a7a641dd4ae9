/* questions.c: what only the target itself can be asked: the kinds' calls, run inside it by the bridge while it is frozen.
 *
 * A process's questions run in its leader, a thread's in each thread, all of one thread in one batch. A call that fails is
 * an answer like any other (its -errno); only an injection that cannot be done fails the capture.
 *
 * Invariants
 *  1. The texts of /proc were read before: the bridge stands in none of them.
 *  2. The bridge is gone again, and every thread has its own registers and mask, when ask_questions() returns, however.
 */
#include "capture.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>

struct batch {
    struct ckpt_call *calls;
    size_t *question; /* which question call i asks */
    size_t count, data_bytes;
    uint8_t *data;
};

static void batch_free(struct batch *batch) {
    free(batch->calls);
    free(batch->question);
    free(batch->data);
}

static size_t padded(size_t bytes) { return (bytes + 7) & ~(size_t)7; }

static int batch_make(const struct window *window, uint32_t per_thread, struct batch *ret_batch) {
    size_t total = window->options->question_count;
    struct batch batch = {.calls = calloc(total + 1, sizeof *batch.calls), .question = calloc(total + 1, sizeof *batch.question)};
    for (size_t i = 0; batch.calls && batch.question && i < total; i++) {
        const struct ckpt_question *question = &window->options->questions[i];
        if ((question->per_thread != 0) != (per_thread != 0))
            continue;
        struct ckpt_call *call = &batch.calls[batch.count];
        *call = (struct ckpt_call){.nr = question->nr, .may_fail = 1};
        memcpy(call->arg, question->arg, sizeof call->arg);
        if (question->answer_arg < 6) {
            call->form[question->answer_arg] = CKPT_ARG_DATA;
            call->arg[question->answer_arg] = batch.data_bytes;
            batch.data_bytes += padded(question->answer_size);
        }
        batch.question[batch.count++] = i;
    }
    batch.data = calloc(batch.data_bytes + 1, 1);
    *ret_batch = batch;
    return batch.calls && batch.question && batch.data ? 0 : -ENOMEM;
}

static int record_answer(struct window *window, const struct batch *batch, size_t i, pid_t pid, pid_t tid) {
    const struct ckpt_question *question = &window->options->questions[batch->question[i]];
    const struct ckpt_call *call = &batch->calls[i];
    size_t size = question->answer_arg < 6 ? question->answer_size : 0;
    char *room = sink_record_begin(window->sink, CKPT_R_ANSWER, pid, tid, -1, (int)batch->question[i], sizeof call->ret + size);
    if (!room)
        return -ENOMEM;
    memcpy(room, &call->ret, sizeof call->ret);
    if (size)
        memcpy(room + sizeof call->ret, batch->data + call->arg[question->answer_arg], size);
    sink_record_commit(window->sink, sizeof call->ret + size);
    return 0;
}

static int ask(struct window *window, struct batch *batch, pid_t pid, pid_t tid, pid_t record_tid) {
    if (!batch->count)
        return 0;
    memset(batch->data, 0, batch->data_bytes);
    int ran = ckpt_remote(window->tree, tid, batch->calls, batch->count, batch->data, batch->data_bytes);
    if (ran < 0)
        return tree_fail(window->tree, ran, "ask", pid, tid, -1, 0, NULL);
    if ((size_t)ran != batch->count)
        return tree_fail(window->tree, -EIO, "ask", pid, tid, -1, 0, "not every question ran");
    for (size_t i = 0; i < batch->count; i++) {
        int error = record_answer(window, batch, i, pid, record_tid);
        if (error)
            return error;
    }
    return 0;
}

static int ask_process(struct window *window, pid_t pid, struct batch *process, struct batch *thread) {
    ckpt_tree *tree = window->tree;
    size_t room = process->data_bytes > thread->data_bytes ? process->data_bytes : thread->data_bytes;
    int error = ckpt_remote_begin(tree, pid, NULL, 0, room);
    if (error)
        return tree_fail(tree, error, "ask", pid, 0, -1, 0, "no bridge");
    error = ask(window, process, pid, pid, 0);
    for (size_t i = 0; !error && i < tree->thread_count; i++)
        if (tree->threads[i].pid == pid)
            error = ask(window, thread, pid, tree->threads[i].tid, tree->threads[i].tid);
    int ended = ckpt_remote_end(tree, pid);
    return error ? error : ended;
}

int ask_questions(struct window *window) {
    if (window->options->no_inject || !window->options->question_count)
        return 0;
    __attribute__((cleanup(batch_free))) struct batch process = {0}, thread = {0};
    int error = batch_make(window, 0, &process);
    if (!error)
        error = batch_make(window, 1, &thread);
    for (size_t i = 0; !error && i < window->tree->task_count; i++)
        error = ask_process(window, window->tree->tasks[i].pid, &process, &thread);
    return error;
}
