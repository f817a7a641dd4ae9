/* What the files of the store's C module share. */
#ifndef ST_PAGES_H
#define ST_PAGES_H

#ifdef __cplusplus
extern "C" {
#endif
#include "ckpt_store.h"

#define ST_PAGE 4096u
#define ST_HASH 16u
#define ST_SLOTS 2048u /* contents in a block and frames in a pack, at most; fits the 16 bits of a slot */
#define ST_BATCH 256u /* pages hashed and compressed at a time: more would only touch more fresh memory */
#define ST_ZERO_ID UINT64_C(0)
#define ST_ABSENT_ID (~UINT64_C(0))

static inline uint32_t st_id_block(uint64_t id) { return (uint32_t)(id >> 16); }
static inline uint32_t st_id_slot(uint64_t id) { return (uint32_t)(id & 0xffff); }
/* The id of the page `off` pages into an extent that begins with id. */
static inline uint64_t st_id_at(uint64_t id, uint64_t off) { return id == ST_ZERO_ID || id == ST_ABSENT_ID ? id : id + off; }

/* The position of a block in a sorted array; count when it is not there. */
static inline size_t st_find_block(const uint32_t *blocks, size_t count, uint32_t block)
{
    size_t low = 0, high = count;
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (blocks[middle] < block)
            low = middle + 1;
        else
            high = middle;
    }
    return low < count && blocks[low] == block ? low : count;
}

/* How SQLite lays a BLOB out (its file format, section "B-tree Cell Format"): of a row too big for its page, `local` bytes stay in
 * the leaf and the rest goes to overflow pages, each a 4-byte next number and `per` bytes. We choose the BLOB's size so that the
 * leaf keeps exactly the least it may: then frames begin with an overflow page and the reader can compute where each one is. */
struct st_geometry {
    uint32_t page_size;
    uint32_t per;   /* payload bytes of one overflow page */
    uint32_t local; /* payload bytes in the leaf, the record's header included */
};
struct st_geometry st_geometry(uint32_t page_size);
/* Bytes of the record's header for a BLOB of this size in the table pack_data (rowid alias, BLOB). */
uint32_t st_record_header(size_t blob);
/* Size of the BLOB that holds so many bytes of frames; *ret_prefix: where the frames begin in it. */
size_t st_blob_size(struct st_geometry geometry, size_t frames_bytes, size_t *ret_prefix);

/* Runs work(context, from, to) over 0..count in up to two threads. */
void st_parallel(void (*work)(void *context, size_t from, size_t to), void *context, size_t count, size_t least);

/* index.c: contents known to the writer. */
struct st_index;
int st_index_new(struct st_index **ret_index);
void st_index_free(struct st_index *index);
int st_index_segment(struct st_index *index, uint64_t entries, uint32_t bits, const uint8_t *filter, size_t filter_size);
int st_index_bucket(struct st_index *index, uint32_t segment, uint32_t bucket, const uint8_t *entries, size_t size);
/* 1 and the id; 0: not there; 2: *ret_need must be loaded first. */
int st_index_find(const struct st_index *index, const uint8_t *hash, uint64_t *ret_id, uint64_t *ret_need);
int st_index_add(struct st_index *index, const uint8_t *hash, uint64_t id);
size_t st_index_count(const struct st_index *index);
/* The new ones, sorted, lent; nothing can be added any more. */
struct st_entry *st_index_close(struct st_index *index);

/* locate.c: the file pages of a pack's BLOB. leaf_page: a page's room, zeroed at first, in which the last leaf is kept. */
int st_locate_first(int fd, struct st_geometry geometry, uint32_t root, uint32_t pack, uint8_t *leaf_page, uint32_t *ret_first);
/* chain.c: the order of overflow pages, from the pointer maps of an auto-vacuum file. */
struct st_chain { int fd; uint32_t page_size, pages, groups; uint8_t **maps; uint32_t *next; };
void st_chain_free(struct st_chain *chain);
/* The overflow page behind `page`; 0: not known. */
uint32_t st_chain_next(struct st_chain *chain, uint32_t page);
#ifdef __cplusplus
}
#endif
#endif
