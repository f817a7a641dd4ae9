/* descriptors FOLDER: one of each kind of descriptor that has a state of its own, used on and on: a deleted file (open twice), a FIFO, a
 * pipe of packets, a pty, an inotify, a pidfd, locks of three sorts, an epoll set with an entry whose number is closed. Every "verify" puts
 * each to use and checks what comes out against what must have gone in before; between two of them each holds something that would be
 * missed.
 */
#include "victim.h"
#include <pty.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/inotify.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <termios.h>

static int deleted[2], fifo[2], packets[2], master, slave, watch, pidfd, locked, poll_set, event;
static uint64_t rounds; /* how often each has been used */

static void check(bool ok, const char *what) {
    if (!ok)
        wrong("%s (round %lu): %s", what, rounds, strerror(errno));
}

static bool held(int fd, const char *sort) { /* a lock, as fdinfo tells it */
    char name[64], text[1024];
    snprintf(name, sizeof name, "/proc/self/fdinfo/%d", fd);
    FILE *file = fopen(name, "re");
    size_t got = file ? fread(text, 1, sizeof text - 1, file) : 0;
    if (file)
        fclose(file);
    text[got] = 0;
    return strstr(text, sort) != NULL;
}

static void fill(void) { /* what the next check finds */
    uint64_t one = 1;
    check(pwrite(deleted[0], &rounds, 8, 8192) == 8, "deleted file: write");
    check(write(fifo[1], &rounds, 8) == 8, "FIFO: write");
    check(write(packets[1], &rounds, 8) == 8 && write(packets[1], "x", 1) == 1, "packets: write");
    check(write(event, &one, 8) == 8, "eventfd: write");
}

static void use(void) {
    uint64_t got = 0;
    char text[64] = "";
    struct epoll_event ready = {0};
    check(pread(deleted[1], &got, 8, 8192) == 8 && got == rounds, "deleted file: read through the other");
    got = 0;
    check(read(fifo[0], &got, sizeof got) == 8 && got == rounds, "FIFO: read");
    check(read(packets[0], text, sizeof text) == 8 && !memcmp(text, &rounds, 8), "packets: the first");
    check(read(packets[0], text, sizeof text) == 1 && text[0] == 'x', "packets: the second");
    check(epoll_wait(poll_set, &ready, 1, 0) == 1 && ready.data.u64 == 77, "epoll: the entry whose number is closed");
    check(read(event, &got, 8) == 8 && got == 1, "eventfd: read");
    check(write(master, "line\n", 5) == 5 && read(slave, text, sizeof text) == 5 && !memcmp(text, "line\n", 5), "pty: read");
    struct winsize size;
    struct termios settings;
    check(!ioctl(slave, TIOCGWINSZ, &size) && size.ws_row == 33 && size.ws_col == 99, "pty: size");
    check(!tcgetattr(slave, &settings) && !(settings.c_lflag & ECHO), "pty: settings");
    int made = open("seen", O_CREAT | O_RDWR | O_CLOEXEC, 0600);
    char seen[256];
    check(made >= 0 && !close(made) && !unlink("seen"), "inotify: make a file");
    const struct inotify_event *happened = (const void *)seen;
    check(read(watch, seen, sizeof seen) > 16 && happened->wd == 2 && happened->mask == IN_CREATE, "inotify: read");
    check(!syscall(SYS_pidfd_send_signal, pidfd, 0, NULL, 0), "pidfd: signal");
    check(held(locked, "FLOCK  ADVISORY  WRITE"), "flock is lost");
    check(held(locked, "POSIX  ADVISORY  WRITE"), "the POSIX lock is lost");
    check(held(locked, "OFDLCK ADVISORY  READ"), "the lock of the open file is lost");
}

static void prepare(const char *folder) {
    struct winsize size = {.ws_row = 33, .ws_col = 99};
    struct termios settings;
    need(!chdir(folder), "chdir");
    deleted[0] = open("deleted", O_CREAT | O_RDWR, 0600);
    deleted[1] = open("deleted", O_RDONLY);
    need(deleted[0] >= 0 && deleted[1] >= 0 && !unlink("deleted"), "deleted file");
    locked = open("locked", O_CREAT | O_RDWR, 0600); /* before somebody watches */
    need(!mkfifo("fifo", 0600), "mkfifo");
    fifo[0] = open("fifo", O_RDONLY | O_NONBLOCK);
    fifo[1] = open("fifo", O_WRONLY);
    need(fifo[0] >= 0 && fifo[1] >= 0, "FIFO");
    need(!pipe2(packets, O_DIRECT | O_NONBLOCK), "pipe2");
    need(!openpty(&master, &slave, NULL, NULL, &size) && !tcgetattr(slave, &settings), "openpty");
    settings.c_lflag &= ~(tcflag_t)ECHO;
    need(!tcsetattr(slave, TCSANOW, &settings), "tcsetattr");
    watch = inotify_init1(IN_NONBLOCK);
    need(inotify_add_watch(watch, "fifo", IN_MOVE_SELF) == 1 && inotify_add_watch(watch, ".", IN_CREATE) == 2, "inotify");
    pidfd = (int)syscall(SYS_pidfd_open, getpid(), 0);
    struct flock part = {.l_type = F_WRLCK, .l_start = 5, .l_len = 10}, rest = {.l_type = F_RDLCK, .l_start = 100};
    need(pidfd >= 0 && locked >= 0 && !flock(locked, LOCK_EX) && !fcntl(locked, F_SETLK, &part) && !fcntl(locked, F_OFD_SETLK, &rest), "locks");
    poll_set = epoll_create1(0);
    event = eventfd(0, EFD_NONBLOCK);
    int twin = dup(event);
    struct epoll_event entry = {.events = EPOLLIN, .data.u64 = 77};
    need(!epoll_ctl(poll_set, EPOLL_CTL_ADD, twin, &entry) && !close(twin), "epoll");
}

int main(int argc, char **argv) {
    need(argc == 2, "usage: descriptors FOLDER");
    prepare(argv[1]);
    fill();
    ready();
    for (;;) {
        if (strcmp(question(), "verify") != 0)
            wrong("unknown question");
        use();
        rounds++;
        fill();
        verdict();
    }
}
