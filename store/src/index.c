/* Which contents the store already holds: a table of this session's new ones, and segments from earlier sessions.
 *
 * A segment is sorted by hash and cut into 2^bits buckets by the hash's first bits. Most pages of an incremental snapshot are
 * new, so a filter (blocked Bloom, 16 bits an entry: about 1 of 1000 false) says no without a read; only a maybe loads a bucket.
 *
 * Invariants: 1. an id never changes its bytes; 2. a segment's buckets are sorted and hold only hashes with their first bits. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "pages.h"

struct segment {
    uint64_t entries;
    uint32_t bits;
    uint8_t *filter; /* NULL: always maybe */
    size_t filter_size;
    struct st_entry **buckets; /* NULL until loaded */
    uint32_t *sizes;
    uint8_t *loaded;
};
struct st_index {
    struct st_entry *entries; /* new ones, in order of arrival */
    size_t count, room;
    uint32_t *slots; /* open addressing: 1 + position in entries; NULL: closed */
    size_t mask;
    struct segment segments[64];
    uint32_t segment_count;
};

static uint64_t word(const uint8_t *p)
{
    uint64_t v;
    memcpy(&v, p, 8);
    return v;
}

static uint32_t bucket_of(const uint8_t *hash, uint32_t bits) { return bits ? (uint32_t)(__builtin_bswap64(word(hash)) >> (64 - bits)) : 0; }

int st_index_new(struct st_index **ret_index)
{
    struct st_index *index = calloc(1, sizeof(*index));
    if (!index || !(index->slots = calloc(8192, sizeof(*index->slots)))) {
        free(index);
        return -ENOMEM;
    }
    index->mask = 8191;
    *ret_index = index;
    return 0;
}

void st_index_free(struct st_index *index)
{
    if (!index)
        return;
    for (uint32_t s = 0; s < index->segment_count; s++) {
        struct segment *segment = &index->segments[s];
        for (uint32_t b = 0; b < 1u << segment->bits; b++)
            free(segment->buckets[b]);
        free(segment->buckets);
        free(segment->sizes);
        free(segment->loaded);
        free(segment->filter);
    }
    free(index->entries);
    free(index->slots);
    free(index);
}

int st_index_segment(struct st_index *index, uint64_t entries, uint32_t bits, const uint8_t *filter, size_t filter_size)
{
    if (index->segment_count == 64 || bits > 24 || filter_size % 64)
        return -EINVAL;
    struct segment *segment = &index->segments[index->segment_count];
    *segment = (struct segment){.entries = entries, .bits = bits, .filter_size = filter_size};
    segment->buckets = calloc((size_t)1 << bits, sizeof(*segment->buckets));
    segment->sizes = calloc((size_t)1 << bits, sizeof(*segment->sizes));
    segment->loaded = calloc((size_t)1 << bits, 1);
    segment->filter = filter_size ? malloc(filter_size) : NULL;
    index->segment_count++;
    if (!segment->buckets || !segment->sizes || !segment->loaded || (filter_size && !segment->filter))
        return -ENOMEM;
    if (filter_size)
        memcpy(segment->filter, filter, filter_size);
    return (int)index->segment_count - 1;
}

int st_index_bucket(struct st_index *index, uint32_t s, uint32_t bucket, const uint8_t *entries, size_t size)
{
    if (s >= index->segment_count || bucket >> index->segments[s].bits || size % sizeof(struct st_entry))
        return -EINVAL;
    struct segment *segment = &index->segments[s];
    struct st_entry *copy = malloc(size + 1);
    if (!copy)
        return -ENOMEM;
    memcpy(copy, entries, size);
    free(segment->buckets[bucket]);
    segment->buckets[bucket] = copy;
    segment->sizes[bucket] = (uint32_t)(size / sizeof(*copy));
    segment->loaded[bucket] = 1;
    return 0;
}

/* Seven bits within one 64-byte block. */
static uint8_t *block_of(const uint8_t *filter, size_t size, const uint8_t *hash)
{
    return (uint8_t *)filter + (word(hash + 8) >> 32) * (size / 64) / (UINT64_C(1) << 32) * 64;
}

static int maybe(const struct segment *segment, const uint8_t *hash)
{
    if (!segment->filter)
        return 1;
    const uint8_t *block = block_of(segment->filter, segment->filter_size, hash);
    uint64_t bits = word(hash);
    for (int i = 0; i < 7; i++, bits >>= 9)
        if (!(block[(bits & 511) / 8] & (1u << (bits & 7))))
            return 0;
    return 1;
}

size_t st_filter_size(uint64_t entries) { return (size_t)((entries * 2 + 63) / 64 + 1) * 64; }

void st_filter_build(const struct st_entry *entries, size_t count, uint8_t *ret_filter, size_t size)
{
    memset(ret_filter, 0, size);
    for (size_t e = 0; e < count; e++) {
        uint8_t *block = block_of(ret_filter, size, entries[e].hash);
        uint64_t bits = word(entries[e].hash);
        for (int i = 0; i < 7; i++, bits >>= 9)
            block[(bits & 511) / 8] |= (uint8_t)(1u << (bits & 7));
    }
}

static int search(const struct st_entry *entries, uint32_t count, const uint8_t *hash, uint64_t *ret_id)
{
    uint32_t low = 0, high = count;
    while (low < high) {
        uint32_t middle = (low + high) / 2;
        int order = memcmp(entries[middle].hash, hash, ST_HASH);
        if (order == 0) {
            *ret_id = entries[middle].id;
            return 1;
        }
        if (order < 0)
            low = middle + 1;
        else
            high = middle;
    }
    return 0;
}

static size_t place(const struct st_index *index, const uint8_t *hash)
{
    size_t i = word(hash + 8) & index->mask;
    while (index->slots[i] && memcmp(index->entries[index->slots[i] - 1].hash, hash, ST_HASH))
        i = (i + 1) & index->mask;
    return i;
}

int st_index_find(const struct st_index *index, const uint8_t *hash, uint64_t *ret_id, uint64_t *ret_need)
{
    uint32_t slot = index->slots ? index->slots[place(index, hash)] : 0;
    if (slot) {
        *ret_id = index->entries[slot - 1].id;
        return 1;
    }
    for (uint32_t s = 0; s < index->segment_count; s++) {
        const struct segment *segment = &index->segments[s];
        if (!maybe(segment, hash))
            continue;
        uint32_t bucket = bucket_of(hash, segment->bits);
        if (!segment->loaded[bucket]) {
            *ret_need = (uint64_t)s << 32 | bucket;
            return 2;
        }
        if (search(segment->buckets[bucket], segment->sizes[bucket], hash, ret_id))
            return 1;
    }
    return 0;
}

static int widen(struct st_index *index)
{
    size_t mask = index->mask * 2 + 1;
    uint32_t *slots = calloc(mask + 1, sizeof(*slots));
    if (!slots)
        return -ENOMEM;
    free(index->slots);
    index->slots = slots;
    index->mask = mask;
    for (size_t e = 0; e < index->count; e++)
        slots[place(index, index->entries[e].hash)] = (uint32_t)e + 1;
    return 0;
}

int st_index_add(struct st_index *index, const uint8_t *hash, uint64_t id)
{
    if (!index->slots)
        return -EINVAL;
    if (index->count == index->room) {
        size_t room = index->room ? index->room * 2 : 4096;
        struct st_entry *entries = realloc(index->entries, room * sizeof(*entries));
        if (!entries)
            return -ENOMEM;
        index->entries = entries;
        index->room = room;
    }
    if (index->count * 2 > index->mask && widen(index) < 0)
        return -ENOMEM;
    struct st_entry *entry = &index->entries[index->count];
    memcpy(entry->hash, hash, ST_HASH);
    entry->id = id;
    index->slots[place(index, hash)] = (uint32_t)++index->count;
    return 0;
}

size_t st_index_count(const struct st_index *index) { return index->count; }

static void sort_few(struct st_entry *entries, size_t count)
{
    for (size_t i = 1; i < count; i++) {
        struct st_entry entry = entries[i];
        size_t at = i;
        for (; at && memcmp(entries[at - 1].hash, entry.hash, ST_HASH) > 0; at--)
            entries[at] = entries[at - 1];
        entries[at] = entry;
    }
}

/* By the hash's byte `at` and those behind it, in place: qsort takes as much memory again, and a million entries have 25 MB. Hashes are even,
 * so each pass leaves a 256th. */
static void sort_by_byte(struct st_entry *entries, size_t count, unsigned at)
{
    size_t ends[256] = {0}, next[256], start = 0;
    if (count < 32 || at == ST_HASH) {
        sort_few(entries, count);
        return;
    }
    for (size_t i = 0; i < count; i++)
        ends[entries[i].hash[at]]++;
    for (unsigned byte = 0; byte < 256; byte++) {
        next[byte] = start;
        start = ends[byte] += start;
    }
    for (unsigned byte = 0; byte < 256; byte++)
        while (next[byte] < ends[byte]) {
            struct st_entry *here = &entries[next[byte]], *there = &entries[next[here->hash[at]]++];
            struct st_entry entry = *here;
            *here = *there;
            *there = entry;
        }
    for (unsigned byte = 0; byte < 256; byte++)
        sort_by_byte(entries + (byte ? ends[byte - 1] : 0), ends[byte] - (byte ? ends[byte - 1] : 0), at + 1);
}

void st_entries_sort(struct st_entry *entries, size_t count) { sort_by_byte(entries, count, 0); }

struct st_entry *st_index_close(struct st_index *index)
{
    free(index->slots);
    index->slots = NULL;
    st_entries_sort(index->entries, index->count);
    return index->entries;
}

void st_entries_split(const struct st_entry *entries, size_t count, uint32_t bits, uint64_t *ret_starts)
{
    size_t at = 0;
    for (uint32_t bucket = 0; bucket < 1u << bits; bucket++) {
        ret_starts[bucket] = at;
        while (at < count && bucket_of(entries[at].hash, bits) == bucket)
            at++;
    }
    ret_starts[(size_t)1 << bits] = count;
}

size_t st_entries_keep(struct st_entry *entries, size_t count, const uint32_t *blocks, const uint8_t *const *bits, size_t block_count)
{
    size_t kept = 0;
    for (size_t e = 0; e < count; e++) {
        uint32_t slot = st_id_slot(entries[e].id);
        size_t at = st_find_block(blocks, block_count, st_id_block(entries[e].id));
        if (at == block_count || slot >= ST_SLOTS || bits[at][slot / 8] >> (slot % 8) & 1)
            entries[kept++] = entries[e];
    }
    return kept;
}
