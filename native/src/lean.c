/* lean.c: forks that take nothing along but what the child looks at.
 *
 * A newborn and its init only make system calls. Were the caller's memory theirs too, then each page that the caller writes afterwards
 * would first be copied (some three thousand in a restore, 2-5 us each), and the newborn would have hundreds of mappings to be
 * listed, planned with and unmapped.
 *
 * Invariants
 *  1. What the child needs is there: its stack, its thread area, and the files that hold the code that it runs, with their data. All
 *     symbols are bound before (-z now): finding one would need the rest.
 *  2. Mappings of the kernel's own go along in any case.
 *  3. Afterwards the caller's memory is inherited as before.
 */
#define _GNU_SOURCE
#include "internal.h"
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum { MAPS_BYTES = 1 << 20 };

static bool holds(const struct map_line *line, const void *at) { return line->start <= (uintptr_t)at && (uintptr_t)at < line->end; }

static bool same_file(const struct map_line *a, const struct map_line *b) {
    return a->ino && a->ino == b->ino && a->dev_major == b->dev_major && a->dev_minor == b->dev_minor;
}

extern const ptrdiff_t __rseq_offset __attribute__((weak)); /* the dynamic linker's */

/* Of a file of which the child uses something: ours, or the one that has the system calls. */
static bool is_code(const struct map_line *lines, size_t count, const struct map_line *line) {
    const void *const used[] = {(const void *)newborn_live, (const void *)syscall, (const void *)_exit, &__rseq_offset};
    for (size_t i = 0; i < count; i++)
        for (size_t u = 0; u < sizeof used / sizeof *used; u++)
            if (holds(&lines[i], used[u]) && same_file(&lines[i], line))
                return true;
    return false;
}

static bool is_needed(const struct map_line *lines, size_t count, const struct map_line *line, const struct lean *lean) {
    if (holds(line, lean) || holds(line, __builtin_thread_pointer()) || (line->path[0] == '[' && strcmp(line->path, "[heap]")))
        return true;
    bool follows = line > lines && !line->ino && line[-1].end == line->start; /* what a file's data has beyond the file */
    return is_code(lines, count, line) || (follows && is_code(lines, count, line - 1));
}

static void advise(const struct lean *lean, int advice) {
    for (size_t i = 0; i < lean->count; i++)
        madvise((void *)lean->ranges[i].start, lean->ranges[i].end - lean->ranges[i].start, advice);
}

void lean_begin(struct lean *lean) {
    lean->count = 0;
    _cleanup_free_ char *text = malloc(MAPS_BYTES);
    ssize_t got = text ? proc_read(AT_FDCWD, "/proc/self/maps", text, MAPS_BYTES) : -1;
    _cleanup_free_ struct map_line *lines = NULL;
    size_t count = 0;
    if (got < 0 || maps_parse(text, (size_t)got, &lines, &count))
        return;
    for (size_t i = 0; i < count; i++) {
        if (is_needed(lines, count, &lines[i], lean))
            continue;
        struct ckpt_range *last = lean->count ? &lean->ranges[lean->count - 1] : NULL;
        if (last && last->end == lines[i].start)
            last->end = lines[i].end;
        else if (lean->count < LEAN_RANGES)
            lean->ranges[lean->count++] = (struct ckpt_range){.start = lines[i].start, .end = lines[i].end};
    }
    advise(lean, MADV_DONTFORK);
}

void lean_end(const struct lean *lean) { advise(lean, MADV_DOFORK); }
