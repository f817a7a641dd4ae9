/* batch.c: many small sparse mappings by one PAGEMAP_SCAN. A call for each costs a microsecond or two, and an interpreter has a hundred:
 * 75 mappings of CPython 61 us one by one, 37 us together (cold 188 and 80).
 *
 * A walk over several mappings must not meet one that is not registered: with CHECK_WPASYNC it ends there by EPERM, without a count of
 * what it has protected before. So it is asked without that flag for entries of registered mappings only (WPALLOWED), which passes
 * over the others; and first, without protecting, whether such others hold anything.
 *
 * Invariants (besides those of scan.c)
 *  1. The tree stands still: nothing changes between the two questions.
 *  2. Mappings that are not pieces (shared, vdso) never lie inside the range: the pieces follow one another.
 *  3. What is not registered and holds nothing of ours stays so; when it holds something, a scan one by one registers it.
 *  4. FILE is asked for all if a private file mapping is among them; in anonymous ones it is never set. It costs a look at each page's
 *     struct page, so large anonymous pieces are asked apart (frozen.c): a frozen CPython 90 us in place of 100.
 */
#include "scan.h"
#include <errno.h>
#include <fcntl.h>

void scan_warm(const struct task *task, struct scan_layout layout, struct page_region *regions) {
    struct scan scan = {.pagemap = sys_openat(task->dir, "pagemap", O_RDONLY), .regions = regions};
    for (size_t i = 0; i < layout.count && scan.pagemap >= 0; i++) {
        if (maps_kind(&layout.lines[i]) == CKPT_RANGE_SKIP)
            continue;
        struct pm_scan_arg arg = scan_question(&scan, layout.lines[i].start, layout.lines[i].end, CKPT_RANGE_FILE_PRIVATE, false);
        while (arg.start < arg.end && scan_walk(&scan, &arg) >= 0)
            continue;
    }
    close_fd(&scan.pagemap);
}

/* Entries of ours in mappings that are not registered? 1 = some, or they cannot be told. */
static int strangers(struct scan *scan, ckpt_addr_t start, ckpt_addr_t end) {
    struct pm_scan_arg arg = scan_question(scan, start, end, CKPT_RANGE_FILE_PRIVATE, false);
    arg.category_mask |= PAGE_IS_WPALLOWED;
    arg.category_inverted |= PAGE_IS_WPALLOWED;
    while (arg.start < end) {
        int got = scan_walk(scan, &arg);
        if (got)
            return 1;
    }
    return 0;
}

/* One region may lie in several pieces. *at: the first piece that does not end before it. */
static int take_by_piece(struct scan *scan, const struct page_region *region, const struct piece *pieces, size_t count, size_t *at) {
    int error = 0;
    while (*at < count && pieces[*at].end <= region->start)
        ++*at;
    for (size_t i = *at; i < count && pieces[i].start < region->end && !error; i++) {
        struct page_region part = *region;
        part.start = region->start > pieces[i].start ? region->start : pieces[i].start;
        part.end = region->end < pieces[i].end ? region->end : pieces[i].end;
        error = scan_take(scan, &part, (enum ckpt_range_kind)pieces[i].kind, false);
    }
    return error;
}

static enum ckpt_range_kind kind_of(const struct piece *pieces, size_t count) {
    for (size_t i = 0; i < count; i++)
        if (pieces[i].kind != CKPT_RANGE_ANON)
            return CKPT_RANGE_FILE_PRIVATE;
    return CKPT_RANGE_ANON;
}

int scan_batch(struct scan *scan, const struct piece *pieces, size_t count) {
    ckpt_addr_t start = pieces[0].start, end = pieces[count - 1].end;
    size_t at = 0;
    if (!scan->tracked || !scan->protect || scan->others || strangers(scan, start, end))
        return 1;
    struct pm_scan_arg arg = scan_question(scan, start, end, kind_of(pieces, count), true);
    arg.flags = PM_SCAN_WP_MATCHING;
    arg.category_mask |= PAGE_IS_WPALLOWED;
    while (arg.start < end) {
        int got = scan_walk(scan, &arg);
        int error = got < 0 ? got : 0;
        for (int i = 0; i < got && !error; i++)
            error = take_by_piece(scan, &scan->regions[i], pieces, count, &at);
        if (error) {
            scan->at = arg.start;
            return error;
        }
    }
    return 0;
}
