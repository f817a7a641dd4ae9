/* threads: many threads, each with a pattern on its stack, a counter in thread-local storage and one in a table.
 * argv[1] = how many, argv[2] = "busy" (they compute) or "sleepy" (they sleep 20 ms at a time).
 * Seen: a thread that is gone or stands still, a wrong stack page, wrong thread-local storage, a wrong tid.
 */
#include "victim.h"

enum { MOST = 1024, WORDS = 300 };
static _Atomic uint64_t counts[MOST];
static bool busy;
static __thread uint64_t my_count;

static void *run(void *argument) {
    uint64_t me = (uint64_t)(intptr_t)argument;
    volatile uint64_t pattern[WORDS];
    pid_t tid = gettid();
    for (uint64_t i = 0; i < WORDS; i++)
        pattern[i] = mix(me, i);
    for (;;) {
        uint64_t steps = busy ? 2000 : 1, chain = my_count;
        for (uint64_t step = 0; step < steps; step++) {
            uint64_t slot = (my_count + step) % WORDS;
            chain = mix(chain, slot);
            if (pattern[slot] != mix(me, slot) + (my_count + step) / WORDS)
                wrong("thread %lu: word %lu of its stack at step %lu", me, slot, my_count + step);
            pattern[slot]++;
        }
        my_count += steps;
        counts[me] += steps;
        if (my_count != counts[me] || gettid() != tid)
            wrong("thread %lu: %lu in thread-local storage, %lu in the table", me, my_count, counts[me]);
        if (!busy) {
            struct timespec time = {0, 20000000};
            if (nanosleep(&time, NULL) != 0)
                wrong("thread %lu: nanosleep: %s", me, strerror(errno));
        }
    }
    return NULL;
}

static void all_move(long threads) {
    static uint64_t before[MOST];
    uint64_t deadline = clock_ns() + 10000000000u;
    for (long i = 0; i < threads; i++)
        before[i] = counts[i];
    for (long i = 0; i < threads; i++)
        while (counts[i] == before[i]) {
            if (clock_ns() > deadline) {
                wrong("thread %ld stands still", i);
                return;
            }
            usleep(1000);
        }
}

int main(int argc, char **argv) {
    long threads = argc > 1 ? strtol(argv[1], NULL, 10) : 200;
    need(threads > 0 && threads < MOST, "usage: threads COUNT [busy|sleepy]");
    busy = argc > 2 && strcmp(argv[2], "busy") == 0;
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, 65536);
    pthread_t thread;
    for (intptr_t i = 0; i < threads; i++)
        need(pthread_create(&thread, &attributes, run, (void *)i) == 0, "pthread_create");
    all_move(threads);
    ready();
    for (;;) {
        asked(-1);
        all_move(threads);
        answer();
    }
}
