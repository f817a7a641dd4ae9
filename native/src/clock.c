/* clock.c: the machine's clocks, wherever ckpt itself stands, and what a process in another time namespace sees of them.
 *
 * Who is in a time namespace sees CLOCK_MONOTONIC and CLOCK_BOOTTIME plus an offset. A restored program is in one (newborn.c): its clocks
 * go on from its snapshot. So ckpt may be started in one, by such a program, and its targets may be in others.
 *
 * Facts (Linux 6.18)
 *  1. Offsets count from the machine's clocks, not from those of the namespace in which one was made.
 *  2. /proc/PID/stat shows when a process began as the *reader* sees it, in ticks of 10 ms. Where the reader's offset is a whole number of
 *     ticks, subtracting it gives exactly what is shown outside; the offsets that a restore writes are.
 *  3. /proc/PID/timens_offsets is of the namespace that PID's children are born into: its own one too, but for a process that has called
 *     unshare(CLONE_NEWTIME) and not executed anything since (ckpt/live/clock.py).
 *  4. unshare takes only the caller's children to come along, and its calling thread alone; the offsets can be written until the first
 *     of them is born, with CAP_SYS_TIME. A child by CLONE_VM is not taken along, its own one without is.
 *
 * Invariants
 *  1. Every instant of ckpt's is of the machine's CLOCK_MONOTONIC: those of BPF and of /proc/timer_list are, and records are read by
 *     a ckpt that stands somewhere else. What is told to a sleep is of our own clock again (own_instant).
 *  2. We never leave the time namespace that we began in: our offsets are read once.
 */
#define _GNU_SOURCE
#include "internal.h"
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#ifndef CLONE_NEWTIME
#define CLONE_NEWTIME 0x80
#endif
enum { BILLION = 1000000000, TICK_NS = 10000000, TRIES = 5, AT_ONCE_NS = 5000 };

/* "monotonic 12 345": seconds and nanoseconds; 0 where the line is not there. */
static int64_t offset_in(const char *text, const char *clock) {
    const char *at = strstr(text, clock);
    char *end;
    if (!at)
        return 0;
    long long seconds = strtoll(at + strlen(clock), &end, 10);
    return seconds * BILLION + strtoll(end, NULL, 10);
}

struct ckpt_clocks clocks_of(int dir) {
    char text[CLOCKS_ROOM];
    ssize_t bytes = proc_read(dir, dir == AT_FDCWD ? "/proc/self/timens_offsets" : "timens_offsets", text, sizeof text - 1);
    text[bytes > 0 ? bytes : 0] = 0;
    return (struct ckpt_clocks){offset_in(text, "monotonic"), offset_in(text, "boottime")};
}

static struct ckpt_clocks ours;
static pthread_once_t looked = PTHREAD_ONCE_INIT;

static void look_once(void) { ours = clocks_of(AT_FDCWD); }

static struct ckpt_clocks own(void) {
    pthread_once(&looked, look_once);
    return ours;
}

static int64_t clock_ns(clockid_t clock) {
    struct timespec now;
    clock_gettime(clock, &now);
    return (int64_t)now.tv_sec * BILLION + now.tv_nsec;
}

uint64_t now_ns(void) { return (uint64_t)(clock_ns(CLOCK_MONOTONIC) - own().monotonic); }

uint64_t own_instant(uint64_t when) { return when + (uint64_t)own().monotonic; }

uint64_t machine_ticks(uint64_t shown) {
    int64_t offset = own().boottime;
    return shown - (uint64_t)((offset - (offset < 0 ? TICK_NS - 1 : 0)) / TICK_NS);
}

void ckpt_clocks_own(struct ckpt_clocks *ret_offsets) { *ret_offsets = own(); }

void ckpt_clocks_now(struct ckpt_clocks *ret_now) {
    struct ckpt_clocks now;
    for (int i = 0; i < TRIES; i++) { /* as of one moment, nobody in between */
        now = (struct ckpt_clocks){clock_ns(CLOCK_MONOTONIC), clock_ns(CLOCK_BOOTTIME)};
        if (clock_ns(CLOCK_MONOTONIC) - now.monotonic < AT_ONCE_NS)
            break;
    }
    *ret_now = (struct ckpt_clocks){now.monotonic - own().monotonic, now.boottime - own().boottime};
}

/* ---- for those who are born ---- */

static int64_t rest_of(int64_t ns) { return (ns % BILLION + BILLION) % BILLION; }

/* One text for one write: of two the first would stand if the second failed. */
void clocks_text(const struct ckpt_clocks *offsets, char *text) {
    int64_t mono = rest_of(offsets->monotonic), boot = rest_of(offsets->boottime);
    snprintf(text, CLOCKS_ROOM, "monotonic %lld %lld\nboottime %lld %lld\n", (long long)(offsets->monotonic - mono) / BILLION, (long long)mono,
             (long long)(offsets->boottime - boot) / BILLION, (long long)boot);
}

int clocks_for_children(const char *text) {
    if (unshare(CLONE_NEWTIME))
        return -errno;
    int fd = open("/proc/self/timens_offsets", O_WRONLY | O_CLOEXEC);
    if (fd < 0)
        return -errno;
    int error = write(fd, text, strlen(text)) < 0 ? -errno : 0;
    close(fd);
    return error;
}
