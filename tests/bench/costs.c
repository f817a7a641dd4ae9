/* costs: what a system call and a first write cost the program that makes them. Speaks the victims' protocol.
 *
 *   calls       answers "NS n": nanoseconds of one getppid(), the fastest of 20 times 20,000
 *   pages       writes each of 4096 pages once; answers "NS n": nanoseconds of one write, the median over the pages
 */
#include "../workloads/victim.h"

enum { PAGES = 4096, CALLS = 20000, TIMES = 20 };
static char *memory;

static double calls(void) {
    uint64_t best = ~0ull;
    for (int time = 0; time < TIMES; time++) {
        uint64_t start = clock_ns();
        for (int i = 0; i < CALLS; i++)
            syscall(SYS_getppid);
        uint64_t took = clock_ns() - start;
        best = took < best ? took : best;
    }
    return (double)best / CALLS;
}

static int by_size(const void *a, const void *b) {
    uint64_t one = *(const uint64_t *)a, other = *(const uint64_t *)b;
    return (one > other) - (one < other);
}

static double pages(void) {
    static uint64_t took[PAGES];
    for (int page = 0; page < PAGES; page++) {
        uint64_t start = clock_ns();
        *(volatile char *)(memory + page * PAGE) += 1;
        took[page] = clock_ns() - start;
    }
    qsort(took, PAGES, sizeof *took, by_size);
    return (double)took[PAGES / 2];
}

int main(void) {
    memory = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    need(memory != MAP_FAILED, "memory");
    madvise(memory, PAGES * PAGE, MADV_NOHUGEPAGE);
    memset(memory, 1, PAGES * PAGE);
    pages();
    ready();
    for (;;) {
        char *line = question();
        if (strcmp(line, "calls") == 0)
            say("NS %.1f", calls());
        else if (strcmp(line, "pages") == 0)
            say("NS %.1f", pages());
        else
            verdict();
    }
}
