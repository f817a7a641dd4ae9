/* Extents into pieces: stretches of frames that lie one behind the other, in the order in which the file has them. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "reader.h"

/* Sorts by order, 11 bits at a time; spare: room for as many. */
static void sort_pieces(struct piece *pieces, struct piece *spare, size_t count)
{
    uint64_t most = 0;
    for (size_t i = 0; i < count; i++)
        most |= pieces[i].order;
    for (unsigned shift = 0; most >> shift; shift += 11) {
        size_t starts[2049] = {0};
        for (size_t i = 0; i < count; i++)
            starts[(pieces[i].order >> shift & 2047) + 1]++;
        for (size_t d = 0; d < 2048; d++)
            starts[d + 1] += starts[d];
        for (size_t i = 0; i < count; i++)
            spare[starts[pieces[i].order >> shift & 2047]++] = pieces[i];
        memcpy(pieces, spare, count * sizeof(*pieces));
    }
}

/* The next piece of an extent: as many contents as lie one behind the other. Returns how many. */
static uint32_t cut_one(const st_reader *r, const struct block *block, uint64_t id, uint32_t count, uint64_t out, struct piece *piece)
{
    uint32_t pack, frame, n = 1, slot = st_id_slot(id);
    *piece = (struct piece){0, id, out, 1, UINT32_MAX, 0};
    if (!st_find_place(r, block, slot, &pack, &frame))
        return 1;
    const uint32_t *places = block->places + slot;
    uint32_t here = r->packs[pack].frames - frame, known = block->slots - slot;
    uint32_t most = count < here ? count : here;
    for (most = most < known ? most : known; n < most && places[n] == places[0] + n; n++)
        ;
    uint64_t place = r->packs[pack].where ? r->packs[pack].where[0] : 0;
    *piece = (struct piece){place * ST_SLOTS + frame, id, out, n, pack, frame};
    return n;
}

#define RECENT 512u
/* The block of a content: thousands of extents name a few hundred blocks, so those found last are asked first. */
static const struct block *block_of(const st_reader *r, const struct block **recent, uint32_t number)
{
    const struct block **its = &recent[number % RECENT];
    if (!*its || (*its)->number != number)
        *its = st_find_known(r, number);
    return *its;
}

int st_cut(const st_reader *r, const struct st_extent *extents, size_t count, uint8_t *out, struct piece **ret_pieces, size_t *ret_count)
{
    const uint32_t most = CHUNK_PAGES * r->geometry.per / (ST_PAGE + ST_HASH) - 1;
    const struct block *recent[RECENT] = {NULL};
    size_t room = 0, n = 0;
    uint64_t at = 0;
    for (size_t i = 0; i < count; i++)
        room += extents[i].id == ST_ZERO_ID ? 0 : extents[i].count;
    struct piece *pieces = malloc((2 * room + 1) * sizeof(*pieces));
    if (!pieces)
        return -ENOMEM;
    for (size_t i = 0; i < count; i++) {
        const struct st_extent *e = &extents[i];
        if (e->id == ST_ZERO_ID && out)
            memset(out + at * ST_PAGE, 0, (size_t)e->count * ST_PAGE);
        const struct block *block = e->id == ST_ZERO_ID ? NULL : block_of(r, recent, st_id_block(e->id));
        for (uint32_t off = 0; e->id != ST_ZERO_ID && off < e->count; off += pieces[n++].count)
            cut_one(r, block, e->id + off, e->count - off < most ? e->count - off : most, at + off, &pieces[n]);
        at += e->count;
    }
    sort_pieces(pieces, pieces + n, n);
    pieces[n] = (struct piece){0};
    *ret_pieces = pieces;
    *ret_count = n;
    return 0;
}
