/* pieces.c: a layout cut into the pieces that are scanned by one method each, and those divided between two threads.
 *
 * Invariants
 *  1. The pieces cover every mapping that is captured, in order of address, each in one mapping.
 *  2. A piece knows its mapping: registering goes by whole mappings (register.c, fact 6).
 */
#include "scan.h"
#include <errno.h>
#include <stdlib.h>

struct cutter {
    struct scan_memory *memory;
    size_t count;
    bool apart; /* the next piece does not follow the one before */
};

static int cut(struct cutter *cutter, const struct map_line *line, ckpt_addr_t start, ckpt_addr_t end, bool dense) {
    struct scan_memory *memory = cutter->memory;
    if (start >= end)
        return 0;
    if (cutter->count == memory->piece_cap) {
        struct piece *grown = reallocarray(memory->pieces, memory->piece_cap * 2, sizeof *grown);
        if (!grown)
            return -ENOMEM;
        memory->pieces = grown;
        memory->piece_cap *= 2;
    }
    memory->pieces[cutter->count] = (struct piece){.start = start, .end = end, .line = line, .kind = (uint32_t)maps_kind(line),
                                                           .dense = dense, .follows = cutter->count && !cutter->apart};
    cutter->count++;
    cutter->apart = false;
    return 0;
}

/* One mapping; *hint is the first hint that does not end before it. */
static int cut_line(struct cutter *cutter, const struct map_line *line, const struct scan_hints *hints, size_t *hint) {
    enum ckpt_range_kind kind = maps_kind(line);
    if (kind == CKPT_RANGE_SKIP) {
        cutter->apart = true;
        return 0;
    }
    ckpt_addr_t at = line->start;
    int error = 0;
    while (*hint < hints->count && hints->at[*hint].end <= at)
        ++*hint;
    for (size_t i = *hint; kind == CKPT_RANGE_ANON && !error && i < hints->count && hints->at[i].start < line->end; i++) {
        ckpt_addr_t start = hints->at[i].start > at ? hints->at[i].start : at;
        ckpt_addr_t end = hints->at[i].end < line->end ? hints->at[i].end : line->end;
        error = cut(cutter, line, at, start, false);
        if (!error)
            error = cut(cutter, line, start, end, true);
        at = end;
    }
    return error ? error : cut(cutter, line, at, line->end, false);
}

int pieces_cut(struct scan_memory *memory, struct scan_layout layout, const struct scan_hints *hints, size_t *ret_count) {
    struct cutter cutter = {.memory = memory};
    size_t hint = 0;
    int error = 0;
    for (size_t i = 0; i < layout.count && !error; i++)
        error = cut_line(&cutter, &layout.lines[i], hints, &hint);
    *ret_count = cutter.count;
    return error;
}

/* A sparse piece costs by its populated pages, which nobody knows yet: the largest reservations count as 256 MiB. */
static uint64_t weight(const struct piece *piece) {
    uint64_t pages = (piece->end - piece->start) / CKPT_PAGE;
    return piece->dense || pages < 65536 ? pages : 65536;
}

/* Cuts piece i in two at an address; the second part stands behind it. */
static int halve(struct scan_memory *memory, size_t *count, size_t i, ckpt_addr_t middle) {
    struct cutter cutter = {.memory = memory, .count = *count};
    int error = cut(&cutter, memory->pieces[i].line, middle, memory->pieces[i].end, memory->pieces[i].dense);
    if (error)
        return error;
    struct piece rest = memory->pieces[*count];
    rest.follows = true;
    for (size_t k = *count; k > i + 1; k--)
        memory->pieces[k] = memory->pieces[k - 1];
    memory->pieces[i + 1] = rest;
    memory->pieces[i].end = middle;
    *count = cutter.count;
    return 0;
}

int pieces_split(struct scan_memory *memory, size_t *count, size_t *ret_second) {
    uint64_t total = 0, sum = 0;
    *ret_second = *count;
    for (size_t i = 0; i < *count; i++)
        total += weight(&memory->pieces[i]);
    if (total < SCAN_PAIR_PAGES)
        return 0;
    for (size_t i = 0; i < *count; i++) {
        const struct piece *piece = &memory->pieces[i];
        uint64_t pages = weight(piece);
        if (sum + pages <= total / 2) {
            sum += pages;
            continue;
        }
        uint64_t first = (piece->end - piece->start) / CKPT_PAGE * (total / 2 - sum) / pages;
        ckpt_addr_t middle = (piece->start + first * CKPT_PAGE) & ~(ckpt_addr_t)0x1fffff; /* a page table is not shared */
        bool inside = middle > piece->start && middle < piece->end;
        *ret_second = inside ? i + 1 : i;
        return inside ? halve(memory, count, i, middle) : 0;
    }
    return 0;
}
