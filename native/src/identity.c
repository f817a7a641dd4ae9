/* identity.c: which descriptors are one open file description (dup, fork), over the whole tree.
 *
 * kcmp tells whether two descriptors are the same one, and if not, which comes first in an order of its own. A sorted list
 * of one representative each then finds a descriptor by binary search: n log n calls of half a microsecond.
 * The list is ordered by (dev, ino, flags) first, which needs no call: most descriptors differ there already.
 *
 * Invariants
 *  1. Position is no part of the key: somebody outside the tree may share the description and move it between two looks.
 *  2. Where kcmp is not built in, every descriptor counts as alone (sharing is lost, contents are not).
 */
#define _GNU_SOURCE
#include "capture.h"
#include <errno.h>
#include <linux/kcmp.h>
#include <string.h>

static int order_numbers(uint64_t a, uint64_t b) { return a < b ? -1 : a > b; }

/* Below 0, 0 = the same, above 0. kcmp: 0 equal, 1 less, 2 greater, 3 different and not ordered. */
static int compare(const struct open_fd *a, const struct open_fd *b, int *ret_error) {
    int order = order_numbers(a->dev, b->dev);
    order = order ? order : order_numbers(a->ino, b->ino);
    order = order ? order : order_numbers(a->flags, b->flags);
    if (order)
        return order;
    int answer = sys_kcmp(a->pid, b->pid, KCMP_FILE, (uintptr_t)a->fd, (uintptr_t)b->fd);
    if (answer < 0 && answer != -ENOSYS && answer != -EOPNOTSUPP)
        *ret_error = answer;
    return answer == 0 ? 0 : answer == 1 ? -1 : 1;
}

int identify(struct window *window, size_t index) {
    struct open_fd *entry = &window->fds[index];
    size_t low = 0, high = window->file_count;
    int error = 0;
    while (low < high) {
        size_t middle = (low + high) / 2;
        const struct open_fd *other = &window->fds[window->by_file[middle]];
        int order = compare(entry, other, &error);
        if (error)
            return tree_fail(window->tree, error, "kcmp", entry->pid, 0, entry->fd, 0, "KCMP_FILE");
        if (order == 0) {
            entry->file = other->file;
            return 0;
        }
        if (order > 0)
            low = middle + 1;
        else
            high = middle;
    }
    error = rows_grow((void **)&window->by_file, window->file_count, &window->file_cap, sizeof *window->by_file);
    if (error)
        return error;
    memmove(&window->by_file[low + 1], &window->by_file[low], (window->file_count - low) * sizeof *window->by_file);
    window->by_file[low] = index;
    entry->file = (int32_t)window->file_count++;
    return 0;
}

/* ---- what an epoll watches: the number in fdinfo may be closed or reused, the description is what counts ---- */

static bool watches(const struct open_fd *epoll, uint32_t tfd, uint32_t nth, const struct open_fd *candidate) {
    struct kcmp_epoll_slot slot = {.efd = (uint32_t)epoll->fd, .tfd = tfd, .toff = nth};
    return sys_kcmp(candidate->pid, epoll->pid, KCMP_EPOLL_TFD, (uintptr_t)candidate->fd, (uintptr_t)&slot) == 0;
}

static int32_t watched_file(struct window *window, const struct open_fd *epoll, uint32_t tfd, uint32_t nth) {
    for (size_t i = 0; i < window->fd_count; i++) { /* nearly always it is still that number */
        const struct open_fd *entry = &window->fds[i];
        if (entry->pid == epoll->pid && entry->fd == (int)tfd && watches(epoll, tfd, nth, entry))
            return entry->file;
    }
    for (size_t i = 0; i < window->file_count; i++)
        if (watches(epoll, tfd, nth, &window->fds[window->by_file[i]]))
            return window->fds[window->by_file[i]].file;
    return -1;
}

struct watch {
    int32_t tfd, file;
};

/* The lines of one epoll's fdinfo begin "tfd:". The same number may stand in several (closed and reused): the n-th of them is
 * asked for as toff = n. */
static size_t parse_watches(const char *text, size_t bytes, struct watch *watches, size_t cap) {
    size_t count = 0;
    for (const char *at = text, *end = text + bytes; at && end - at > 4; at = memchr(at, '\n', (size_t)(end - at)), at += at != NULL) {
        if (memcmp(at, "tfd:", 4))
            continue;
        const char *digit = at + 4;
        int32_t tfd = 0;
        while (digit < end && *digit == ' ')
            digit++;
        for (; digit < end && *digit >= '0' && *digit <= '9'; digit++)
            tfd = tfd * 10 + (*digit - '0');
        if (count < cap)
            watches[count] = (struct watch){.tfd = tfd, .file = -1};
        count++;
    }
    return count;
}

int epoll_targets(struct window *window, const struct open_fd *entry) {
    struct text_at where = {.offset = entry->fdinfo, .size = entry->fdinfo_size};
    size_t count = parse_watches(text_of(window, where), where.size, NULL, 0);
    struct watch *list = sink_record_begin(window->sink, CKPT_R_FD_WORK, entry->pid, 0, entry->fd, CKPT_W_EPOLL, count * sizeof *list);
    if (!list)
        return -ENOMEM;
    parse_watches(text_of(window, where), where.size, list, count);
    for (size_t i = 0; i < count; i++) {
        uint32_t nth = 0;
        for (size_t j = 0; j < i; j++)
            nth += list[j].tfd == list[i].tfd;
        list[i].file = watched_file(window, entry, (uint32_t)list[i].tfd, nth);
    }
    sink_record_commit(window->sink, count * sizeof *list);
    return 0;
}
