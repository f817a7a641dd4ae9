/* dirty: N MiB resident, rewritten on command; measures the largest gap of its own clock, which is the stop time as the
 * victim sees it. argv: MIB [random|half|zero] [wait] (what pages hold; half = half of a page compresses well; wait: it sleeps until it
 * is asked, as a server does, and measures no gap).
 *
 *   dirty PERCENT      rewrites that share of all pages once, chosen at random; answers "OK pages"
 *   rate PAGES         goes on rewriting that many random pages a second (0 = none); answers "OK"
 *   gap                answers "GAP nanoseconds": the largest difference of two neighbouring clock readings since it was
 *                      last asked, not counting the time in which it answered
 *   verify             compares every page with what it should be
 */
#include "victim.h"

static char *memory;
static uint32_t *generations;
static size_t pages;
static char content = 'r';
static uint64_t chance = 5;

static void put(size_t page) {
    char *at = memory + page * PAGE;
    generations[page]++;
    if (content == 'z')
        return memset(at, 0, PAGE), (void)0;
    uint64_t state = mix(page, generations[page]);
    size_t words = content == 'h' ? PAGE / 16 : PAGE / 8;
    for (size_t i = 0; i < words; i++)
        ((uint64_t *)at)[i] = draw(&state);
    for (size_t i = words; i < PAGE / 8; i++)
        ((uint64_t *)at)[i] = 0x20202020;
}

static void check(void) {
    for (size_t page = 0; page < pages; page++) {
        const uint64_t *at = (uint64_t *)(memory + page * PAGE);
        uint64_t state = mix(page, generations[page]);
        for (size_t i = 0; i < PAGE / 8; i++) {
            uint64_t should = content == 'z' ? 0 : content == 'h' && i >= PAGE / 16 ? 0x20202020 : draw(&state);
            if (at[i] != should)
                return wrong("page %zu, word %zu", page, i);
        }
    }
}

static void dirty(double percent) {
    size_t count = (size_t)((double)pages * percent / 100);
    for (size_t i = 0; i < count; i++) {
        size_t page = draw(&chance) % pages;
        put(page);
    }
    say("OK %zu", count);
}

int main(int argc, char **argv) {
    need(argc >= 2, "usage: dirty MIB [random|half|zero] [wait]");
    pages = strtoul(argv[1], NULL, 10) << 8;
    if (argc > 2)
        content = argv[2][0];
    bool waits = argc > 3;
    memory = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    generations = calloc(pages, sizeof *generations);
    need(memory != MAP_FAILED && generations, "memory");
    for (size_t page = 0; page < pages; page++)
        put(page);
    ready();
    uint64_t last = clock_ns(), gap = 0, rate = 0, due = last, looked = last;
    for (;;) {
        uint64_t now = clock_ns();
        if (now - last > gap)
            gap = now - last;
        last = now;
        if (rate && now >= due) {
            put(draw(&chance) % pages);
            due = now - due > 1000000000u ? now : due + 1000000000u / rate;
        }
        if (!waits && now - looked < 200000)
            continue;
        looked = now;
        if (asked(waits ? -1 : 0)) {
            char *line = question();
            if (strncmp(line, "dirty ", 6) == 0)
                dirty(strtod(line + 6, NULL));
            else if (strncmp(line, "rate ", 5) == 0) {
                rate = strtoul(line + 5, NULL, 10);
                due = clock_ns();
                say("OK");
            } else if (strcmp(line, "gap") == 0) {
                say("GAP %lu", gap);
                gap = 0;
            } else {
                check();
                verdict();
            }
            last = clock_ns();
        }
    }
}
