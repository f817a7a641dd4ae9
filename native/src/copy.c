/* copy.c: page contents out of another process, fast.
 *
 * process_vm_readv with up to 1024 remote pieces a call goes straight into the sink's buffer. It honours the target's
 * page protections, so PROT_NONE ranges fail there; they come through /proc/PID/mem, which does not. A page that neither
 * can read ends the copy with its address: a capture with a page missing is no capture.
 *
 * Invariants
 *  1. Bytes arrive in the order of the runs, without gaps: a page's place follows from its position in the list alone.
 *     So two threads may each fill one part of the same room.
 *  2. Single pages cost a little over a microsecond each by one thread, about half of that by two; the second joins from COPY_PAIR_PAGES on.
 */
#include "scan.h"
#include <errno.h>
#include <string.h>

enum { PIECES = 1024, CALL_BYTES = 64 << 20, ROOM_PAGES = 1 << 18 };

/* The run it stands in, or NULL at the end; passes over what is not wanted. */
static const struct ckpt_run *current(struct copy_from *from) {
    for (; from->list < from->list_count; from->list++, from->run = 0) {
        const struct run_list *list = &from->lists[from->list];
        for (; from->run < list->count; from->run++, from->page = 0) {
            const struct ckpt_run *run = &list->at[from->run];
            if (run->content == (uint32_t)from->content && from->page < run->count)
                return run;
        }
    }
    return NULL;
}

static void advance(struct copy_from *from, uint64_t pages) {
    const struct ckpt_run *run;
    while (pages && (run = current(from))) {
        uint64_t left = run->count - from->page;
        uint64_t step = left < pages ? left : pages;
        from->page += step;
        pages -= step;
    }
}

/* Fills remote with what comes next, at most `bytes` of it. */
static size_t gather(struct copy_from next, struct iovec *remote, size_t bytes, size_t *ret_bytes) {
    const struct ckpt_run *run;
    size_t count = 0, total = 0;
    while (count < PIECES && total < bytes && (run = current(&next))) {
        size_t left = (size_t)(run->count - next.page) * CKPT_PAGE;
        size_t size = left < bytes - total ? left : bytes - total;
        remote[count++] = (struct iovec){(void *)(uintptr_t)((run->page + next.page) * CKPT_PAGE), size};
        next.page += size / CKPT_PAGE;
        total += size;
    }
    *ret_bytes = total;
    return count;
}

/* The next pages by /proc/PID/mem, to the end of the run at most: where one page refuses, its neighbours do as well. */
static ssize_t by_mem(struct copy_from *from, uint8_t *buffer, size_t bytes) {
    const struct ckpt_run *run = current(from);
    if (!run)
        return -EIO;
    uint64_t addr = (run->page + from->page) * CKPT_PAGE;
    size_t left = (size_t)(run->count - from->page) * CKPT_PAGE;
    ssize_t got = sys_pread(from->mem, buffer, left < bytes ? left : bytes, addr);
    if (got >= 0 && got < CKPT_PAGE)
        return -EFAULT;
    return got < 0 ? got : got / CKPT_PAGE * CKPT_PAGE;
}

ssize_t copy_pages(struct copy_from *from, uint8_t *buffer, size_t count, ckpt_addr_t *ret_at) {
    struct iovec remote[PIECES];
    size_t want = count * CKPT_PAGE, done = 0;
    while (done < want) {
        size_t bytes, limit = want - done < CALL_BYTES ? want - done : CALL_BYTES;
        size_t pieces = gather(*from, remote, limit, &bytes);
        struct iovec local = {buffer + done, bytes};
        ssize_t got = pieces ? sys_vm_readv(from->pid, &local, 1, remote, pieces) : 0;
        if (got < CKPT_PAGE)
            got = by_mem(from, buffer + done, want - done);
        if (got < 0) {
            const struct ckpt_run *run = current(from);
            *ret_at = run ? (run->page + from->page) * CKPT_PAGE : 0;
            return done ? (ssize_t)(done / CKPT_PAGE) : got;
        }
        got = got / CKPT_PAGE * CKPT_PAGE;
        advance(from, (uint64_t)got / CKPT_PAGE);
        done += (size_t)got;
    }
    return (ssize_t)count;
}

struct part {
    struct copy_from from;
    uint8_t *buffer;
    size_t pages;
    ssize_t got; /* pages that came, or a negative errno */
    ckpt_addr_t at;
};

static void copy_part(void *argument) {
    struct part *part = argument;
    part->got = copy_pages(&part->from, part->buffer, part->pages, &part->at);
    if (part->got >= 0 && (size_t)part->got < part->pages)
        part->got = -EFAULT;
}

/* One lent room, by one thread or by two. */
static int fill(struct copy_from *from, struct helper *helper, uint8_t *buffer, size_t pages, ckpt_addr_t *ret_at) {
    bool pair = helper && pages >= COPY_PAIR_PAGES;
    size_t half = pair ? pages / 2 : pages;
    struct part first = {.from = *from, .buffer = buffer, .pages = half}, second = {.from = *from, .pages = pages - half};
    if (pair) {
        second.buffer = buffer + half * CKPT_PAGE;
        advance(&second.from, half);
        helper_run(helper, copy_part, &second);
    }
    copy_part(&first);
    if (pair)
        helper_wait(helper);
    const struct part *bad = first.got < 0 ? &first : &second;
    if (bad->got < 0) {
        *ret_at = bad->at;
        return (int)bad->got;
    }
    *from = pair ? second.from : first.from;
    return 0;
}

static uint64_t pages_left(struct copy_from from) {
    const struct ckpt_run *run;
    uint64_t pages = 0;
    while ((run = current(&from))) {
        pages += run->count - from.page;
        from.page = run->count;
    }
    return pages;
}

int copy_all(struct copy_from *from, struct helper *helper, ckpt_sink *sink, ckpt_addr_t *ret_at) {
    *ret_at = 0;
    for (uint64_t left = pages_left(*from); left;) {
        size_t got, want = (size_t)(left < ROOM_PAGES ? left : ROOM_PAGES) * CKPT_PAGE;
        uint8_t *room = sink_room(sink, want, &got);
        size_t pages = room ? got / CKPT_PAGE : 0;
        if (!pages)
            return -ENOMEM;
        int error = fill(from, helper, room, pages, ret_at);
        if (!error)
            error = sink_filled(sink, pages * CKPT_PAGE);
        if (error)
            return error;
        left -= pages;
    }
    return 0;
}
