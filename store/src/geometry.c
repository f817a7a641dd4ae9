/* Where SQLite puts the bytes of a pack's BLOB (see pages.h and FORMAT.md, "Packs"). */
#include "pages.h"

struct st_geometry st_geometry(uint32_t page_size)
{
    return (struct st_geometry){.page_size = page_size, .per = page_size - 4, .local = (page_size - 12) * 32 / 255 - 23};
}

uint32_t st_record_header(size_t blob)
{
    uint32_t bytes = 2; /* the header's own size, and NULL for the rowid alias */
    for (uint64_t serial = 2 * (uint64_t)blob + 12; serial; serial >>= 7)
        bytes++;
    return bytes;
}

size_t st_blob_size(struct st_geometry geometry, size_t frames_bytes, size_t *ret_prefix)
{
    size_t pages = frames_bytes ? (frames_bytes + geometry.per - 1) / geometry.per : 1, blob = 0;
    uint32_t header = 0;
    /* The header grows by a byte where the BLOB crosses a power of 128; two rounds settle it. */
    for (int round = 0; round < 3; round++) {
        blob = geometry.local - header + pages * geometry.per;
        header = st_record_header(blob);
    }
    *ret_prefix = geometry.local - header;
    return *ret_prefix + pages * geometry.per;
}
