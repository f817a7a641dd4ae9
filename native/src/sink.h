/* sink.h: the inside of a sink, for sink.c and its white-box tests; everybody else uses internal.h's functions. */
#ifndef CKPT_SINK_H
#define CKPT_SINK_H

#include "internal.h"

struct area {
    uint8_t *at;
    size_t size, used;
};

struct space {
    int32_t space;
    bool paranoid;         /* runs from first_paranoid on are the paranoid list */
    size_t first_run, first_paranoid;
    uint64_t data_offset, data_pages, paranoid_offset;
};

struct ckpt_sink {
    struct area records, runs;
    uint8_t *pages;
    size_t page_size;
    uint64_t total;        /* page bytes so far, buffer and spill together */
    uint8_t *staging;
    int spill;
    struct space *spaces;
    size_t space_count, space_cap;
    struct ckpt_space_runs *lent;
    int *duplicates;
    size_t duplicate_count, duplicate_cap;
    int32_t object_count;  /* spaces 1000000 + n given out so far */
};

#endif
