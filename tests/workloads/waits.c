/* waits: a thread in each kind of endless wait (epoll_wait, epoll_pwait2, poll, select, sigwaitinfo, msgrcv, semop, read of a
 * pipe, recv, accept, condition variable). "verify" wakes each one once; every call must return what it was woken
 * for: an EINTR, an early return or a lost wake-up shows.
 */
#include "victim.h"
#include <netinet/in.h>
#include <sys/epoll.h>
#include <sys/msg.h>
#include <sys/select.h>
#include <sys/sem.h>
#include <sys/socket.h>

enum { WAITS = 11 };
static const char *const names[WAITS] = {"epoll_wait", "epoll_pwait", "poll",   "select", "sigwaitinfo", "msgrcv",
                                         "semop",      "read",        "recv",   "accept", "condition"};
static int pipes[WAITS][2], epolls[2], queue, semaphores, listener;
static struct sockaddr_in address;
static socklen_t address_bytes;
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t condition = PTHREAD_COND_INITIALIZER;
static int wanted;
static pthread_t threads[WAITS];
static _Atomic int woken[WAITS];

struct note {
    long type;
    char text[8];
};

static long wait_once(int kind) {
    struct epoll_event event;
    struct pollfd one = {pipes[kind][0], POLLIN, 0};
    struct sembuf down = {0, -1, 0};
    struct note note;
    char byte;
    sigset_t set;
    fd_set reads;
    int fd;
    switch (kind) {
    case 0: return epoll_wait(epolls[0], &event, 1, -1);
    case 1: return epoll_pwait(epolls[1], &event, 1, -1, NULL);
    case 2: return poll(&one, 1, -1);
    case 3:
        FD_ZERO(&reads);
        FD_SET(pipes[kind][0], &reads);
        return select(pipes[kind][0] + 1, &reads, NULL, NULL, NULL);
    case 4:
        sigemptyset(&set);
        sigaddset(&set, SIGRTMIN + 3);
        return sigwaitinfo(&set, NULL) == SIGRTMIN + 3 ? 1 : -1;
    case 5: return msgrcv(queue, &note, sizeof note.text, 1, 0) == 4 ? 1 : -1;
    case 6: return semop(semaphores, &down, 1) == 0 ? 1 : -1;
    case 7: return read(pipes[kind][0], &byte, 1);
    case 8: return recv(pipes[kind][0], &byte, 1, 0);
    case 9:
        fd = accept(listener, NULL, NULL);
        if (fd < 0)
            return -1;
        close(fd);
        return 1;
    default:
        pthread_mutex_lock(&mutex);
        while (!wanted)
            pthread_cond_wait(&condition, &mutex);
        wanted--;
        pthread_mutex_unlock(&mutex);
        return 1;
    }
}

static void wake(int kind) {
    struct sembuf up = {0, 1, 0};
    struct note note = {1, "ping"};
    if (kind == 4)
        pthread_kill(threads[4], SIGRTMIN + 3);
    else if (kind == 5)
        need(msgsnd(queue, &note, 4, 0) == 0, "msgsnd");
    else if (kind == 6)
        need(semop(semaphores, &up, 1) == 0, "semop");
    else if (kind == 9) {
        int fd = socket(AF_INET, SOCK_STREAM, 0);
        need(connect(fd, (void *)&address, address_bytes) == 0, "connect");
        close(fd);
    } else if (kind == 10) {
        pthread_mutex_lock(&mutex);
        wanted++;
        pthread_cond_signal(&condition);
        pthread_mutex_unlock(&mutex);
    } else
        need(write(pipes[kind][1], "x", 1) == 1, "write");
}

static void *run(void *argument) {
    int kind = (int)(intptr_t)argument;
    char byte;
    for (;;) {
        long got = wait_once(kind);
        if (got != 1)
            wrong("%s gave %ld: %s", names[kind], got, strerror(errno));
        if (kind < 4 && got == 1 && read(pipes[kind][0], &byte, 1) != 1)
            wrong("%s woke for nothing", names[kind]);
        woken[kind]++;
    }
    return NULL;
}

static void round_of_all(void) {
    int before[WAITS];
    uint64_t deadline = clock_ns() + 5000000000u;
    for (int i = 0; i < WAITS; i++)
        before[i] = woken[i];
    for (int i = 0; i < WAITS; i++)
        wake(i);
    for (int i = 0; i < WAITS; i++) {
        while (woken[i] == before[i] && clock_ns() < deadline)
            usleep(500);
        if (woken[i] != before[i] + 1)
            wrong("%s: woken once, returned %d times", names[i], woken[i] - before[i]);
    }
}

static void make(void) {
    queue = msgget(IPC_PRIVATE, 0600);
    semaphores = semget(IPC_PRIVATE, 1, 0600);
    need(queue >= 0 && semaphores >= 0, "System V ipc");
    for (int i = 0; i < WAITS; i++)
        need((i == 8 ? socketpair(AF_UNIX, SOCK_STREAM, 0, pipes[i]) : pipe(pipes[i])) == 0, "pipe");
    for (int i = 0; i < 2; i++) {
        struct epoll_event event = {.events = EPOLLIN};
        epolls[i] = epoll_create1(0);
        need(epoll_ctl(epolls[i], EPOLL_CTL_ADD, pipes[i][0], &event) == 0, "epoll_ctl");
    }
    listener = socket(AF_INET, SOCK_STREAM, 0);
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    address_bytes = sizeof address;
    int one = 1; /* as servers do: connections of an earlier life that have just ended (TIME_WAIT) do not hold the port */
    need(setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one) == 0, "SO_REUSEADDR");
    need(bind(listener, (void *)&address, address_bytes) == 0 && listen(listener, 8) == 0, "bind"); /* any free port */
    getsockname(listener, (void *)&address, &address_bytes);
}

int main(void) {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGRTMIN + 3);
    sigprocmask(SIG_BLOCK, &set, NULL);
    make();
    for (intptr_t i = 0; i < WAITS; i++)
        need(pthread_create(&threads[i], NULL, run, (void *)i) == 0, "pthread_create");
    round_of_all();
    ready();
    while (asked(-1)) {
        char line[64];
        ssize_t got = read(0, line, sizeof line); /* as question(), but the System V objects must be removed at the end */
        if (got <= 0)
            break;
        round_of_all();
        verdict();
    }
    msgctl(queue, IPC_RMID, NULL);
    semctl(semaphores, 0, IPC_RMID);
    return 0;
}
