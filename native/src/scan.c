/* scan.c: which pages of a range are populated, and which of them were written since tracking last consumed them.
 *
 * The question is put to PAGEMAP_SCAN on /proc/PID/pagemap. A page that userfaultfd has write-protected and nobody has
 * written since is not WRITTEN; the scan that reports a page as WRITTEN protects it again in the same step. There are
 * two methods, because the kernel has a fast path for one exact question: "WRITTEN?" alone. Over 1 GiB of 4 KiB pages, frozen,
 * it takes about half a millisecond when all is clean (two threads half of that), where asking for everything populated with
 * its categories takes two to three times as long, and asking for FILE as well (it touches each struct page) about five times.
 *
 * The fast path cannot tell a hole from a written page (both lack the protection), and it leaves markers in holes. So:
 *   dense  a stretch that had no hole when it was last looked at (the target running): fast. A written stretch of
 *          SCAN_LOOK_AGAIN pages or more is looked at again, in case it is a hole by now (MADV_DONTNEED); its markers are
 *          taken out. A shorter one is simply copied: a hole reads as the zeros that it means.
 *   full   everything else: sparse ranges, private file mappings, mappings that are new. Neighbours are asked by one call (batch.c).
 *
 * Invariants
 *  1. Runs are complete and exact: DATA (written, or not known to be unwritten), ZERO (the shared zero page; all-zero
 *     contents are DATA, the store finds them while it hashes), SAME (populated, not written). Not named = not populated,
 *     or a page of a private file mapping that still is the file's. Guard pages (MADV_GUARD_INSTALL) are never named.
 *  2. No entry is protected without being reported in the same pass.
 *  3. Hints of density decide the method, never the answer: a hole that came since is "written" to the fast path, a new
 *     mapping is not registered (EPERM). Markers do not outlive a pass: the copy populates short holes, long ones are
 *     unprotected. A pass that dies in between leaves a baseline that does not match, and the next track is fresh.
 *     Hints are good for one pass that protects: what it found missing it may have protected (a guard page keeps that).
 *  4. A mapping that is not registered answers EPERM before anything in it is protected, since a piece lies in one
 *     mapping: all of the mapping is registered (never a piece: that would split it) and what protection it brought along is
 *     dropped, so all of it counts as written. Where registering fails (EBUSY: the program's own
 *     userfaultfd; EINVAL) it is read whole, each time, and never protected.
 *  5. Huge PROT_NONE reservations get no markers: outside dense stretches only populated entries are ever protected.
 *  6. In a private file mapping "protected" does not mean "as it was" while some thread stands between a fault on a
 *     discarded page and the repetition of its instruction: such a page is new, and carries the protection still. The few
 *     pages that such an instruction may write are looked up before the scan (suspect.c) and count as written, whatever
 *     their protection says. They keep it: the repetition takes it off, and then they are written once more.
 *  7. A guard page that is put into a dense stretch after the last look is "written" to the fast path, and cannot be
 *     read: the copy then drops such pages from the runs and starts again (frozen.c).
 *  8. What the program tracks by an asynchronous userfaultfd of its own is read whole and never protected, if the
 *     descriptor was there when the running process was last looked at (count or pre-copy; before the first look every process counts as having one).
 *  9. Nothing here registers while the process runs: the layout is a moment old, a mapping may begin inside a line of it by now, and
 *     would be split (seen: a look at a running program, between an munmap and the mmap that took its place). A look at a
 *     running process takes another's tracking for ours: it is a guess, and repeated in the freeze.
 *
 * In private file mappings MADV_DONTNEED of a protected page leaves a marker there, which shows as SWAPPED and not WRITTEN, just
 * like a page of ours that was swapped out. A look settles it: reading populates the page, and then FILE tells.
 *
 * Not covered: (a) the cases at the end of suspect.c's head. (b) Memory written through a pin taken before we protected it
 * (precopy.c, race 4). (c) Harm, not error: the kernel's MADV_GUARD_INSTALL over protected pages of a private file mapping
 * never ends, since what it zaps leaves markers that are in its way (on anonymous memory, where guard pages live, it ends).
 */
#include "scan.h"
#include <errno.h>
#include <fcntl.h>

static uint64_t pages_of(uint64_t start, uint64_t end) { return (end - start) / CKPT_PAGE; }

static int add(struct scan *scan, uint64_t start, uint64_t end, enum ckpt_content content) {
    return run_list_add(scan->out, start / CKPT_PAGE, pages_of(start, end), content);
}

/* Protected pages; of a private file mapping those that are suspect are DATA all the same. */
static int add_same(struct scan *scan, uint64_t start, uint64_t end, enum ckpt_range_kind kind) {
    const struct suspects *suspects = kind == CKPT_RANGE_FILE_PRIVATE ? scan->suspects : NULL;
    if (suspects && suspects->all)
        return add(scan, start, end, CKPT_DATA);
    for (size_t i = 0; suspects && i < suspects->count && suspects->page[i] * CKPT_PAGE < end; i++) {
        uint64_t page = suspects->page[i] * CKPT_PAGE;
        if (page < start)
            continue;
        int error = add(scan, start, page, CKPT_SAME);
        if (!error)
            error = add(scan, page, page + CKPT_PAGE, CKPT_DATA);
        if (error)
            return error;
        start = page + CKPT_PAGE;
    }
    return add(scan, start, end, CKPT_SAME);
}

/* One call of the kernel; returns the regions it filled. Moves arg->start to where the walk ended. */
int scan_walk(struct scan *scan, struct pm_scan_arg *arg) {
    arg->vec = (uintptr_t)scan->regions;
    arg->vec_len = SCAN_REGIONS;
    int got = sys_ioctl(scan->pagemap, PAGEMAP_SCAN, arg);
    if (got == -EINVAL && (arg->category_mask & PAGE_IS_GUARD)) {
        scan->no_guard = true;
        arg->category_mask &= ~(uint64_t)PAGE_IS_GUARD;
        arg->category_inverted &= ~(uint64_t)PAGE_IS_GUARD;
        got = sys_ioctl(scan->pagemap, PAGEMAP_SCAN, arg);
    }
    if (got >= 0) {
        if (arg->walk_end <= arg->start && !got)
            return -EIO; /* no progress: never seen, but it must not loop */
        arg->start = arg->walk_end;
    }
    return got;
}

struct pm_scan_arg scan_question(const struct scan *scan, ckpt_addr_t start, ckpt_addr_t end, enum ckpt_range_kind kind, bool protect) {
    uint64_t never = (scan->no_guard ? 0 : PAGE_IS_GUARD) | (kind == CKPT_RANGE_FILE_PRIVATE ? PAGE_IS_FILE : 0);
    return (struct pm_scan_arg){
        .size = sizeof(struct pm_scan_arg),
        .flags = protect ? PM_SCAN_WP_MATCHING | PM_SCAN_CHECK_WPASYNC : 0, /* see by_method */
        .start = start,
        .end = end,
        .category_inverted = never,
        .category_mask = never,
        .category_anyof_mask = PAGE_IS_PRESENT | PAGE_IS_SWAPPED,
        .return_mask = PAGE_IS_WRITTEN | PAGE_IS_PRESENT | PAGE_IS_SWAPPED | PAGE_IS_PFNZERO,
    };
}

/* ---- swapped entries that may be markers ---- */

/* Reads one byte of each page, which populates it; through /proc/PID/mem, since the range may be PROT_NONE. Returns
 * whether the last one could be read: a marker behind the end of a file that became shorter cannot. */
static bool populate(int mem, ckpt_addr_t start, ckpt_addr_t end) {
    char byte;
    ssize_t got = 0;
    for (ckpt_addr_t page = start; page < end; page += CKPT_PAGE)
        got = sys_pread(mem, &byte, 1, page);
    return got == 1;
}

static int settled(struct scan *scan, int mem, const struct page_region *region, bool everything) {
    if (!(region->categories & PAGE_IS_SWAPPED))
        return everything || (region->categories & PAGE_IS_WRITTEN) ? add(scan, region->start, region->end, CKPT_DATA)
                                                                    : add_same(scan, region->start, region->end, CKPT_RANGE_FILE_PRIVATE);
    int error = 0; /* swapped out again since, or a marker without a page */
    for (ckpt_addr_t page = region->start; page < region->end && !error; page += CKPT_PAGE)
        if (populate(mem, page, page + CKPT_PAGE))
            error = add(scan, page, page + CKPT_PAGE, CKPT_DATA);
    return error;
}

/* A private file mapping: populated, a marker becomes a page of the file and drops out; a page of ours is PRESENT. */
static int settle_file(struct scan *scan, ckpt_addr_t start, ckpt_addr_t end, bool everything) {
    _cleanup_close_ int mem = sys_openat(scan->dir, "mem", O_RDONLY);
    if (mem < 0)
        return mem;
    populate(mem, start, end);
    struct page_region regions[64];
    struct pm_scan_arg arg = scan_question(scan, start, end, CKPT_RANGE_FILE_PRIVATE, false);
    while (arg.start < end) {
        arg.vec = (uintptr_t)regions;
        arg.vec_len = 64;
        int got = sys_ioctl(scan->pagemap, PAGEMAP_SCAN, &arg);
        int error = got < 0 ? got : 0;
        for (int i = 0; i < got && !error; i++)
            error = settled(scan, mem, &regions[i], everything);
        if (error)
            return error;
        arg.start = arg.walk_end;
    }
    return 0;
}

/* ---- the full method ---- */

int scan_take(struct scan *scan, const struct page_region *region, enum ckpt_range_kind kind, bool everything) {
    uint64_t is = region->categories;
    if (kind == CKPT_RANGE_FILE_PRIVATE && (is & PAGE_IS_SWAPPED))
        return settle_file(scan, region->start, region->end, everything);
    if (is & PAGE_IS_PFNZERO)
        return add(scan, region->start, region->end, CKPT_ZERO);
    return everything || (is & PAGE_IS_WRITTEN) ? add(scan, region->start, region->end, CKPT_DATA)
                                                : add_same(scan, region->start, region->end, kind);
}

static int full(struct scan *scan, ckpt_addr_t start, ckpt_addr_t end, enum ckpt_range_kind kind, bool protect, bool everything) {
    struct pm_scan_arg arg = scan_question(scan, start, end, kind, protect);
    while (arg.start < end) {
        int got = scan_walk(scan, &arg);
        if (got < 0)
            return got;
        for (int i = 0; i < got; i++) {
            int error = scan_take(scan, &scan->regions[i], kind, everything);
            if (error)
                return error;
        }
    }
    return 0;
}

int scan_look(struct scan *scan, ckpt_addr_t start, ckpt_addr_t end, enum ckpt_range_kind kind, bool everything) {
    return full(scan, start, end, kind, false, everything);
}

/* ---- the fast method ---- */

/* A long written stretch of a dense range: what of it is still populated is DATA. The rest are markers that the scan has
 * just put into holes, or pages that are swapped out: unprotected, a marker is gone, and a swapped page says WRITTEN. */
static int look_again(struct scan *scan, ckpt_addr_t start, ckpt_addr_t end) {
    struct page_region regions[32];
    struct pm_scan_arg arg = scan_question(scan, start, end, CKPT_RANGE_ANON, false);
    while (arg.start < end) {
        arg.vec = (uintptr_t)regions;
        arg.vec_len = 32;
        int got = sys_ioctl(scan->pagemap, PAGEMAP_SCAN, &arg);
        int error = got < 0 ? got : 0;
        for (int i = 0; i < got && !error; i++) {
            const struct page_region *region = &regions[i];
            if (!(region->categories & PAGE_IS_SWAPPED) || !scan->protect) {
                error = scan_take(scan, region, CKPT_RANGE_ANON, true);
                continue;
            }
            struct page_region again[8]; /* swapped pages of a stretch come in few regions; more than 8: all are DATA */
            struct pm_scan_arg deep = scan_question(scan, region->start, region->end, CKPT_RANGE_ANON, true);
            deep.vec = (uintptr_t)again;
            deep.vec_len = 8;
            error = uffd_unprotect(scan->uffd, region->start, region->end);
            while (!error && deep.start < region->end) {
                int found = sys_ioctl(scan->pagemap, PAGEMAP_SCAN, &deep);
                error = found < 0 ? found : 0;
                for (int k = 0; k < found && !error; k++)
                    error = add(scan, again[k].start, again[k].end, CKPT_DATA);
                deep.start = deep.walk_end;
            }
        }
        if (error)
            return error;
        arg.start = arg.walk_end;
    }
    return 0;
}

static int dense(struct scan *scan, ckpt_addr_t start, ckpt_addr_t end) {
    struct pm_scan_arg arg = {.size = sizeof arg, .start = start, .end = end,
                              .flags = scan->protect ? PM_SCAN_WP_MATCHING | PM_SCAN_CHECK_WPASYNC : PM_SCAN_CHECK_WPASYNC,
                              .category_mask = PAGE_IS_WRITTEN, .return_mask = PAGE_IS_WRITTEN};
    ckpt_addr_t done = start;
    while (arg.start < end) {
        int got = scan_walk(scan, &arg);
        if (got < 0)
            return got;
        for (int i = 0; i < got; i++) {
            const struct page_region *region = &scan->regions[i];
            int error = add(scan, done, region->start, CKPT_SAME);
            if (!error && pages_of(region->start, region->end) >= SCAN_LOOK_AGAIN)
                error = look_again(scan, region->start, region->end);
            else if (!error)
                error = add(scan, region->start, region->end, CKPT_DATA);
            if (error)
                return error;
            done = region->end;
        }
    }
    return add(scan, done, end, CKPT_SAME);
}

/* ---- one piece ---- */

/* Registered by the program's own asynchronous userfaultfd? Then no EPERM tells, and protecting would consume what it
 * has protected. Registering what is registered with ours changes nothing; what is not registered is left to EPERM. */
static bool anothers(struct scan *scan, const struct piece *piece) {
    struct pm_scan_arg arg = {.size = sizeof arg, .flags = PM_SCAN_CHECK_WPASYNC, .start = piece->start, .end = piece->start + CKPT_PAGE,
                              .category_mask = PAGE_IS_WRITTEN, .return_mask = PAGE_IS_WRITTEN};
    return scan_walk(scan, &arg) != -EPERM && uffd_register(scan->uffd, piece->line->start, piece->line->end);
}

static int by_method(struct scan *scan, const struct piece *piece) {
    if (scan->others && anothers(scan, piece))
        return full(scan, piece->start, piece->end, (enum ckpt_range_kind)piece->kind, false, true);
    if (piece->dense)
        return dense(scan, piece->start, piece->end);
    if (!scan->protect) { /* looking: what is not registered has no SAME pages, whatever protection it brought along */
        struct pm_scan_arg arg = {.size = sizeof arg, .flags = PM_SCAN_CHECK_WPASYNC, .start = piece->start, .end = piece->start + CKPT_PAGE,
                                  .category_mask = PAGE_IS_WRITTEN, .return_mask = PAGE_IS_WRITTEN};
        int got = scan_walk(scan, &arg);
        if (got < 0)
            return got;
    }
    return full(scan, piece->start, piece->end, (enum ckpt_range_kind)piece->kind, scan->protect, false);
}

int scan_piece(struct scan *scan, const struct piece *piece) {
    enum ckpt_range_kind kind = (enum ckpt_range_kind)piece->kind;
    int error = scan->tracked ? by_method(scan, piece) : full(scan, piece->start, piece->end, kind, false, true);
    if (error == -EPERM) {
        if (scan->protect && !uffd_reset(scan->uffd, piece->line->start, piece->line->end))
            error = full(scan, piece->start, piece->end, kind, true, false);
        else
            error = full(scan, piece->start, piece->end, kind, false, true);
    }
    if (error)
        scan->at = piece->start;
    return error;
}

/* Takes the guard pages out of what is to be copied. Returns how many there were. */
int64_t scan_drop_guards(struct scan *scan, const struct run_list *list, struct run_list *ret_kept) {
    int64_t dropped = 0;
    for (size_t i = 0; i < list->count; i++) {
        const struct ckpt_run *run = &list->at[i];
        uint64_t done = run->page, end = run->page + run->count;
        struct pm_scan_arg arg = {.size = sizeof arg, .start = done * CKPT_PAGE, .end = end * CKPT_PAGE,
                                  .category_mask = PAGE_IS_GUARD, .return_mask = PAGE_IS_GUARD};
        while (run->content == CKPT_DATA && arg.start < arg.end) {
            int got = scan_walk(scan, &arg), error = 0;
            if (got < 0)
                return got;
            for (int k = 0; k < got && !error; k++) {
                const struct page_region *guard = &scan->regions[k];
                error = run_list_add(ret_kept, done, guard->start / CKPT_PAGE - done, CKPT_DATA);
                dropped += (int64_t)pages_of(guard->start, guard->end);
                done = guard->end / CKPT_PAGE;
            }
            if (error)
                return error;
        }
        int error = run_list_add(ret_kept, done, end - done, (enum ckpt_content)run->content);
        if (error)
            return error;
    }
    return dropped;
}

int scan_written(struct scan *scan, ckpt_addr_t start, ckpt_addr_t end, enum ckpt_range_kind kind, ckpt_addr_t *ret_end) {
    struct pm_scan_arg arg = scan_question(scan, start, end, kind, true);
    arg.category_mask |= PAGE_IS_WRITTEN;
    arg.max_pages = scan->max_pages;
    int got = scan_walk(scan, &arg);
    int error = got < 0 ? got : 0;
    for (int i = 0; i < got && !error; i++) {
        const struct page_region *region = &scan->regions[i];
        error = add(scan, region->start, region->end, region->categories & PAGE_IS_PFNZERO ? CKPT_ZERO : CKPT_DATA);
    }
    if (!error)
        *ret_end = arg.walk_end;
    return error;
}
