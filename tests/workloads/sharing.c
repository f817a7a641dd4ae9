/* sharing: processes that share more than a fork does: descriptors and directory (CLONE_FILES, CLONE_FS), memory (CLONE_VM), memory with
 * descriptors and signal handlers (CLONE_SIGHAND). In each round every child changes what it shares, and the parent sees the change: were
 * anything made twice where there was one, it would not.
 */
#include "victim.h"
#include <sched.h>

enum { FILES, MEMORY, HANDLERS, CHILDREN, STACK = 64 << 10 };
static int asks[CHILDREN][2], answers[CHILDREN][2];
static volatile uint64_t counters[CHILDREN];
static const char *const folders[] = {"/", "/tmp"};

static void on_first(int sig) { (void)sig; }
static void on_second(int sig) { (void)sig; }

static uint64_t get(int fd) {
    uint64_t value;
    for (;;) {
        ssize_t got = read(fd, &value, sizeof value);
        if (got == (ssize_t)sizeof value)
            return value;
        if (got == 0)
            _exit(0);
    }
}

static void put(int fd, uint64_t value) {
    if (write(fd, &value, sizeof value) != sizeof value)
        _exit(4);
}

static int child(void *argument) {
    int me = (int)(intptr_t)argument;
    for (;;) {
        uint64_t round = get(asks[me][0]), answer = 0;
        if (me == FILES) {
            answer = (uint64_t)dup(asks[me][0]); /* a number that the parent has too */
            if (chdir(folders[round % 2]))
                answer = 0;
        }
        if (me == HANDLERS) {
            struct sigaction action = {.sa_handler = round % 2 ? on_first : on_second};
            answer = (uint64_t)dup(asks[me][0]);
            if (sigaction(SIGUSR2, &action, NULL))
                answer = 0;
        }
        counters[me] = round;
        put(answers[me][1], answer);
    }
    return 0;
}

static void check(int me, uint64_t round, uint64_t answer) {
    char folder[64];
    struct sigaction action;
    if (me != MEMORY && close((int)answer))
        wrong("child %d: descriptor %lu is not the parent's: %s", me, answer, strerror(errno));
    if (me == FILES && (!getcwd(folder, sizeof folder) || strcmp(folder, folders[round % 2])))
        wrong("the directory is %s", folder);
    if (me == FILES ? counters[me] != 0 : counters[me] != round)
        wrong("child %d: memory says %lu in round %lu", me, counters[me], round);
    if (me == HANDLERS && (sigaction(SIGUSR2, NULL, &action) || action.sa_handler != (round % 2 ? on_first : on_second)))
        wrong("the handler is not the child's");
}

static void born(int me, int flags) {
    char *stack = mmap(NULL, STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    need(stack != MAP_FAILED && clone(child, stack + STACK, flags | SIGCHLD, (void *)(intptr_t)me) > 0, "clone");
}

int main(void) {
    for (int i = 0; i < CHILDREN; i++)
        need(pipe(asks[i]) == 0 && pipe(answers[i]) == 0, "pipe");
    born(FILES, CLONE_FILES | CLONE_FS);
    born(MEMORY, CLONE_VM);
    born(HANDLERS, CLONE_VM | CLONE_FILES | CLONE_SIGHAND);
    for (uint64_t round = 1;; round++) {
        for (int i = 0; i < CHILDREN; i++)
            put(asks[i][1], round);
        for (int i = 0; i < CHILDREN; i++)
            check(i, round, get(answers[i][0]));
        if (round == 20)
            ready();
        if (round > 20 && asked(0))
            answer();
        usleep(500);
    }
}
