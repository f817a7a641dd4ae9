/* What a reader knows: which contents each pack holds, how long their frames are, and where in the file the pack's bytes lie.
 *
 * Invariant: where bytes lie is a guess, by the file's pointer maps or the chain of overflow pages; frames prove themselves. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "reader.h"

int st_reader_new(int fd, const uint8_t *key, uint32_t page_size, uint32_t root, st_reader **ret_reader)
{
    st_reader *r = calloc(1, sizeof(*r));
    if (!r)
        return -ENOMEM;
    r->fd = fd;
    r->root = root;
    r->chain = (struct st_chain){.fd = fd, .page_size = page_size};
    r->geometry = st_geometry(page_size);
    memcpy(r->key, key, sizeof(r->key));
    *ret_reader = r;
    return 0;
}

void st_reader_free(st_reader *r)
{
    for (size_t i = 0; r && i < r->count; i++) {
        free(r->packs[i].offsets);
        free(r->packs[i].where);
    }
    for (size_t i = 0; r && i < r->block_count; i++)
        free(r->blocks[i].places);
    if (r) {
        free(r->packs);
        free(r->blocks);
        st_chain_free(&r->chain);
    }
    free(r);
}

int st_find_pages(st_reader *r, struct pack *pack, int walk)
{
    uint32_t page;
    if (walk)
        r->leaf[0] = 0;
    int e = st_locate_first(r->fd, r->geometry, r->root, pack->number, r->leaf, &page);
    if (e < 0)
        return e;
    uint32_t *where = pack->where ? pack->where : malloc((pack->file_pages + 1) * sizeof(*where));
    if (!where)
        return -ENOMEM;
    for (uint32_t i = 0; i < pack->file_pages; i++) {
        uint8_t next[4];
        where[i] = page ? page : UINT32_MAX;
        if (!walk)
            page = i + 1 < pack->file_pages && page ? st_chain_next(&r->chain, page) : 0;
        else if (page && pread(r->fd, next, 4, (off_t)(page - 1) * r->geometry.page_size) == 4)
            page = (uint32_t)next[0] << 24 | (uint32_t)next[1] << 16 | (uint32_t)next[2] << 8 | next[3];
    }
    pack->where = where;
    return 0;
}

/* The position of the first block whose number is not less. */
static size_t first_block(const st_reader *r, uint32_t number)
{
    size_t low = 0, high = r->block_count;
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (r->blocks[middle].number < number)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

const struct block *st_find_known(const st_reader *r, uint32_t number)
{
    size_t at = first_block(r, number);
    return at < r->block_count && r->blocks[at].number == number ? &r->blocks[at] : NULL;
}

/* The block of this number, made in its place where it is new; NULL: no memory. */
static struct block *make_block(st_reader *r, uint32_t number)
{
    size_t at = first_block(r, number);
    if (at < r->block_count && r->blocks[at].number == number)
        return &r->blocks[at];
    if (r->block_count == r->block_room) {
        size_t room = r->block_room ? r->block_room * 2 : 64;
        struct block *blocks = realloc(r->blocks, room * sizeof(*blocks));
        if (!blocks)
            return NULL;
        r->blocks = blocks;
        r->block_room = room;
    }
    memmove(r->blocks + at + 1, r->blocks + at, (r->block_count++ - at) * sizeof(*r->blocks));
    r->blocks[at] = (struct block){.number = number};
    return &r->blocks[at];
}

static int set_places(st_reader *r, const struct st_contents *run, uint32_t frame)
{
    struct block *block = make_block(r, run->block);
    uint32_t end = (uint32_t)run->slot + run->count;
    if (!block)
        return -ENOMEM;
    if (end > ST_SLOTS)
        return -EBADMSG;
    if (end > block->slots) {
        uint32_t *places = realloc(block->places, end * sizeof(*places));
        if (!places)
            return -ENOMEM;
        memset(places + block->slots, 0, (end - block->slots) * sizeof(*places));
        block->places = places;
        block->slots = end;
    }
    for (uint32_t k = 0; k < run->count; k++)
        block->places[run->slot + k] = (uint32_t)r->count * ST_SLOTS + frame + k + 1;
    return 0;
}

static int add_places(st_reader *r, const struct st_contents *contents, size_t runs, uint32_t frames)
{
    uint32_t frame = 0;
    for (size_t i = 0; i < runs; i++) {
        int e = frame + contents[i].count <= frames ? set_places(r, &contents[i], frame) : -EBADMSG;
        if (e < 0)
            return e;
        frame += contents[i].count;
    }
    return frame == frames ? 0 : -EBADMSG;
}

int st_reader_pack(st_reader *r, uint32_t number, const struct st_contents *contents, size_t runs, const uint16_t *lengths, uint32_t frames)
{
    if (frames > ST_SLOTS || r->count >= UINT32_MAX / ST_SLOTS - 1)
        return -EBADMSG;
    if (r->count == r->room) {
        size_t room = r->room ? r->room * 2 : 64;
        struct pack *packs = realloc(r->packs, room * sizeof(*packs));
        if (!packs)
            return -ENOMEM;
        r->packs = packs;
        r->room = room;
    }
    struct pack *pack = &r->packs[r->count];
    *pack = (struct pack){.number = number, .frames = frames, .offsets = malloc((frames + 1) * sizeof(uint32_t))};
    if (!pack->offsets)
        return -ENOMEM;
    uint32_t at = 0;
    int e = 0;
    for (uint32_t i = 0; i < frames; i++) {
        pack->offsets[i] = at;
        at += lengths[i] + ST_HASH;
        e = lengths[i] > ST_PAGE || !lengths[i] ? -EBADMSG : e;
    }
    pack->offsets[frames] = at;
    pack->file_pages = (at + r->geometry.per - 1) / r->geometry.per;
    e = e < 0 ? e : add_places(r, contents, runs, frames);
    if (e < 0) { /* places that were set name a pack that is not counted: st_find_place takes them for unknown */
        free(pack->offsets);
        return e;
    }
    if (r->fd >= 0)
        st_find_pages(r, pack, 0);
    r->count++;
    return 0;
}
