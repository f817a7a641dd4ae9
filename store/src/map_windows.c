/* Layouts in the shapes that their readers want: as runs for other rooms, as windows for the reader. */
#include <errno.h>
#include <stdlib.h>

#include "map.h"

size_t st_map_runs(const st_map *map, struct st_run *ret_runs)
{
    size_t n = 0;
    for (size_t i = 0; i < map->count; i++) {
        const struct st_extent *e = &map->extents[i];
        uint32_t content = e->id == ST_ZERO_ID ? ST_ZERO : e->id == ST_ABSENT_ID ? ST_ABSENT : ST_DATA;
        struct st_run *last = n ? &ret_runs[n - 1] : NULL;
        if (last && last->content == content && last->page + last->count == e->page && last->count + (uint64_t)e->count <= UINT32_MAX)
            last->count += e->count;
        else
            ret_runs[n++] = (struct st_run){e->page, e->count, content};
    }
    return n;
}

int st_map_windows(const st_map *map, uint64_t limit, struct st_extent **ret_extents, uint64_t **ret_starts, size_t *ret_windows)
{
    uint64_t zero, pages = st_map_pages(map, &zero), windows = pages / limit + 1, room = limit;
    struct st_extent *extents = malloc((map->count + windows + 1) * sizeof(*extents));
    uint64_t *starts = malloc((windows + 2) * sizeof(*starts));
    size_t n = 0, w = 0;
    if (!extents || !starts) {
        free(extents);
        free(starts);
        return -ENOMEM;
    }
    starts[0] = 0;
    for (size_t i = 0; i < map->count; i++) {
        struct st_extent rest = map->extents[i];
        while (rest.count) {
            uint32_t part = rest.count < room ? rest.count : (uint32_t)room;
            extents[n++] = (struct st_extent){rest.page, rest.id, part, 0};
            rest = (struct st_extent){rest.page + part, st_id_at(rest.id, part), rest.count - part, 0};
            room -= part;
            if (!room) {
                starts[++w] = n;
                room = limit;
            }
        }
    }
    if (n > starts[w])
        starts[++w] = n;
    *ret_extents = extents;
    *ret_starts = starts;
    *ret_windows = w;
    return 0;
}
