/* remote_victim.c: programs that notice when somebody tampers with them. remote_victim MODE FILE
 *
 * FILE is mapped shared: struct report. The victim counts rounds in it, and counts what was wrong; the test reads both. Each mode
 * lives in one situation that an injection from outside may meet:
 *   registers  busy, every general register, the carry flag, zmm0-31, k1-7 and the x87 stack live and checked
 *   nanosleep  relative sleeps: no EINTR, not shorter than asked
 *   int80      the same by `int 0x80`, as a 32-bit program would
 *   epoll      epoll_wait without a timeout, woken by an eventfd of a second thread: no EINTR
 *   pause      pause() ended by an interval timer whose handler counts
 *   masked     every signal blocked, in read() from a pipe that a second thread feeds: the bytes are in order
 *   caught     SIGURG and SIGWINCH have handlers (a round with one of them called is wrong); otherwise busy as `registers`
 *   fork       busy as `registers`; SIGUSR1 makes it fork a child that is busy as well
 *   handlers   16 threads: half are hit by signals all the time and check that the handler's frame left their registers alone
 *   threads    16 threads: registers, nanosleep, condition variables with a counter under a mutex
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

struct report {
    _Atomic uint64_t rounds, wrong, detail, ready, by_thread[64];
};
static struct report *report;
static __thread unsigned me;

static void good(void) {
    atomic_fetch_add(&report->rounds, 1);
    atomic_fetch_add(&report->by_thread[me], 1);
}
/* Every thread of the mode is there (a test counts mappings, and each thread brings its stack). Only the first thread says so. */
static void prepared(void) {
    if (me == 0)
        atomic_store(&report->ready, 1);
}
static void bad(uint64_t detail) {
    atomic_store(&report->detail, detail);
    atomic_fetch_add(&report->wrong, 1);
}

/* One block per caller; r12 points at it while the registers are loaded and stored. */
struct block {
    uint64_t gpr[14]; /* rax rbx rcx rdx rsi rbp r8 r9 r10 r11 r13 r14 r15, carry */
    uint64_t zmm[32][8];
    double x87[8];
    uint16_t k[8];
};
enum { TURNS = 2000 };

#define ZMM_ALL(m)                                                                                                                                  \
    m(0) m(1) m(2) m(3) m(4) m(5) m(6) m(7) m(8) m(9) m(10) m(11) m(12) m(13) m(14) m(15) m(16) m(17) m(18) m(19) m(20) m(21) m(22) m(23) m(24)      \
        m(25) m(26) m(27) m(28) m(29) m(30) m(31)
#define LOADZ(i) "vmovdqu64 112+64*" #i "(%%r12), %%zmm" #i "\n"
#define STOREZ(i) "vmovdqu64 %%zmm" #i ", 112+64*" #i "(%%r12)\n"
#define ADDZ(i) "vpaddq %%zmm" #i ", %%zmm31, %%zmm" #i "\n"

__attribute__((noinline)) static void turn(struct block *block, int wide) {
    __asm__ volatile("push %%rbp\n sub $136, %%rsp\n" /* clear of the red zone */
                     "mov %0, %%r12\n"
                     "test %%edi, %%edi\n jz 1f\n"
                     ZMM_ALL(LOADZ)
                     "kmovw 2226(%%r12), %%k1\n kmovw 2228(%%r12), %%k2\n kmovw 2230(%%r12), %%k3\n kmovw 2232(%%r12), %%k4\n"
                     "kmovw 2234(%%r12), %%k5\n kmovw 2236(%%r12), %%k6\n kmovw 2238(%%r12), %%k7\n"
                     "1: fninit\n fldl 2160+56(%%r12)\n fldl 2160+48(%%r12)\n fldl 2160+40(%%r12)\n fldl 2160+32(%%r12)\n"
                     "fldl 2160+24(%%r12)\n fldl 2160+16(%%r12)\n fldl 2160+8(%%r12)\n fldl 2160(%%r12)\n"
                     "push %%r12\n push %%rdi\n"
                     "mov (%%r12), %%rax\n mov 8(%%r12), %%rbx\n mov 16(%%r12), %%rcx\n mov 24(%%r12), %%rdx\n mov 32(%%r12), %%rsi\n"
                     "mov 40(%%r12), %%rbp\n mov 48(%%r12), %%r8\n mov 56(%%r12), %%r9\n mov 64(%%r12), %%r10\n mov 72(%%r12), %%r11\n"
                     "mov 80(%%r12), %%r13\n mov 88(%%r12), %%r14\n mov 96(%%r12), %%r15\n"
                     "mov $2000, %%r12d\n"
                     "clc\n"
                     "2: adc %%rbx, %%rax\n adc %%rcx, %%rbx\n adc %%rdx, %%rcx\n adc %%rsi, %%rdx\n adc %%rbp, %%rsi\n adc %%r8, %%rbp\n"
                     "adc %%r9, %%r8\n adc %%r10, %%r9\n adc %%r11, %%r10\n adc %%r13, %%r11\n adc %%r14, %%r13\n adc %%r15, %%r14\n"
                     "adc %%rax, %%r15\n"
                     "fadd %%st(1), %%st\n"
                     "dec %%r12\n jnz 2b\n" /* dec leaves the carry alone */
                     "pop %%rdi\n mov (%%rsp), %%r12\n"
                     "mov %%rax, (%%r12)\n setc 104(%%r12)\n mov %%rbx, 8(%%r12)\n mov %%rcx, 16(%%r12)\n mov %%rdx, 24(%%r12)\n mov %%rsi, 32(%%r12)\n"
                     "mov %%rbp, 40(%%r12)\n mov %%r8, 48(%%r12)\n mov %%r9, 56(%%r12)\n mov %%r10, 64(%%r12)\n mov %%r11, 72(%%r12)\n"
                     "mov %%r13, 80(%%r12)\n mov %%r14, 88(%%r12)\n mov %%r15, 96(%%r12)\n"
                     "pop %%r12\n"
                     "fstpl 2160(%%r12)\n fstpl 2160+8(%%r12)\n fstpl 2160+16(%%r12)\n fstpl 2160+24(%%r12)\n fstpl 2160+32(%%r12)\n"
                     "fstpl 2160+40(%%r12)\n fstpl 2160+48(%%r12)\n fstpl 2160+56(%%r12)\n"
                     "test %%edi, %%edi\n jz 4f\n mov $500, %%eax\n"
                     "3: " ZMM_ALL(ADDZ) "dec %%eax\n jnz 3b\n"
                     ZMM_ALL(STOREZ)
                     "kmovw %%k1, 2226(%%r12)\n kmovw %%k2, 2228(%%r12)\n kmovw %%k3, 2230(%%r12)\n kmovw %%k4, 2232(%%r12)\n"
                     "kmovw %%k5, 2234(%%r12)\n kmovw %%k6, 2236(%%r12)\n kmovw %%k7, 2238(%%r12)\n"
                     "4: add $136, %%rsp\n pop %%rbp\n"
                     : "+a"(block), "+D"(wide)
                     :
                     : "rbx", "rcx", "rdx", "rsi", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "memory", "cc", "st",
                       "st(1)", "st(2)", "st(3)", "st(4)", "st(5)", "st(6)", "st(7)");
}

/* The same in plain C, a second run of the machine, compared. */
static void expect(struct block *block, int wide) {
    unsigned __int128 carry = 0;
    for (int t = 0; t < TURNS; t++)
        for (int i = 0; i < 13; i++) {
            unsigned __int128 sum = (unsigned __int128)block->gpr[i] + block->gpr[(i + 1) % 13] + carry;
            block->gpr[i] = (uint64_t)sum;
            carry = sum >> 64;
        }
    block->gpr[13] = (uint64_t)carry;
    for (int t = 0; t < TURNS; t++)
        block->x87[0] += block->x87[1];
    for (int t = 0; wide && t < 500; t++)
        for (int i = 0; i < 32; i++)
            for (int lane = 0; lane < 8; lane++)
                block->zmm[i][lane] += block->zmm[31][lane];
}

_Static_assert(offsetof(struct block, zmm) == 112 && offsetof(struct block, x87) == 2160 && offsetof(struct block, k) == 2224, "asm offsets");

static void fill(struct block *block, uint64_t seed) {
    uint64_t *words = (void *)block;
    for (size_t i = 0; i < sizeof *block / 8; i++)
        words[i] = seed = seed * UINT64_C(6364136223846793005) + 1442695040888963407u;
    block->gpr[13] = 0;
    for (int i = 0; i < 8; i++)
        block->x87[i] = (double)(seed >> (8 * i) & 255);
}

static void registers_once(uint64_t seed) {
    static __thread struct block start, machine, plain;
    static __thread uint64_t have;
    int wide = __builtin_cpu_supports("avx512f") != 0;
    if (!have || seed % 16 == 0) { /* the plain run is slow: one for 16 of the machine */
        fill(&start, seed + have * 977);
        plain = start;
        expect(&plain, wide);
        have++;
    }
    machine = start;
    turn(&machine, wide);
    if (memcmp(&machine, &plain, sizeof machine)) {
        size_t at = 0;
        while (((uint8_t *)&machine)[at] == ((uint8_t *)&plain)[at])
            at++;
        bad(1000000 + at);
    }
    good();
}

static void *registers(void *unused) {
    prepared();
    for (uint64_t seed = 16;; seed++)
        registers_once(seed);
    return unused;
}

static uint64_t clock_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static void *sleeps(void *unused) {
    prepared();
    for (;;) {
        struct timespec rest, want = {.tv_nsec = 3000000};
        uint64_t from = clock_ns();
        if (nanosleep(&want, &rest))
            bad(2000000 + (uint64_t)errno);
        if (clock_ns() - from < 3000000)
            bad(2100000);
        good();
    }
    return unused;
}

static void *sleeps_by_int80(void *unused) {
    int32_t *low = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT, -1, 0);
    if (low == MAP_FAILED)
        bad(2200000);
    prepared();
    for (;;) {
        low[0] = 0;
        low[1] = 3000000;
        uint64_t from = clock_ns();
        long result;
        __asm__ volatile("int $0x80" : "=a"(result) : "a"(162), "b"(low), "c"(low + 4) : "memory", "r8", "r9", "r10", "r11");
        if (result)
            bad(2300000 - (uint64_t)result);
        if (clock_ns() - from < 3000000)
            bad(2100000);
        good();
    }
    return unused;
}

static int event, poller;
static void *feed_event(void *unused) {
    me = 1;
    for (uint64_t one = 1;;) {
        usleep(1500);
        if (write(event, &one, 8) != 8)
            bad(3000000);
    }
    return unused;
}

static void *epolls(void *unused) {
    pthread_t feeder;
    event = eventfd(0, EFD_NONBLOCK);
    poller = epoll_create1(0);
    struct epoll_event wanted = {.events = EPOLLIN}, got;
    epoll_ctl(poller, EPOLL_CTL_ADD, event, &wanted);
    pthread_create(&feeder, NULL, feed_event, NULL);
    prepared();
    for (;;) {
        uint64_t count;
        if (epoll_wait(poller, &got, 1, -1) != 1)
            bad(3100000 + (uint64_t)errno);
        else if (read(event, &count, 8) != 8 || !count)
            bad(3200000);
        good();
    }
    return unused;
}

static volatile sig_atomic_t alarms;
static void on_alarm(int sig) {
    (void)sig;
    alarms++;
}
static void *pauses(void *unused) {
    struct sigaction action = {.sa_handler = on_alarm};
    struct itimerval every = {{0, 2000}, {0, 2000}};
    sigaction(SIGALRM, &action, NULL);
    setitimer(ITIMER_REAL, &every, NULL);
    prepared();
    for (;;) {
        int before = alarms;
        if (pause() != -1 || errno != EINTR)
            bad(4000000 + (uint64_t)errno);
        if (alarms == before)
            bad(4100000);
        good();
    }
    return unused;
}

static int ends[2];
static void *feed_pipe(void *unused) {
    me = 1;
    for (uint8_t next = 0;; next++) {
        usleep(700);
        if (write(ends[1], &next, 1) != 1)
            bad(5000000);
    }
    return unused;
}
static void *masked(void *unused) {
    sigset_t all;
    pthread_t feeder;
    uint8_t wanted = 0, got;
    if (pipe(ends))
        abort();
    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, NULL);
    pthread_create(&feeder, NULL, feed_pipe, NULL);
    prepared();
    for (;; wanted++) {
        sigset_t now;
        if (read(ends[0], &got, 1) != 1 || got != wanted)
            bad(5100000);
        pthread_sigmask(SIG_BLOCK, NULL, &now);
        if (sigpending(&all) || !sigisemptyset(&all))
            bad(5200000);
        if (!sigismember(&now, SIGURG) || !sigismember(&now, SIGUSR1))
            bad(5300000);
        good();
    }
    return unused;
}

static void on_never(int sig) { bad(6000000 + (uint64_t)sig); }
static void *caught(void *unused) {
    struct sigaction action = {.sa_handler = on_never};
    sigaction(SIGURG, &action, NULL);
    sigaction(SIGWINCH, &action, NULL);
    return registers(unused);
}

static void on_fork(int sig) {
    (void)sig;
    if (fork() == 0) {
        me = 1;
        registers(NULL);
    }
}
static void *forks(void *unused) {
    struct sigaction action = {.sa_handler = on_fork, .sa_flags = SA_RESTART};
    sigaction(SIGUSR1, &action, NULL);
    return registers(unused);
}

enum { THREADS = 16 };
static pthread_t crew[THREADS];
static _Atomic uint64_t handled[THREADS];
static void on_usr1(int sig) {
    (void)sig;
    atomic_fetch_add(&handled[me % THREADS], 1);
}
static void *numbered(void *number) {
    me = (unsigned)(uintptr_t)number;
    for (uint64_t seed = 1;; seed++)
        registers_once(seed);
    return NULL;
}
static void *handlers(void *unused) {
    struct sigaction action = {.sa_handler = on_usr1, .sa_flags = SA_RESTART};
    sigaction(SIGUSR1, &action, NULL);
    for (uintptr_t i = 0; i < THREADS - 1; i++)
        pthread_create(&crew[i], NULL, numbered, (void *)(i + 1));
    prepared();
    for (unsigned i = 0;; i++) {
        usleep(300);
        pthread_kill(crew[i % 8], SIGUSR1);
    }
    return unused;
}

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
static uint64_t token;
static void *relay(void *number) {
    me = (unsigned)(uintptr_t)number;
    unsigned mine = me % 8;
    for (;;) {
        pthread_mutex_lock(&lock);
        while (token % 8 != mine)
            pthread_cond_wait(&changed, &lock);
        token++;
        pthread_cond_broadcast(&changed);
        pthread_mutex_unlock(&lock);
        good();
        usleep(200);
    }
    return NULL;
}
static void *numbered_sleeps(void *number) {
    me = (unsigned)(uintptr_t)number;
    return sleeps(number);
}
static void *threads(void *unused) {
    for (uintptr_t i = 0; i < 15; i++)
        pthread_create(&crew[i], NULL, i < 8 ? relay : i < 12 ? numbered_sleeps : numbered, (void *)(i + 1));
    return registers(unused);
}

int main(int argc, char **argv) {
    static const struct { const char *name; void *(*body)(void *); } modes[] = {
        {"registers", registers}, {"nanosleep", sleeps}, {"int80", sleeps_by_int80}, {"epoll", epolls}, {"pause", pauses},
        {"masked", masked},       {"caught", caught},    {"fork", forks},      {"handlers", handlers}, {"threads", threads}};
    int fd = argc == 3 ? open(argv[2], O_RDWR | O_CREAT, 0600) : -1;
    if (fd < 0 || ftruncate(fd, sizeof *report))
        return 2;
    report = mmap(NULL, sizeof *report, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    for (size_t i = 0; i < sizeof modes / sizeof modes[0]; i++)
        if (!strcmp(argv[1], modes[i].name))
            modes[i].body(NULL);
    return 2;
}
