/* calls: a thread in each blocking call and form, waiting for its time to be over or to be woken.
 *
 *   calls MS FOLDER the finite ones last so long; FOLDER: of ours alone
 *   go              each thread enters its call; answered "GONE" once all sleep there
 *   wake            wakes each endless one, once
 *   report          when all have returned: a line "NAME KIND RESULT EXPECTED ELAPSED_us CHANGED" each, then "END"
 *   clean           removes what outlives a process
 *
 * KIND: finite (from its beginning), instant, endless. CHANGED: argument registers or memory that are not what they were, or what
 * the call should have brought and has not; "-" = nothing.
 */
#include "calls.h"

enum { ROOM = 200 };
static const char *const kinds[] = {"finite", "instant", "endless"};
static const struct test *const tables[] = {sleeps, futexes, sockets, files, queues};
static struct test tests[ROOM];
static size_t count;

long limit_ms;
pid_t holder;
const char *folder;
void clean(void);

/* The call with nothing between it and the registers. */
static long enter(const long arg[6], long nr, long after[6]) {
    register long r10 __asm__("r10") = arg[3], r8 __asm__("r8") = arg[4], r9 __asm__("r9") = arg[5];
    long rdi = arg[0], rsi = arg[1], rdx = arg[2], rax = nr;
    __asm__ volatile("syscall" : "+a"(rax), "+D"(rdi), "+S"(rsi), "+d"(rdx), "+r"(r10), "+r"(r8), "+r"(r9) : : "rcx", "r11", "memory");
    const long seen[6] = {rdi, rsi, rdx, r10, r8, r9};
    memcpy(after, seen, sizeof seen);
    return rax;
}

static void *run(void *argument) {
    struct test *test = argument;
    sigset_t all;
    sigfillset(&all);
    if (test->nr == SYS_pause)
        sigdelset(&all, SIGUSR2);
    pthread_sigmask(SIG_SETMASK, &all, NULL);
    test->tid = (pid_t)syscall(SYS_gettid);
    if (test->bytes)
        memcpy(test->copy, test->watched, test->bytes);
    if (!test->begun) /* else its time runs since its setup */
        test->begun = clock_ns();
    test->state = 1;
    test->result = enter(test->arg, test->nr, test->after);
    test->ended = clock_ns();
    test->state = 2;
    return NULL;
}

static bool asleep(const struct test *test) {
    char path[64], text[256];
    snprintf(path, sizeof path, "/proc/self/task/%d/syscall", test->tid);
    int fd = open(path, O_RDONLY);
    ssize_t got = read(fd, text, sizeof text - 1);
    close(fd);
    text[got > 0 ? got : 0] = 0;
    return atol(text) == test->nr && strncmp(text, "running", 7) != 0;
}

static void go(void) {
    pthread_attr_t small; /* each child is a copy of all this */
    pthread_attr_init(&small);
    pthread_attr_setstacksize(&small, 64 * 1024);
    for (size_t i = 0; i < sizeof tables / sizeof *tables; i++)
        for (const struct test *row = tables[i]; row->name; row++)
            tests[count++] = *row;
    for (size_t i = 0; i < count; i++)
        tests[i].setup(&tests[i]);
    for (size_t i = 0; i < count; i++)
        need(pthread_create(&tests[i].thread, &small, run, &tests[i]) == 0, "pthread_create");
    for (size_t i = 0; i < count; i++)
        while (tests[i].state == 0 || (tests[i].state == 1 && !asleep(&tests[i])))
            usleep(500);
    say("GONE");
}

static const char *changed(struct test *test) {
    if (test->state != 2)
        return "waits-still";
    if (memcmp(test->arg, test->after, sizeof test->arg))
        return "registers";
    if (test->bytes && memcmp(test->copy, test->watched, test->bytes))
        return "memory";
    return test->right && !test->right(test) ? "contents" : "-";
}

static void report(void) {
    for (size_t i = 0; i < count; i++) {
        struct test *test = &tests[i];
        for (int wait = 0; test->state != 2 && wait < 10000; wait++)
            usleep(1000);
        const char *what = changed(test);
        long expected = test->expected == ANY && test->result > 0 ? test->result : test->expected;
        say("%s %s %ld %ld %ld %s", test->name, kinds[test->kind], test->result, expected, (long)(test->ended - test->begun) / 1000, what);
    }
    say("END");
}

static void handled(int number) { (void)number; }

int main(int argc, char **argv) {
    limit_ms = argc > 1 ? atol(argv[1]) : 2000;
    folder = argc > 2 ? argv[2] : "/tmp";
    holder = getpid();
    signal(SIGUSR2, handled);
    ready();
    for (;;) {
        const char *line = question();
        if (!strcmp(line, "go"))
            go();
        else if (!strcmp(line, "wake")) {
            for (size_t i = 0; i < count; i++)
                if (tests[i].wake)
                    tests[i].wake(&tests[i]);
            say("WOKEN");
        } else if (!strcmp(line, "clean")) {
            clean();
            say("CLEANED");
        } else
            report();
    }
}
