/* memories.c: the pages of every memory of a frozen tree: scanned and copied by the tracer at the end, with the helper's help, or, where
 * the tree is small, by the helper alone while the tracer reads files and descriptors ("beside").
 *
 * A small program's stop is made of many short things: some hundred reads of /proc, a bridge in and out, page tables, a few pages. All but
 * the pages need the thread that seized. And what it costs is mostly cold memory: a scan of CPython takes 150-230 us, right after another
 * one on the same CPU 40. So (CPython, six threads, on a quiet machine 0.8 ms before all this, 0.45 now)
 *   before the freeze  the helper looks at everything once (warm), and what is dirty is brought in (last_round): few pages are left. Both
 *                      on the CPU where the helper will scan, not on the one where the tracer is expected (freeze_expect())
 *   all stand          the helper reads maps, which it needs first (its text goes into the tracer's records), while the tracer looks for
 *                      threads and children that came meanwhile, compares memories and removes what a killed ckpt left
 *   frozen             the helper scans and copies; the tracer reads the rest, then waits for the helper, then asks the questions
 *
 * Invariants
 *  1. While the helper works it alone has: the sink's spaces, runs and pages, the scan's memory, window->lines. The tracer has the sink's
 *     records and everything else. beside_join() ends that; whoever wants a space (objects.c) calls it first.
 *  2. Tables of the tree do not move and nobody's registers change meanwhile, so both read them; faults are apart (view).
 *  3. Nothing is injected before the helper is done: it sees every memory as the threads left it, and no maps show a bridge. Where the end of
 *     the freeze has let a thread run (settle.c), or has found other tasks or owners of memories, what was read early is read anew.
 *  4. What the helper cannot do (too much text, a great many pages) it leaves, and the tracer goes on exactly there.
 *  5. What the questions write (the kernel writes the rseq area of a thread that runs again, as it does after every thaw) comes after the
 *     scan then, so it is reported to the next one.
 *  6. A last round is a pre-copy like any other (precopy.c): a page that is written once more is in the frozen scan again.
 */
#define _GNU_SOURCE
#include "capture.h"
#include "scan.h"
#include <errno.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>

enum { BESIDE_TEXT = 128 << 10 };   /* maps of some thousand mappings */
enum { BESIDE_PAGES = 16384 };      /* resident; what is larger is better scanned by two (SCAN_PAIR_PAGES), at the end */
enum { BESIDE_COPY = 512 };         /* more to copy is better done by two */
enum { LAST_PAGES = 256 };          /* dirty; of more, rounds have brought in what pays (ckpt/live/track.py) */
enum { BESIDE_NEW = 16 };           /* tasks that may come until all stand */
enum look { NOT_LOOKED, LOOKED, BLIND };
enum word { NOT_SAID, VALID, ANEW, NEVER };

/* ---- one memory ---- */

static ssize_t parse(struct window *window, const char *text, size_t bytes) {
    for (;;) {
        ssize_t count = maps_parse_into(text, bytes, window->lines, window->line_cap);
        if (count != -ENOSPC)
            return count;
        window->line_cap *= 2;
        void *grown = reallocarray(window->lines, window->line_cap, sizeof *window->lines);
        if (!grown)
            return -ENOMEM;
        window->lines = grown;
    }
}

/* The lines of a task's maps: from its record, or read for the scan alone when nobody asked for the text. */
static ssize_t lines_of(struct window *window, size_t index) {
    struct text_at where = window->maps[index];
    if (where.size)
        return parse(window, text_of(window, where), where.size);
    ssize_t bytes = proc_read(window->tree->tasks[index].dir, "maps", window->tree->text, TEXT_BYTES);
    return bytes < 0 ? bytes : parse(window, window->tree->text, (size_t)bytes);
}

static const struct ckpt_track *track_of(const struct window *window, size_t index) {
    const struct task *task = &window->tree->tasks[index];
    for (size_t i = 0; i < window->options->track_count; i++) {
        const struct task *tracked = tree_task(window->tree, window->options->tracks[i].pid);
        if (tracked && (tracked->pid == task->pid || tracked->mm == (int32_t)index))
            return &window->options->tracks[i];
    }
    return NULL;
}

static bool has_memory(const struct window *window, size_t index) {
    const struct task *task = &window->tree->tasks[index];
    return !task->zombie && task->mm == (int32_t)index;
}

static bool unwanted(const struct ckpt_track *track) { return track && track->tracker == CKPT_TRACK_NONE; }

/* ---- beside ---- */

/* By the helper while the tree runs on, on the CPU where it will scan: 150-230 us cold, 40 us right after this. */
static void warm(void *argument) {
    struct window *window = argument;
    for (size_t i = 0; i < window->options->track_count; i++) {
        const struct task *task = tree_task(window->tree, window->options->tracks[i].pid);
        ssize_t bytes = task ? proc_read(task->dir, "maps", window->beside.text, BESIDE_TEXT) : 0;
        ssize_t count = bytes > 0 ? parse(window, window->beside.text, (size_t)bytes) : 0;
        if (count > 0)
            scan_warm(task, (struct scan_layout){window->lines, (size_t)count}, window->tree->scan->regions[1]);
    }
}

/* What is dirty now, just before the freeze, into the sink as a space of its own in front of the frozen one: what is left then is what
 * was written in some hundred microseconds. Only of the root: its number of space stays the same whoever comes and goes. */
static int last_round(struct window *window) {
    const struct ckpt_track *track = track_of(window, 0);
    struct ckpt_scan_result ignored;
    uint64_t cursor = 0;
    return track && !track->fresh && window->tree->tasks[0].mm == 0 ? ckpt_precopy(window->tree, track, window->sink, &cursor, &ignored) : 0;
}

/* On the helper's side (a processor's caches are its own), but not by the helper: a pre-copy may have to stop the program. */
static int last_round_there(struct window *window, int tracers_cpu) {
    cpu_set_t home, there;
    bool moved = false;
    if (tracers_cpu >= 0 && !sched_getaffinity(0, sizeof home, &home)) {
        there = home;
        CPU_CLR((size_t)tracers_cpu, &there);
        moved = CPU_COUNT(&there) && !sched_setaffinity(0, sizeof there, &there);
    }
    int error = last_round(window);
    if (moved)
        sched_setaffinity(0, sizeof home, &home);
    return error;
}

static int make_rows(struct beside *beside, size_t count) {
    if (count <= beside->row_cap)
        return 0;
    free(beside->maps);
    free(beside->rows);
    beside->maps = calloc(count, sizeof *beside->maps);
    beside->rows = calloc(count, sizeof *beside->rows);
    beside->row_cap = beside->maps && beside->rows ? count : 0;
    return beside->row_cap ? 0 : -ENOMEM;
}

int beside_prepare(struct window *window) {
    struct scan_memory *memory = window->tree->scan;
    cpu_set_t cpus;
    uint64_t resident = 0, written = 0;
    if (!memory->helper || !window->options->track_count || sched_getaffinity(0, sizeof cpus, &cpus) || CPU_COUNT(&cpus) < 2)
        return 0;
    for (size_t i = 0; i < window->options->track_count; i++) {
        const struct ckpt_track *track = &window->options->tracks[i];
        const struct scan_hints *hints = scan_hints_of(memory, track->pid);
        if (!hints)
            return -ENOMEM;
        if (track->tracker != CKPT_TRACK_UFFD || hints->resident > BESIDE_PAGES || (resident += hints->resident) > BESIDE_PAGES)
            return 0;
        written += hints->written;
    }
    if (!(window->beside.text = malloc(BESIDE_TEXT)) || make_rows(&window->beside, window->tree->task_count + BESIDE_NEW))
        return -ENOMEM;
    memset(window->beside.text, 0, BESIDE_TEXT); /* touched now, not in the window */
    window->beside.wanted = memory->soon = true;
    int cpu = freeze_expect(window->tree);
    helper_off(memory->helper, cpu);
    helper_run(memory->helper, warm, window);
    helper_wait(memory->helper);
    return window->options->last_round && !window->tree->frozen && written <= LAST_PAGES ? last_round_there(window, cpu) : 0;
}

/* Every memory's layout, before the tracer lets anything run in there. */
static bool look(struct beside *beside) {
    size_t used = 0;
    for (size_t i = 0; i < beside->row_count; i++) {
        if (!beside->rows[i].reads)
            continue;
        ssize_t bytes = proc_read(beside->rows[i].dir, "maps", beside->text + used, BESIDE_TEXT - used);
        if (bytes <= 0)
            return false;
        beside->maps[i] = (struct text_at){.offset = used, .size = (size_t)bytes};
        used += (size_t)bytes;
    }
    return true;
}

/* Returns false where the tracer is to go on. */
static bool one_memory(struct window *window) {
    struct beside *beside = &window->beside;
    size_t index = beside->next;
    struct task *task = &beside->view.tasks[index];
    const struct ckpt_track *track = track_of(window, index);
    if (has_memory(window, index) && !unwanted(track)) {
        ssize_t count = parse(window, beside->text + beside->maps[index].offset, beside->maps[index].size);
        if (count < 0)
            return beside->error = tree_fail(&beside->view, (int)count, "read", task->pid, 0, -1, 0, "maps"), false;
        uint64_t since = now_ns();
        beside->error = scan_frozen(&beside->view, task, track, (struct scan_layout){window->lines, (size_t)count}, true, beside->view.scan);
        beside->timing.scan += now_ns() - since;
        if (beside->error)
            return false;
        beside->scanned = window->options->paranoid || scan_found(beside->view.scan) > BESIDE_COPY;
        if (beside->scanned)
            return false;
        beside->error = copy_scanned(&beside->view, task, track, window->options, window->sink, &beside->timing);
        beside->objects |= may_map_objects(window->lines, (size_t)count);
    }
    beside->next++;
    return !beside->error;
}

static void work(void *argument) {
    struct window *window = argument;
    struct beside *beside = &window->beside;
    uint32_t word = __atomic_load_n(&beside->word, __ATOMIC_ACQUIRE);
    bool seen = word == NOT_SAID && look(beside);
    if (word == NOT_SAID)
        word = helper_await(&beside->word, NOT_SAID);
    if (word == NEVER)
        return;
    if (word == ANEW)
        seen = look(beside);
    helper_tell(&beside->looked, seen ? LOOKED : BLIND);
    while (seen && beside->next < beside->view.task_count && one_memory(window))
        continue;
}

static struct layout_of row_of(const struct window *window, size_t index) {
    const struct task *task = &window->tree->tasks[index];
    return (struct layout_of){.pid = task->pid, .dir = task->dir, .reads = has_memory(window, index)};
}

/* What was read early is what would be read now: the same tasks own the same memories, and nobody has run. */
static bool rows_hold(const struct window *window) {
    const struct beside *beside = &window->beside;
    bool hold = window->tree->standing && beside->row_count == window->tree->task_count;
    for (size_t i = 0; hold && i < beside->row_count; i++) {
        struct layout_of now = row_of(window, i);
        hold = beside->rows[i].pid == now.pid && beside->rows[i].dir == now.dir && beside->rows[i].reads == now.reads;
    }
    return hold;
}

static void go(struct window *window, enum word word) {
    struct beside *beside = &window->beside;
    beside->row_count = window->tree->task_count;
    for (size_t i = 0; i < beside->row_count; i++)
        beside->rows[i] = row_of(window, i);
    beside->view = *window->tree;
    beside->looked = NOT_LOOKED;
    beside->word = word;
    beside->helper = window->tree->scan->helper;
    window->tree->scan->helper = NULL;
    helper_run(beside->helper, work, window);
}

void beside_stands(void *argument) {
    struct window *window = argument;
    if (!window->beside.wanted || window->tree->task_count > window->beside.row_cap)
        return;
    go(window, NOT_SAID);
    window->beside.early = true;
}

void beside_falls(void *argument) {
    struct window *window = argument;
    struct beside *beside = &window->beside;
    if (!beside->early)
        return;
    helper_tell(&beside->word, NEVER);
    helper_wait(beside->helper);
    window->tree->scan->helper = beside->helper;
    beside->early = false;
}

int beside_run(struct window *window) {
    struct beside *beside = &window->beside;
    if (!beside->wanted)
        return 0;
    if (beside->early && rows_hold(window)) {
        beside->view = *window->tree; /* until it is told the helper looks at the rows alone */
        beside->early = false;
        helper_tell(&beside->word, VALID);
    } else {
        beside_falls(window);
        int error = make_rows(beside, window->tree->task_count);
        if (error)
            return error;
        go(window, ANEW);
    }
    beside->begun = beside->running = true;
    return 0;
}

bool beside_reads(const struct window *window, size_t task) { return window->beside.begun && has_memory(window, task); }

const char *beside_text(struct window *window, size_t task, size_t *ret_size) {
    struct beside *beside = &window->beside;
    if (helper_await(&beside->looked, NOT_LOOKED) == BLIND)
        return NULL;
    *ret_size = beside->maps[task].size;
    return beside->text + beside->maps[task].offset;
}

void beside_join(struct window *window) {
    struct beside *beside = &window->beside;
    beside_falls(window);
    if (!beside->running)
        return;
    helper_wait(beside->helper);
    beside->running = false;
    window->tree->scan->helper = beside->helper;
    window->timing.scan += beside->timing.scan;
    window->timing.copy += beside->timing.copy;
    if (beside->error && !window->tree->fault.error)
        window->tree->fault = beside->view.fault;
}

void beside_end(struct window *window) {
    window->tree->expected = false;
    if (window->beside.wanted)
        helper_rest(window->tree->scan->helper);
    if (window->tree->scan)
        window->tree->scan->soon = false;
}

/* ---- the tracer's part ---- */

static int memory(struct window *window, size_t index) {
    struct beside *beside = &window->beside;
    struct task *task = &window->tree->tasks[index];
    const struct ckpt_track *track = track_of(window, index);
    bool done = index < beside->next, scanned = index == beside->next && beside->scanned;
    if (unwanted(track) || (done && !beside->objects))
        return 0;
    ssize_t count = lines_of(window, index);
    if (count < 0)
        return tree_fail(window->tree, (int)count, "read", task->pid, 0, -1, 0, "maps");
    int error = 0;
    if (scanned)
        error = copy_scanned(window->tree, task, track, window->options, window->sink, &window->timing);
    else if (!done)
        error = scan_and_copy(window->tree, task, track, window->lines, (size_t)count, window->options, window->sink, &window->timing);
    return error ? error : capture_mapped_objects(window, task, window->lines, (size_t)count);
}

int pages_phase(struct window *window) {
    beside_join(window);
    int error = window->beside.error;
    for (size_t i = 0; !error && i < window->tree->task_count; i++)
        if (has_memory(window, i))
            error = memory(window, i);
    return error;
}
