/* counts: threads that are in the middle of a transfer, each of which a stop cuts short, and some that have nothing done yet, which go
 * on. "begin" is answered by BEGUN when all are in their calls (the threads are there before, for a snapshot that comes first), "report"
 * by a line for each: name, thread, what its call has given ("-": it is still in it), and "short", "full" or "-"; then END.
 */
#include "victim.h"
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/uio.h>

enum { MUCH = 1 << 20, SOME = 3000, WANTED = 10000 };

struct test {
    const char *name;
    void (*run)(struct test *);
    void (*before)(struct test *); /* NULL: nothing is there */
    int pipe[2], pair[2];
    pid_t tid;
    volatile long result;
    volatile bool begin, is_short, done;
};

static char much[MUCH];
static int file;

static void gave(struct test *t, long result, size_t bytes, size_t wanted) {
    t->result = result;
    t->is_short = bytes < wanted;
    t->done = true;
}

static void pour(int fd) {
    need(fcntl(fd, F_SETFL, O_NONBLOCK) == 0, "fcntl");
    while (write(fd, much, PAGE) > 0)
        ;
    need(fcntl(fd, F_SETFL, 0) == 0, "fcntl");
}

/* More of them than a list that goes on has room for. */
enum { PARTS = 8 };
#define PART(bytes, which) {much + (which) * (bytes) / PARTS, (bytes) / PARTS}
#define LIST(bytes) {PART(bytes, 0), PART(bytes, 1), PART(bytes, 2), PART(bytes, 3), PART(bytes, 4), PART(bytes, 5), PART(bytes, 6), PART(bytes, 7)}
#define PLAIN(name, call, wanted)                                                                                       \
    static void name(struct test *t) {                                                                                  \
        long result = call;                                                                                             \
        gave(t, result, result < 0 ? 0 : (size_t)result, wanted);                                                       \
    }
#define VECTORS(name, bytes, call)                                                                                      \
    static void name(struct test *t) {                                                                                  \
        struct iovec list[PARTS] = LIST(bytes);                                                                         \
        long result = call;                                                                                             \
        gave(t, result, result < 0 ? 0 : (size_t)result, bytes);                                                        \
    }
#define MESSAGE(name, bytes, call)                                                                                      \
    static void name(struct test *t) {                                                                                  \
        struct iovec list[PARTS] = LIST(bytes);                                                                         \
        struct mmsghdr some[4] = {[0 ... 3].msg_hdr = {.msg_iov = list, .msg_iovlen = PARTS}};                          \
        long result = call;                                                                                             \
        gave(t, result, some[0].msg_len, bytes);                                                                        \
    }

PLAIN(do_write, write(t->pipe[1], much, MUCH), MUCH)
PLAIN(do_send, send(t->pair[0], much, MUCH, 0), MUCH)
PLAIN(do_recv, recv(t->pair[0], much, WANTED, MSG_WAITALL), WANTED)
PLAIN(do_read, read(t->pipe[0], much, WANTED), WANTED)
PLAIN(do_sendfile, sendfile(t->pair[0], file, &(off_t){0}, MUCH), MUCH)
PLAIN(do_splice, splice(t->pipe[0], NULL, t->pair[0], NULL, MUCH, 0), MUCH)
VECTORS(do_writev, MUCH, writev(t->pipe[1], list, PARTS))
VECTORS(do_pwritev2, MUCH, pwritev2(t->pipe[1], list, PARTS, -1, 0))
VECTORS(do_sendmsg, MUCH, sendmsg(t->pair[0], (&(struct msghdr){.msg_iov = list, .msg_iovlen = PARTS}), 0))
VECTORS(do_recvmsg, WANTED, recvmsg(t->pair[0], (&(struct msghdr){.msg_iov = list, .msg_iovlen = PARTS}), MSG_WAITALL))
MESSAGE(do_sendmmsg, MUCH, sendmmsg(t->pair[0], some, 4, 0))
MESSAGE(do_sendmmsg_last, MUCH, sendmmsg(t->pair[0], some, 1, 0))
MESSAGE(do_recvmmsg_last, WANTED, recvmmsg(t->pair[0], some, 1, MSG_WAITALL, NULL))

/* What is there before: so many bytes to receive, a full pipe. */
static void some_came(struct test *t) { need(write(t->pair[1], much, SOME) == SOME, "write"); }
static void pipe_full(struct test *t) { pour(t->pipe[1]); }
static void large_pipe_full(struct test *t) {
    need(fcntl(t->pipe[1], F_SETPIPE_SZ, MUCH) >= 0, "F_SETPIPE_SZ");
    pour(t->pipe[1]);
}

static struct test all[] = {
    {.name = "write", .run = do_write},
    {.name = "writev", .run = do_writev},
    {.name = "pwritev2", .run = do_pwritev2},
    {.name = "sendto", .run = do_send},
    {.name = "sendmsg", .run = do_sendmsg},
    {.name = "sendmmsg", .run = do_sendmmsg},
    {.name = "sendmmsg/last", .run = do_sendmmsg_last},
    {.name = "sendfile", .run = do_sendfile},
    {.name = "splice", .run = do_splice, .before = large_pipe_full},
    {.name = "recvfrom", .run = do_recv, .before = some_came},
    {.name = "recvmsg", .run = do_recvmsg, .before = some_came},
    {.name = "recvmmsg/last", .run = do_recvmmsg_last, .before = some_came},
    {.name = "write/none", .run = do_write, .before = pipe_full},
    {.name = "writev/none", .run = do_writev, .before = pipe_full},
    {.name = "recvfrom/none", .run = do_recv},
    {.name = "recvmsg/none", .run = do_recvmsg},
    {.name = "read/none", .run = do_read},
};
enum { ALL = sizeof all / sizeof *all };

static void *body(void *argument) {
    struct test *t = argument;
    __atomic_store_n(&t->tid, gettid(), __ATOMIC_RELEASE);
    while (!t->begin)
        usleep(1000);
    t->run(t);
    for (;;)
        pause();
    return NULL;
}

/* Asleep in its call: /proc says "running" of one that is not, and the number of clock_nanosleep of one that has not begun. */
static bool asleep(pid_t tid) {
    char path[64], text[5] = "";
    snprintf(path, sizeof path, "/proc/self/task/%d/syscall", tid);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    need(fd >= 0 && read(fd, text, 4) == 4, path);
    close(fd);
    return text[0] >= '0' && text[0] <= '9' && strcmp(text, "230 ") != 0;
}

static void prepare(struct test *t) {
    pthread_t thread;
    need(pipe(t->pipe) == 0 && socketpair(AF_UNIX, SOCK_STREAM, 0, t->pair) == 0, "pipe, socketpair");
    if (t->before)
        t->before(t);
    need(pthread_create(&thread, NULL, body, t) == 0, "pthread_create");
    while (!__atomic_load_n(&t->tid, __ATOMIC_ACQUIRE))
        usleep(1000);
}

static void begin(struct test *t) {
    t->begin = true;
    for (int seen = 0; seen < 5; seen = asleep(t->tid) ? seen + 1 : 0)
        usleep(5000);
    need(!t->done, t->name);
}

int main(void) {
    file = memfd_create("counts", MFD_CLOEXEC);
    need(file >= 0 && write(file, much, MUCH) == MUCH, "memfd");
    for (int i = 0; i < ALL; i++)
        prepare(&all[i]);
    ready();
    for (;;) {
        if (!strcmp(question(), "begin")) {
            for (int i = 0; i < ALL; i++)
                begin(&all[i]);
            say("BEGUN");
            continue;
        }
        for (int i = 0; i < ALL; i++) {
            struct test *t = &all[i];
            if (t->done)
                say("%s %d %ld %s", t->name, t->tid, t->result, t->is_short ? "short" : "full");
            else
                say("%s %d - -", t->name, t->tid);
        }
        say("END");
    }
}
