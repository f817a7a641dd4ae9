/* queued: signals that are pending while they are blocked, with everything that came with them: of the process and of each of two threads, real-time ones
 * in their order, from sigqueue, tgkill and kill. At each question all are taken by rt_sigtimedwait, compared, and queued anew.
 * Seen: a signal that is lost, doubled, with another sender, code or value, out of order, in another queue, or delivered (nobody handles them: it ends the program).
 */
#include "victim.h"
#include <sys/syscall.h>

enum { REAL_TIME = 5, OWN = 3 };
static sigset_t all;
static uint64_t round_of;
static _Atomic int turn, done;
static _Atomic pid_t tids[2];
static pid_t child;

static void queue_info(pid_t tid, int sig, int code, int value) {
    siginfo_t info = {.si_signo = sig, .si_code = code, .si_errno = 7};
    info.si_pid = getpid();
    info.si_uid = 4242;
    info.si_value.sival_ptr = (void *)(uintptr_t)(round_of << 32 | (uint32_t)value);
    need(syscall(SYS_rt_tgsigqueueinfo, getpid(), tid, sig, &info) == 0, "rt_tgsigqueueinfo");
}

static void expect(int sig, int code, int value, const char *whose) {
    sigset_t one;
    siginfo_t info;
    struct timespec now = {0, 0};
    sigemptyset(&one);
    sigaddset(&one, sig);
    if (syscall(SYS_rt_sigtimedwait, &one, &info, &now, 8) != sig) { /* the C library would make SI_USER of SI_TKILL */
        wrong("%s: signal %d is not pending", whose, sig);
        return;
    }
    if (info.si_code != code)
        wrong("%s: signal %d has code %d, not %d", whose, sig, info.si_code, code);
    if (value >= 0 && (uint64_t)(uintptr_t)info.si_value.sival_ptr != (round_of << 32 | (uint32_t)value))
        wrong("%s: signal %d brings %p, not %lu:%d", whose, sig, info.si_value.sival_ptr, round_of, value);
    if (code == SI_MESGQ && (info.si_errno != 7 || info.si_uid != 4242 || info.si_pid != getpid()))
        wrong("%s: signal %d is of %d, %u, errno %d", whose, sig, info.si_pid, info.si_uid, info.si_errno);
}

static void none_left(const char *whose) {
    sigset_t left;
    sigpending(&left);
    sigdelset(&left, SIGCHLD);
    sigdelset(&left, SIGCONT); /* of whoever has stopped it */
    for (int sig = 1; sig < 65; sig++)
        if (sigismember(&left, sig) == 1)
            wrong("%s: signal %d is pending once more", whose, sig);
}

/* A thread's own: what others cannot see. */
static void own(int me, bool take) {
    const char *whose = me ? "second thread" : "first thread";
    pid_t tid = tids[me];
    for (int i = 0; i < OWN; i++)
        if (take)
            expect(SIGRTMIN + 8 + me, SI_MESGQ, 100 * me + i, whose);
        else
            queue_info(tid, SIGRTMIN + 8 + me, SI_MESGQ, 100 * me + i);
    if (take)
        expect(SIGUSR1, SI_TKILL, -1, whose);
    else
        need(syscall(SYS_tgkill, getpid(), tid, SIGUSR1) == 0, "tgkill");
}

static void common(bool take) {
    for (int sig = 2; sig >= 0; sig--) /* as it was queued, not as the kernel would deliver */
        for (int i = 0; i < REAL_TIME; i++)
            if (take)
                expect(SIGRTMIN + 2 + sig, SI_QUEUE, sig * 10 + i, "process");
            else
                need(sigqueue(getpid(), SIGRTMIN + 2 + sig, (union sigval){.sival_ptr = (void *)(uintptr_t)(round_of << 32 | (uint32_t)(sig * 10 + i))}) == 0, "sigqueue");
    if (take)
        expect(SIGUSR2, SI_USER, -1, "process");
    else
        need(kill(getpid(), SIGUSR2) == 0, "kill");
}

static void *second(void *argument) {
    (void)argument;
    tids[1] = (pid_t)syscall(SYS_gettid);
    for (int seen = 0;; usleep(1000)) {
        int asked_for = turn;
        if (asked_for == seen)
            continue;
        seen = asked_for;
        own(1, seen % 2 == 0);
        done = seen;
    }
    return NULL;
}

static void by_second(void) {
    int wanted = turn + 1;
    turn = wanted;
    while (done != wanted && !victim_reason[0])
        usleep(1000);
}

static void queue_all(void) {
    own(0, false);
    common(false);
    by_second();
}

static void take_all(void) {
    own(0, true);
    common(true);
    by_second();
    none_left("process");
}

static void dead_child(void) {
    sigset_t one;
    siginfo_t info;
    sigemptyset(&one);
    sigaddset(&one, SIGCHLD);
    child = fork();
    if (!child)
        _exit(9);
    need(child > 0, "fork");
    need(sigwaitinfo(&one, &info) == SIGCHLD && info.si_pid == child && info.si_status == 9, "SIGCHLD");
    need(waitpid(child, NULL, 0) == child, "waitpid");
    queue_info(tids[0], SIGCHLD, SI_MESGQ, 5);
}

int main(void) {
    sigfillset(&all);
    sigdelset(&all, SIGINT);
    sigdelset(&all, SIGTERM);
    need(pthread_sigmask(SIG_SETMASK, &all, NULL) == 0, "sigmask");
    tids[0] = (pid_t)syscall(SYS_gettid);
    pthread_t thread;
    need(pthread_create(&thread, NULL, second, NULL) == 0, "pthread_create");
    while (!tids[1])
        usleep(1000);
    dead_child();
    queue_all();
    ready();
    for (;;) {
        asked(-1);
        take_all();
        expect(SIGCHLD, SI_MESGQ, 5, "first thread");
        round_of++;
        queue_info(tids[0], SIGCHLD, SI_MESGQ, 5);
        queue_all();
        answer();
    }
}
