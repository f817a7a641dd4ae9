/* The disk begins with what a large transaction has written while the transaction still writes: its sync at the end finds little left.
 *
 * Only when it is written is told, never that it was: what is durable is SQLite's matter (fdatasync) as ever. sync_file_range(2) with
 * SYNC_FILE_RANGE_WRITE starts writing out the file's dirty pages that are not being written yet, and waits for none. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <time.h>

#include "pages.h"

enum { PAUSE_NS = 1500000 };

struct st_flusher { pthread_t thread; int fd; atomic_bool over; };

static void *flush(void *arg)
{
    struct st_flusher *flusher = arg;
    const struct timespec pause = {.tv_nsec = PAUSE_NS};
    while (!atomic_load(&flusher->over)) {
        nanosleep(&pause, NULL);
        if (sync_file_range(flusher->fd, 0, 0, SYNC_FILE_RANGE_WRITE) != 0)
            break; /* a file system that cannot: it is all written at the end, as ever */
    }
    return NULL;
}

int st_flusher_start(int fd, st_flusher **ret_flusher)
{
    st_flusher *flusher = calloc(1, sizeof(*flusher));
    if (!flusher)
        return -ENOMEM;
    flusher->fd = fd;
    int error = pthread_create(&flusher->thread, NULL, flush, flusher);
    if (error) {
        free(flusher);
        return -error;
    }
    *ret_flusher = flusher;
    return 0;
}

void st_flusher_stop(st_flusher *flusher)
{
    if (!flusher)
        return;
    atomic_store(&flusher->over, true);
    pthread_join(flusher->thread, NULL);
    free(flusher);
}
