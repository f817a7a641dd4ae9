/* Pages out: extents in, bytes in the extents' order. Frames are read in the file's order, straight from the file, in pieces of up
 * to CHUNK, by two threads; each page proves itself by the keyed hash that stands before its frame.
 *
 * Invariants
 *   1. A page is handed out only if its hash, with its id mixed in, is the one that was stored: so where a frame lies may be guessed.
 *   2. A guess that failed is replaced once by the truth (the chain of overflow pages); what fails again is reported, never repaired here. */
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "reader.h"

#define SHARE_PAGES 512u /* pages that a thread takes at a time */

struct job {
    st_reader *reader;
    struct piece *pieces;
    uint8_t *out;
    uint64_t *bad;
    size_t cap, bad_count, count, next;
    pthread_mutex_t lock;
};

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
        if (size <= ST_HASH || st_decode(r->key, frame, size - ST_HASH, piece->id + i, job->out + (piece->out + i) * ST_PAGE, hash) < 0)
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
            st_find_pages(r, &r->packs[piece.pack], 1);
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
    int e = st_cut(r, extents, count, ret_pages, &job.pieces, &pieces);
    if (e < 0)
        return e;
    job.count = pieces;
    st_parallel(read_shares, &job, pieces < 32 ? 1 : 2, 2);
    if (job.bad_count)
        again(r, &job);
    free(job.pieces);
    *ret_bad = job.bad_count;
    return 0;
}
