/* runs.c: memory that scanning keeps between calls: run lists, hints, region buffers.
 *
 * Fresh memory costs 3-5 us a page on a virtual machine, so everything is reserved and touched while the target still
 * runs; growing inside the frozen window works, but is the exception.
 */
#include "scan.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>

enum { RUNS_RESERVE = 16384, PIECES_RESERVE = 1024 };

int run_list_reserve(struct run_list *list, size_t cap) {
    if (cap <= list->cap)
        return 0;
    struct ckpt_run *grown = reallocarray(list->at, cap, sizeof *grown);
    if (!grown)
        return -ENOMEM;
    memset(grown + list->cap, 0, (cap - list->cap) * sizeof *grown);
    list->at = grown;
    list->cap = cap;
    return 0;
}

int run_list_add(struct run_list *list, uint64_t page, uint64_t count, enum ckpt_content content) {
    while (count) {
        struct ckpt_run *last = list->count ? &list->at[list->count - 1] : NULL;
        bool joins = last && last->content == (uint32_t)content && last->page + last->count == page;
        uint64_t room = joins ? UINT32_MAX - last->count : UINT32_MAX;
        uint32_t take = (uint32_t)(count < room ? count : room);
        if (joins && take) {
            last->count += take;
        } else {
            take = (uint32_t)(count < UINT32_MAX ? count : UINT32_MAX);
            if (list->count == list->cap && run_list_reserve(list, list->cap ? list->cap * 2 : RUNS_RESERVE) < 0)
                return -ENOMEM;
            list->at[list->count++] = (struct ckpt_run){.page = page, .count = take, .content = (uint32_t)content};
        }
        page += take;
        count -= take;
    }
    return 0;
}

static int reserve(struct scan_memory *memory) {
    for (int i = 0; i < 2; i++) {
        if (!memory->regions[i]) {
            memory->regions[i] = malloc(SCAN_REGIONS * sizeof *memory->regions[i]);
            if (!memory->regions[i])
                return -ENOMEM;
            memset(memory->regions[i], 0, SCAN_REGIONS * sizeof *memory->regions[i]);
        }
        int error = run_list_reserve(&memory->runs[i], RUNS_RESERVE);
        if (error)
            return error;
    }
    if (!memory->pieces) {
        memory->pieces = calloc(PIECES_RESERVE, sizeof *memory->pieces);
        memory->piece_cap = memory->pieces ? PIECES_RESERVE : 0;
    }
    return memory->pieces ? 0 : -ENOMEM;
}

int scan_memory_get(ckpt_tree *tree, bool pair, struct scan_memory **ret_memory) {
    if (!tree->scan && !(tree->scan = calloc(1, sizeof *tree->scan)))
        return -ENOMEM;
    struct scan_memory *memory = tree->scan;
    int error = reserve(memory);
    if (!error && pair && !memory->helper)
        error = helper_new(&memory->helper);
    if (error)
        return error;
    *ret_memory = memory;
    return 0;
}

int scan_prepare(ckpt_tree *tree, uint32_t threads) {
    struct scan_memory *memory;
    return scan_memory_get(tree, threads > 1, &memory);
}

void scan_freezing(ckpt_tree *tree, int cpu) {
    if (!tree->scan || !tree->scan->soon || !tree->scan->helper)
        return;
    helper_lend(tree->scan->helper);
    helper_off(tree->scan->helper, cpu);
}

void scan_stopped(ckpt_tree *tree) {
    if (tree->scan && tree->scan->soon && tree->scan->helper)
        helper_ready(tree->scan->helper);
}

void scan_memory_free(struct scan_memory *memory) {
    if (!memory)
        return;
    helper_free(memory->helper);
    for (size_t i = 0; i < memory->hint_count; i++)
        free(memory->hints[i].at);
    for (int i = 0; i < 2; i++) {
        free(memory->runs[i].at);
        free(memory->regions[i]);
    }
    free(memory->hints);
    free(memory->pieces);
    free(memory);
}

struct scan_hints *scan_hints_of(struct scan_memory *memory, pid_t pid) {
    for (size_t i = 0; i < memory->hint_count; i++)
        if (memory->hints[i].pid == pid)
            return &memory->hints[i];
    if (memory->hint_count == memory->hint_cap) {
        size_t cap = memory->hint_cap ? memory->hint_cap * 2 : 16;
        struct scan_hints *grown = reallocarray(memory->hints, cap, sizeof *grown);
        if (!grown)
            return NULL;
        memory->hints = grown;
        memory->hint_cap = cap;
    }
    memory->hints[memory->hint_count] = (struct scan_hints){.pid = pid, .others = true, .resident = UNCOUNTED, .written = UNCOUNTED}; /* until somebody looks */
    return &memory->hints[memory->hint_count++];
}

int scan_hints_add(struct scan_hints *hints, ckpt_addr_t start, ckpt_addr_t end) {
    if (hints->count == hints->cap) {
        size_t cap = hints->cap ? hints->cap * 2 : 64;
        struct ckpt_range *grown = reallocarray(hints->at, cap, sizeof *grown);
        if (!grown)
            return -ENOMEM;
        hints->at = grown;
        hints->cap = cap;
    }
    hints->at[hints->count++] = (struct ckpt_range){.start = start, .end = end, .kind = CKPT_RANGE_ANON};
    return 0;
}
