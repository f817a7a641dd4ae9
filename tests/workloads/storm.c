/* storm: threads in blocking calls of many kinds, woken at random, and a stream of signals from outside: every handler runs exactly once per
 * signal and in order, a call ends with EINTR exactly when a handler that ends it has run, no wake-up is lost, no time ends early.
 *
 *   storm              the victim; "threads" is answered by their numbers, "seen" by how often each handler has run in each,
 *                      "anew" by how many calls began anew though a handler had run that ends them
 *   storm send PID SEED GAP_us TID...   the sender, outside of the tree: a random signal to a random thread after a random pause, until the end of its
 *                      standard input; then says how many it has sent, in the form of "seen"
 *
 * A handler is told by its frame what the kernel has decided about the call that it has interrupted:
 *   rip behind the SYSCALL instruction, rax = -EINTR       the call will return that
 *   rip on the instruction                                 the call begins anew; with rax = 219 (restart_syscall) it will return -EINTR, too, for
 *                                                          the handler's return drops what it would have gone on with
 * There is a moment between the kernel's last look for signals, when it decides that a call begins anew, and the thread's arrival in
 * user space; it may be preempted there. A signal of that moment does not end the call: so it is after SIGCONT, too, whoever stopped
 * it. select shows it, whose restart is the kernel's own. Those are counted, "anew".
 *
 * rcx tells a call that has been entered (the instruction puts the address behind it there) from one that is about to be. A call
 * that begins anew has rcx set to 0 by the handler, so that a handler which runs before it is entered again is not taken for another one.
 */
#include "victim.h"
#include <linux/futex.h>
#include <stdatomic.h>
#include <sys/epoll.h>
#include <sys/select.h>
#include <sys/socket.h>
#include <ucontext.h>

enum kind { EPOLL, EPOLL_LIMIT, READ, POLL_LIMIT, SLEEP, FUTEX, FUTEX_LIMIT, SIGNAL, RECEIVE, RECEIVE_LIMIT, SELECT_LIMIT, PAUSE, KINDS };
enum { SORTS = 2, LONGEST_MS = 60, EARLY_NS = 1100000, WAKE = 9 };
static const char *const names[KINDS] = {"epoll_wait", "epoll_wait/limit", "read", "poll/limit", "nanosleep", "futex", "futex/limit",
                                         "rt_sigtimedwait", "recv", "recv/limit", "select/limit", "pause"};
/* Those that SA_RESTART restarts; a handler ends the others whatever its flags. */
static const bool restartable[KINDS] = {[READ] = true, [FUTEX] = true, [RECEIVE] = true};

static struct waiter {
    pthread_t thread;
    pid_t tid;
    enum kind kind;
    int pair[2], epoll;
    _Atomic uint32_t word;
    _Atomic uint64_t sent, received;
    _Atomic int seen[SORTS], promised;
    uint64_t random, ended;
} waiters[KINDS];
static _Thread_local struct waiter *self;
static _Atomic int begun_anew; /* calls, though a handler has run that ends them */

long storm_call(long nr, long a, long b, long c, long d, long e, long f);
extern char storm_insn[], storm_after[];
__asm__(".text\nstorm_call: mov %rdi, %rax; mov %rsi, %rdi; mov %rdx, %rsi; mov %rcx, %rdx; mov %r8, %r10; mov %r9, %r8; mov 8(%rsp), %r9\n"
        "xor %ecx, %ecx\nstorm_insn: syscall\nstorm_after: ret\n");

static int number(int sort) { return SIGRTMIN + 1 + sort; } /* the first has SA_RESTART */

static void handler(int signal, siginfo_t *info, void *frame) {
    greg_t *regs = ((ucontext_t *)frame)->uc_mcontext.gregs;
    int sort = signal - number(0), saved = errno;
    if (info->si_value.sival_int != self->seen[sort] + 1)
        wrong("%s: signal %d of sort %d after %d", names[self->kind], info->si_value.sival_int, sort, self->seen[sort]);
    self->seen[sort]++;
    bool restarts = sort == 0 && restartable[self->kind], entered = regs[REG_RCX] == (greg_t)storm_after;
    bool ended = regs[REG_RIP] == (greg_t)storm_after && regs[REG_RAX] == -EINTR;
    bool dropped = regs[REG_RIP] == (greg_t)storm_insn && regs[REG_RAX] == SYS_restart_syscall;
    if (entered && (ended || dropped)) {
        if (restarts && !self->promised) /* another handler may have ended it just before: this one finds its -EINTR on the way out */
            wrong("%s: ended in spite of SA_RESTART", names[self->kind]);
        self->promised = 1;
    } else if (entered && regs[REG_RIP] == (greg_t)storm_insn) {
        regs[REG_RCX] = 0;
        begun_anew += !restarts;
    }
    errno = saved;
}

static long begin(struct waiter *waiter, long ms, sigset_t *set, char *byte) {
    struct timespec limit = {ms / 1000, ms % 1000 * 1000000};
    struct timeval time = {ms / 1000, ms % 1000 * 1000};
    struct epoll_event event;
    struct pollfd one = {waiter->pair[0], POLLIN, 0};
    fd_set reads;
    switch (waiter->kind) {
    case EPOLL: return storm_call(SYS_epoll_wait, waiter->epoll, (long)&event, 1, -1, 0, 0);
    case EPOLL_LIMIT: return storm_call(SYS_epoll_wait, waiter->epoll, (long)&event, 1, ms, 0, 0);
    case READ: return storm_call(SYS_read, waiter->pair[0], (long)byte, 1, 0, 0, 0);
    case POLL_LIMIT: return storm_call(SYS_poll, (long)&one, 1, ms, 0, 0, 0);
    case SLEEP: return storm_call(SYS_nanosleep, (long)&limit, 0, 0, 0, 0, 0);
    case FUTEX: return storm_call(SYS_futex, (long)&waiter->word, FUTEX_WAIT, 0, 0, 0, 0);
    case FUTEX_LIMIT: return storm_call(SYS_futex, (long)&waiter->word, FUTEX_WAIT, 0, (long)&limit, 0, 0);
    case SIGNAL: return storm_call(SYS_rt_sigtimedwait, (long)set, 0, (long)&limit, 8, 0, 0);
    case RECEIVE: return storm_call(SYS_recvfrom, waiter->pair[0], (long)byte, 1, 0, 0, 0);
    case RECEIVE_LIMIT:
        setsockopt(waiter->pair[0], SOL_SOCKET, SO_RCVTIMEO, &time, sizeof time);
        return storm_call(SYS_recvfrom, waiter->pair[0], (long)byte, 1, 0, 0, 0);
    case SELECT_LIMIT:
        FD_ZERO(&reads);
        FD_SET(waiter->pair[0], &reads);
        return storm_call(SYS_select, waiter->pair[0] + 1, (long)&reads, 0, 0, (long)&time, 0);
    default: return storm_call(SYS_pause, 0, 0, 0, 0, 0, 0);
    }
}

/* What it was woken with is taken; false: there was nothing (its time was over). */
static bool take(struct waiter *waiter, long got) {
    char byte;
    switch (waiter->kind) {
    case READ:
    case RECEIVE:
    case RECEIVE_LIMIT: return got == 1;
    case SIGNAL: return got > 0;
    case FUTEX:
    case FUTEX_LIMIT: return atomic_exchange(&waiter->word, 0) == 1;
    case SLEEP:
    case PAUSE: return false;
    default: return got > 0 && recv(waiter->pair[0], &byte, 1, MSG_DONTWAIT) == 1;
    }
}

static long at_the_end(enum kind kind) {
    return kind == FUTEX_LIMIT ? -ETIMEDOUT : kind == SIGNAL || kind == RECEIVE_LIMIT ? -EAGAIN : 0;
}

static bool is_limited(enum kind kind) {
    return kind == EPOLL_LIMIT || kind == POLL_LIMIT || kind == SLEEP || kind == FUTEX_LIMIT || kind == SIGNAL || kind == RECEIVE_LIMIT || kind == SELECT_LIMIT;
}

/* A socket's time-out counts the kernel's ticks, which are counted late, several at once, where the machine has kept a CPU from the kernel. */
static uint64_t early(enum kind kind) {
    struct timespec tick = {0};
    if (kind == RECEIVE_LIMIT)
        clock_getres(CLOCK_MONOTONIC_COARSE, &tick);
    return EARLY_NS + (uint64_t)tick.tv_nsec;
}

static void *run(void *argument) {
    struct waiter *waiter = self = argument;
    sigset_t set;
    char byte;
    sigemptyset(&set);
    sigaddset(&set, SIGRTMIN + WAKE);
    waiter->tid = (pid_t)syscall(SYS_gettid);
    sigset_t storm;
    sigemptyset(&storm);
    sigaddset(&storm, number(0));
    sigaddset(&storm, number(1));
    pthread_sigmask(SIG_UNBLOCK, &storm, NULL);
    for (;;) {
        long ms = 1 + (long)(draw(&waiter->random) % LONGEST_MS);
        uint64_t begun = clock_ns();
        waiter->promised = 0;
        long got = begin(waiter, ms, &set, &byte);
        uint64_t waited = clock_ns() - begun;
        bool over = is_limited(waiter->kind) && got == at_the_end(waiter->kind), there = got == -EAGAIN && waiter->word;
        if ((got == -EINTR) != (waiter->promised == 1))
            wrong("%s: %ld, %s handler has ended it", names[waiter->kind], got, waiter->promised ? "though a" : "and no");
        else if (got < 0 && got != -EINTR && !over && !there)
            wrong("%s: %s", names[waiter->kind], strerror((int)-got));
        else if (over && waited + early(waiter->kind) < (uint64_t)ms * 1000000)
            wrong("%s: its %ld ms were over after %lu us", names[waiter->kind], ms, waited / 1000);
        waiter->ended++;
        if (take(waiter, got))
            waiter->received++;
    }
    return NULL;
}

static void wake(struct waiter *waiter) {
    if (waiter->sent != waiter->received || waiter->kind == SLEEP || waiter->kind == PAUSE)
        return; /* one at a time: signals and words do not add up */
    waiter->sent++;
    if (waiter->kind == SIGNAL)
        pthread_kill(waiter->thread, SIGRTMIN + WAKE);
    else if (waiter->kind == FUTEX || waiter->kind == FUTEX_LIMIT) {
        waiter->word = 1;
        syscall(SYS_futex, &waiter->word, FUTEX_WAKE, 1, NULL, NULL, 0);
    } else
        need(send(waiter->pair[1], "x", 1, 0) == 1, "send");
}

static void all_taken(void) {
    uint64_t until = clock_ns() + 5000000000u;
    for (int i = 0; i < KINDS; i++) {
        while (waiters[i].sent != waiters[i].received && clock_ns() < until)
            usleep(1000);
        if (waiters[i].sent != waiters[i].received)
            wrong("%s: a wake-up was lost", names[i]);
    }
}

static void make(void) {
    struct sigaction action = {.sa_sigaction = handler, .sa_flags = SA_SIGINFO | SA_RESTART};
    sigset_t set;
    sigaction(number(0), &action, NULL);
    action.sa_flags = SA_SIGINFO;
    sigaction(number(1), &action, NULL);
    sigemptyset(&set);
    sigaddset(&set, SIGRTMIN + WAKE);
    sigaddset(&set, number(0)); /* in the main thread */
    sigaddset(&set, number(1));
    sigprocmask(SIG_BLOCK, &set, NULL);
    for (int i = 0; i < KINDS; i++) {
        struct epoll_event event = {.events = EPOLLIN};
        waiters[i].kind = (enum kind)i;
        waiters[i].random = (uint64_t)i + 1;
        waiters[i].epoll = epoll_create1(0);
        need(socketpair(AF_UNIX, SOCK_STREAM, 0, waiters[i].pair) == 0, "socketpair");
        need(epoll_ctl(waiters[i].epoll, EPOLL_CTL_ADD, waiters[i].pair[0], &event) == 0, "epoll_ctl");
        need(pthread_create(&waiters[i].thread, NULL, run, &waiters[i]) == 0, "pthread_create");
    }
    for (int i = 0; i < KINDS; i++)
        while (!waiters[i].ended && !waiters[i].tid)
            usleep(100);
}

static void tell(const char *question) {
    char line[400];
    int used = 0;
    if (!strcmp(question, "anew")) {
        say("%d", begun_anew);
        return;
    }
    for (int i = 0; i < KINDS; i++)
        used += question[0] == 't' ? snprintf(line + used, sizeof line - (size_t)used, "%d ", waiters[i].tid)
                                   : snprintf(line + used, sizeof line - (size_t)used, "%d/%d ", waiters[i].seen[0], waiters[i].seen[1]);
    say("%s", line);
}

static int sender(int count, char **word) { /* PID SEED GAP_us TID... */
    int sent[KINDS][SORTS] = {0}, used = 0, threads = count - 3;
    pid_t pid = atoi(word[0]);
    uint64_t random = (uint64_t)atoll(word[1]), gap = (uint64_t)atoll(word[2]);
    char line[400];
    ready();
    while (!asked(0)) {
        int who = (int)(draw(&random) % (uint64_t)threads), sort = (int)(draw(&random) % SORTS);
        siginfo_t info = {.si_code = SI_QUEUE, .si_signo = number(sort)};
        info.si_pid = getpid();
        info.si_value.sival_int = sent[who][sort] + 1;
        if (syscall(SYS_rt_tgsigqueueinfo, pid, atoi(word[3 + who]), number(sort), &info) == 0)
            sent[who][sort]++;
        else if (errno != EAGAIN)
            break; /* it has ended */
        usleep((useconds_t)(draw(&random) % (2 * gap)));
    }
    for (int i = 0; i < threads; i++)
        used += snprintf(line + used, sizeof line - (size_t)used, "%d/%d ", sent[i][0], sent[i][1]);
    say("%s", line);
    return 0;
}

int main(int argc, char **argv) {
    uint64_t random = 7;
    if (argc > 5 && !strcmp(argv[1], "send"))
        return sender(argc - 2, argv + 2);
    make();
    ready();
    for (;;) {
        if (asked((int)(draw(&random) % 10))) {
            char *line = question();
            if (!strcmp(line, "verify")) {
                all_taken();
                verdict();
            } else
                tell(line);
        }
        wake(&waiters[draw(&random) % KINDS]);
    }
}
