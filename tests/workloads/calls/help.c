/* help.c: what cases are made of. */
#include "calls.h"
#include <sys/stat.h>

void call(struct test *test, long nr, long a, long b, long c, long d, long e, long f) {
    const long arg[6] = {a, b, c, d, e, f};
    test->nr = nr;
    memcpy(test->arg, arg, sizeof arg);
}

long at(const void *pointer) { return (long)pointer; }

void watch(struct test *test, void *memory, size_t bytes) {
    test->watched = memory;
    test->bytes = bytes;
}

long relative(struct test *test) {
    test->time = (struct timespec){limit_ms / 1000, limit_ms % 1000 * 1000000};
    watch(test, &test->time, sizeof test->time);
    return at(&test->time);
}

long instant(struct test *test, clockid_t clock) {
    clock_gettime(clock, &test->time);
    test->time.tv_nsec += limit_ms % 1000 * 1000000;
    test->time.tv_sec += limit_ms / 1000 + test->time.tv_nsec / 1000000000;
    test->time.tv_nsec %= 1000000000;
    watch(test, &test->time, sizeof test->time);
    return at(&test->time);
}

void limit_socket(int fd, int option) {
    struct timeval time = {limit_ms / 1000, limit_ms % 1000 * 1000};
    need(setsockopt(fd, SOL_SOCKET, option, &time, sizeof time) == 0, "setsockopt");
}

int readable(struct test *test) {
    need(pipe(test->fd) == 0, "pipe");
    return test->fd[0];
}

void fill(int fd) {
    static const char piece[4096];
    int flags = fcntl(fd, F_GETFL);
    fcntl(fd, F_SETFL, flags | O_NONBLOCK);
    while (write(fd, piece, sizeof piece) > 0)
        ;
    fcntl(fd, F_SETFL, flags & ~O_NONBLOCK);
}

void writes(struct test *test) { need(write(test->fd[1], "12345678", 8) == 8, "write"); }
bool got_eight(struct test *test) { return !memcmp(test->bytes_in, "12345678", 8); }

void drains(struct test *test) {
    char piece[4096];
    struct stat about;
    bool is_pipe = fstat(test->fd[0], &about) == 0 && S_ISFIFO(about.st_mode);
    int fd = is_pipe ? test->fd[0] : test->fd[1];
    for (struct pollfd one = {fd, POLLIN, 0}; poll(&one, 1, 0) == 1;)
        if (read(fd, piece, sizeof piece) <= 0)
            break;
}

const char *place(struct test *test, const char *name) {
    snprintf(test->path, sizeof test->path, "%s/%s", folder, name);
    return test->path;
}
