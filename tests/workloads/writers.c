/* writers: threads that each write pages of one mapping, by one function of their own. argv[1] = a folder for the file.
 *
 *   where              answers "AT name start pages tid ..." with all mappings and the threads that write them
 *   round SEED         each thread writes some pages of its mapping, chosen at random, and the kernel fills some by read(); answers "OK pages"
 *   rate PAGES         from then on each thread writes so many pages every 10 ms (0 = none); answers "OK"
 *   verify             each page holds the number of times that it was written
 */
#include "victim.h"

enum { PLAIN, HUGE, FILES, FRESH, READ, AREAS };
static const char *const names[AREAS] = {"plain", "huge", "file", "fresh", "read"};
static const size_t sizes[AREAS] = {512, 1024, 256, 512, 64}; /* pages */

struct area {
    char *start;
    unsigned counts[1024];
    pthread_t thread;
    pid_t tid;
    uint64_t chance;
};
static struct area areas[AREAS];
static pthread_barrier_t go, done;
static _Atomic unsigned asked_pages, rate;
static int feed[2];

/* One function each, so that who wrote is one symbol. */
#define SCRIBBLE(name)                                                                                                                     \
    __attribute__((noinline)) void name(char *page, unsigned count) { *(volatile unsigned *)page = count; }
SCRIBBLE(scribble_plain)
SCRIBBLE(scribble_huge)
SCRIBBLE(scribble_file)
SCRIBBLE(scribble_fresh)

__attribute__((noinline)) void fill_by_read(char *page, unsigned count) {
    if (write(feed[1], &count, sizeof count) != sizeof count || read(feed[0], page, sizeof count) != sizeof count)
        wrong("the pipe");
}

static void (*const writer[AREAS])(char *, unsigned) = {scribble_plain, scribble_huge, scribble_file, scribble_fresh, fill_by_read};

static void some(int which, unsigned count) {
    struct area *area = &areas[which];
    for (unsigned i = 0; i < count; i++) {
        size_t page = draw(&area->chance) % sizes[which];
        writer[which](area->start + page * PAGE, ++area->counts[page]);
    }
}

static void *work(void *argument) {
    int which = (int)(intptr_t)argument;
    areas[which].tid = (pid_t)syscall(SYS_gettid);
    for (;;) {
        pthread_barrier_wait(&go);
        some(which, asked_pages);
        pthread_barrier_wait(&done);
    }
    return NULL;
}

static void check(void) {
    for (int which = 0; which < AREAS; which++)
        for (size_t page = 0; page < sizes[which]; page++)
            if (*(unsigned *)(areas[which].start + page * PAGE) != areas[which].counts[page])
                return wrong("%s: page %zu", names[which], page);
}

static void where(void) {
    char line[400] = "AT";
    for (int which = 0; which < AREAS; which++) {
        size_t used = strlen(line);
        snprintf(line + used, sizeof line - used, " %s %lu %zu %d", names[which], (unsigned long)areas[which].start, sizes[which], areas[which].tid);
    }
    say("%s", line);
}

static void prepare(const char *folder) {
    char path[256];
    snprintf(path, sizeof path, "%s/private.bin", folder);
    int fd = open(path, O_RDWR | O_CREAT | O_TRUNC, 0600);
    need(fd >= 0 && ftruncate(fd, (off_t)(sizes[FILES] * PAGE)) == 0 && pipe(feed) == 0, path);
    for (int which = 0; which < AREAS; which++) {
        size_t bytes = sizes[which] * PAGE, room = which == HUGE ? bytes + (2 << 20) : bytes + 2 * PAGE;
        char *at = mmap(NULL, room, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0); /* so that neighbours stay apart */
        need(at != MAP_FAILED, "room");
        at = which == HUGE ? (char *)(((uintptr_t)at + (2 << 20) - 1) & ~((2ul << 20) - 1)) : at + PAGE;
        int flags = MAP_PRIVATE | MAP_FIXED | (which == FILES ? 0 : MAP_ANONYMOUS);
        areas[which].start = mmap(at, bytes, PROT_READ | PROT_WRITE, flags, which == FILES ? fd : -1, 0);
        need(areas[which].start != MAP_FAILED, names[which]);
        madvise(at, bytes, which == HUGE ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
        areas[which].chance = (uint64_t)which;
        for (size_t page = 0; page < sizes[which] && which != FRESH; page += which == FILES ? 2 : 1)
            writer[which](at + page * PAGE, ++areas[which].counts[page]);
    }
}

int main(int argc, char **argv) {
    need(argc == 2, "usage: writers FOLDER");
    prepare(argv[1]);
    pthread_barrier_init(&go, NULL, AREAS);
    pthread_barrier_init(&done, NULL, AREAS);
    areas[READ].tid = getpid();
    for (int which = 0; which < READ; which++)
        pthread_create(&areas[which].thread, NULL, work, (void *)(intptr_t)which);
    for (int which = 0; which < READ; which++)
        while (!*(volatile pid_t *)&areas[which].tid)
            usleep(1000);
    ready();
    for (;;) {
        if (!asked(rate ? 10 : -1)) {
            asked_pages = rate;
            pthread_barrier_wait(&go);
            pthread_barrier_wait(&done);
            continue;
        }
        char *line = question();
        if (strcmp(line, "where") == 0)
            where();
        else if (strncmp(line, "round ", 6) == 0) {
            uint64_t seed = strtoul(line + 6, NULL, 10);
            for (int which = 0; which < AREAS; which++)
                areas[which].chance = mix(seed, (uint64_t)which);
            asked_pages = 1 + (unsigned)(seed % 97);
            pthread_barrier_wait(&go);
            some(READ, asked_pages % 20);
            pthread_barrier_wait(&done);
            say("OK %u", asked_pages);
        } else if (strncmp(line, "rate ", 5) == 0) {
            rate = (unsigned)strtoul(line + 5, NULL, 10);
            say("OK");
        } else {
            check();
            verdict();
        }
    }
}
