/* pagework.c: which pages of a frozen memory a rollback writes and which it drops: pure arithmetic on runs.
 *
 * For one memory, page by page, inside the mappings that are wanted:
 *
 *     the generation holds   the memory holds      and then
 *     DATA                   the same, unwritten   nothing, unless the generation differs from the baseline there: write
 *     DATA                   written, or nothing   write
 *     ZERO                   written, or differs   anonymous: drop (reads as zeros); a private file's page: write zeros
 *     nothing                something             drop (anonymous reads as zeros, a file's page shows the file again)
 *
 * "Unwritten" speaks of the baseline: the generation that this memory descends from. Without one everything that the
 * generation holds counts as different.
 *
 * Invariants
 *  1. What is returned is sorted, disjoint and lies inside the ranges: neither the bridge nor a kernel's mapping is touched.
 *  2. No process, no allocation: it runs while the target stands still.
 */
#include "internal.h"
#include <errno.h>

static const uint32_t NOTHING = CKPT_ABSENT;

/* Content at a page, and where it changes next; asked with rising pages. */
struct cursor {
    const struct ckpt_run *at, *end;
};

static uint32_t content_at(struct cursor *cursor, uint64_t page, uint64_t *end) {
    while (cursor->at < cursor->end && cursor->at->page + cursor->at->count <= page)
        cursor->at++;
    if (cursor->at == cursor->end)
        return NOTHING;
    uint64_t changes = cursor->at->page > page ? cursor->at->page : cursor->at->page + cursor->at->count;
    *end = changes < *end ? changes : *end;
    return cursor->at->page > page ? NOTHING : cursor->at->content;
}

/* After content_at(): whether a run stands there, whatever its content (ABSENT in a difference: the baseline alone had it). */
static bool covers(const struct cursor *cursor, uint64_t page) { return cursor->at < cursor->end && cursor->at->page <= page; }

/* CKPT_SAME = nothing to do. */
static uint32_t work_at(uint32_t hold, uint32_t seen, bool differs, bool anonymous) {
    if (seen == CKPT_SAME && !differs)
        return hold == NOTHING ? CKPT_ABSENT : CKPT_SAME;
    if (hold == CKPT_DATA)
        return CKPT_DATA;
    if (hold == NOTHING || anonymous)
        return seen == NOTHING ? CKPT_SAME : CKPT_ABSENT;
    return CKPT_ZERO;
}

struct output {
    struct ckpt_run *runs;
    size_t count, cap;
};

static int put(struct output *out, uint64_t page, uint64_t end, uint32_t content) {
    struct ckpt_run *last = out->count ? &out->runs[out->count - 1] : NULL;
    if (last && last->page + last->count == page && (uint64_t)last->count + (end - page) <= UINT32_MAX) {
        last->count += (uint32_t)(end - page);
        return 0;
    }
    if (out->count == out->cap)
        return -ENOSPC;
    out->runs[out->count++] = (struct ckpt_run){.page = page, .count = (uint32_t)(end - page), .content = content};
    return 0;
}

int64_t ckpt_page_work(const struct ckpt_page_work *work, uint32_t content, struct ckpt_run *ret_runs, size_t cap) {
    struct output out = {.runs = ret_runs, .cap = cap};
    struct cursor hold = {work->hold, work->hold + work->hold_count}, seen = {work->seen, work->seen + work->seen_count};
    struct cursor differs = {work->differs, work->differs + work->differs_count};
    for (size_t i = 0; i < work->range_count; i++) {
        const struct ckpt_range *range = &work->ranges[i];
        bool anonymous = range->kind == CKPT_RANGE_ANON;
        for (uint64_t page = range->start / CKPT_PAGE, last = range->end / CKPT_PAGE, end; page < last; page = end) {
            end = last;
            uint32_t held = content_at(&hold, page, &end), has = content_at(&seen, page, &end);
            content_at(&differs, page, &end);
            bool different = !work->baseline || covers(&differs, page);
            uint32_t todo = work_at(held, has, different, anonymous);
            if (todo == content && put(&out, page, end, content))
                return -ENOSPC;
        }
    }
    return (int64_t)out.count;
}

int64_t ckpt_runs_subtract(const struct ckpt_run *runs, size_t count, const struct ckpt_run *other, size_t other_count,
                           struct ckpt_run *ret_runs, size_t cap) {
    struct output out = {.runs = ret_runs, .cap = cap};
    struct cursor without = {other, other + other_count};
    for (size_t i = 0; i < count; i++)
        for (uint64_t page = runs[i].page, last = page + runs[i].count, end; page < last; page = end) {
            end = last;
            content_at(&without, page, &end);
            if (!covers(&without, page) && put(&out, page, end, runs[i].content))
                return -ENOSPC;
        }
    return (int64_t)out.count;
}
