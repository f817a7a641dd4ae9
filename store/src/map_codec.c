/* A layout as bytes: "L1", u64 extents, u64 plain size, then zstd of a varint triple per extent: pages skipped since the last one's end,
 * count, and the zigzag distance of its id from the id that would have followed. Only differences that a program's memory
 * really shows are small, so this compresses well: about 3 bytes for a page rewritten alone. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <zstd.h>

#include "map.h"

#define HEAD 18u
#define WORST 25u /* bytes of one triple: 10 + 5 + 10 */
#define LEAST 3u

void st_free(void *pointer) { free(pointer); }

static uint8_t *put(uint8_t *p, uint64_t v)
{
    for (; v >= 0x80; v >>= 7)
        *p++ = (uint8_t)(v | 0x80);
    *p++ = (uint8_t)v;
    return p;
}

static const uint8_t *get(const uint8_t *p, const uint8_t *end, uint64_t *ret)
{
    uint64_t v = 0;
    for (unsigned shift = 0; p && p < end && shift < 64; shift += 7) {
        v |= (uint64_t)(*p & 0x7f) << shift;
        if (!(*p++ & 0x80)) {
            *ret = v;
            return p;
        }
    }
    return NULL;
}

int st_map_encode(const st_map *map, uint8_t **ret_bytes, size_t *ret_size)
{
    uint8_t *plain = malloc(map->count * WORST + 1), *p = plain;
    if (!plain)
        return -ENOMEM;
    uint64_t end = 0, follow = 0;
    for (size_t i = 0; i < map->count; i++) {
        const struct st_extent *e = &map->extents[i];
        int64_t jump = (int64_t)(e->id - follow);
        p = put(put(put(p, e->page - end), e->count), ((uint64_t)jump << 1) ^ (uint64_t)(jump >> 63));
        end = e->page + e->count;
        if (e->id != ST_ZERO_ID && e->id != ST_ABSENT_ID)
            follow = e->id + e->count;
    }
    uint64_t size = (uint64_t)(p - plain), extents = map->count;
    size_t bound = ZSTD_compressBound(size);
    uint8_t *bytes = malloc(HEAD + bound);
    size_t packed = bytes ? ZSTD_compress(bytes + HEAD, bound, plain, size, 1) : 0;
    free(plain);
    if (!bytes || ZSTD_isError(packed)) {
        free(bytes);
        return -ENOMEM;
    }
    memcpy(bytes, "L1", 2);
    memcpy(bytes + 2, &extents, 8);
    memcpy(bytes + 10, &size, 8);
    *ret_bytes = bytes;
    *ret_size = HEAD + packed;
    return 0;
}

static int parse(const uint8_t *p, const uint8_t *end, uint64_t extents, st_map *map)
{
    uint64_t at = 0, follow = 0, skip, count, jump;
    for (uint64_t i = 0; i < extents; i++) {
        p = get(get(get(p, end, &skip), end, &count), end, &jump);
        if (!p || !count || count > UINT32_MAX || at + skip < at)
            return -EBADMSG;
        uint64_t id = follow + ((jump >> 1) ^ -(jump & 1));
        if (st_map_append(map, at + skip, id, (uint32_t)count) < 0)
            return -EBADMSG;
        at += skip + count;
        if (id != ST_ZERO_ID && id != ST_ABSENT_ID)
            follow = id + count;
    }
    return p == end ? 0 : -EBADMSG;
}

int st_map_decode(const uint8_t *bytes, size_t size, st_map **ret_map)
{
    uint64_t extents, plain_size;
    if (size < HEAD || memcmp(bytes, "L1", 2))
        return -EBADMSG;
    memcpy(&extents, bytes + 2, 8);
    memcpy(&plain_size, bytes + 10, 8);
    if (extents > UINT64_C(1) << 36 || plain_size > extents * WORST || plain_size < extents * LEAST || plain_size != ZSTD_getFrameContentSize(bytes + HEAD, size - HEAD))
        return -EBADMSG;
    uint8_t *plain = malloc(plain_size + 1);
    if (!plain)
        return -ENOMEM;
    size_t got = ZSTD_decompress(plain, plain_size, bytes + HEAD, size - HEAD);
    st_map *map = NULL;
    int r = st_map_new_room(extents, &map);
    if (r == 0)
        r = !ZSTD_isError(got) && got == plain_size ? parse(plain, plain + plain_size, extents, map) : -EBADMSG;
    free(plain);
    if (r < 0) {
        st_map_free(map);
        return r;
    }
    *ret_map = map;
    return 0;
}
