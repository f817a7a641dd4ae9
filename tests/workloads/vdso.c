/* vdso: threads that read clocks and the number of their CPU in the vdso all the time: nine stops of ten are inside it.
 * Seen: a clock that goes back or leaps, a call that fails, a vdso that is not where the program knows it, or reads pages of another one.
 */
#include "victim.h"
#include <sched.h>
#include <sys/time.h>

enum { THREADS = 2, LEAP_S = 3600 };
static const clockid_t clocks[] = {CLOCK_MONOTONIC, CLOCK_BOOTTIME, CLOCK_REALTIME, CLOCK_MONOTONIC_COARSE};
static _Atomic uint64_t rounds[THREADS];

static uint64_t read_clock(clockid_t clock) {
    struct timespec now;
    if (clock_gettime(clock, &now) != 0 || now.tv_nsec < 0 || now.tv_nsec > 999999999)
        wrong("clock %d: not read", clock);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static void *reading(void *argument) {
    uintptr_t me = (uintptr_t)argument;
    uint64_t last[4] = {0};
    for (;; rounds[me]++) {
        for (int i = 0; i < 4; i++) {
            uint64_t now = read_clock(clocks[i]);
            if (now < last[i] || (last[i] && now - last[i] > LEAP_S * 1000000000ull))
                wrong("clock %d went from %lu to %lu", clocks[i], last[i], now);
            last[i] = now;
        }
        struct timeval day;
        if (gettimeofday(&day, NULL) != 0 || (uint64_t)day.tv_sec + 1 < last[2] / 1000000000u)
            wrong("gettimeofday says %ld", day.tv_sec);
        if (sched_getcpu() < 0)
            wrong("no CPU");
    }
    return NULL;
}

int main(void) {
    for (uintptr_t i = 0; i < THREADS; i++) {
        pthread_t thread;
        need(pthread_create(&thread, NULL, reading, (void *)i) == 0, "pthread_create");
    }
    ready();
    for (;;) {
        asked(-1);
        for (int i = 0; i < THREADS; i++)
            for (uint64_t before = rounds[i]; rounds[i] == before && !victim_reason[0];)
                usleep(1000);
        answer();
    }
}
