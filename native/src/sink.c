/* sink.c: what a capture fills and its caller reads: records, runs by space, page bytes.
 *
 * Buffers, each one anonymous mapping, kept over resets. For a freeze they are touched ahead (fresh memory costs 3-5 us a
 * page here, which would be paid inside the frozen window; in huge pages a tenth of that), for work on a running target
 * not: there they cost what is used of them.
 *   records  a byte stream of struct ckpt_record + payload, 8-aligned; grows by mremap
 *   runs     struct ckpt_run of all spaces one after the other; grows by mremap
 *   pages    fixed size; what does not fit goes through a staging buffer to an unlinked file in spill_dir, if there is one
 *
 * Invariants
 *  1. Page bytes are one logical stream: offset o is pages[o] below the buffer's size, the spill file's o - size above.
 *     sink_room() never lends a piece that crosses from one to the other.
 *  2. The current space is the last one; its runs are the tail of the run buffer. Neighbouring runs of equal content
 *     are merged, so runs stay sorted if pages come sorted.
 *  3. Pointers handed out by sink_record_begin() live until the next call on the sink; what ckpt_sink_* lends lives
 *     until the next call that fills or resets.
 *  4. Descriptors that a capture duplicated (CKPT_W_DUPLICATE) belong to the sink and are closed by reset.
 */
#define _GNU_SOURCE
#include "sink.h"
#include <errno.h>
#include <fcntl.h>
#include <malloc.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum {
    RECORDS_RESERVE = 4 << 20,
    RUNS_RESERVE = 2 << 20,
    STAGING = 2 << 20,
    FIRST_OBJECT = 1000000,
    HUGE_PAGE = 2 << 20,
    POPULATE_WRITE = 23, /* MADV_POPULATE_WRITE, Linux 5.14 */
};

static void *map_memory(size_t bytes) {
    void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return memory == MAP_FAILED ? NULL : memory;
}

/* In huge pages where there are any. */
static void *map_huge(size_t bytes) {
    void *memory = map_memory(bytes);
    if (memory && bytes >= HUGE_PAGE)
        madvise(memory, bytes, MADV_HUGEPAGE);
    if (memory)
        madvise(memory, bytes, MADV_DONTFORK); /* a keeper (keeper.c) takes no page table of it along */
    return memory;
}

static void *map_touched(size_t bytes) {
    uint8_t *memory = map_huge(bytes);
    if (!memory)
        return NULL;
    if (madvise(memory, bytes, POPULATE_WRITE) == 0)
        return memory;
    if (errno == ENOMEM) { /* not the refusal of an old kernel: there is no such room */
        munmap(memory, bytes);
        return NULL;
    }
    for (size_t at = 0; at < bytes; at += CKPT_PAGE)
        ((volatile uint8_t *)memory)[at] = 0;
    return memory;
}

/* Doubles until `need` more bytes fit. In the frozen window this is the exception, not the habit: the reserve is ample. */
static int area_grow(struct area *area, size_t need) {
    size_t size = area->size;
    while (size - area->used < need)
        size *= 2;
    if (size == area->size)
        return 0;
    void *moved = mremap(area->at, area->size, size, MREMAP_MAYMOVE);
    if (moved == MAP_FAILED)
        return -errno;
    area->at = moved;
    area->size = size;
    return 0;
}

static int area_new(struct area *area, size_t size, bool touched) {
    area->at = touched ? map_touched(size) : map_memory(size);
    area->size = size;
    area->used = 0;
    return area->at ? 0 : -ENOMEM;
}

static void area_free(struct area *area) {
    if (area->at)
        munmap(area->at, area->size);
}

static size_t round_up(size_t bytes, size_t unit) { return (bytes + unit - 1) / unit * unit; }

static int areas_new(ckpt_sink *sink, bool touched) {
    int error = sink->pages ? 0 : -ENOMEM;
    if (!error)
        error = area_new(&sink->records, RECORDS_RESERVE, touched);
    if (!error)
        error = area_new(&sink->runs, RUNS_RESERVE, touched);
    return error;
}

static ckpt_sink *sink_alloc(size_t bytes) {
    ckpt_sink *sink = calloc(1, sizeof *sink);
    if (sink) {
        sink->spill = -1;
        sink->page_size = round_up(bytes ? bytes : CKPT_PAGE, CKPT_PAGE);
    }
    return sink;
}

static int sink_give(ckpt_sink *sink, int error, ckpt_sink **ret_sink) {
    if (error)
        ckpt_sink_free(sink);
    else
        *ret_sink = sink;
    return error;
}

int ckpt_sink_new(size_t bytes, const char *spill_dir, ckpt_sink **ret_sink) {
    ckpt_sink *sink = sink_alloc(bytes);
    if (!sink)
        return -ENOMEM;
    sink->pages = map_touched(sink->page_size);
    sink->staging = map_touched(STAGING);
    int error = sink->staging ? areas_new(sink, true) : -ENOMEM;
    if (!error) {
        sink->spill = open(spill_dir, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
        error = sink->spill < 0 ? -errno : 0;
    }
    return sink_give(sink, error, ret_sink);
}

int ckpt_sink_new_running(size_t bytes, ckpt_sink **ret_sink) {
    ckpt_sink *sink = sink_alloc(bytes);
    if (!sink)
        return -ENOMEM;
    sink->pages = map_huge(sink->page_size);
    return sink_give(sink, areas_new(sink, false), ret_sink);
}

void ckpt_sink_free(ckpt_sink *sink) {
    if (!sink)
        return;
    ckpt_sink_reset(sink);
    if (sink->pages)
        munmap(sink->pages, sink->page_size);
    if (sink->staging)
        munmap(sink->staging, STAGING);
    area_free(&sink->records);
    area_free(&sink->runs);
    close_fd(&sink->spill);
    free(sink->spaces);
    free(sink->lent);
    free(sink->duplicates);
    free(sink);
}

void ckpt_sink_reset(ckpt_sink *sink) {
    for (size_t i = 0; i < sink->duplicate_count; i++)
        close(sink->duplicates[i]);
    if (sink->total > sink->page_size && ftruncate(sink->spill, 0) < 0)
        sink->total = 0; /* the bytes are overwritten by the next spill; only disk space is kept */
    sink->duplicate_count = 0;
    sink->records.used = 0;
    sink->runs.used = 0;
    sink->space_count = 0;
    sink->object_count = 0;
    sink->total = 0;
}

/* ---- records ---- */

void *sink_record_begin(ckpt_sink *sink, uint32_t kind, pid_t pid, pid_t tid, int fd, int index, size_t size) {
    size_t head = sizeof(struct ckpt_record);
    if (size > UINT32_MAX - head || area_grow(&sink->records, head + size + 8) < 0)
        return NULL;
    struct ckpt_record *record = (void *)(sink->records.at + sink->records.used);
    *record = (struct ckpt_record){.kind = kind, .pid = pid, .tid = tid, .fd = fd, .index = index, .size = (uint32_t)size};
    return record + 1;
}

void sink_record_commit(ckpt_sink *sink, size_t size) {
    struct ckpt_record *record = (void *)(sink->records.at + sink->records.used);
    record->size = (uint32_t)size;
    size_t padded = round_up(size, 8);
    memset((uint8_t *)(record + 1) + size, 0, padded - size);
    sink->records.used += sizeof *record + padded;
}

int sink_record(ckpt_sink *sink, uint32_t kind, pid_t pid, pid_t tid, int fd, int index, const void *bytes, size_t size) {
    void *payload = sink_record_begin(sink, kind, pid, tid, fd, index, size);
    if (!payload)
        return -ENOMEM;
    if (size)
        memcpy(payload, bytes, size);
    sink_record_commit(sink, size);
    return 0;
}

size_t ckpt_sink_records(const ckpt_sink *sink, const uint8_t **ret_bytes) {
    *ret_bytes = sink->records.at;
    return sink->records.used;
}

/* ---- spaces and runs ---- */

static size_t run_position(const ckpt_sink *sink) { return sink->runs.used / sizeof(struct ckpt_run); }

int sink_space(ckpt_sink *sink, int32_t space) {
    if (sink->space_count == sink->space_cap) {
        size_t cap = sink->space_cap ? sink->space_cap * 2 : 64;
        void *grown = reallocarray(sink->spaces, cap, sizeof *sink->spaces);
        if (!grown)
            return -ENOMEM;
        sink->spaces = grown;
        sink->space_cap = cap;
    }
    sink->spaces[sink->space_count++] = (struct space){.space = space, .first_run = run_position(sink), .data_offset = sink->total};
    return 0;
}

void sink_space_undo(ckpt_sink *sink) {
    const struct space *space = &sink->spaces[--sink->space_count];
    sink->runs.used = space->first_run * sizeof(struct ckpt_run);
    sink->total = space->data_offset;
}

int sink_paranoid(ckpt_sink *sink) {
    struct space *space = &sink->spaces[sink->space_count - 1];
    if (space->paranoid)
        return -EINVAL;
    space->paranoid = true;
    space->first_paranoid = run_position(sink);
    space->paranoid_offset = sink->total;
    return 0;
}

int sink_run(ckpt_sink *sink, uint64_t page, uint32_t count, enum ckpt_content content) {
    struct space *space = &sink->spaces[sink->space_count - 1];
    size_t position = run_position(sink);
    size_t first = space->paranoid ? space->first_paranoid : space->first_run;
    if (content == CKPT_DATA && !space->paranoid)
        space->data_pages += count;
    if (position > first) {
        struct ckpt_run *last = (struct ckpt_run *)(void *)sink->runs.at + position - 1;
        if (last->content == (uint32_t)content && last->page + last->count == page && last->count <= UINT32_MAX - count) {
            last->count += count;
            return 0;
        }
    }
    int error = area_grow(&sink->runs, sizeof(struct ckpt_run));
    if (error)
        return error;
    ((struct ckpt_run *)(void *)sink->runs.at)[position] = (struct ckpt_run){.page = page, .count = count, .content = (uint32_t)content};
    sink->runs.used += sizeof(struct ckpt_run);
    return 0;
}

static size_t end_of_runs(const ckpt_sink *sink, size_t i) {
    return i + 1 < sink->space_count ? sink->spaces[i + 1].first_run : run_position(sink);
}

static struct ckpt_space_runs lend(const ckpt_sink *sink, size_t i) {
    const struct space *space = &sink->spaces[i];
    const struct ckpt_run *runs = (const struct ckpt_run *)(const void *)sink->runs.at;
    size_t end = end_of_runs(sink, i);
    size_t middle = space->paranoid ? space->first_paranoid : end;
    return (struct ckpt_space_runs){
        .space = space->space,
        .runs = runs + space->first_run,
        .run_count = middle - space->first_run,
        .data_offset = space->data_offset,
        .data_pages = space->data_pages,
        .paranoid_runs = space->paranoid ? runs + middle : NULL,
        .paranoid_count = end - middle,
        .paranoid_offset = space->paranoid_offset,
    };
}

/* The view is made anew at each call (runs may have moved since); it is a cache, which is why a const sink may fill it. */
size_t ckpt_sink_spaces(const ckpt_sink *sink, const struct ckpt_space_runs **ret_spaces) {
    ckpt_sink *cache = (ckpt_sink *)sink;
    struct ckpt_space_runs *lent = reallocarray(cache->lent, sink->space_count + 1, sizeof *lent);
    if (!lent)
        return 0;
    cache->lent = lent;
    for (size_t i = 0; i < sink->space_count; i++)
        lent[i] = lend(sink, i);
    *ret_spaces = lent;
    return sink->space_count;
}

/* ---- page bytes ---- */

uint64_t sink_free_bytes(const ckpt_sink *sink) { return sink->total < sink->page_size ? sink->page_size - sink->total : 0; }

uint8_t *sink_room(ckpt_sink *sink, size_t want, size_t *ret_got) {
    uint64_t left = sink_free_bytes(sink);
    if (left) {
        *ret_got = want < left ? want : (size_t)left;
        return sink->pages + sink->total;
    }
    *ret_got = want < STAGING ? want : STAGING;
    return sink->staging; /* NULL: nothing can be spilled */
}

static int spill(ckpt_sink *sink, size_t bytes) {
    uint64_t offset = sink->total - sink->page_size;
    for (size_t done = 0; done < bytes;) {
        ssize_t wrote = pwrite(sink->spill, sink->staging + done, bytes - done, (off_t)(offset + done));
        if (wrote < 0 && errno != EINTR)
            return -errno;
        if (wrote > 0)
            done += (size_t)wrote;
    }
    return 0;
}

int sink_filled(ckpt_sink *sink, size_t bytes) {
    if (sink->total >= sink->page_size) {
        int error = spill(sink, bytes);
        if (error)
            return error;
    }
    sink->total += bytes;
    return 0;
}

const uint8_t *ckpt_sink_data(const ckpt_sink *sink, uint64_t *ret_in_memory, uint64_t *ret_total) {
    *ret_in_memory = sink->total < sink->page_size ? sink->total : sink->page_size;
    *ret_total = sink->total;
    return sink->pages;
}

/* offset counts from the start of the logical stream and must lie behind the buffer. */
int ckpt_sink_read_spill(const ckpt_sink *sink, uint64_t offset, uint8_t *buffer, size_t bytes) {
    if (offset < sink->page_size || offset + bytes > sink->total)
        return -EINVAL;
    for (size_t done = 0; done < bytes;) {
        ssize_t got = pread(sink->spill, buffer + done, bytes - done, (off_t)(offset - sink->page_size + done));
        if (got == 0)
            return -EIO;
        if (got < 0 && errno != EINTR)
            return -errno;
        if (got > 0)
            done += (size_t)got;
    }
    return 0;
}

int32_t sink_next_object(ckpt_sink *sink) { return FIRST_OBJECT + sink->object_count++; }

/* ---- descriptors kept for the caller ---- */

int sink_keep_fd(ckpt_sink *sink, int fd) {
    if (sink->duplicate_count == sink->duplicate_cap) {
        size_t cap = sink->duplicate_cap ? sink->duplicate_cap * 2 : 64;
        int *grown = reallocarray(sink->duplicates, cap, sizeof *grown);
        if (!grown)
            return -ENOMEM;
        sink->duplicates = grown;
        sink->duplicate_cap = cap;
    }
    sink->duplicates[sink->duplicate_count++] = fd;
    return 0;
}

void ckpt_one_heap(void) { mallopt(M_ARENA_MAX, 1); }
