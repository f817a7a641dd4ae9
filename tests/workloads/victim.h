/* victim.h: the protocol between a workload and the harness (tests/harness), and arithmetic for self-checking state.
 *
 *  1. A workload writes "READY" on its standard output when its state is prepared, and goes on working.
 *  2. A line on its standard input asks for something; "verify" is answered by "PASS" or "FAIL reason", other lines as
 *     the workload's head says. No signals: a wake-up by signal would hide the EINTR that these tests look for.
 *  3. Both pipes lead out of the tree, so a rollback does not touch what was said. One question at a time.
 *  4. End of file on standard input ends the workload: it never outlives its test.
 *  5. Exit 77 = cannot run here; the reason is the last line written ("SKIP reason").
 */
#ifndef VICTIM_H
#define VICTIM_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define PAGE 4096UL

static char victim_reason[200]; /* the first thing that was found wrong; "" = nothing */

__attribute__((format(printf, 1, 2), unused)) static void wrong(const char *format, ...) {
    va_list list;
    va_start(list, format);
    if (!victim_reason[0])
        vsnprintf(victim_reason, sizeof victim_reason, format, list);
    va_end(list);
}

__attribute__((format(printf, 1, 2), unused)) static void say(const char *format, ...) {
    char line[512];
    va_list list;
    va_start(list, format);
    int bytes = vsnprintf(line, sizeof line - 1, format, list);
    va_end(list);
    if (bytes > (int)sizeof line - 2)
        bytes = sizeof line - 2;
    line[bytes] = '\n';
    for (int done = 0; done <= bytes;) {
        ssize_t wrote = write(1, line + done, (size_t)(bytes + 1 - done));
        if (wrote < 0)
            _exit(3);
        done += (int)wrote;
    }
}

__attribute__((unused)) static void skip(const char *reason) {
    say("SKIP %s", reason);
    _exit(77);
}

__attribute__((unused)) static void need(bool ok, const char *what) {
    if (!ok) {
        fprintf(stderr, "%s: %s\n", what, strerror(errno));
        _exit(3);
    }
}

static inline void ready(void) { say("READY"); }

/* Is a question waiting? Waits up to timeout_ms (-1 = for ever). */
__attribute__((unused)) static bool asked(int timeout_ms) {
    struct pollfd in = {0, POLLIN, 0};
    int got = poll(&in, 1, timeout_ms);
    if (got < 0)
        wrong("poll of standard input: %s", strerror(errno));
    return got > 0;
}

/* Reads one line (blocking), without its newline. Ends the program at end of file. */
__attribute__((unused)) static char *question(void) {
    static char line[256];
    size_t used = 0;
    for (;;) {
        ssize_t got = read(0, line + used, 1);
        if (got < 0) {
            wrong("read of standard input: %s", strerror(errno));
            continue;
        }
        if (got == 0)
            _exit(0);
        if (line[used] == '\n' || used == sizeof line - 2)
            break;
        used++;
    }
    line[used] = 0;
    return line;
}

static inline void verdict(void) {
    if (victim_reason[0])
        say("FAIL %s", victim_reason);
    else
        say("PASS");
}

/* Reads a question that must be "verify" and answers it from what is wrong so far. */
__attribute__((unused)) static void answer(void) {
    if (strcmp(question(), "verify") != 0)
        wrong("unknown question");
    verdict();
}

static inline uint64_t mix(uint64_t a, uint64_t b) {
    uint64_t x = a * 0x9E3779B97F4A7C15ull ^ (b + 0xD1B54A32D192ED03ull);
    x ^= x >> 29;
    x *= 0xBF58476D1CE4E5B9ull;
    return x ^ x >> 32;
}

static inline uint64_t clock_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* A page that knows what it should be: every word follows from (key, generation, position). */
__attribute__((unused)) static void fill_page(void *page, uint64_t key, uint64_t generation) {
    uint64_t *word = page, seed = mix(key, generation);
    for (size_t i = 0; i < PAGE / 8; i++)
        word[i] = seed + i * 0x9E3779B97F4A7C15ull;
}

__attribute__((unused)) static bool page_is(const void *page, uint64_t key, uint64_t generation) {
    const uint64_t *word = page;
    uint64_t seed = mix(key, generation);
    for (size_t i = 0; i < PAGE / 8; i++)
        if (word[i] != seed + i * 0x9E3779B97F4A7C15ull)
            return false;
    return true;
}

/* A small random generator whose state is part of the state that is checkpointed. */
static inline uint64_t draw(uint64_t *state) {
    *state = mix(*state, 0x5851F42D4C957F2Dull);
    return *state;
}

#endif
