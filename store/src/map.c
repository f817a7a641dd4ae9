/* Layouts: sorted extents of (page, content id). Everything that compares generations works on these and reads no page.
 *
 * Invariants
 *   1. Extents are sorted by page, do not overlap, and none is empty.
 *   2. Two neighbours that could be one are one (append merges them), so equal layouts have equal extents.
 *   3. Extents with data do not cross the end of a pack: ids rise by 1 a page and slot 65535 is never used. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "map.h"

int st_map_new(st_map **ret_map)
{
    st_map *map = calloc(1, sizeof(*map));
    if (!map)
        return -ENOMEM;
    *ret_map = map;
    return 0;
}

void st_map_free(st_map *map)
{
    if (map)
        free(map->extents);
    free(map);
}

size_t st_map_extents(const st_map *map, const struct st_extent **ret_extents)
{
    *ret_extents = map->extents;
    return map->count;
}

uint64_t st_map_pages(const st_map *map, uint64_t *ret_zero)
{
    uint64_t pages = 0, zero = 0;
    for (size_t i = 0; i < map->count; i++) {
        pages += map->extents[i].count;
        zero += map->extents[i].id == ST_ZERO_ID ? map->extents[i].count : 0;
    }
    *ret_zero = zero;
    return pages;
}

static int grow(st_map *map)
{
    size_t room = map->room ? map->room + map->room / 2 : 64;
    struct st_extent *extents = realloc(map->extents, room * sizeof(*extents));
    if (!extents)
        return -ENOMEM;
    map->extents = extents;
    map->room = room;
    return 0;
}

int st_map_new_room(size_t room, st_map **ret_map)
{
    st_map *map;
    int r = st_map_new(&map);
    if (r < 0)
        return r;
    map->extents = malloc((room + 1) * sizeof(*map->extents));
    if (!map->extents) {
        st_map_free(map);
        return -ENOMEM;
    }
    map->room = room + 1;
    *ret_map = map;
    return 0;
}

int st_map_append(st_map *map, uint64_t page, uint64_t id, uint32_t count)
{
    if (!count)
        return 0;
    if (map->count) {
        struct st_extent *last = &map->extents[map->count - 1];
        uint64_t end = last->page + last->count;
        if (page < end)
            return -ERANGE;
        if (page == end && id == st_id_at(last->id, last->count) && (id == ST_ZERO_ID || id == ST_ABSENT_ID || last->id >> 16 == id >> 16) && last->count + (uint64_t)count <= UINT32_MAX) {
            last->count += count;
            return 0;
        }
    }
    if (map->count == map->room) {
        int r = grow(map);
        if (r < 0)
            return r;
    }
    map->extents[map->count++] = (struct st_extent){.page = page, .id = id, .count = count};
    return 0;
}

int st_map_append_all(st_map *map, const struct st_extent *extents, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        int r = st_map_append(map, extents[i].page, extents[i].id, extents[i].count);
        if (r < 0)
            return r;
    }
    return 0;
}

/* Calls visit for every stretch of pages on which both maps stand still; an id is ST_ABSENT_ID where a map has no page. */
typedef int (*visit_fn)(void *context, uint64_t page, uint32_t count, uint64_t id_a, uint64_t id_b);

/* Inlined into each caller, visit with it: a layout of a fragmented memory has as many extents as pages. */
__attribute__((always_inline)) static inline int walk(const st_map *a, const st_map *b, visit_fn visit, void *context)
{
    size_t i = 0, j = 0;
    uint64_t at = 0;
    while (i < a->count || j < b->count) {
        const struct st_extent *ea = i < a->count ? &a->extents[i] : NULL, *eb = j < b->count ? &b->extents[j] : NULL;
        uint64_t from_a = ea ? (ea->page > at ? ea->page : at) : UINT64_MAX, from_b = eb ? (eb->page > at ? eb->page : at) : UINT64_MAX;
        uint64_t from = from_a < from_b ? from_a : from_b;
        uint64_t end_a = !ea ? UINT64_MAX : from_a > from ? from_a : ea->page + ea->count;
        uint64_t end_b = !eb ? UINT64_MAX : from_b > from ? from_b : eb->page + eb->count;
        uint64_t end = end_a < end_b ? end_a : end_b;
        uint64_t id_a = from_a == from ? st_id_at(ea->id, from - ea->page) : ST_ABSENT_ID;
        uint64_t id_b = from_b == from ? st_id_at(eb->id, from - eb->page) : ST_ABSENT_ID;
        int r = visit(context, from, (uint32_t)(end - from), id_a, id_b);
        if (r < 0)
            return r;
        at = end;
        i += ea && ea->page + ea->count <= at;
        j += eb && eb->page + eb->count <= at;
    }
    return 0;
}

static int finish(int r, st_map *map, st_map **ret_map)
{
    if (r < 0)
        st_map_free(map);
    else
        *ret_map = map;
    return r;
}

/* An absent page of top hides base's, which a page that top does not name must not: so the walk itself cannot tell them apart,
 * and overlay looks at top's own extents. */
struct overlay { st_map *out; const st_map *top; size_t at; };

static int top_names(struct overlay *o, uint64_t page)
{
    while (o->at < o->top->count && o->top->extents[o->at].page + o->top->extents[o->at].count <= page)
        o->at++;
    return o->at < o->top->count && o->top->extents[o->at].page <= page;
}

static int visit_overlay(void *context, uint64_t page, uint32_t count, uint64_t id_a, uint64_t id_b)
{
    struct overlay *o = context;
    uint64_t id = id_b != ST_ABSENT_ID || top_names(o, page) ? id_b : id_a;
    return id == ST_ABSENT_ID ? 0 : st_map_append(o->out, page, id, count);
}

int st_map_overlay(const st_map *base, const st_map *top, st_map **ret_map)
{
    struct overlay o = {.top = top};
    int r = st_map_new_room(base->count + 2 * top->count, &o.out);
    if (r < 0)
        return r;
    return finish(walk(base, top, visit_overlay, &o), o.out, ret_map);
}

static int visit_diff(void *context, uint64_t page, uint32_t count, uint64_t id_a, uint64_t id_b)
{
    return id_a == id_b ? 0 : st_map_append(context, page, id_b, count);
}

int st_map_diff(const st_map *a, const st_map *b, st_map **ret_map)
{
    st_map *out;
    int r = st_map_new(&out);
    if (r < 0)
        return r;
    return finish(walk(a, b, visit_diff, out), out, ret_map);
}

/* The first extent of map that ends behind page; *cursor only moves forward. */
static const struct st_extent *at_or_behind(const st_map *map, size_t *cursor, uint64_t page)
{
    while (*cursor < map->count && map->extents[*cursor].page + map->extents[*cursor].count <= page)
        ++*cursor;
    return *cursor < map->count ? &map->extents[*cursor] : NULL;
}

/* Appends contents for [page, page + count): top's where it has any, else base's. */
static int select_run(const st_map *base, const st_map *top, size_t cursors[2], uint64_t page, uint32_t count, st_map *out, uint64_t *ret_page)
{
    uint64_t end = page + count, stop;
    for (; page < end; page = stop) {
        const struct st_extent *e = at_or_behind(top, &cursors[1], page);
        uint64_t limit = end;
        if (!e || e->page > page) { /* not in top, whose next extent ends what base has to say */
            limit = e && e->page < end ? e->page : end;
            e = at_or_behind(base, &cursors[0], page);
        }
        if (!e || e->page > page) {
            *ret_page = page;
            return -ENODATA;
        }
        stop = e->page + e->count < limit ? e->page + e->count : limit;
        int r = st_map_append(out, page, st_id_at(e->id, page - e->page), (uint32_t)(stop - page));
        if (r < 0)
            return r;
    }
    return 0;
}

int st_map_select(const st_map *base, const st_map *top, const struct st_run *layout, size_t count, st_map **ret_map, uint64_t *ret_page)
{
    st_map *out;
    size_t cursors[2] = {0, 0};
    uint64_t end = 0;
    int r = st_map_new_room(base->count + 2 * top->count, &out);
    if (r < 0)
        return r;
    for (size_t i = 0; r == 0 && i < count; i++) {
        const struct st_run *run = &layout[i];
        if (run->page < end) {
            *ret_page = run->page;
            r = -EINVAL;
        } else if (run->content == ST_ZERO)
            r = st_map_append(out, run->page, ST_ZERO_ID, run->count);
        else if (run->content != ST_ABSENT)
            r = select_run(base, top, cursors, run->page, run->count, out, ret_page);
        end = run->page + run->count;
    }
    return finish(r, out, ret_map);
}
