/* Asking the kernel to bring in what will be read, in the file's order, before it is read. */
#include <fcntl.h>
#include <stdlib.h>

#include "reader.h"

int st_reader_prefetch(st_reader *r, const struct st_extent *extents, size_t count)
{
    struct piece *pieces;
    size_t n;
    off_t from = 0, to = 0;
    int e = st_cut(r, extents, count, NULL, &pieces, &n);
    if (e < 0)
        return e;
    for (size_t i = 0; i < n; i++) {
        const struct pack *pack = pieces[i].pack == UINT32_MAX ? NULL : &r->packs[pieces[i].pack];
        uint32_t begin = pack ? pack->offsets[pieces[i].frame] : 0, end = pack ? pack->offsets[pieces[i].frame + pieces[i].count] : 0;
        if (!pack || !pack->where || begin == end)
            continue;
        uint32_t per = r->geometry.per;
        for (uint32_t k = begin / per; k <= (end - 1) / per; k++) {
            off_t page = (off_t)(pack->where[k] - 1) * r->geometry.page_size;
            off_t a = page + (k == begin / per ? begin % per + 4 : 0), b = page + (k == (end - 1) / per ? (end - 1) % per + 5 : r->geometry.page_size);
            if (to && a >= from && a <= to + (off_t)GAP) {
                to = b > to ? b : to;
                continue;
            }
            if (to)
                posix_fadvise(r->fd, from, to - from, POSIX_FADV_WILLNEED);
            from = a;
            to = b;
        }
    }
    if (to)
        posix_fadvise(r->fd, from, to - from, POSIX_FADV_WILLNEED);
    free(pieces);
    return 0;
}
