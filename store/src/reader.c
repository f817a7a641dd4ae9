/* Pages out: extents in, bytes in the extents' order. Frames are read in the file's order, straight from the file, in pieces of up
 * to CHUNK, by two threads; each page proves itself by the keyed hash that stands before its frame.
 *
 * Invariants
 *   1. A page is handed out only if its hash, with its id mixed in, is the one that was stored: so where a frame lies may be guessed.
 *   2. A guess that failed is replaced once by the truth (the chain of overflow pages); what fails again is reported, never repaired here. */
#include <errno.h>
#include <fcntl.h>
#include <lz4.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "pages.h"

#define CHUNK_PAGES 16u          /* file pages in one read, at most */
#define SHARE_PAGES 512u         /* pages that a thread takes at a time */
#define GAP (8u * 1024)             /* bytes between two frames that are cheaper to read than to skip: measured */

struct pack {
    uint32_t number, frames, file_pages;
    uint32_t *offsets; /* frames + 1 */
    uint32_t *where;   /* file page of each overflow page; NULL: not found */
};
/* Where the contents of a block lie: pack * ST_SLOTS + frame + 1 for each slot, 0 where no pack that is known has it. */
struct block { uint32_t number, slots; uint32_t *places; };
struct st_reader {
    int fd;
    uint8_t key[32];
    struct st_geometry geometry;
    uint32_t root;
    struct pack *packs;
    size_t count, room;
    struct block *blocks; /* sorted */
    size_t block_count, block_room;
    struct st_chain chain;
    uint8_t leaf[65536]; /* of st_locate_first */
};

/* A stretch of frames of one pack, and where its first page goes. Sorted by order: the pack's place in the file, then the frame. */
struct piece { uint64_t order, id, out; uint32_t count, pack, frame; };
struct job {
    st_reader *reader;
    struct piece *pieces;
    uint8_t *out;
    uint64_t *bad;
    size_t cap, bad_count, count, next;
    pthread_mutex_t lock;
};

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

/* Where the pack's overflow pages are by the pointer maps; by the chain itself when `walk`. Written in place where it was known: a prefetch
 * of the next window may be looking. */
static int find_pages(st_reader *r, struct pack *pack, int walk)
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

/* The block of this number; made, in its place, where `make`. */
static struct block *find_block(st_reader *r, uint32_t number, int make)
{
    size_t low = 0, high = r->block_count;
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (r->blocks[middle].number < number)
            low = middle + 1;
        else
            high = middle;
    }
    if (low < r->block_count && r->blocks[low].number == number)
        return &r->blocks[low];
    if (!make)
        return NULL;
    if (r->block_count == r->block_room) {
        size_t room = r->block_room ? r->block_room * 2 : 64;
        struct block *blocks = realloc(r->blocks, room * sizeof(*blocks));
        if (!blocks)
            return NULL;
        r->blocks = blocks;
        r->block_room = room;
    }
    memmove(r->blocks + low + 1, r->blocks + low, (r->block_count++ - low) * sizeof(*r->blocks));
    r->blocks[low] = (struct block){.number = number};
    return &r->blocks[low];
}

static int set_places(st_reader *r, const struct st_contents *run, uint32_t frame)
{
    struct block *block = find_block(r, run->block, 1);
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
    if (e < 0) { /* places that were set name a pack that is not counted: cut() takes them for unknown */
        free(pack->offsets);
        return e;
    }
    if (r->fd >= 0)
        find_pages(r, pack, 0);
    r->count++;
    return 0;
}

/* Which pack and frame hold a content; 0 where that is not known. */
static int find_place(const st_reader *r, const struct block *block, uint32_t slot, uint32_t *ret_pack, uint32_t *ret_frame)
{
    uint32_t place = block && slot < block->slots ? block->places[slot] : 0;
    if (!place || (place - 1) / ST_SLOTS >= r->count)
        return 0;
    *ret_pack = (place - 1) / ST_SLOTS;
    *ret_frame = (place - 1) % ST_SLOTS;
    return *ret_frame < r->packs[*ret_pack].frames;
}

static int decode(const uint8_t *key, const uint8_t *frame, uint32_t length, uint64_t id, uint8_t *page, uint8_t *ret_hash)
{
    uint64_t tail;
    if (length == ST_PAGE)
        memcpy(page, frame + ST_HASH, ST_PAGE);
    else if (LZ4_decompress_safe((const char *)frame + ST_HASH, (char *)page, (int)length, ST_PAGE) != (int)ST_PAGE)
        return -EBADMSG;
    st_hash_page(key, page, ret_hash);
    memcpy(&tail, ret_hash + 8, 8);
    tail ^= id;
    return !memcmp(frame, ret_hash, 8) && !memcmp(frame + 8, &tail, 8) ? 0 : -EBADMSG;
}

static void report(struct job *job, uint64_t index)
{
    pthread_mutex_lock(&job->lock);
    if (job->bad_count < job->cap)
        job->bad[job->bad_count] = index;
    job->bad_count++;
    pthread_mutex_unlock(&job->lock);
}

/* Overflow pages first..last into buffer, page k at (k - first) * page_size, as few reads as their places allow. */
static void read_pages(const st_reader *r, const struct pack *pack, uint32_t first, uint32_t last, uint32_t skip, uint32_t stop, uint8_t *buffer)
{
    uint32_t size = r->geometry.page_size;
    for (uint32_t k = first, n; k <= last; k += n) {
        for (n = 1; k + n <= last && pack->where[k + n] == pack->where[k] + n; n++)
            ;
        size_t from = k == first ? skip : 0, to = (size_t)(n - 1) * size + (k + n - 1 == last ? stop : size);
        uint8_t *at = buffer + (size_t)(k - first) * size + from;
        ssize_t got = pread(r->fd, at, to - from, (off_t)(pack->where[k] - 1) * size + (off_t)from);
        if (got < (ssize_t)(to - from))
            memset(at + (got > 0 ? got : 0), 0, to - from - (got > 0 ? (size_t)got : 0));
    }
}

/* Decodes frames slot.. of one piece out of a buffer that holds the pack's overflow pages from `first`. */
static void decode_piece(struct job *job, const struct pack *pack, const struct piece *piece, uint32_t first, const uint8_t *buffer)
{
    const st_reader *r = job->reader;
    uint8_t whole[ST_HASH + ST_PAGE], hash[ST_HASH];
    for (uint32_t i = 0; i < piece->count; i++) {
        uint32_t from = pack->offsets[piece->frame + i], size = pack->offsets[piece->frame + i + 1] - from;
        uint32_t k = from / r->geometry.per, x = from % r->geometry.per, here = r->geometry.per - x;
        const uint8_t *frame = buffer + (size_t)(k - first) * r->geometry.page_size + 4 + x;
        if (size > here) {
            memcpy(whole, frame, here);
            memcpy(whole + here, frame + here + 4, size - here);
            frame = whole;
        }
        if (size <= ST_HASH || decode(r->key, frame, size - ST_HASH, piece->id + i, job->out + (piece->out + i) * ST_PAGE, hash) < 0)
            report(job, piece->out + i);
    }
}

/* Reads pieces[from..to), in their order, grouping neighbours into chunks. */
static void read_pieces(void *context, size_t from, size_t to)
{
    struct job *job = context;
    st_reader *r = job->reader;
    uint32_t per = r->geometry.per;
    uint8_t *buffer = malloc((size_t)(CHUNK_PAGES + 2) * r->geometry.page_size);
    for (size_t i = from, next; i < to; i = next) {
        const struct piece *p = &job->pieces[i];
        struct pack *pack = p->pack == UINT32_MAX ? NULL : &r->packs[p->pack];
        uint32_t begin = pack ? pack->offsets[p->frame] : 0, end = pack ? pack->offsets[p->frame + p->count] : 0;
        next = i + 1;
        if (!buffer || !pack || !pack->where || begin == end) {
            for (uint32_t k = 0; k < p->count; k++)
                report(job, p->out + k);
            continue;
        }
        for (; next < to && job->pieces[next].pack == p->pack; next++) {
            const struct piece *q = &job->pieces[next];
            uint32_t q_begin = pack->offsets[q->frame], q_end = pack->offsets[q->frame + q->count];
            if (q_begin > end + GAP || q_end / per - begin / per >= CHUNK_PAGES)
                break;
            end = q_end > end ? q_end : end;
        }
        uint32_t first = begin / per, last = (end - 1) / per;
        read_pages(r, pack, first, last, begin % per + 4, (end - 1) % per + 5, buffer);
        for (size_t k = i; k < next; k++)
            decode_piece(job, pack, &job->pieces[k], first, buffer);
    }
    free(buffer);
}

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
static uint32_t cut_one(st_reader *r, const struct block *block, uint64_t id, uint32_t count, uint64_t out, struct piece *piece)
{
    uint32_t pack, frame, n = 1, its_pack, its_frame;
    *piece = (struct piece){0, id, out, 1, UINT32_MAX, 0};
    if (!find_place(r, block, st_id_slot(id), &pack, &frame))
        return 1;
    while (n < count && find_place(r, block, st_id_slot(id) + n, &its_pack, &its_frame) && its_pack == pack && its_frame == frame + n)
        n++;
    uint64_t place = r->packs[pack].where ? r->packs[pack].where[0] : 0;
    *piece = (struct piece){place * ST_SLOTS + frame, id, out, n, pack, frame};
    return n;
}

/* Cuts extents into pieces that fit a chunk, in the file's order; zero pages are filled in at once (out may be NULL). */
static int cut(st_reader *r, const struct st_extent *extents, size_t count, uint8_t *out, struct piece **ret_pieces, size_t *ret_count)
{
    const uint32_t most = CHUNK_PAGES * r->geometry.per / (ST_PAGE + ST_HASH) - 1;
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
        const struct block *block = e->id == ST_ZERO_ID ? NULL : find_block(r, st_id_block(e->id), 0);
        for (uint32_t off = 0; e->id != ST_ZERO_ID && off < e->count; off += pieces[n++].count)
            cut_one(r, block, e->id + off, e->count - off < most ? e->count - off : most, at + off, &pieces[n]);
        at += e->count;
    }
    sort_pieces(pieces, pieces + n, n);
    *ret_pieces = pieces;
    *ret_count = n;
    return 0;
}

/* Second try for what failed: the packs concerned get their true chains, then each page is read alone. */
static void again(st_reader *r, struct job *first)
{
    size_t count = first->bad_count < first->cap ? first->bad_count : first->cap, kept = 0, left = 0;
    uint32_t last = UINT32_MAX;
    struct job job = *first;
    for (size_t i = 0; i < count; i++) {
        struct piece piece = {.pack = UINT32_MAX};
        for (struct piece *p = first->pieces; p->count; p++)
            if (p->out <= first->bad[i] && first->bad[i] < p->out + p->count) {
                piece = (struct piece){0, p->id + (first->bad[i] - p->out), first->bad[i], 1, p->pack, p->frame + (uint32_t)(first->bad[i] - p->out)};
                break;
            }
        if (piece.pack != UINT32_MAX && piece.pack != last)
            find_pages(r, &r->packs[piece.pack], 1);
        last = piece.pack;
        job.pieces = &piece;
        job.bad = first->bad + kept;
        job.cap = 1;
        job.bad_count = 0;
        uint64_t index = first->bad[i];
        read_pieces(&job, 0, 1);
        if (job.bad_count)
            first->bad[kept++] = index;
        left += job.bad_count;
    }
    if (first->bad_count <= first->cap)
        first->bad_count = left;
}

/* What each thread does: takes the next stretch of pieces until there is none. */
static void read_shares(void *context, size_t from, size_t to)
{
    struct job *job = context;
    for (;;) {
        uint32_t pages = 0;
        pthread_mutex_lock(&job->lock);
        size_t first = job->next, end = first;
        for (; end < job->count && pages < SHARE_PAGES; end++)
            pages += job->pieces[end].count;
        job->next = end;
        pthread_mutex_unlock(&job->lock);
        if (first == end)
            break;
        read_pieces(job, first, end);
    }
    (void)from;
    (void)to;
}

int st_reader_read(st_reader *r, const struct st_extent *extents, size_t count, uint8_t *ret_pages, uint64_t *bad, size_t cap, size_t *ret_bad)
{
    struct job job = {.reader = r, .out = ret_pages, .bad = bad, .cap = cap, .lock = PTHREAD_MUTEX_INITIALIZER};
    size_t pieces;
    int e = cut(r, extents, count, ret_pages, &job.pieces, &pieces);
    if (e < 0)
        return e;
    job.pieces[pieces] = (struct piece){0};
    job.count = pieces;
    st_parallel(read_shares, &job, pieces < 32 ? 1 : 2, 2);
    if (job.bad_count)
        again(r, &job);
    free(job.pieces);
    *ret_bad = job.bad_count;
    return 0;
}

int st_reader_prefetch(st_reader *r, const struct st_extent *extents, size_t count)
{
    struct piece *pieces;
    size_t n;
    off_t from = 0, to = 0;
    int e = cut(r, extents, count, NULL, &pieces, &n);
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

int st_frame_page(st_reader *r, const uint8_t *blob, size_t size, uint64_t id, uint8_t *ret_page, uint8_t *ret_hash)
{
    uint32_t pack, frame;
    if (!find_place(r, find_block(r, st_id_block(id), 0), st_id_slot(id), &pack, &frame))
        return -ENOENT;
    uint32_t from = r->packs[pack].offsets[frame], length = r->packs[pack].offsets[frame + 1] - from;
    size_t prefix = r->geometry.local - st_record_header(size);
    if (prefix + from + length > size)
        return -EBADMSG;
    return decode(r->key, blob + prefix + from, length - ST_HASH, id, ret_page, ret_hash);
}

int64_t st_check_frames(st_reader *r, const uint8_t *blob, size_t size, struct st_entry *ret_entries)
{
    uint8_t page[ST_PAGE];
    int64_t bad = 0;
    for (size_t b = 0; b < r->block_count; b++)
        for (uint32_t slot = 0; slot < r->blocks[b].slots; slot++) {
            uint32_t pack, frame;
            if (!find_place(r, &r->blocks[b], slot, &pack, &frame))
                continue;
            struct st_entry *entry = &ret_entries[frame];
            entry->id = (uint64_t)r->blocks[b].number << 16 | slot;
            if (st_frame_page(r, blob, size, entry->id, page, entry->hash) < 0) {
                entry->id = 0;
                bad++;
            }
        }
    return bad;
}
