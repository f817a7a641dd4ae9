/* What the reader's files share: what is known of packs and blocks (places.c), stretches of frames in the file's order (pieces.c), one
 * frame (frame.c), reading (reader.c) and asking ahead (prefetch.c). */
#ifndef ST_READER_H
#define ST_READER_H
#include "pages.h"

#define CHUNK_PAGES 16u /* file pages in one read, at most */
#define GAP (8u * 1024) /* bytes between two frames that are cheaper to read than to skip: measured */

struct pack {
    uint32_t number, frames, file_pages;
    uint32_t *offsets; /* frames + 1 */
    uint32_t *where;   /* file page of each overflow page; NULL: not found */
};
/* Where the contents of a block lie: pack * ST_SLOTS + frame + 1 for each slot, 0 where no pack that is known has it. */
struct block { uint32_t number, slots; uint32_t *places; };
struct st_reader {
    int fd;
    uint8_t key[32];
    struct st_geometry geometry;
    uint32_t root;
    struct pack *packs;
    size_t count, room;
    struct block *blocks; /* sorted */
    size_t block_count, block_room;
    struct st_chain chain;
    uint8_t leaf[65536]; /* of st_locate_first */
};

/* places.c. The block of this number, NULL where nothing is known of it. */
const struct block *st_find_known(const st_reader *reader, uint32_t number);
/* Which pack and frame hold a content; 0 where that is not known. */
static inline int st_find_place(const st_reader *r, const struct block *block, uint32_t slot, uint32_t *ret_pack, uint32_t *ret_frame)
{
    uint32_t place = block && slot < block->slots ? block->places[slot] : 0;
    if (!place || (place - 1) / ST_SLOTS >= r->count)
        return 0;
    *ret_pack = (place - 1) / ST_SLOTS;
    *ret_frame = (place - 1) % ST_SLOTS;
    return *ret_frame < r->packs[*ret_pack].frames;
}
/* Where the pack's overflow pages are by the pointer maps; by the chain itself when `walk`. Written in place where it was known: a prefetch
 * of the next window may be looking. */
int st_find_pages(st_reader *reader, struct pack *pack, int walk);

/* A stretch of frames of one pack, and where its first page goes. Sorted by order: the pack's place in the file, then the frame. */
struct piece { uint64_t order, id, out; uint32_t count, pack, frame; };
/* pieces.c. Cuts extents into pieces that fit a chunk, in the file's order; behind the last stands an empty one. The caller frees them.
 * Zero pages are filled in at once (out may be NULL). A content whose place is not known is a piece of the pack UINT32_MAX. */
int st_cut(const st_reader *reader, const struct st_extent *extents, size_t count, uint8_t *out, struct piece **ret_pieces, size_t *ret_count);

/* frame.c. -EBADMSG where the frame of `length` bytes behind its check does not give the page that was stored under this id. */
int st_decode(const uint8_t *key, const uint8_t *frame, uint32_t length, uint64_t id, uint8_t *ret_page, uint8_t *ret_hash);
#endif
