/* Layouts as sets of contents: what two share, which blocks one names, which frames are alive. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "map.h"

static int by_id(const void *a, const void *b)
{
    const struct st_extent *x = a, *y = b;
    return x->id < y->id ? -1 : x->id > y->id;
}

/* The map's stretches of ids, sorted by id; zero and absent pages left out. */
static int ids_of(const st_map *map, struct st_extent **ret_ids, size_t *ret_count)
{
    struct st_extent *ids = malloc((map->count + 1) * sizeof(*ids));
    size_t count = 0;
    if (!ids)
        return -ENOMEM;
    for (size_t i = 0; i < map->count; i++)
        if (map->extents[i].id != ST_ZERO_ID && map->extents[i].id != ST_ABSENT_ID)
            ids[count++] = map->extents[i];
    qsort(ids, count, sizeof(*ids), by_id);
    *ret_ids = ids;
    *ret_count = count;
    return 0;
}

int st_map_shared(const st_map *a, const st_map *b, uint64_t *ret_pages)
{
    struct st_extent *x = NULL, *y = NULL;
    size_t nx = 0, ny = 0;
    uint64_t pages = 0;
    int r = ids_of(a, &x, &nx);
    if (r == 0)
        r = ids_of(b, &y, &ny);
    /* reach: ids of a below it are covered; for each stretch of b count the ids that some stretch of a covers. Stretches of a may
     * overlap (a page twice in a space), so a's are first made disjoint. */
    size_t k = 0;
    for (size_t i = 0; r == 0 && i < nx; i++) {
        if (k && x[i].id <= x[k - 1].id + x[k - 1].count) {
            uint64_t end = x[i].id + x[i].count, last = x[k - 1].id + x[k - 1].count;
            x[k - 1].count = (uint32_t)((end > last ? end : last) - x[k - 1].id);
        } else
            x[k++] = x[i];
    }
    size_t i = 0;
    for (size_t j = 0; r == 0 && j < ny; j++) {
        uint64_t from = y[j].id, to = from + y[j].count;
        while (i < k && x[i].id + x[i].count <= from)
            i++;
        for (size_t m = i; m < k && x[m].id < to; m++) {
            uint64_t lo = x[m].id > from ? x[m].id : from, end = x[m].id + x[m].count, hi = end < to ? end : to;
            pages += hi - lo;
        }
    }
    free(x);
    free(y);
    if (r == 0)
        *ret_pages = pages;
    return r;
}

int64_t st_map_blocks(const st_map *map, uint32_t *ret_blocks, size_t cap)
{
    uint32_t low = UINT32_MAX, high = 0;
    int64_t blocks = 0;
    for (size_t i = 0; i < map->count; i++)
        if (map->extents[i].id != ST_ZERO_ID && map->extents[i].id != ST_ABSENT_ID) {
            uint32_t block = st_id_block(map->extents[i].id);
            low = block < low ? block : low;
            high = block > high ? block : high;
        }
    if (low > high)
        return 0;
    /* One bit for each number between: block numbers are given one after the other. */
    uint8_t *seen = calloc(1, (high - low) / 8 + 1);
    if (!seen)
        return -ENOMEM;
    for (size_t i = 0; i < map->count; i++)
        if (map->extents[i].id != ST_ZERO_ID && map->extents[i].id != ST_ABSENT_ID) {
            uint32_t at = st_id_block(map->extents[i].id) - low;
            seen[at / 8] |= (uint8_t)(1u << (at % 8));
        }
    for (uint32_t at = 0; at <= high - low; at++)
        if (seen[at / 8] >> (at % 8) & 1) {
            if ((size_t)blocks < cap)
                ret_blocks[blocks] = low + at;
            blocks++;
        }
    free(seen);
    return blocks;
}

int st_map_mark(const st_map *map, const uint32_t *blocks, uint8_t *const *bits, size_t count)
{
    for (size_t i = 0; i < map->count; i++) {
        const struct st_extent *e = &map->extents[i];
        if (e->id == ST_ZERO_ID || e->id == ST_ABSENT_ID)
            continue;
        uint32_t slot = st_id_slot(e->id);
        size_t at = st_find_block(blocks, count, st_id_block(e->id));
        if (at == count || slot + e->count > ST_SLOTS)
            return -EBADMSG;
        for (uint32_t k = slot; k < slot + e->count; k++)
            bits[at][k / 8] |= (uint8_t)(1u << (k % 8));
    }
    return 0;
}
