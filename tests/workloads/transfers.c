/* transfers: threads that are always in the middle of a transfer, each with one at the other end that takes (or gives) a little at a time.
 * Seen: a count that is not the whole, a register that is not what it was, a byte that is not the one that belongs there.
 * "stall" and "go" stop and start the other ends; "stall" is answered when they stand still. `transfers signals`: a handler interrupts them (SA_RESTART), so that counts may be short;
 * each byte is looked at all the same. `transfers handlers`: so do handlers that "hold" begins in each thread, and "release" lets return.
 * `transfers handlers deep`: with much on their stacks.
 * `transfers lists`: those of several buffers alone; with "signals" or "handlers" behind it, too.
 */
#include "victim.h"
#include <netinet/in.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/uio.h>

enum { WHOLE = 300000, PIPE = 1 << 20, RANDOM = 4 << 20, DEEP_BYTES = 600 << 10 };

struct kind {
    const char *name;
    void (*work)(struct kind *), (*other)(struct kind *);
    int from, to, spare[2]; /* the ends of its stream */
    pthread_t worker;
    uint8_t *buffer;
    volatile int still; /* since which turn the other end has stood still */
    uint64_t at, there; /* places in the stream: of the one that writes, of the one that reads */
};

static bool signals;
static volatile bool stalled, held;
static volatile int handling, turn;

static uint8_t byte_at(uint64_t place) { return (uint8_t)((place * UINT64_C(0x9e3779b97f4a7c15)) >> 56); }

static void do_sendfile(struct kind *k);

static void look(struct kind *k, const uint8_t *bytes, size_t count, uint64_t *place) {
    for (size_t i = 0; i < count; i++, ++*place)
        if (bytes[i] != byte_at(k->work == do_sendfile ? *place % WHOLE : *place)) {
            wrong("%s: byte %lu is another", k->name, *place);
            return;
        }
}

/* The call by its instruction: the registers afterwards are its business as well. */
static long call(struct kind *k, long nr, long a, long b, long c, long d, long e, long f) {
    long was[6] = {a, b, c, d, e, f}, ret = nr;
    register long rdi __asm__("rdi") = a, rsi __asm__("rsi") = b, rdx __asm__("rdx") = c, r10 __asm__("r10") = d, r8 __asm__("r8") = e, r9 __asm__("r9") = f;
    __asm__ volatile("syscall" : "+a"(ret), "+r"(rdi), "+r"(rsi), "+r"(rdx), "+r"(r10), "+r"(r8), "+r"(r9)::"rcx", "r11", "memory");
    long is[6] = {rdi, rsi, rdx, r10, r8, r9};
    if (memcmp(was, is, sizeof was))
        wrong("%s: an argument register has changed", k->name);
    return ret;
}

static void got(struct kind *k, long count, long whole) {
    if (count != whole && !(signals && ((count > 0 && count < whole) || count == -EINTR)))
        wrong("%s: %ld of %ld", k->name, count, whole);
}

static void fill(struct kind *k) {
    for (size_t i = 0; i < WHOLE; i++)
        k->buffer[i] = byte_at(k->at + i);
}

static void sent(struct kind *k, long count) {
    got(k, count, WHOLE);
    k->at += count > 0 ? (uint64_t)count : 0;
}

static void do_write(struct kind *k) {
    fill(k);
    sent(k, call(k, SYS_write, k->from, (long)k->buffer, WHOLE, 4, 5, 6));
}
static void do_send(struct kind *k) {
    fill(k);
    sent(k, call(k, SYS_sendto, k->from, (long)k->buffer, WHOLE, MSG_NOSIGNAL, 0, 0));
}
/* The file's own pages are on the way to the other end, so it is never written again: the stream is the file, again and again. */
static void do_sendfile(struct kind *k) {
    off_t begin = (off_t)(k->at % WHOLE), offset = begin;
    long count = call(k, SYS_sendfile, k->from, k->spare[0], (long)&offset, WHOLE - begin, 5, 6);
    if (count > 0 && offset != begin + count)
        wrong("%s: its offset is %ld after %ld", k->name, offset, count);
    got(k, count, WHOLE - begin);
    k->at += count > 0 ? (uint64_t)count : 0;
}
static void do_splice(struct kind *k) {
    fill(k);
    for (size_t done = 0; done < WHOLE;) {
        ssize_t some = write(k->spare[1], k->buffer + done, WHOLE - done);
        need(some > 0 || errno == EINTR, "write");
        done += some > 0 ? (size_t)some : 0;
    }
    for (long left = WHOLE, count; left; left -= count > 0 ? count : 0) {
        count = call(k, SYS_splice, k->spare[0], 0, k->from, 0, left, 0);
        got(k, count, left);
        if (count <= 0 && !signals)
            break;
    }
    k->at += WHOLE;
}
static void do_receive(struct kind *k) {
    long count = call(k, SYS_recvfrom, k->to, (long)k->buffer, WHOLE / 4, MSG_WAITALL, 0, 0);
    got(k, count, WHOLE / 4);
    look(k, k->buffer, count > 0 ? (size_t)count : 0, &k->there);
}
/* Unequal buffers, an empty one among them, in a list that is looked at afterwards. Most end where a page does, as what a pipe takes does. */
enum { LIST = 5 };

static void list_of(struct iovec list[LIST], struct kind *k) {
    uint8_t *at = k->buffer, *end = k->buffer + WHOLE;
    for (int i = 0; i < LIST; i++, at += list[i - 1].iov_len) {
        size_t some = i == 1 ? 0 : (size_t)(1 + byte_at(k->at + (uint64_t)i) % 16) * PAGE + (i == 3 ? 7 : 0);
        list[i] = (struct iovec){at, i == LIST - 1 ? (size_t)(end - at) : some};
    }
}

static void write_list(struct kind *k, long nr, long d, long e, long f) {
    struct iovec list[LIST], was[LIST];
    fill(k);
    list_of(list, k);
    memcpy(was, list, sizeof was);
    sent(k, call(k, nr, k->from, (long)list, LIST, d, e, f));
    if (memcmp(was, list, sizeof was))
        wrong("%s: its list has changed", k->name);
}
static void do_writev(struct kind *k) { write_list(k, SYS_writev, 4, 5, 6); }
static void do_pwritev2(struct kind *k) { write_list(k, SYS_pwritev2, -1, -1, 0); }
static void do_sendmsg(struct kind *k) {
    struct iovec whole = {k->buffer, WHOLE};
    struct msghdr message = {.msg_iov = &whole, .msg_iovlen = 1};
    fill(k);
    sent(k, call(k, SYS_sendmsg, k->from, (long)&message, MSG_NOSIGNAL, 4, 5, 6));
}
static void do_random(struct kind *k) {
    got(k, call(k, SYS_getrandom, (long)k->buffer, RANDOM, 0, 4, 5, 6), RANDOM);
    usleep(20000);
}

static void pause_a_little(unsigned *seed) { usleep((useconds_t)(rand_r(seed) % 400)); }

static void take(struct kind *k) {
    static __thread unsigned seed = 1;
    static __thread uint8_t bytes[9000];
    ssize_t count = read(k->to, bytes, 1 + (size_t)rand_r(&seed) % sizeof bytes);
    need(count > 0 || errno == EINTR, "read");
    look(k, bytes, count > 0 ? (size_t)count : 0, &k->there);
    pause_a_little(&seed);
}

static void give(struct kind *k) {
    static __thread unsigned seed = 2;
    static __thread uint8_t bytes[2000];
    size_t size = 1 + (size_t)rand_r(&seed) % sizeof bytes;
    for (size_t i = 0; i < size; i++)
        bytes[i] = byte_at(k->at + i);
    ssize_t count = write(k->from, bytes, size);
    need(count > 0 || errno == EINTR, "write");
    k->at += count > 0 ? (uint64_t)count : 0;
    pause_a_little(&seed);
}

static struct kind lists[] = {
    {.name = "writev", .work = do_writev, .other = take},
    {.name = "pwritev2", .work = do_pwritev2, .other = take},
    {.name = "sendmsg/tcp", .work = do_sendmsg, .other = take},
};
static struct kind singles[] = {
    {.name = "write", .work = do_write, .other = take},         {.name = "send", .work = do_send, .other = take},
    {.name = "send/tcp", .work = do_send, .other = take},       {.name = "sendfile", .work = do_sendfile, .other = take},
    {.name = "splice", .work = do_splice, .other = take},       {.name = "receive", .work = do_receive, .other = give},
    {.name = "receive/tcp", .work = do_receive, .other = give}, {.name = "random", .work = do_random},
};
static struct kind *kinds = singles;
static int kind_count = sizeof singles / sizeof *singles;

static void connected(int ends[2]) {
    struct sockaddr_in name = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
    socklen_t size = sizeof name;
    int listener = socket(AF_INET, SOCK_STREAM, 0), few = 1 << 16;
    need(bind(listener, (void *)&name, size) == 0 && listen(listener, 1) == 0 && getsockname(listener, (void *)&name, &size) == 0, "listen");
    setsockopt(listener, SOL_SOCKET, SO_RCVBUF, &few, sizeof few);
    ends[0] = socket(AF_INET, SOCK_STREAM, 0);
    setsockopt(ends[0], SOL_SOCKET, SO_SNDBUF, &few, sizeof few);
    need(connect(ends[0], (void *)&name, size) == 0 && (ends[1] = accept(listener, NULL, NULL)) >= 0, "connect");
    close(listener);
}

static void prepare(struct kind *k) {
    int ends[2];
    k->buffer = malloc(RANDOM);
    if (strstr(k->name, "tcp"))
        connected(ends);
    else if (strstr(k->name, "write"))
        need(pipe(ends) == 0, "pipe");
    else
        need(socketpair(AF_UNIX, SOCK_STREAM, 0, ends) == 0, "socketpair");
    bool backwards = strstr(k->name, "write"); /* a pipe is read at its first end */
    k->from = ends[backwards];
    k->to = ends[!backwards];
    k->spare[0] = -1;
    if (k->work == do_sendfile) {
        fill(k);
        need((k->spare[0] = memfd_create("transfers", MFD_CLOEXEC)) >= 0 && write(k->spare[0], k->buffer, WHOLE) == WHOLE, "memfd");
    }
    if (k->work == do_splice)
        need(pipe(k->spare) == 0 && fcntl(k->spare[1], F_SETPIPE_SZ, PIPE) >= 0, "pipe");
}

static void *works(void *argument) {
    for (struct kind *k = argument;;)
        k->work(k);
    return NULL;
}
static void *others(void *argument) {
    for (struct kind *k = argument;;) {
        int now = turn;
        if (stalled) {
            k->still = now;
            usleep(1000);
        } else {
            k->other(k);
        }
    }
    return NULL;
}

static void interrupted(int number) {
    (void)number;
    for (volatile int i = 0; i < 300000; i++)
        ;
}

static bool deep;

static void hold(int number) {
    (void)number;
    volatile char room[deep ? DEEP_BYTES : 1];
    room[0] = 1; /* what lies between is not touched, nor need it be */
    __atomic_fetch_add(&handling, 1, __ATOMIC_SEQ_CST);
    while (held && room[0])
        usleep(1000);
    __atomic_fetch_sub(&handling, 1, __ATOMIC_SEQ_CST);
}

static void reply(const char *asked) {
    if (!strcmp(asked, "go"))
        stalled = false;
    else if (!strcmp(asked, "stall")) {
        turn++;
        stalled = true;
        for (int i = 0; i < kind_count; i++)
            while (kinds[i].other && kinds[i].still != turn)
                usleep(1000);
    } else if (!strcmp(asked, "hold")) {
        held = true;
        for (int i = 0; i < kind_count; i++)
            pthread_kill(kinds[i].worker, SIGUSR1);
        while (handling < kind_count)
            usleep(1000);
    } else if (!strcmp(asked, "release")) {
        held = false;
        while (handling)
            usleep(1000);
    } else {
        verdict();
        return;
    }
    say("DONE");
}

int main(int argc, char **argv) {
    const char *mode = argc > 1 ? argv[argc - 1] : "";
    pthread_t thread;
    if (argc > 1 && !strcmp(argv[1], "lists")) {
        kinds = lists;
        kind_count = sizeof lists / sizeof *lists;
    }
    signals = *mode && strcmp(mode, "lists");
    deep = !strcmp(mode, "deep");
    for (int i = 0; i < kind_count; i++)
        prepare(&kinds[i]);
    sigaction(SIGALRM, &(struct sigaction){.sa_handler = interrupted, .sa_flags = SA_RESTART}, NULL);
    sigaction(SIGUSR1, &(struct sigaction){.sa_handler = hold, .sa_flags = SA_RESTART}, NULL);
    if (!strcmp(mode, "signals"))
        setitimer(ITIMER_REAL, &(struct itimerval){{0, 1500}, {0, 1500}}, NULL);
    for (int i = 0; i < kind_count; i++) {
        need(!pthread_create(&kinds[i].worker, NULL, works, &kinds[i]), "pthread_create");
        need(!kinds[i].other || !pthread_create(&thread, NULL, others, &kinds[i]), "pthread_create");
    }
    sigset_t own;
    sigemptyset(&own);
    sigaddset(&own, SIGALRM);
    pthread_sigmask(SIG_BLOCK, &own, NULL);
    ready();
    for (;;)
        reply(question());
}
