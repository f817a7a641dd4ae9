/* The order of a BLOB's overflow pages, without reading them: an auto-vacuum file has pointer maps, pages of 5-byte entries that say for each page
 * behind them what it is and which page names it (SQLite's file format, section 1.8). Most chains were written in one go and go on with
 * the next page, which one entry proves; where SQLite used freed pages, the maps are read whole and turned round.
 * Like everything that is read past SQLite this is a guess: the frames prove themselves. */
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "pages.h"

#define OVERFLOW_NEXT 4 /* an overflow page that is not the first; the entry names the page before it */
#define PAGES_MAX (8u << 20) /* 256 GiB: beyond it a chain that jumps is walked instead */

void st_chain_free(struct st_chain *c)
{
    for (uint32_t g = 0; g < c->groups; g++)
        free(c->maps[g]);
    free(c->maps);
    free(c->next);
    c->maps = NULL;
    c->next = NULL;
    c->groups = c->pages = 0;
}

static int begin(struct st_chain *c)
{
    struct stat status;
    if (fstat(c->fd, &status) < 0)
        return -1;
    c->pages = (uint32_t)(status.st_size / c->page_size);
    c->groups = c->pages / (c->page_size / 5 + 1) + 1;
    c->maps = calloc(c->groups, sizeof(*c->maps));
    if (!c->maps)
        c->groups = 0;
    return c->maps ? 0 : -1;
}

/* The page of the pointer map that has an entry for `page`: SQLite's own rule, the page at 1 GiB that holds its lock bytes stepped over. */
static uint32_t map_of(uint32_t page_size, uint32_t page)
{
    uint32_t group = page_size / 5 + 1, map = (page - 2) / group * group + 2;
    return map == 0x40000000u / page_size + 1 ? map + 1 : map;
}

/* The page that names this overflow page; 0 where it is none, or not the second or a later one. */
static uint32_t before(struct st_chain *c, uint32_t page)
{
    uint32_t map = map_of(c->page_size, page), group = (page - 2) / (c->page_size / 5 + 1);
    if (page < 3 || page > c->pages || page <= map || group >= c->groups)
        return 0;
    if (!c->maps[group]) {
        c->maps[group] = calloc(1, c->page_size);
        if (!c->maps[group] || pread(c->fd, c->maps[group], c->page_size, (off_t)(map - 1) * c->page_size) <= 0)
            return 0;
    }
    const uint8_t *p = c->maps[group] + (size_t)5 * (page - map - 1);
    return p[0] == OVERFLOW_NEXT ? (uint32_t)p[1] << 24 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 8 | p[4] : 0;
}

static void turn_round(struct st_chain *c)
{
    c->next = c->pages < PAGES_MAX ? calloc((size_t)c->pages + 1, sizeof(*c->next)) : NULL;
    for (uint32_t page = 3; c->next && page <= c->pages; page++) {
        uint32_t named_by = before(c, page);
        if (named_by && named_by <= c->pages)
            c->next[named_by] = page;
    }
}

uint32_t st_chain_next(struct st_chain *c, uint32_t page)
{
    uint32_t lock = 0x40000000u / c->page_size + 1, guess = page + 1;
    if (!c->maps && begin(c) < 0)
        return 0;
    while (guess > 2 && (guess == lock || guess == map_of(c->page_size, guess)))
        guess++;
    if (before(c, guess) == page)
        return guess;
    if (!c->next)
        turn_round(c);
    return c->next && page <= c->pages ? c->next[page] : 0;
}
