/* Layouts as sets of contents: what two share, which packs one names, which frames are alive. */
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

int64_t st_map_packs(const st_map *map, uint32_t *ret_packs, size_t cap)
{
    struct st_extent *ids;
    size_t count;
    int64_t packs = 0;
    int r = ids_of(map, &ids, &count);
    if (r < 0)
        return r;
    uint32_t last = 0;
    for (size_t i = 0; i < count; i++) {
        uint32_t pack = st_id_pack(ids[i].id);
        if (pack == last)
            continue;
        if ((size_t)packs < cap)
            ret_packs[packs] = pack;
        packs++;
        last = pack;
    }
    free(ids);
    return packs;
}

int st_map_mark(const st_map *map, const uint32_t *packs, uint8_t *const *bits, const uint32_t *slots, size_t count)
{
    for (size_t i = 0; i < map->count; i++) {
        const struct st_extent *e = &map->extents[i];
        if (e->id == ST_ZERO_ID || e->id == ST_ABSENT_ID)
            continue;
        uint32_t pack = st_id_pack(e->id), slot = st_id_slot(e->id);
        size_t low = 0, high = count;
        while (low < high) {
            size_t middle = (low + high) / 2;
            if (packs[middle] < pack)
                low = middle + 1;
            else
                high = middle;
        }
        if (low == count || packs[low] != pack || slot + e->count > slots[low])
            return -EBADMSG;
        for (uint32_t k = slot; k < slot + e->count; k++)
            bits[low][k / 8] |= (uint8_t)(1u << (k % 8));
    }
    return 0;
}
