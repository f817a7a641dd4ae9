/* capture.c: the frozen window of a snapshot in one call: freeze, raw bytes, descriptors, questions, pages, thaw.
 *
 * Before the freeze everything is opened, made and touched that can be; inside only system calls on the target and plain
 * writes into buffers that are there already; after the thaw nothing is left to do but report the times.
 *
 * Invariants
 *  1. A tree that came thawed leaves thawed, on every path; one that came frozen stays frozen.
 *  2. On failure the sink is reset (nothing is kept) and the tree's fault names the first thing that failed.
 *  3. The order is: text and registers, descriptors, questions. Questions inject: they come after the texts, which so never
 *     show their bridge. The pages of a large tree come last, those of a small one before the questions (memories.c).
 *  4. The tracker is consumed by the scan. Whoever called must have written down before that it would be (ckpt/live).
 */
#define _GNU_SOURCE
#include "capture.h"
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum { LINES_AHEAD = 512 };

int rows_grow(void **rows, size_t count, size_t *cap, size_t size) {
    if (count < *cap)
        return 0;
    size_t wanted = *cap ? *cap * 2 : 64;
    void *moved = reallocarray(*rows, wanted, size);
    if (!moved)
        return -ENOMEM;
    *rows = moved;
    *cap = wanted;
    return 0;
}

static void window_close(struct window *window) {
    close_fd(&window->tee[0]);
    close_fd(&window->tee[1]);
    close_fd(&window->diag);
    free(window->fds);
    free(window->by_file);
    free(window->objects);
    free(window->maps);
    free(window->lines);
    free(window->beside.text);
    free(window->beside.maps);
    free(window->beside.rows);
    free(window->groups);
}

static bool wanted(const struct ckpt_capture_options *options, uint32_t work) {
    for (size_t i = 0; i < options->want_count; i++)
        if (options->wants[i].work & work)
            return true;
    return false;
}

static int window_open(struct window *window) {
    if (wanted(window->options, CKPT_W_PIPE) && pipe2(window->tee, O_CLOEXEC | O_NONBLOCK) < 0)
        return -errno;
    if (wanted(window->options, CKPT_W_UNIX_DIAG))
        window->diag = diag_open();
    window->line_cap = LINES_AHEAD;
    window->lines = malloc(window->line_cap * sizeof *window->lines);
    if (!window->lines)
        return -ENOMEM;
    memset(window->lines, 0, window->line_cap * sizeof *window->lines); /* touched now, not in the window */
    stack_touch();
    return 0;
}

/* ---- phases ---- */

static int files_phase(struct window *window) {
    window->maps = calloc(window->tree->task_count, sizeof *window->maps);
    int error = window->maps ? beside_run(window) : -ENOMEM;
    if (!error)
        error = raw_tree(window);
    for (size_t i = 0; !error && i < window->tree->task_count; i++)
        error = raw_task(window, i);
    for (size_t i = 0; !error && window->beside.begun && i < window->tree->task_count; i++)
        error = raw_maps(window, i);
    return error;
}

/* ---- the window ---- */

static uint64_t lap(uint64_t *since) {
    uint64_t now = now_ns(), passed = now - *since;
    *since = now;
    return passed;
}

static int inside(struct window *window) {
    struct ckpt_timing *timing = &window->timing;
    bool pages_first = window->beside.wanted;
    uint64_t since = now_ns();
    int error = files_phase(window);
    timing->files = lap(&since);
    ckpt_mark("raw");
    if (!error)
        error = capture_descriptors(window);
    timing->descriptors = lap(&since);
    if (!error && pages_first)
        error = pages_phase(window);
    since = now_ns();
    if (!error && !window->options->no_inject && window->options->question_count)
        error = remote_ask(window->tree, window->options->questions, window->options->question_count, window->sink);
    timing->questions = lap(&since);
    ckpt_mark("questions");
    if (!error && !pages_first)
        error = pages_phase(window);
    beside_join(window); /* whatever failed: nobody else touches the sink or the tree from here on */
    ckpt_mark("copied");
    return error;
}

/* Where the stubs will stand, and the descriptor for writing them; if it cannot be told now, the freeze looks again. */
static void look_ahead(ckpt_tree *tree) {
    for (size_t i = 0; i < tree->task_count; i++)
        if (!tree->tasks[i].zombie && tree->tasks[i].mm == (int32_t)i)
            vdso_tail(tree, &tree->tasks[i]);
    tree_fault_clear(tree);
}

static int frozen_window(void *argument) {
    struct window *window = argument;
    ckpt_tree *tree = window->tree;
    bool ours = !tree->frozen;
    if (ours)
        look_ahead(tree);
    uint64_t since = now_ns(), start = since;
    tree->told.stands = beside_stands;
    tree->told.falls = beside_falls;
    tree->told.argument = window;
    int error = ours ? task_freeze(tree, 0) : 0;
    memset(&tree->told, 0, sizeof tree->told);
    if (error)
        return error;
    start = ours ? tree->frozen_at : start;
    window->timing.at = now_ns();
    window->timing.freeze = window->timing.at - start;
    ckpt_mark("frozen");
    error = inside(window);
    since = now_ns();
    int thawed = ours ? task_thaw(tree, 0) : 0;
    uint64_t end = ours ? tree->thawed_at : now_ns();
    window->timing.thaw = end - since;
    window->timing.stop = end - start;
    ckpt_mark("thawed");
    return error ? error : thawed;
}

int ckpt_capture(ckpt_tree *tree, const struct ckpt_capture_options *options, ckpt_sink *sink, struct ckpt_timing *ret_timing) {
    tree_fault_clear(tree);
    if (options->freeze_retries)
        tree->freeze_retries = options->freeze_retries;
    __attribute__((cleanup(window_close))) struct window window = {
        .tree = tree, .options = options, .sink = sink, .tee = {-1, -1}, .diag = -1};
    int error = window_open(&window);
    if (!error)
        error = scan_prepare(tree, options->scan_threads);
    if (!error)
        error = ahead_open(tree, options->thread_files);
    if (!error)
        error = beside_prepare(&window);
    if (!error)
        error = by_own_tracer(tree, frozen_window, &window);
    beside_end(&window);
    ahead_close(tree);
    if (error) {
        ckpt_sink_reset(sink);
        return tree_fail(tree, error, "capture", tree->root, 0, -1, 0, NULL);
    }
    *ret_timing = window.timing;
    return 0;
}

int ckpt_look(ckpt_tree *tree, const struct ckpt_capture_options *options, ckpt_sink *sink) {
    tree_fault_clear(tree);
    __attribute__((cleanup(window_close))) struct window window = {
        .tree = tree, .options = options, .sink = sink, .tee = {-1, -1}, .diag = -1};
    int error = window_open(&window);
    if (!error)
        error = capture_descriptors(&window);
    if (error)
        ckpt_sink_reset(sink);
    return error ? tree_fail(tree, error, "look", tree->root, 0, -1, 0, NULL) : 0;
}
