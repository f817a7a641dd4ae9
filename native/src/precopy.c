/* precopy.c: what is done while the target runs: counting, and rounds that bring in pages ahead of the freeze.
 *
 * A round walks the memory from *cursor on: it protects what was written since the last round and copies it. It ends
 * when the memory is done or the sink is full, so that a caller streams any amount through a bounded buffer.
 *
 * The races with the running program
 *  1. The scan protects a page, then we copy it. A write in between or while we copy makes the page WRITTEN again, so the
 *     next round or the freeze reports it once more: a torn copy is always replaced by a later one.
 *  2. A mapping may go away, be replaced or change its protection at any moment. What cannot be read then is left out
 *     and unprotected, so it is "written" to whoever comes next; nothing about it is an error.
 *     The same for the whole process: one that has ended since the tree was opened has nothing to bring; whether that
 *     matters the freeze says.
 *  3. A mapping that came after the layout was read is met by the next round or by the freeze (EPERM there).
 *     Registering splits a mapping that lies across the range's border, and mremap() over the split fails (EFAULT): a program that had
 *     mapped anew in the meantime broke by that. So mappings are registered only while the process stands still, whole, in one short
 *     stop for all that are new; only their old protection is dropped while it runs (that splits nothing).
 *  4. A call that has pinned a page before we protect it and writes it after we copied it leaves no trace: direct I/O in
 *     flight (O_DIRECT, io_uring), process_vm_writev by another process. It cannot be closed from here. So the caller of
 *     this skips the rounds for a program that has a descriptor open with O_DIRECT. The freeze alone has no such race with
 *     calls of the frozen threads, which are over; a late DMA can still land after the scan (the caller keeps such
 *     programs' pages suspect until it drains). COMPARE never protects and reads everything, so it has neither race;
 *     paranoid reads what is SAME in the same freeze, so it shows what this one left behind.
 * Nothing here tells which pages exist: the freeze does, completely. So a round names DATA and ZERO runs only, and may be
 * dropped in the middle as long as the baseline counts as consumed.
 *
 * Without a sink a round protects and counts, and copies nothing: for who watches writes, and has no baseline to keep (race 4 is none then).
 *
 * Without userfaultfd there are no rounds: the soft-dirty bit cannot be consumed while the program runs, and comparison
 * has nothing to go by.
 */
#include "scan.h"
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>

enum { ROUND_PAGES = 1 << 16 }; /* written pages taken by one call of the kernel */
enum { STOPS = 4 };             /* in one call: a program that maps all the time has the rest copied in the freeze */
enum { SMALL_PAGES = 256, SPARED_PAGES = 2048 }; /* new mappings so small, so many pages in all, are left to the freeze: no stop for them */

/* ---- counting, and where it is dense ---- */

static int count_line(struct scan *scan, const struct map_line *line, struct scan_hints *hints, struct ckpt_scan_result *total) {
    enum ckpt_range_kind kind = maps_kind(line);
    scan->out->count = 0;
    int error = scan_look(scan, line->start, line->end, kind, !scan->tracked);
    uint64_t resident = 0, begin = 0, end = 0;
    for (size_t i = 0; i < scan->out->count && !error; i++) {
        const struct ckpt_run *run = &scan->out->at[i];
        resident += run->count;
        total->written += run->content == CKPT_DATA ? run->count : 0;
        if (run->page != end)
            begin = run->page;
        end = run->page + run->count;
        bool last = i + 1 == scan->out->count || scan->out->at[i + 1].page != end;
        if (last && kind == CKPT_RANGE_ANON && end - begin >= SCAN_DENSE_PAGES)
            error = scan_hints_add(hints, begin * CKPT_PAGE, end * CKPT_PAGE);
    }
    total->resident += resident;
    total->absent += (line->end - line->start) / CKPT_PAGE - resident;
    return error;
}

static int count_all(struct scan *scan, const struct map_line *lines, size_t count, struct scan_hints *hints, struct ckpt_scan_result *total) {
    int error = 0;
    hints->count = 0;
    for (size_t i = 0; i < count && !error; i++)
        if (maps_kind(&lines[i]) != CKPT_RANGE_SKIP)
            error = count_line(scan, &lines[i], hints, total);
    return error;
}

/* ---- one call's surroundings ---- */

struct round {
    ckpt_tree *tree;
    struct task *task;
    struct scan_memory *memory;
    struct scan_hints *hints;
    struct map_line *lines;
    size_t count;
    struct scan scan;
};

static void round_end(struct round *round) {
    free(round->lines);
    close_fd(&round->scan.pagemap);
}
#define _cleanup_round_ __attribute__((cleanup(round_end)))

static int round_begin(struct round *round, ckpt_tree *tree, const struct ckpt_track *track) {
    tree_fault_clear(tree);
    round->tree = tree;
    round->task = tree_task(tree, track->pid);
    if (!round->task)
        return tree_fail(tree, -ESRCH, "scan", track->pid, 0, -1, 0, NULL);
    int error = scan_memory_get(tree, false, &round->memory);
    if (!error && !(round->hints = scan_hints_of(round->memory, track->pid)))
        error = -ENOMEM;
    if (!error)
        error = layout_read(tree, round->task, &round->lines, &round->count);
    if (!error)
        error = scan_open(round->task, track, true, &round->scan);
    if (!error && round->scan.tracked)
        round->scan.others = round->hints->others = uffd_others(round->task, track->remote_fd);
    if (error)
        return tree_fail(tree, error, "scan", track->pid, 0, -1, 0, NULL);
    round->scan.regions = round->memory->regions[0];
    round->scan.out = &round->memory->runs[0];
    return 0;
}

/* Race 2: not an error. Its entries of /proc, its number in the tree or its memory are gone. */
static bool ended(int error) { return error == -ESRCH || error == -ENOENT; }

int ckpt_scan_count(ckpt_tree *tree, const struct ckpt_track *track, struct ckpt_scan_result *ret_result) {
    _cleanup_round_ struct round round = {.scan.pagemap = -1};
    struct ckpt_scan_result total = {0};
    uint64_t begin = now_ns();
    int error = round_begin(&round, tree, track);
    if (!error)
        error = count_all(&round.scan, round.lines, round.count, round.hints, &total);
    if (!error) {
        round.hints->resident = total.resident;
        round.hints->written = total.written;
    }
    if (ended(error)) {
        tree_fault_clear(tree);
        *ret_result = (struct ckpt_scan_result){0};
        return 0;
    }
    if (error)
        return tree_fail(tree, error, "scan", track->pid, 0, -1, 0, "count");
    error = run_list_reserve(&round.memory->runs[0], 2 * (total.written < 1 << 20 ? total.written : 1 << 20) + 1);
    total.ns = now_ns() - begin;
    if (!error)
        *ret_result = total;
    return error;
}

/* ---- bringing ---- */

/* Copies one DATA run as far as it can be read, naming what came; what did not come is unprotected again. */
static int bring(struct round *round, const struct ckpt_run *run, int mem, ckpt_sink *sink) {
    struct run_list list = {.at = &(struct ckpt_run){run->page, run->count, CKPT_DATA}, .count = 1};
    struct copy_from from = {.pid = round->task->pid, .mem = mem, .lists = &list, .list_count = 1, .content = CKPT_DATA};
    for (uint64_t done = 0; done < run->count;) {
        size_t got;
        ckpt_addr_t at;
        uint8_t *room = sink_room(sink, (size_t)(run->count - done) * CKPT_PAGE, &got);
        if (!room)
            return -ENOMEM;
        ssize_t pages = copy_pages(&from, room, got / CKPT_PAGE, &at);
        if (pages <= 0) { /* not readable any more */
            ckpt_addr_t lost = (run->page + done) * CKPT_PAGE;
            uffd_unprotect(round->scan.uffd, lost, lost + CKPT_PAGE);
            from.page = ++done;
            continue;
        }
        int error = sink_run(sink, run->page + done, (uint32_t)pages, CKPT_DATA);
        if (!error)
            error = sink_filled(sink, (size_t)pages * CKPT_PAGE);
        if (error)
            return error;
        done += (uint64_t)pages;
    }
    return 0;
}

/* The runs of one walk. Most are short, so they are copied together; only if that fails, one by one. */
static int bring_all(struct round *round, int mem, ckpt_sink *sink) {
    const struct run_list *list = round->scan.out;
    struct copy_from from = {.pid = round->task->pid, .mem = mem, .lists = list, .list_count = 1, .content = CKPT_DATA};
    size_t data = 0, got = 0;
    ckpt_addr_t at;
    for (size_t i = 0; i < list->count; i++)
        data += list->at[i].content == CKPT_DATA ? list->at[i].count : 0;
    uint8_t *room = data ? sink_room(sink, data * CKPT_PAGE, &got) : NULL;
    bool whole = !data || (room && got == data * CKPT_PAGE && copy_pages(&from, room, data, &at) == (ssize_t)data);
    int error = 0;
    for (size_t i = 0; i < list->count && !error; i++) {
        const struct ckpt_run *run = &list->at[i];
        error = whole || run->content == CKPT_ZERO ? sink_run(sink, run->page, run->count, (enum ckpt_content)run->content)
                                                   : bring(round, run, mem, sink);
    }
    return !error && whole && data ? sink_filled(sink, data * CKPT_PAGE) : error;
}

static int take_in(struct round *round, ckpt_addr_t from, ckpt_addr_t to) {
    pid_t pid = round->task->pid;
    struct ckpt_range span = {.start = from, .end = to};
    int error = uffd_take_in(round->tree, pid, &round->scan, round->hints, span, &round->lines, &round->count);
    round->task = tree_task(round->tree, pid);
    return error || round->task ? error : -ESRCH;
}

/* ---- a round ---- */

/* One mapping from *at on. Returns 1 when the sink is full (*at = where to go on), 0 when it is done, -EPERM at what is not registered. */
static int round_line(struct round *round, const struct map_line *line, ckpt_addr_t *at, int mem, ckpt_sink *sink, struct ckpt_scan_result *total) {
    struct scan *scan = &round->scan;
    while (*at < line->end) {
        uint64_t room = sink ? sink_free_bytes(sink) / CKPT_PAGE : ROUND_PAGES;
        if (!room)
            return 1;
        scan->max_pages = room < ROUND_PAGES ? room : ROUND_PAGES;
        scan->out->count = 0;
        int error = scan_written(scan, *at, line->end, maps_kind(line), at);
        if (!error && sink)
            error = bring_all(round, mem, sink);
        if (error)
            return error;
        for (size_t i = 0; i < scan->out->count; i++)
            total->written += scan->out->at[i].count;
    }
    return 0;
}

/* -EPERM: not registered, or a part was replaced: what the walk protected before it came there was never reported. */
static int round_lines(struct round *round, int mem, ckpt_sink *sink, uint64_t *cursor, struct ckpt_scan_result *total) {
    unsigned stops = 0;
    uint64_t spared = 0;
    for (size_t i = 0; i < round->count; i++) {
        const struct map_line *line = &round->lines[i];
        ckpt_addr_t at = *cursor > line->start ? *cursor : line->start, end = line->end;
        if (maps_kind(line) == CKPT_RANGE_SKIP || at >= end)
            continue;
        uint64_t pages = (end - line->start) / CKPT_PAGE;
        if (pages <= SMALL_PAGES && spared + pages <= SPARED_PAGES && !uffd_covers(&round->scan, line)) {
            spared += pages;
            continue;
        }
        int full = round_line(round, line, &at, mem, sink, total);
        *cursor = at;
        if (full == -EPERM) {
            full = take_in(round, at, end);
            if (!full && ++stops < STOPS) {
                i = (size_t)-1; /* another layout */
                continue;
            }
            if (!full || full == -EBUSY)
                break;
        }
        if (full)
            return full < 0 ? full : 0;
    }
    *cursor = ~(uint64_t)0;
    return 0;
}

int ckpt_precopy(ckpt_tree *tree, const struct ckpt_track *track, ckpt_sink *sink, uint64_t *cursor, struct ckpt_scan_result *ret_result) {
    _cleanup_round_ struct round round = {.scan.pagemap = -1};
    struct ckpt_scan_result total = {0};
    uint64_t begin = now_ns();
    int error = round_begin(&round, tree, track);
    if (ended(error)) {
        tree_fault_clear(tree);
        *cursor = ~(uint64_t)0;
        *ret_result = total;
        return 0;
    }
    if (error)
        return error;
    if (!round.scan.tracked || round.scan.others) { /* another's tracking may begin at any moment: only frozen */
        *cursor = ~(uint64_t)0;
        *ret_result = total;
        return 0;
    }
    _cleanup_close_ int mem = sys_openat(round.task->dir, "mem", O_RDONLY);
    error = mem < 0 ? mem : 0;
    if (!error && track->fresh && !round.hints->reset) {
        error = take_in(&round, 0, ~(ckpt_addr_t)0);
        round.hints->reset = !error;
        if (error == -EBUSY) {
            *cursor = ~(uint64_t)0;
            *ret_result = total;
            return 0;
        }
    }
    if (!error && sink)
        error = sink_space(sink, round.task->mm);
    if (!error)
        error = round_lines(&round, mem, sink, cursor, &total);
    if (ended(error)) {
        *cursor = ~(uint64_t)0;
        error = 0;
    }
    if (error)
        return tree_fail(tree, error, "pre-copy", track->pid, 0, -1, 0, NULL);
    total.ns = now_ns() - begin;
    *ret_result = total;
    return 0;
}
