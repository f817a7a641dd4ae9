#ifndef CKPT_STORE_H
#define CKPT_STORE_H
#include <stddef.h>
#include <stdint.h>
/* The store's C module: hashes, frames, layouts. It knows pages, ids and bytes; SQL belongs to the Python beside it.
 * This header is also the cffi cdef: only handles, integers, caller-owned buffers and errno cross. Functions return 0 or
 * a negative errno; what they give back comes in ret_ arguments, written only on success. Format: store/FORMAT.md. */

/* A run of pages as rooms exchange it (struct ckpt_run of ARCHITECTURE.md). */
struct st_run {
    uint64_t page;
    uint32_t count;
    uint32_t content; /* enum st_content */
};
enum st_content { ST_DATA = 0, ST_ZERO = 1, ST_SAME = 2, ST_ABSENT = 3 };

/* Consecutive pages with consecutive contents. A content id is block << 16 | slot; it names bytes for ever. Where they lie is the packs' to say. */
struct st_extent {
    uint64_t page;
    uint64_t id; /* of the first page; every page of the extent has 0 (zero page) or ~0 (absent) where that is the first's */
    uint32_t count;
    uint32_t pad;
};

/* ---- layouts: which content a space holds at which page (map.c, map_codec.c) ---- */
typedef struct st_map st_map;
int st_map_new(st_map **ret_map);
void st_map_free(st_map *map);
size_t st_map_extents(const st_map *map, const struct st_extent **ret_extents);
uint64_t st_map_pages(const st_map *map, uint64_t *ret_zero);
/* -ERANGE when the extent does not lie behind the last one. */
int st_map_append(st_map *map, uint64_t page, uint64_t id, uint32_t count);
/* Appends many, with the same demand. */
int st_map_append_all(st_map *map, const struct st_extent *extents, size_t count);
/* Top wins over base; what top calls absent is gone. */
int st_map_overlay(const st_map *base, const st_map *top, st_map **ret_map);
/* What overlaid on a gives b: b's contents where they differ, absent where only a has a page. */
int st_map_diff(const st_map *a, const st_map *b, st_map **ret_map);
/* The pages that layout names, with top's contents or, where it has none, base's: -ENODATA and the page when one is unknown, -EINVAL when unsorted. */
int st_map_select(const st_map *base, const st_map *top, const struct st_run *layout, size_t count, st_map **ret_map, uint64_t *ret_page);
/* Pages at the same or another place in b whose content is in a too (zero pages aside). */
int st_map_shared(const st_map *a, const st_map *b, uint64_t *ret_pages);
/* The map as runs: DATA, ZERO and ABSENT, neighbours joined; into a buffer of as many runs as there are extents. Returns how many. */
size_t st_map_runs(const st_map *map, struct st_run *ret_runs);
/* The extents again, cut so that window w is extents ret_starts[w] .. ret_starts[w + 1] with `limit` pages (the last: what is left).
 * Both arrays are the caller's, by st_free. */
int st_map_windows(const st_map *map, uint64_t limit, struct st_extent **ret_extents, uint64_t **ret_starts, size_t *ret_windows);
/* Sorted distinct blocks that the map names; returns how many there are, fills up to cap. */
int64_t st_map_blocks(const st_map *map, uint32_t *ret_blocks, size_t cap);
/* Sets bit (slot) of every content of these sorted blocks that the map names, 2048 bits a block; -EBADMSG: it names one beyond them. */
int st_map_mark(const st_map *map, const uint32_t *blocks, uint8_t *const *bits, size_t count);
/* Versioned and compressed. Caller frees by st_free. */
int st_map_encode(const st_map *map, uint8_t **ret_bytes, size_t *ret_size);
/* -EBADMSG when the bytes are not what encode wrote. */
int st_map_decode(const uint8_t *bytes, size_t size, st_map **ret_map);
void st_free(void *pointer);

/* ---- writing: pages in, packs out (writer.c, index.c) ---- */
typedef struct st_writer st_writer;
struct st_counts {
    uint64_t read, zero, deduplicated, stored, bytes_stored;
};
struct st_entry { /* of the index; sorted by hash as bytes */
    uint8_t hash[16];
    uint64_t id;
};
enum st_step { ST_DONE = 0, ST_PACK = 1, ST_BUCKETS = 2 };
int st_writer_new(const uint8_t *key, uint32_t first_pack, uint32_t page_size, st_writer **ret_writer);
void st_writer_free(st_writer *writer);
/* One segment of the index: its filter (NULL: none) is copied; buckets come later, when asked for. Returns its number. */
int st_writer_segment(st_writer *writer, uint64_t entries, uint32_t bucket_bits, const uint8_t *filter, size_t filter_size);
int st_writer_bucket(st_writer *writer, uint32_t segment, uint32_t bucket, const uint8_t *entries, size_t size);
/* Lends runs and data until step says ST_DONE. */
int st_writer_feed(st_writer *writer, const struct st_run *runs, size_t count, const uint8_t *data, uint64_t data_pages);
/* ST_DONE, ST_PACK (store st_writer_pack, then st_writer_packed), ST_BUCKETS (load st_writer_needs, then go on), or -errno. */
int st_writer_step(st_writer *writer);
size_t st_writer_needs(const st_writer *writer, const uint64_t **ret_needs); /* segment << 32 | bucket */
/* The pack being filled: its number, the BLOB as it goes into the file, one u16 a frame. 0 frames: nothing to store. */
uint32_t st_writer_pack(st_writer *writer, uint32_t *ret_pack, const uint8_t **ret_blob, size_t *ret_size, const uint16_t **ret_lengths);
/* It is stored: the next one begins. st_writer_take_pack gives the bytes away with it: the caller frees them by st_free; NULL: no memory. */
void st_writer_packed(st_writer *writer);
uint8_t *st_writer_take_pack(st_writer *writer);
/* What the last feed brought: sorted extents. */
st_map *st_writer_take_map(st_writer *writer);
void st_writer_counts(const st_writer *writer, struct st_counts *ret_counts);
/* Contents new in this session: how many, and at the end, sorted by hash and lent as long as the writer lives; then it takes no more pages. */
size_t st_writer_new_count(const st_writer *writer);
struct st_entry *st_writer_close(st_writer *writer);
void st_entries_sort(struct st_entry *entries, size_t count);
/* Bytes of a filter for so many entries, and the filter. */
size_t st_filter_size(uint64_t entries);
void st_filter_build(const struct st_entry *entries, size_t count, uint8_t *ret_filter, size_t size);
/* Drops, in place, entries of these blocks whose bit is not set; returns how many stay. */
size_t st_entries_keep(struct st_entry *entries, size_t count, const uint32_t *blocks, const uint8_t *const *bits, size_t block_count);
/* ret_starts[b] = first entry of bucket b, 2^bits + 1 values. */
void st_entries_split(const struct st_entry *entries, size_t count, uint32_t bits, uint64_t *ret_starts);

/* ---- packs: where contents lie (repack.c) ---- */
/* Frames of a pack that hold consecutive contents of one block; packs.contents is an array of these, in the frames' order. */
struct st_contents {
    uint32_t block;
    uint16_t slot, count;
};
/* How many of the pack's frames hold contents whose bit is set, and their bytes; blocks that are not named have no bit. */
int64_t st_contents_live(const struct st_contents *contents, size_t runs, const uint16_t *lengths, uint32_t frames, const uint32_t *blocks,
                         const uint8_t *const *bits, size_t count, uint64_t *ret_bytes);
typedef struct st_packer st_packer;
/* Puts frames of several packs together into new ones of up to `most` frames. */
int st_packer_new(uint32_t page_size, uint32_t most, st_packer **ret_packer);
void st_packer_free(st_packer *packer);
/* Copies the frames from number `from` on whose bit is `wanted`, until the pack is full. Returns the frame to go on with, `frames` at the end;
 * -EBADMSG when the parts do not fit each other. */
int64_t st_packer_take(st_packer *packer, const struct st_contents *contents, size_t runs, const uint16_t *lengths, uint32_t frames,
                       const uint8_t *blob, size_t size, uint32_t from, const uint32_t *blocks, const uint8_t *const *bits, size_t count, int wanted);
/* The pack so far; lent until the packer takes again. 0: nothing. */
uint32_t st_packer_pack(st_packer *packer, const uint8_t **ret_blob, size_t *ret_size, const uint16_t **ret_lengths,
                        const struct st_contents **ret_contents, size_t *ret_runs);
void st_packer_emptied(st_packer *packer);

/* ---- flush.c: until it is stopped, what is written to the file goes to the disk early ---- */
typedef struct st_flusher st_flusher;
int st_flusher_start(int fd, st_flusher **ret_flusher);
void st_flusher_stop(st_flusher *flusher); /* NULL: nothing */

/* ---- reading (reader.c, locate.c) ---- */
typedef struct st_reader st_reader;
int st_reader_new(int fd, const uint8_t *key, uint32_t page_size, uint32_t root, st_reader **ret_reader);
void st_reader_free(st_reader *reader);
/* What the reader must know of a pack before it reads from it; contents and lengths as the table has them. Each pack once. */
int st_reader_pack(st_reader *reader, uint32_t pack, const struct st_contents *contents, size_t runs, const uint16_t *lengths, uint32_t frames);
/* Asks the kernel to bring in what these extents need; returns at once. */
int st_reader_prefetch(st_reader *reader, const struct st_extent *extents, size_t count);
/* Pages in the extents' order. bad: indexes of pages that did not come out right, up to cap; ret_bad: how many there are. */
int st_reader_read(st_reader *reader, const struct st_extent *extents, size_t count, uint8_t *ret_pages, uint64_t *bad, size_t cap, size_t *ret_bad);
/* One page from a pack's BLOB as SQL gave it: -EBADMSG when its bytes are not those that were stored, -ENOENT when the reader knows no place. */
int st_frame_page(st_reader *reader, const uint8_t *blob, size_t size, uint64_t id, uint8_t *ret_page, uint8_t *ret_hash);
/* Every frame of the reader's only pack, with the content's hash and id; id 0 where the frame is bad. Returns how many are bad. */
int64_t st_check_frames(st_reader *reader, const uint8_t *blob, size_t size, struct st_entry *ret_entries);
void st_hash_page(const uint8_t *key, const uint8_t *page, uint8_t *ret_hash);
#endif
