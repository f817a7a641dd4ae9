/* layout: N MiB of patterned memory (argv[1]) that the program moves, drops, unmaps, splits, forks and rewrites as soon as it is asked: what a
 * lazy restore has to follow while it still brings pages. At "churn" it does one round of all of it and checks every page that it knows.
 */
#include "victim.h"
#include <sys/mman.h>

enum { PARTS = 16 };

static uint8_t *part[PARTS];
static uint32_t generation[PARTS]; /* what the pages of a part say; 0 = zeros */
static size_t pages_each;
static uint64_t state = 12345;

static uint64_t key(int p, size_t page) { return (uint64_t)p * 1000003 + page; }

static void check(int p, const char *when) {
    static const uint8_t zero[PAGE];
    for (size_t i = 0; i < pages_each; i++) {
        const uint8_t *at = part[p] + i * PAGE;
        if (generation[p] ? !page_is(at, key(p, i), generation[p]) : memcmp(at, zero, PAGE) != 0)
            return wrong("%s: part %d page %zu is not of generation %u", when, p, i, generation[p]);
    }
}

static void fill(int p, uint32_t number) {
    for (size_t i = 0; i < pages_each; i++)
        fill_page(part[p] + i * PAGE, key(p, i), number);
    generation[p] = number;
}

static void move(int p) {
    size_t bytes = pages_each * PAGE;
    uint8_t *room = mmap(NULL, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    uint8_t *now = mremap(part[p], bytes, bytes, MREMAP_MAYMOVE | MREMAP_FIXED, room);
    if (now == MAP_FAILED)
        wrong("mremap: %s", strerror(errno));
    else
        part[p] = now;
}

static void in_a_child(int p) {
    pid_t child = fork();
    if (child == 0) {
        victim_reason[0] = 0;
        check(p, "in a child");
        part[p][0] ^= 1; /* its own copy */
        _exit(victim_reason[0] ? 1 : 0);
    }
    int status = 0;
    if (child < 0 || waitpid(child, &status, 0) != child || status)
        wrong("a child ended with %#x", status);
}

/* A mapping that becomes three, without a word to whoever fills it. */
static void split(int p) {
    size_t from = draw(&state) % pages_each, pages = 1 + draw(&state) % (pages_each - from);
    if (mprotect(part[p] + from * PAGE, pages * PAGE, PROT_READ))
        return wrong("mprotect: %s", strerror(errno));
    check(p, "split");
    mprotect(part[p] + from * PAGE, pages * PAGE, PROT_READ | PROT_WRITE);
}

static void churn(void) {
    for (int round = 0; round < 2 * PARTS; round++) {
        int p = (int)(draw(&state) % PARTS);
        switch (draw(&state) % 7) {
        case 0:
            move(p);
            break;
        case 1:
            madvise(part[p], pages_each * PAGE, MADV_DONTNEED);
            generation[p] = 0;
            break;
        case 2:
            in_a_child(p);
            break;
        case 3:
            fill(p, (uint32_t)(draw(&state) % 1000) + 1);
            break;
        case 4:
            munmap(part[p], pages_each * PAGE);
            part[p] = mmap(part[p], pages_each * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
            generation[p] = 0;
            break;
        case 5:
            split(p);
            break;
        default:
            check(p, "as it is");
        }
    }
    for (int p = 0; p < PARTS; p++)
        check(p, "in the end");
}

int main(int argc, char **argv) {
    size_t mib = argc > 1 ? strtoul(argv[1], NULL, 10) : 64;
    pages_each = mib * (1 << 20) / PARTS / PAGE;
    for (int p = 0; p < PARTS; p++) {
        part[p] = mmap(NULL, pages_each * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        need(part[p] != MAP_FAILED, "mmap");
        fill(p, (uint32_t)p + 1);
    }
    ready();
    for (;;) {
        const char *asked_for = question();
        if (!strcmp(asked_for, "churn"))
            churn();
        else if (strcmp(asked_for, "verify") != 0)
            wrong("unknown question");
        else
            for (int p = 0; p < PARTS; p++)
                check(p, "at verify");
        verdict();
    }
}
