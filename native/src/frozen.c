/* frozen.c: a whole memory in the frozen window: scan, then copy; by one thread or two.
 *
 * The mappings are cut into pieces (a piece lies in one mapping and is dense or not, see scan.c); with two threads the
 * address space is split where half of the expected work lies, each scans its side into a list of its own, and the two
 * lists one after the other are the answer. Copying starts when both are done, because the sink is one stream.
 *
 * Invariants
 *  1. The runs of a space reach the sink complete and sorted, then the bytes of its DATA runs, then (paranoid) the SAME
 *     runs again as a list of their own with their bytes.
 *  2. Only ioctls and reads happen in the second thread.
 *  3. If a page cannot be read, guard pages are looked for; found, they are dropped and the space is put anew.
 */
#include "scan.h"
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>

int scan_open(const struct task *task, const struct ckpt_track *track, bool protect, struct scan *ret_scan) {
    int pagemap = sys_openat(task->dir, "pagemap", O_RDONLY);
    if (pagemap < 0)
        return pagemap;
    bool tracked = track && track->tracker == CKPT_TRACK_UFFD;
    *ret_scan = (struct scan){.dir = task->dir, .pagemap = pagemap, .uffd = tracked ? task->uffd : -1, .tracked = tracked,
                              .protect = tracked && protect};
    return 0;
}

/* ---- two sides ---- */

struct side {
    struct scan scan;
    const struct piece *pieces;
    size_t count;
    enum ckpt_tracker tracker;
};

static int scan_one(struct side *side, const struct piece *piece) {
    if (side->tracker == CKPT_TRACK_SOFT_DIRTY)
        return softdirty_look(&side->scan, piece, true);
    int error = scan_piece(&side->scan, piece);
    if (error == -ENOTTY && side->tracker == CKPT_TRACK_COMPARE) /* a kernel without PAGEMAP_SCAN */
        error = softdirty_look(&side->scan, piece, false);
    return error;
}

/* Large anonymous pieces are not asked together with private file mappings (batch.c, invariant 4). */
static bool stands_apart(const struct piece *piece) {
    enum { PAGES = 32 };
    return piece->kind == CKPT_RANGE_ANON && piece->end - piece->start >= PAGES * CKPT_PAGE;
}

/* How many pieces from here on can be asked for together. */
static size_t together(const struct side *side, size_t first) {
    const struct piece *from = &side->pieces[first];
    size_t count = 0;
    while (first + count < side->count && !from[count].dense && (!count || (from[count].follows && stands_apart(from) == stands_apart(&from[count]))))
        count++;
    return count;
}

static void scan_side(void *argument) {
    struct side *side = argument;
    for (size_t i = 0; i < side->count && !side->scan.error;) {
        size_t count = together(side, i);
        int got = count > 1 ? scan_batch(&side->scan, side->pieces + i, count) : 1;
        if (got <= 0) {
            side->scan.error = got;
            i += count;
            continue;
        }
        for (count = count ? count : 1; count && !side->scan.error; count--, i++)
            side->scan.error = scan_one(side, &side->pieces[i]);
    }
}

/* A mapping that both sides scan a part of is taken in before they do: what one of them resets, the other may not look at meanwhile. */
static void take_in_border(const struct scan *scan, const struct piece *second) {
    const struct map_line *line = second->line;
    if (scan->protect && line == second[-1].line && !uffd_covers(scan, line))
        uffd_reset(scan->uffd, line->start, line->end); /* another's, or not to be tracked: each side reads it whole */
}

static int run_sides(ckpt_tree *tree, struct task *task, struct scan scan, enum ckpt_tracker tracker, size_t count) {
    struct scan_memory *memory = tree->scan;
    size_t second = count;
    int error = memory->helper ? pieces_split(memory, &count, &second) : 0;
    if (error)
        return tree_fail(tree, error, "scan", task->pid, 0, -1, 0, NULL);
    if (second > 0 && second < count)
        take_in_border(&scan, &memory->pieces[second]);
    struct side sides[2];
    for (int i = 0; i < 2; i++) {
        memory->runs[i].count = 0;
        sides[i] = (struct side){.scan = scan, .tracker = tracker, .pieces = memory->pieces + (i ? second : 0),
                                 .count = i ? count - second : second};
        sides[i].scan.regions = memory->regions[i];
        sides[i].scan.out = &memory->runs[i];
    }
    if (sides[1].count)
        helper_run(memory->helper, scan_side, &sides[1]);
    scan_side(&sides[0]);
    if (sides[1].count)
        helper_wait(memory->helper);
    const struct scan *bad = sides[0].scan.error ? &sides[0].scan : &sides[1].scan;
    return bad->error ? tree_fail(tree, bad->error, "scan", task->pid, 0, -1, bad->at, NULL) : 0;
}

/* A fresh track whose descriptor may be older than the generation that it is to start: no page counts as unwritten. */
static void reset_all(const struct task *task, struct scan_layout layout, struct scan_hints *hints) {
    for (size_t i = 0; i < layout.count; i++)
        if (maps_kind(&layout.lines[i]) != CKPT_RANGE_SKIP)
            uffd_reset(task->uffd, layout.lines[i].start, layout.lines[i].end);
    hints->reset = true;
    hints->lost = false;
}

int scan_frozen(ckpt_tree *tree, struct task *task, const struct ckpt_track *track, struct scan_layout layout, bool protect,
                struct scan_memory *memory) {
    struct scan_hints *hints = scan_hints_of(memory, task->pid);
    struct scan scan;
    size_t count = 0;
    int error = hints ? scan_open(task, track, protect, &scan) : -ENOMEM;
    if (error)
        return tree_fail(tree, error, "scan", task->pid, 0, -1, 0, "pagemap");
    if (scan.protect && ((track->fresh && !hints->reset) || hints->lost))
        reset_all(task, layout, hints);
    scan.others = scan.tracked && hints->others && tree->frozen; /* asking registers: see scan.c, invariant 9 */
    if (scan.tracked) {
        suspects_find(tree, task, layout, &memory->suspects);
        scan.suspects = &memory->suspects;
    }
    error = pieces_cut(memory, layout, hints, &count);
    enum ckpt_tracker tracker = track ? (enum ckpt_tracker)track->tracker : CKPT_TRACK_COMPARE;
    error = error ? tree_fail(tree, error, "scan", task->pid, 0, -1, 0, NULL) : run_sides(tree, task, scan, tracker, count);
    close(scan.pagemap);
    if (scan.protect)
        hints->count = 0; /* what this pass found to be holes (guard pages, say) is protected like pages now */
    if (!error && tracker == CKPT_TRACK_SOFT_DIRTY && protect && (error = softdirty_clear(task)))
        return tree_fail(tree, error, "scan", task->pid, 0, -1, 0, "clear_refs");
    return error;
}

/* ---- into the sink ---- */

static int put_runs(ckpt_sink *sink, const struct run_list *lists, bool same_as_data) {
    int error = 0;
    for (int i = 0; i < 2; i++)
        for (size_t k = 0; k < lists[i].count && !error; k++) {
            const struct ckpt_run *run = &lists[i].at[k];
            if (!same_as_data)
                error = sink_run(sink, run->page, run->count, (enum ckpt_content)run->content);
            else if (run->content == CKPT_SAME)
                error = sink_run(sink, run->page, run->count, CKPT_DATA);
        }
    return error;
}

static int copy_content(ckpt_tree *tree, struct task *task, struct scan_memory *memory, enum ckpt_content content, ckpt_sink *sink) {
    ckpt_addr_t at;
    _cleanup_close_ int mem = sys_openat(task->dir, "mem", O_RDONLY);
    if (mem < 0)
        return tree_fail(tree, mem, "read pages", task->pid, 0, -1, 0, "mem");
    struct copy_from from = {.pid = task->pid, .mem = mem, .lists = memory->runs, .list_count = 2, .content = content};
    int error = copy_all(&from, memory->helper, sink, &at);
    return error ? tree_fail(tree, error, "read pages", task->pid, 0, -1, at, NULL) : 0;
}

static int put_and_copy(ckpt_tree *tree, struct task *task, struct scan_memory *memory, ckpt_sink *sink) {
    int error = sink_space(sink, task->mm);
    if (!error && (error = put_runs(sink, memory->runs, false)))
        sink_space_undo(sink);
    if (error)
        return tree_fail(tree, error, "scan", task->pid, 0, -1, 0, "runs");
    return copy_content(tree, task, memory, CKPT_DATA, sink);
}

/* A page could not be read. If guard pages are among the runs, they are dropped, and the space is to be put again. */
static int drop_guards(ckpt_tree *tree, struct task *task, const struct ckpt_track *track, struct scan_memory *memory) {
    struct scan scan = {.pagemap = -1};
    int64_t dropped = 0;
    int error = scan_open(task, track, false, &scan);
    for (int i = 0; i < 2 && !error; i++) {
        struct run_list kept = {0};
        scan.regions = memory->regions[i];
        int64_t got = scan_drop_guards(&scan, &memory->runs[i], &kept);
        error = got < 0 ? (int)got : 0;
        dropped += got;
        free(error ? kept.at : memory->runs[i].at);
        if (!error)
            memory->runs[i] = kept;
    }
    if (scan.pagemap >= 0)
        close(scan.pagemap);
    if (error)
        return tree_fail(tree, error, "scan", task->pid, 0, -1, 0, "guard pages");
    return dropped ? 0 : -EFAULT; /* no guard pages: the fault of the copy stands */
}

uint64_t scan_found(const struct scan_memory *memory) {
    uint64_t pages = 0;
    for (int i = 0; i < 2; i++)
        for (size_t k = 0; k < memory->runs[i].count; k++)
            pages += memory->runs[i].at[k].content == CKPT_DATA ? memory->runs[i].at[k].count : 0;
    return pages;
}

int copy_scanned(ckpt_tree *tree, struct task *task, const struct ckpt_track *track, const struct ckpt_capture_options *options,
                 ckpt_sink *sink, struct ckpt_timing *timing) {
    struct scan_memory *memory = tree->scan;
    uint64_t begin = now_ns();
    int error = put_and_copy(tree, task, memory, sink);
    if ((error == -EFAULT || error == -EIO) && !drop_guards(tree, task, track, memory)) {
        sink_space_undo(sink);
        error = put_and_copy(tree, task, memory, sink);
    }
    timing->copy += now_ns() - begin;
    if (!error && options->paranoid) {
        if ((error = sink_paranoid(sink)) || (error = put_runs(sink, memory->runs, true)))
            error = tree_fail(tree, error, "scan", task->pid, 0, -1, 0, "runs");
        else
            error = copy_content(tree, task, memory, CKPT_SAME, sink);
    }
    return error;
}

int scan_and_copy(ckpt_tree *tree, struct task *task, const struct ckpt_track *track, const struct map_line *lines, size_t count,
                  const struct ckpt_capture_options *options, ckpt_sink *sink, struct ckpt_timing *timing) {
    struct scan_memory *memory;
    if (track && track->tracker == CKPT_TRACK_NONE)
        return 0;
    int error = scan_memory_get(tree, options->scan_threads > 1, &memory);
    if (error)
        return tree_fail(tree, error, "scan", task->pid, 0, -1, 0, NULL);
    uint64_t begin = now_ns();
    error = scan_frozen(tree, task, track, (struct scan_layout){lines, count}, true, memory);
    timing->scan += now_ns() - begin;
    if (!error)
        error = copy_scanned(tree, task, track, options, sink, timing);
    helper_rest(memory->helper);
    return error;
}

int ckpt_pages_scan(ckpt_tree *tree, const struct ckpt_track *track, int protect, ckpt_sink *sink) {
    struct scan_memory *memory;
    _cleanup_free_ struct map_line *lines = NULL;
    size_t count;
    tree_fault_clear(tree);
    struct task *task = tree_task(tree, track->pid);
    if (!task)
        return tree_fail(tree, -ESRCH, "scan", track->pid, 0, -1, 0, NULL);
    if (protect && !tree->frozen)
        return tree_fail(tree, -EINVAL, "scan", track->pid, 0, -1, 0, "it runs");
    int error = scan_memory_get(tree, false, &memory);
    if (error)
        return tree_fail(tree, error, "scan", task->pid, 0, -1, 0, NULL);
    error = layout_read(tree, task, &lines, &count);
    if (!error)
        error = scan_frozen(tree, task, track, (struct scan_layout){lines, count}, protect, memory);
    helper_rest(memory->helper);
    if (!error && ((error = sink_space(sink, task->mm)) || (error = put_runs(sink, memory->runs, false))))
        error = tree_fail(tree, error, "scan", task->pid, 0, -1, 0, "runs");
    return error;
}
