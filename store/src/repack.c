/* Frames from several packs into new ones. A frame goes with its content id, which its check has mixed in, so it is copied as it is: no
 * byte is decompressed or hashed. What belongs together is the caller's to say (upkeep.py, tending.py).
 *
 * Invariants: 1. frames keep their order; 2. a pack that cannot be what its table row says gives nothing (-EBADMSG). */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "pages.h"

struct st_packer {
    struct st_geometry geometry;
    uint32_t most, frames;
    size_t used, runs;
    uint8_t *buffer; /* the largest prefix, then frames */
    uint16_t lengths[ST_SLOTS];
    struct st_contents contents[ST_SLOTS];
};

int st_packer_new(uint32_t page_size, uint32_t most, st_packer **ret_packer)
{
    st_packer *p = most && most <= ST_SLOTS ? calloc(1, sizeof(*p)) : NULL;
    if (!p)
        return most && most <= ST_SLOTS ? -ENOMEM : -EINVAL;
    p->geometry = st_geometry(page_size);
    p->most = most;
    p->buffer = malloc(p->geometry.local + (size_t)most * (ST_HASH + ST_PAGE) + p->geometry.per);
    if (!p->buffer) {
        free(p);
        return -ENOMEM;
    }
    memset(p->buffer, 0, p->geometry.local);
    *ret_packer = p;
    return 0;
}

void st_packer_free(st_packer *p)
{
    if (p)
        free(p->buffer);
    free(p);
}

static const uint8_t *bits_of(const struct st_contents *run, const uint32_t *blocks, const uint8_t *const *bits, size_t count)
{
    size_t at = st_find_block(blocks, count, run->block);
    return at == count ? NULL : bits[at];
}

static int is_set(const uint8_t *bits, uint32_t slot) { return bits && slot < ST_SLOTS && bits[slot / 8] >> (slot % 8) & 1; }

int64_t st_contents_live(const struct st_contents *contents, size_t runs, const uint16_t *lengths, uint32_t frames, const uint32_t *blocks,
                         const uint8_t *const *bits, size_t count, uint64_t *ret_bytes)
{
    uint32_t frame = 0;
    int64_t live = 0;
    *ret_bytes = 0;
    for (size_t i = 0; i < runs; i++) {
        const uint8_t *its = bits_of(&contents[i], blocks, bits, count);
        for (uint32_t k = 0; k < contents[i].count && frame < frames; k++, frame++)
            if (is_set(its, contents[i].slot + k)) {
                live++;
                *ret_bytes += lengths[frame] + ST_HASH;
            }
    }
    return live;
}

static void append(st_packer *p, uint32_t block, uint32_t slot, const uint8_t *frame, uint32_t length)
{
    struct st_contents *last = p->runs ? &p->contents[p->runs - 1] : NULL;
    if (last && last->block == block && last->slot + last->count == (int)slot)
        last->count++;
    else
        p->contents[p->runs++] = (struct st_contents){block, (uint16_t)slot, 1};
    memcpy(p->buffer + p->geometry.local + p->used, frame, ST_HASH + (size_t)length);
    p->used += ST_HASH + (size_t)length;
    p->lengths[p->frames++] = (uint16_t)length;
}

int64_t st_packer_take(st_packer *p, const struct st_contents *contents, size_t runs, const uint16_t *lengths, uint32_t frames,
                       const uint8_t *blob, size_t size, uint32_t from, const uint32_t *blocks, const uint8_t *const *bits, size_t count, int wanted)
{
    size_t at = p->geometry.local - st_record_header(size);
    uint32_t frame = 0;
    for (size_t i = 0; i < runs; i++) {
        const uint8_t *its = bits_of(&contents[i], blocks, bits, count);
        for (uint32_t k = 0; k < contents[i].count; k++, frame++) {
            if (frame >= frames || lengths[frame] > ST_PAGE || at + ST_HASH + lengths[frame] > size)
                return -EBADMSG;
            if (frame >= from && is_set(its, contents[i].slot + k) == wanted) {
                if (p->frames == p->most)
                    return frame;
                append(p, contents[i].block, contents[i].slot + k, blob + at, lengths[frame]);
            }
            at += ST_HASH + (size_t)lengths[frame];
        }
    }
    return frame == frames ? (int64_t)frames : -EBADMSG;
}

uint32_t st_packer_pack(st_packer *p, const uint8_t **ret_blob, size_t *ret_size, const uint16_t **ret_lengths,
                        const struct st_contents **ret_contents, size_t *ret_runs)
{
    size_t prefix, size = st_blob_size(p->geometry, p->used, &prefix);
    uint8_t *blob = p->buffer + p->geometry.local - prefix;
    memset(blob + prefix + p->used, 0, size - prefix - p->used);
    *ret_blob = blob;
    *ret_size = size;
    *ret_lengths = p->lengths;
    *ret_contents = p->contents;
    *ret_runs = p->runs;
    return p->frames;
}

void st_packer_emptied(st_packer *p)
{
    p->frames = 0;
    p->used = p->runs = 0;
}
