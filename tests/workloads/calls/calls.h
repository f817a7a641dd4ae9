/* calls.h: a case is one blocking call in one form. Each of the files beside this one has a table of cases of one meaning; main.c runs them. */
#ifndef CALLS_H
#define CALLS_H

#include "../victim.h"
#include <linux/futex.h>
#include <mqueue.h>
#include <netinet/in.h>
#include <sys/epoll.h>
#include <sys/sem.h>
#include <sys/select.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/un.h>

enum { WATCHED = 128, BYTES_IN = 8192, PIPE_BYTES = 65536, BULK = 1 << 20 };
enum kind { FINITE, INSTANT, ENDLESS }; /* from its beginning; until an instant; until somebody wakes it */
#define ANY (-1000000L) /* expected: any result above 0 */

struct test {
    const char *name;
    enum kind kind;
    void (*setup)(struct test *test);
    void (*wake)(struct test *test);  /* endless ones */
    long expected;
    bool (*right)(struct test *test); /* what it has brought; NULL: its result says all */
    long nr;
    long arg[6];
    long after[6];
    long result;
    uint64_t begun, ended;
    int fd[2];
    void *watched;  /* memory that the call must leave alone */
    size_t bytes;
    char copy[WATCHED];
    pthread_t thread;
    pid_t tid, child;
    _Atomic int state; /* 1 = about to call, 2 = returned */
    /* what calls point to */
    union {
        struct timespec time;
        struct timeval timeval;
    };
    struct timespec rest;
    struct pollfd poll;
    fd_set set;
    struct epoll_event event;
    struct sembuf sem;
    sigset_t signals;
    siginfo_t info;
    uint32_t word, other;
    char bytes_in[BYTES_IN];
    char *bulk; /* BULK bytes, where a case wants them */
    struct iovec vector[2];
    struct mmsghdr messages[2];
    struct sockaddr_un address;
    socklen_t length;
    struct futex_waitv waiter;
    struct { uint64_t set, size; } mask;
    struct { long type; char text[8]; } note;
    int status;
    char path[200];
};

#define ENDS(label, sort, make, result) {.name = label, .kind = sort, .setup = make, .expected = result}
#define WOKEN(label, make, waker, result) {.name = label, .kind = ENDLESS, .setup = make, .wake = waker, .expected = result}
#define GIVES(label, make, waker, result, check) {.name = label, .kind = ENDLESS, .setup = make, .wake = waker, .expected = result, .right = check}

/* The tables; each ends with a row without a name. */
extern const struct test sleeps[], futexes[], sockets[], files[], queues[];

extern long limit_ms;     /* how long the finite ones last */
extern pid_t holder;      /* of PI futexes: the main thread */
extern const char *folder; /* of ours alone, empty at the start */

/* ---- what cases are made of (help.c) ---- */

void call(struct test *test, long nr, long a, long b, long c, long d, long e, long f);
long at(const void *pointer);
void watch(struct test *test, void *memory, size_t bytes);
long relative(struct test *test);                 /* a timespec, and watches it */
long instant(struct test *test, clockid_t clock); /* likewise */
void limit_socket(int fd, int option);
int readable(struct test *test);                  /* a pipe; its reading end */
void fill(int fd);                                /* until it would block; fd blocks afterwards */
void writes(struct test *test);                   /* "12345678" into fd[1] */
bool got_eight(struct test *test);                /* and that in bytes_in */
void drains(struct test *test);                   /* a socket, fd[1], or a pipe, fd[0] */
const char *place(struct test *test, const char *name); /* a path in our folder */

#endif
