/* Two threads for work that is all computing. A thread costs some 30 us here, so small work stays in one. */
#include <pthread.h>

#include "pages.h"

struct half { void (*work)(void *, size_t, size_t); void *context; size_t from, to; };

static void *run_half(void *arg)
{
    struct half *h = arg;
    h->work(h->context, h->from, h->to);
    return NULL;
}

void st_parallel(void (*work)(void *context, size_t from, size_t to), void *context, size_t count, size_t least)
{
    struct half half = {work, context, count / 2, count};
    pthread_t thread;
    if (count < least || pthread_create(&thread, NULL, run_half, &half) != 0) {
        work(context, 0, count);
        return;
    }
    work(context, 0, count / 2);
    pthread_join(thread, NULL);
}
