/* softdirty.c: the two older ways to ask, entry by entry from /proc/PID/pagemap: for kernels without PAGEMAP_SCAN (before
 * 6.7, then everything is read and compared), and for the soft-dirty bit (bit 55) where userfaultfd cannot be used.
 *
 * Bits of an entry: 63 present, 62 swapped, 61 file page or shared anonymous, 55 soft-dirty, 58 guard (6.15).
 * clear_refs <- 4 consumes for the whole process at once and is only used while it is frozen: what a running program
 * wrote between reading the bits and clearing them would be lost. A mapping that is new counts as soft-dirty as a whole.
 *
 * The kernel that this was developed on has no soft-dirty bit: that way is written by the documentation
 * (Documentation/admin-guide/mm/soft-dirty.rst) and was not run.
 */
#include "scan.h"
#include <errno.h>
#include <fcntl.h>
#include <string.h>

enum { ENTRIES = 2048 };
static const uint64_t PRESENT = 1ull << 63, SWAPPED = 1ull << 62, FILE_PAGE = 1ull << 61, GUARD = 1ull << 58, DIRTY = 1ull << 55;

static int take_entries(struct scan *scan, const uint64_t *entries, size_t count, uint64_t page, bool ours_only, bool by_bit) {
    for (size_t i = 0; i < count; i++) {
        uint64_t entry = entries[i];
        bool populated = (entry & (PRESENT | SWAPPED)) && !(entry & GUARD);
        if (!populated || (ours_only && (entry & FILE_PAGE)))
            continue;
        int error = run_list_add(scan->out, page + i, 1, by_bit && !(entry & DIRTY) ? CKPT_SAME : CKPT_DATA);
        if (error)
            return error;
    }
    return 0;
}

int softdirty_look(struct scan *scan, const struct piece *piece, bool by_bit) {
    uint64_t entries[ENTRIES];
    uint64_t page = piece->start / CKPT_PAGE, end = piece->end / CKPT_PAGE;
    bool ours_only = piece->kind == CKPT_RANGE_FILE_PRIVATE;
    while (page < end) {
        size_t want = end - page < ENTRIES ? (size_t)(end - page) : ENTRIES;
        ssize_t got = sys_pread(scan->pagemap, entries, want * sizeof *entries, page * sizeof *entries);
        if (got == -EINTR)
            continue;
        if (got <= 0) {
            scan->at = page * CKPT_PAGE;
            return got ? (int)got : -ESRCH;
        }
        size_t count = (size_t)got / sizeof *entries;
        int error = take_entries(scan, entries, count, page, ours_only, by_bit);
        if (error)
            return error;
        page += count;
    }
    return 0;
}

int softdirty_clear(const struct task *task) {
    _cleanup_close_ int fd = sys_openat(task->dir, "clear_refs", O_WRONLY);
    if (fd < 0)
        return fd;
    ssize_t wrote = sys_pwrite(fd, "4", 1, 0);
    return wrote == 1 ? 0 : wrote < 0 ? (int)wrote : -EIO;
}
