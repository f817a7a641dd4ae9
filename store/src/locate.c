/* Finds the first overflow page of a pack's BLOB in the database file, by SQLite's documented file format, without SQLite: so a
 * read needs no lock and can be as large and as parallel as the disk likes. What is found is only a guess to its callers: the
 * file may change under us, and every frame proves itself by its hash. */
#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "pages.h"

static uint32_t be32(const uint8_t *p) { return (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3]; }
static uint32_t be16(const uint8_t *p) { return (uint32_t)p[0] << 8 | p[1]; }

static const uint8_t *varint(const uint8_t *p, const uint8_t *end, uint64_t *ret)
{
    uint64_t v = 0;
    for (int i = 0; i < 9 && p < end; i++) {
        if (i == 8) {
            *ret = v << 8 | *p++;
            return p;
        }
        v = v << 7 | (*p & 0x7f);
        if (!(*p++ & 0x80)) {
            *ret = v;
            return p;
        }
    }
    return end;
}

static uint64_t cell_key(const uint8_t *page, uint32_t page_size, uint32_t head, uint32_t i, int leaf, const uint8_t **ret_after)
{
    uint64_t key = 0, payload;
    const uint8_t *end = page + page_size, *cell = page + be16(page + head + 2 * i);
    cell = leaf ? varint(cell, end, &payload) : cell + 4;
    *ret_after = cell < end ? varint(cell, end, &key) : end;
    return key;
}

/* The position of the first cell whose key is not less. */
static uint32_t lower(const uint8_t *page, uint32_t page_size, uint32_t head, uint32_t cells, int leaf, uint64_t key)
{
    uint32_t low = 0, high = cells;
    const uint8_t *after;
    while (low < high) {
        uint32_t middle = (low + high) / 2;
        if (cell_key(page, page_size, head, middle, leaf, &after) < key)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

/* The first overflow page of the cell with this key in a leaf: -ENOENT when the key is not there. */
static int leaf_first(const uint8_t *page, struct st_geometry geometry, uint32_t cells, uint32_t pack, uint32_t *ret_first)
{
    const uint8_t *after;
    uint32_t at = lower(page, geometry.page_size, 8, cells, 1, pack);
    if (at == cells || cell_key(page, geometry.page_size, 8, at, 1, &after) != pack)
        return -ENOENT;
    if (after + geometry.local + 4 > page + geometry.page_size)
        return -EBADMSG;
    *ret_first = be32(after + geometry.local);
    return 0;
}

int st_locate_first(int fd, struct st_geometry geometry, uint32_t root, uint32_t pack, uint8_t *leaf_page, uint32_t *ret_first)
{
    uint8_t page[65536];
    uint32_t size = geometry.page_size, number = root;
    /* Packs are asked for in order and a leaf holds several: the last leaf often has the next one too. */
    if (leaf_page[0] == 0x0d && leaf_first(leaf_page, geometry, be16(leaf_page + 3), pack, ret_first) == 0)
        return 0;
    for (int depth = 0; depth < 20 && number; depth++) {
        if (pread(fd, page, size, (off_t)(number - 1) * size) != (ssize_t)size)
            return -EIO;
        int leaf = page[0] == 0x0d;
        uint32_t cells = be16(page + 3), head = leaf ? 8 : 12;
        if ((!leaf && page[0] != 0x05) || head + 2 * cells > size)
            return -EBADMSG;
        if (leaf) {
            memcpy(leaf_page, page, size);
            return leaf_first(page, geometry, cells, pack, ret_first);
        }
        uint32_t at = lower(page, size, head, cells, 0, pack);
        const uint8_t *child = at == cells ? page + 8 : page + be16(page + head + 2 * at);
        number = child + 4 <= page + size ? be32(child) : 0;
    }
    return -EBADMSG;
}
