/* One frame: what stands before the page proves it (FORMAT.md, "Packs"). */
#include <errno.h>
#include <lz4.h>
#include <string.h>

#include "reader.h"

int st_decode(const uint8_t *key, const uint8_t *frame, uint32_t length, uint64_t id, uint8_t *ret_page, uint8_t *ret_hash)
{
    uint64_t tail;
    if (length == ST_PAGE)
        memcpy(ret_page, frame + ST_HASH, ST_PAGE);
    else if (LZ4_decompress_safe((const char *)frame + ST_HASH, (char *)ret_page, (int)length, ST_PAGE) != (int)ST_PAGE)
        return -EBADMSG;
    st_hash_page(key, ret_page, ret_hash);
    memcpy(&tail, ret_hash + 8, 8);
    tail ^= id;
    return !memcmp(frame, ret_hash, 8) && !memcmp(frame + 8, &tail, 8) ? 0 : -EBADMSG;
}

int st_frame_page(st_reader *r, const uint8_t *blob, size_t size, uint64_t id, uint8_t *ret_page, uint8_t *ret_hash)
{
    uint32_t pack, frame;
    if (!st_find_place(r, st_find_known(r, st_id_block(id)), st_id_slot(id), &pack, &frame))
        return -ENOENT;
    uint32_t from = r->packs[pack].offsets[frame], length = r->packs[pack].offsets[frame + 1] - from;
    size_t prefix = r->geometry.local - st_record_header(size);
    if (prefix + from + length > size)
        return -EBADMSG;
    return st_decode(r->key, blob + prefix + from, length - ST_HASH, id, ret_page, ret_hash);
}

int64_t st_check_frames(st_reader *r, const uint8_t *blob, size_t size, struct st_entry *ret_entries)
{
    uint8_t page[ST_PAGE];
    int64_t bad = 0;
    for (size_t b = 0; b < r->block_count; b++)
        for (uint32_t slot = 0; slot < r->blocks[b].slots; slot++) {
            uint32_t pack, frame;
            if (!st_find_place(r, &r->blocks[b], slot, &pack, &frame))
                continue;
            struct st_entry *entry = &ret_entries[frame];
            entry->id = (uint64_t)r->blocks[b].number << 16 | slot;
            if (st_frame_page(r, blob, size, entry->id, page, entry->hash) < 0) {
                entry->id = 0;
                bad++;
            }
        }
    return bad;
}
