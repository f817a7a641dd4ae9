/* Pages in, packs out. A batch of up to ST_BATCH pages goes through four steps: hash (two threads), look up, compress what is new
 * (two threads), append to the pack being filled. The caller stores packs and loads buckets of the index when step asks for it;
 * a step that returned early is simply called again.
 *
 * Invariants
 *   1. Memory is bounded: one pack, one batch, 24 bytes for each content that is new in the session, and the layouts.
 *   2. A batch is looked up whole before any of it is appended, and appended whole into one pack.
 *   3. Counts and map only ever hold pages that are in a pack that was handed out or is being filled. */
#include <errno.h>
#include <lz4.h>
#include <stdlib.h>
#include <string.h>

#include "pages.h"

#define FRAME_MAX (ST_HASH + ST_PAGE)
#define WORTH (ST_PAGE - ST_PAGE / 16) /* a frame that saves less is stored as it is: no time lost when it is read */
#define UNKNOWN ST_ABSENT_ID

struct item { uint64_t page; const uint8_t *bytes; uint32_t count; }; /* bytes NULL: count zero pages */

struct st_writer {
    uint8_t key[32];
    struct st_geometry geometry;
    struct st_index *index;
    uint32_t pack, slots;
    uint8_t *buffer; /* the largest prefix, then frames */
    size_t used;
    uint16_t lengths[ST_SLOTS];
    const struct st_run *runs;
    size_t run_count, run_at;
    uint32_t run_offset;
    const uint8_t *data, *data_end;
    struct item items[ST_BATCH * 2];
    uint32_t item_count, pages, hashed;
    uint32_t item_of[ST_BATCH];
    uint8_t hashes[ST_BATCH][ST_HASH];
    uint64_t ids[ST_BATCH];
    uint32_t fresh[ST_BATCH], fresh_count;
    uint16_t sizes[ST_BATCH];
    uint8_t *scratch;
    uint64_t needs[ST_BATCH];
    size_t need_count;
    st_map *map;
    struct st_counts counts;
};

static uint8_t *new_buffer(const st_writer *w)
{
    uint8_t *buffer = malloc(w->geometry.local + (size_t)ST_SLOTS * FRAME_MAX + w->geometry.per);
    if (buffer)
        memset(buffer, 0, w->geometry.local);
    return buffer;
}

int st_writer_new(const uint8_t *key, uint32_t first_pack, uint32_t page_size, st_writer **ret_writer)
{
    st_writer *w = calloc(1, sizeof(*w));
    if (!w)
        return -ENOMEM;
    memcpy(w->key, key, sizeof(w->key));
    w->geometry = st_geometry(page_size);
    w->pack = first_pack;
    w->scratch = malloc((size_t)ST_BATCH * ST_PAGE);
    w->buffer = new_buffer(w);
    if (!w->scratch || !w->buffer || st_index_new(&w->index) < 0 || st_map_new(&w->map) < 0) {
        st_writer_free(w);
        return -ENOMEM;
    }
    *ret_writer = w;
    return 0;
}

void st_writer_free(st_writer *w)
{
    if (!w)
        return;
    st_index_free(w->index);
    st_map_free(w->map);
    free(w->scratch);
    free(w->buffer);
    free(w);
}

int st_writer_segment(st_writer *w, uint64_t entries, uint32_t bits, const uint8_t *filter, size_t size) { return st_index_segment(w->index, entries, bits, filter, size); }
int st_writer_bucket(st_writer *w, uint32_t segment, uint32_t bucket, const uint8_t *entries, size_t size) { return st_index_bucket(w->index, segment, bucket, entries, size); }
size_t st_writer_new_count(const st_writer *w) { return st_index_count(w->index); }
struct st_entry *st_writer_close(st_writer *w) { return st_index_close(w->index); }
void st_writer_counts(const st_writer *w, struct st_counts *ret_counts) { *ret_counts = w->counts; }

size_t st_writer_needs(const st_writer *w, const uint64_t **ret_needs)
{
    *ret_needs = w->needs;
    return w->need_count;
}

st_map *st_writer_take_map(st_writer *w)
{
    st_map *map = w->map;
    return st_map_new(&w->map) < 0 ? (w->map = map, NULL) : map;
}

int st_writer_feed(st_writer *w, const struct st_run *runs, size_t count, const uint8_t *data, uint64_t data_pages)
{
    uint64_t pages = 0, end = 0;
    for (size_t i = 0; i < count; i++) {
        if (runs[i].page < end || runs[i].content > ST_ZERO || !runs[i].count)
            return -EINVAL;
        end = runs[i].page + runs[i].count;
        pages += runs[i].content == ST_DATA ? runs[i].count : 0;
    }
    if (pages != data_pages)
        return -EINVAL;
    w->runs = runs;
    w->run_count = count;
    w->run_at = w->run_offset = 0;
    w->data = data;
    w->data_end = data + data_pages * ST_PAGE;
    w->item_count = w->pages = w->hashed = 0;
    return 0;
}

static void gather(st_writer *w)
{
    while (w->run_at < w->run_count && w->pages < ST_BATCH && w->item_count < ST_BATCH * 2) {
        const struct st_run *run = &w->runs[w->run_at];
        if (run->content == ST_ZERO) {
            w->items[w->item_count++] = (struct item){run->page, NULL, run->count};
            w->run_at++;
            continue;
        }
        w->item_of[w->pages++] = w->item_count;
        w->items[w->item_count++] = (struct item){run->page + w->run_offset, w->data, 1};
        w->data += ST_PAGE;
        if (++w->run_offset == run->count) {
            w->run_at++;
            w->run_offset = 0;
        }
    }
}

static int is_zero(const uint8_t *page)
{
    uint64_t first;
    memcpy(&first, page, 8);
    return !first && !memcmp(page, page + 8, ST_PAGE - 8);
}

static void hash_pages(void *context, size_t from, size_t to)
{
    st_writer *w = context;
    for (size_t i = from; i < to; i++) {
        const uint8_t *page = w->items[w->item_of[i]].bytes;
        w->ids[i] = is_zero(page) ? ST_ZERO_ID : UNKNOWN;
        if (w->ids[i] == UNKNOWN)
            st_hash_page(w->key, page, w->hashes[i]);
    }
}

static int by_need(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}

/* Finds what is known; what must be loaded first goes to needs, each bucket once. */
static void look_up(st_writer *w)
{
    w->need_count = 0;
    for (uint32_t i = 0; i < w->pages; i++)
        if (w->ids[i] == UNKNOWN && st_index_find(w->index, w->hashes[i], &w->ids[i], &w->needs[w->need_count]) == 2)
            w->need_count++;
    qsort(w->needs, w->need_count, sizeof(*w->needs), by_need);
    size_t kept = 0;
    for (size_t i = 0; i < w->need_count; i++)
        if (!kept || w->needs[kept - 1] != w->needs[i])
            w->needs[kept++] = w->needs[i];
    w->need_count = kept;
}

/* Gives new contents their ids; a content that is twice in the batch becomes one. */
static int number_fresh(st_writer *w)
{
    uint64_t need;
    w->fresh_count = 0;
    for (uint32_t i = 0; i < w->pages; i++) {
        if (w->ids[i] == ST_ZERO_ID) {
            w->counts.zero++;
            continue;
        }
        if (w->ids[i] != UNKNOWN || st_index_find(w->index, w->hashes[i], &w->ids[i], &need) == 1) {
            w->counts.deduplicated++;
            continue;
        }
        w->ids[i] = (uint64_t)w->pack << 16 | (w->slots + w->fresh_count);
        int r = st_index_add(w->index, w->hashes[i], w->ids[i]);
        if (r < 0)
            return r;
        w->fresh[w->fresh_count++] = i;
        w->counts.stored++;
    }
    return 0;
}

static void compress_pages(void *context, size_t from, size_t to)
{
    st_writer *w = context;
    for (size_t i = from; i < to; i++) {
        const char *page = (const char *)w->items[w->item_of[w->fresh[i]]].bytes;
        int size = LZ4_compress_default(page, (char *)w->scratch + i * ST_PAGE, ST_PAGE, WORTH);
        w->sizes[i] = (uint16_t)(size > 0 ? (uint32_t)size : ST_PAGE);
    }
}

/* A frame: the page's hash with its id mixed in (so a frame found at the wrong place is never taken for another), then the bytes. */
static void append_frames(st_writer *w)
{
    for (uint32_t i = 0; i < w->fresh_count; i++) {
        uint32_t page = w->fresh[i], size = w->sizes[i];
        uint8_t *frame = w->buffer + w->geometry.local + w->used;
        uint64_t tail;
        memcpy(&tail, w->hashes[page] + 8, 8);
        tail ^= w->ids[page];
        memcpy(frame, w->hashes[page], 8);
        memcpy(frame + 8, &tail, 8);
        memcpy(frame + ST_HASH, size == ST_PAGE ? w->items[w->item_of[page]].bytes : w->scratch + (size_t)i * ST_PAGE, size);
        w->lengths[w->slots++] = (uint16_t)size;
        w->used += ST_HASH + size;
        w->counts.bytes_stored += ST_HASH + size;
    }
}

static int append_map(st_writer *w)
{
    uint32_t page = 0;
    int r = 0;
    for (uint32_t i = 0; r == 0 && i < w->item_count; i++) {
        const struct item *item = &w->items[i];
        if (!item->bytes)
            w->counts.zero += item->count;
        r = st_map_append(w->map, item->page, item->bytes ? w->ids[page] : ST_ZERO_ID, item->count);
        page += item->bytes != NULL;
    }
    return r;
}

static int take_batch(st_writer *w)
{
    int r = number_fresh(w);
    if (r < 0)
        return r;
    st_parallel(compress_pages, w, w->fresh_count, 64);
    append_frames(w);
    r = append_map(w);
    w->counts.read = w->counts.zero + w->counts.deduplicated + w->counts.stored;
    w->item_count = w->pages = w->hashed = 0;
    return r;
}

int st_writer_step(st_writer *w)
{
    for (;;) {
        if (!w->item_count)
            gather(w);
        if (!w->item_count)
            return ST_DONE;
        if (!w->hashed)
            st_parallel(hash_pages, w, w->pages, 128);
        w->hashed = 1;
        look_up(w);
        if (w->need_count)
            return ST_BUCKETS;
        if (w->slots + w->pages > ST_SLOTS)
            return ST_PACK;
        int r = take_batch(w);
        if (r < 0)
            return r;
    }
}

uint32_t st_writer_pack(st_writer *w, uint32_t *ret_pack, const uint8_t **ret_blob, size_t *ret_size, const uint16_t **ret_lengths)
{
    size_t prefix, size = st_blob_size(w->geometry, w->used, &prefix);
    uint8_t *blob = w->buffer + w->geometry.local - prefix;
    memset(blob + prefix + w->used, 0, size - prefix - w->used);
    *ret_pack = w->pack;
    *ret_blob = blob;
    *ret_size = size;
    *ret_lengths = w->lengths;
    return w->slots;
}

void st_writer_packed(st_writer *w)
{
    w->pack++;
    w->slots = 0;
    w->used = 0;
}

uint8_t *st_writer_take_pack(st_writer *w)
{
    uint8_t *fresh = new_buffer(w), *full = w->buffer;
    if (!fresh)
        return NULL;
    w->buffer = fresh;
    st_writer_packed(w);
    return full;
}
