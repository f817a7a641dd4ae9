/* register.c: the userfaultfd side of tracking; each call acts on the target through our duplicate of its descriptor.
 *
 * Facts of the kernel that this rests on (fs/userfaultfd.c, mm/userfaultfd.c)
 *  1. Registering a range again that is registered already with the same descriptor changes nothing in it.
 *  2. A mapping that belongs to another userfaultfd gives EBUSY; one that cannot be tracked (vdso, io_uring) EINVAL.
 *  3. A mapping that mremap() has moved is no longer registered, but its pages may keep their protection (seen on 6.18):
 *     registered alone, they would count as unwritten since a generation that never saw them there. Hence uffd_reset().
 *  4. Unregistering drops the write-protection of the whole range; so does closing the last descriptor.
 *  5. UFFDIO_WRITEPROTECT without the WP mode removes a write-protect marker (an entry without a page) altogether.
 *  6. Registering a part of a mapping splits it, and mremap() over the border then fails. So whole mappings only, while they stand still:
 *     uffd_take_in(), and struct piece knows its mapping.
 */
#include "scan.h"
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int uffd_register(int uffd, ckpt_addr_t start, ckpt_addr_t end) {
    struct uffdio_register reg = {.range = {start, end - start}, .mode = UFFDIO_REGISTER_MODE_WP};
    return uffd < 0 ? -EBADF : sys_ioctl(uffd, UFFDIO_REGISTER, &reg);
}

int uffd_unprotect(int uffd, ckpt_addr_t start, ckpt_addr_t end) {
    struct uffdio_writeprotect wp = {.range = {start, end - start}, .mode = 0};
    int error;
    do
        error = uffd < 0 ? -EBADF : sys_ioctl(uffd, UFFDIO_WRITEPROTECT, &wp);
    while (error == -EAGAIN); /* its mappings are changing; only while it runs */
    return error;
}

/* Registered first: that fails if the range is another's, whose protection must not be dropped (old kernels would). */
int uffd_reset(int uffd, ckpt_addr_t start, ckpt_addr_t end) {
    struct uffdio_range range = {start, end - start};
    int error = uffd_register(uffd, start, end);
    if (!error)
        error = sys_ioctl(uffd, UFFDIO_UNREGISTER, &range);
    return error ? error : uffd_register(uffd, start, end);
}

bool uffd_others(const struct task *task, int ours) {
    static const char wanted[] = "anon_inode:[userfaultfd]";
    int dir = sys_openat(task->dir, "fd", O_RDONLY | O_DIRECTORY);
    DIR *names = dir < 0 ? NULL : fdopendir(dir);
    bool found = false;
    if (!names) {
        close_fd(&dir);
        return true; /* not known: careful */
    }
    for (struct dirent *entry; !found && (entry = readdir(names));) {
        char text[sizeof wanted];
        if (entry->d_name[0] == '.' || atoi(entry->d_name) == ours)
            continue;
        ssize_t bytes = readlinkat(dir, entry->d_name, text, sizeof text);
        found = bytes == sizeof wanted - 1 && !memcmp(text, wanted, sizeof wanted - 1);
    }
    closedir(names);
    return found;
}

/* ---- what is not registered yet, while it runs ---- */

enum { DROPPED_PAGES = 8192 }; /* whose old protection is dropped inside the stop; of the others while it runs */

bool uffd_covers(const struct scan *scan, const struct map_line *line) {
    struct pm_scan_arg arg = {.size = sizeof arg, .flags = PM_SCAN_CHECK_WPASYNC, .start = line->start, .end = line->start + CKPT_PAGE,
                              .category_mask = PAGE_IS_WRITTEN, .return_mask = PAGE_IS_WRITTEN};
    return sys_ioctl(scan->pagemap, PAGEMAP_SCAN, &arg) != -EPERM;
}

/* Registers lines that stand still. Those that could not be are left out; moved to `fresh`: whose protection is to be dropped later. */
static void register_whole(struct scan *scan, struct ckpt_range span, struct map_line *lines, size_t *count, struct map_line *fresh,
                           size_t *ret_fresh) {
    size_t kept = 0, later = 0;
    uint64_t room = DROPPED_PAGES;
    for (size_t i = 0; i < *count; i++) {
        const struct map_line *line = &lines[i];
        if (maps_kind(line) == CKPT_RANGE_SKIP)
            continue;
        bool was = uffd_covers(scan, line);
        if (!was && uffd_register(scan->uffd, line->start, line->end))
            continue; /* another's, or it cannot be tracked: read whole in the freeze */
        uint64_t pages = (line->end - line->start) / CKPT_PAGE;
        if (!was || (line->start < span.end && span.start < line->end)) {
            if (pages <= room && !uffd_unprotect(scan->uffd, line->start, line->end))
                room -= pages;
            else
                fresh[later++] = *line;
        }
        lines[kept++] = *line;
    }
    *count = kept;
    *ret_fresh = later;
}

static int while_stopped(ckpt_tree *tree, pid_t pid, struct scan *scan, struct ckpt_range span, struct map_line **lines, size_t *count,
                         struct map_line **ret_fresh, size_t *ret_fresh_count) {
    _cleanup_free_ struct map_line *now = NULL;
    size_t now_count;
    struct task *task = tree_task(tree, pid);
    int error = task ? layout_read(tree, task, &now, &now_count) : -ESRCH;
    if (error)
        return error;
    if (!(*ret_fresh = calloc(now_count + 1, sizeof **ret_fresh)))
        return -ENOMEM;
    register_whole(scan, span, now, &now_count, *ret_fresh, ret_fresh_count);
    free(*lines);
    *lines = take_ptr(&now);
    *count = now_count;
    return 0;
}

struct taking {
    ckpt_tree *tree;
    pid_t pid;
    struct scan *scan;
    struct ckpt_range span;
    struct map_line **lines;
    size_t *count;
    struct map_line **fresh;
    size_t *fresh_count;
};

static int stop_and_take(void *argument) {
    struct taking *t = argument;
    bool stopped = t->tree->frozen;
    int error = stopped ? 0 : task_freeze(t->tree, t->pid);
    if (error)
        return error;
    error = while_stopped(t->tree, t->pid, t->scan, t->span, t->lines, t->count, t->fresh, t->fresh_count);
    int thawed = stopped ? 0 : task_thaw(t->tree, t->pid);
    return error ? error : thawed;
}

int uffd_take_in(ckpt_tree *tree, pid_t pid, struct scan *scan, struct scan_hints *hints, struct ckpt_range span, struct map_line **lines,
                 size_t *count) {
    _cleanup_free_ struct map_line *fresh = NULL;
    size_t fresh_count = 0;
    struct taking taking = {tree, pid, scan, span, lines, count, &fresh, &fresh_count};
    int error = by_own_tracer(tree, stop_and_take, &taking);
    for (size_t i = 0; i < fresh_count; i++) /* what is gone again was perhaps moved, with its protection */
        if (uffd_unprotect(scan->uffd, fresh[i].start, fresh[i].end))
            hints->lost = true;
    if (error)
        hints->lost = true;
    if (error != -EAGAIN && error != -EBUSY)
        return error;
    tree_fault_clear(tree); /* it cannot be stopped just now: the freeze says so, if it still cannot */
    return -EBUSY;
}
