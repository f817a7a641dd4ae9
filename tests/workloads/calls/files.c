/* files.c: pipes, FIFOs, terminals and what else is read or written; locks; transfers between files. */
#include "calls.h"
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/inotify.h>
#include <sys/sendfile.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <sys/timerfd.h>
#include <termios.h>

/* ---- reads and writes ---- */

static void s_pipe(struct test *t) { call(t, SYS_read, readable(t), at(t->bytes_in), 8, 0, 0, 0); }
static void s_pipe_vector(struct test *t) {
    t->vector[0] = (struct iovec){t->bytes_in, 5};
    t->vector[1] = (struct iovec){t->bytes_in + 5, 3};
    call(t, SYS_readv, readable(t), at(t->vector), 2, 0, 0, 0);
}
static void s_event(struct test *t) { t->fd[0] = t->fd[1] = eventfd(0, 0), call(t, SYS_read, t->fd[0], at(t->bytes_in), 8, 0, 0, 0); }
static void s_event_full(struct test *t) {
    t->fd[0] = eventfd(0, 0);
    need(write(t->fd[0], &(uint64_t){UINT64_MAX - 1}, 8) == 8, "write");
    t->bytes_in[0] = 1;
    call(t, SYS_write, t->fd[0], at(t->bytes_in), 8, 0, 0, 0);
}
static void w_event(struct test *t) { need(read(t->fd[0], &(uint64_t){0}, 8) == 8, "read"); }
static void s_timer(struct test *t) { t->fd[0] = timerfd_create(CLOCK_MONOTONIC, 0), call(t, SYS_read, t->fd[0], at(t->bytes_in), 8, 0, 0, 0); }
static void w_timer(struct test *t) { timerfd_settime(t->fd[0], 0, &(struct itimerspec){.it_value.tv_nsec = 1}, NULL); }
static void s_timer_runs(struct test *t) {
    struct itimerspec time = {.it_value = {limit_ms / 1000, limit_ms % 1000 * 1000000}};
    t->fd[0] = timerfd_create(CLOCK_MONOTONIC, 0);
    t->begun = clock_ns(), timerfd_settime(t->fd[0], 0, &time, NULL);
    call(t, SYS_read, t->fd[0], at(t->bytes_in), 8, 0, 0, 0);
}
static void s_signalfd(struct test *t) {
    sigemptyset(&t->signals);
    sigaddset(&t->signals, SIGRTMIN + 6);
    t->fd[0] = signalfd(-1, &t->signals, 0);
    call(t, SYS_read, t->fd[0], at(t->bytes_in), 128, 0, 0, 0);
}
static void w_signalfd(struct test *t) { pthread_kill(t->thread, SIGRTMIN + 6); }
static void s_inotify(struct test *t) {
    need(mkdir(place(t, "watched"), 0700) == 0, "mkdir");
    t->fd[0] = inotify_init1(0);
    need(inotify_add_watch(t->fd[0], t->path, IN_CREATE) >= 0, "inotify_add_watch");
    call(t, SYS_read, t->fd[0], at(t->bytes_in), sizeof t->bytes_in, 0, 0, 0);
}
static void w_inotify(struct test *t) { need(creat(place(t, "watched/new"), 0600) >= 0, "creat"); }
static void terminal(struct test *t) {
    t->fd[1] = posix_openpt(O_RDWR | O_NOCTTY);
    need(grantpt(t->fd[1]) == 0 && unlockpt(t->fd[1]) == 0, "pty");
    t->fd[0] = open(ptsname(t->fd[1]), O_RDWR | O_NOCTTY);
    need(t->fd[0] >= 0, "pts");
}
static void s_tty(struct test *t) { terminal(t), call(t, SYS_read, t->fd[0], at(t->bytes_in), 64, 0, 0, 0); }
static void s_tty_raw(struct test *t) {
    struct termios how;
    terminal(t), tcgetattr(t->fd[0], &how), cfmakeraw(&how), tcsetattr(t->fd[0], TCSANOW, &how);
    call(t, SYS_read, t->fd[0], at(t->bytes_in), 64, 0, 0, 0);
}
static void w_tty(struct test *t) { need(write(t->fd[1], "1234567\n", 8) == 8, "write"); }
static bool got_line(struct test *t) { return !memcmp(t->bytes_in, "1234567\n", 8); }
static void s_master(struct test *t) {
    terminal(t);
    int slave = t->fd[0];
    t->fd[0] = t->fd[1], t->fd[1] = slave;
    call(t, SYS_read, t->fd[0], at(t->bytes_in), 64, 0, 0, 0);
}

static void full(struct test *t) { readable(t), fill(t->fd[1]); }
static void s_pipe_full(struct test *t) { full(t), call(t, SYS_write, t->fd[1], at(t->bytes_in), 100, 0, 0, 0); }
static void s_pipe_full_vector(struct test *t) {
    full(t), t->vector[0] = (struct iovec){t->bytes_in, 60}, t->vector[1] = (struct iovec){t->bytes_in, 40};
    call(t, SYS_writev, t->fd[1], at(t->vector), 2, 0, 0, 0);
}

/* ---- from file to file ---- */

static int loaded(void) { /* the reading end of a pipe with eight bytes */
    int end[2];
    need(pipe(end) == 0 && write(end[1], "12345678", 8) == 8, "pipe");
    return end[0];
}
static int sink(void) { /* the writing end of a pipe that nobody reads */
    int end[2];
    need(pipe(end) == 0, "pipe");
    return end[1];
}
static void s_splice(struct test *t) { call(t, SYS_splice, readable(t), 0, sink(), 0, 8, 0); }
static void s_splice_full(struct test *t) { full(t), call(t, SYS_splice, loaded(), 0, t->fd[1], 0, 8, 0); }
static void s_tee(struct test *t) { call(t, SYS_tee, readable(t), sink(), 8, 0, 0, 0); }
static void s_tee_full(struct test *t) { full(t), call(t, SYS_tee, loaded(), t->fd[1], 8, 0, 0, 0); }
static void s_vmsplice(struct test *t) {
    full(t), t->vector[0] = (struct iovec){t->bytes_in, 100};
    call(t, SYS_vmsplice, t->fd[1], at(t->vector), 1, 0, 0, 0);
}
static int file(struct test *t, const char *name) {
    int fd = open(place(t, name), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    need(fd >= 0 && pwrite(fd, "12345678", 8, 0) == 8, "file");
    return fd;
}
static void s_sendfile(struct test *t) { full(t), call(t, SYS_sendfile, t->fd[1], file(t, "sent"), 0, 8, 0, 0); }
static void s_sendfile_limited(struct test *t) {
    need(socketpair(AF_UNIX, SOCK_STREAM, 0, t->fd) == 0, "socketpair");
    limit_socket(t->fd[0], SO_SNDTIMEO), fill(t->fd[0]);
    call(t, SYS_sendfile, t->fd[0], file(t, "sent-late"), 0, 8, 0, 0);
}

/* ---- opening a FIFO: until the other side comes ---- */

static void fifo(struct test *t, const char *name) { need(mkfifo(place(t, name), 0600) == 0, "mkfifo"); }
static void s_fifo(struct test *t) { fifo(t, "fifo-reader"), call(t, SYS_open, at(t->path), O_RDONLY, 0, 0, 0, 0); }
static void s_fifo_at(struct test *t) { fifo(t, "fifo-at"), call(t, SYS_openat, AT_FDCWD, at(t->path), O_RDONLY | O_CLOEXEC, 0, 0, 0); }
static void s_fifo_writer(struct test *t) { fifo(t, "fifo-writer"), call(t, SYS_open, at(t->path), O_WRONLY, 0, 0, 0, 0); }
static void w_fifo(struct test *t) { need(open(t->path, O_WRONLY | O_CLOEXEC) >= 0, "open"); }
static void w_fifo_writer(struct test *t) { need(open(t->path, O_RDONLY | O_CLOEXEC) >= 0, "open"); }

/* ---- locks that somebody else has ---- */

static void s_flock(struct test *t) {
    t->fd[1] = file(t, "flock");
    t->fd[0] = open(t->path, O_RDWR | O_CLOEXEC);
    need(flock(t->fd[1], LOCK_EX) == 0, "flock");
    call(t, SYS_flock, t->fd[0], LOCK_EX, 0, 0, 0, 0);
}
static void w_flock(struct test *t) { need(flock(t->fd[1], LOCK_UN) == 0, "flock"); }
static long whole(struct test *t, short type) {
    struct flock lock = {.l_type = type, .l_len = 8};
    memcpy(t->bytes_in, &lock, sizeof lock);
    return at(t->bytes_in);
}
static void s_ofd(struct test *t) {
    t->fd[1] = file(t, "ofd");
    t->fd[0] = open(t->path, O_RDWR | O_CLOEXEC);
    need(syscall(SYS_fcntl, t->fd[1], F_OFD_SETLK, whole(t, F_WRLCK)) == 0, "F_OFD_SETLK");
    call(t, SYS_fcntl, t->fd[0], F_OFD_SETLKW, at(t->bytes_in), 0, 0, 0);
}
static void w_ofd(struct test *t) {
    struct flock lock = {.l_type = F_UNLCK};
    need(fcntl(t->fd[1], F_OFD_SETLK, &lock) == 0, "F_OFD_SETLK");
}
/* A child has it, by an open file of its own, until it is told. */
static void s_posix(struct test *t) {
    int told[2], has[2];
    t->fd[0] = file(t, "posix");
    need(pipe(told) == 0 && pipe(has) == 0, "pipe");
    pid_t child = fork();
    if (!child) {
        char byte;
        struct flock lock = {.l_type = F_WRLCK, .l_len = 8};
        int own = open(t->path, O_RDWR | O_CLOEXEC);
        close(told[1]), close(t->fd[0]);
        _exit(fcntl(own, F_SETLK, &lock) || write(has[1], "x", 1) != 1 || read(told[0], &byte, 1) != 1);
    }
    need(child > 0 && read(has[0], t->bytes_in, 1) == 1, "a child with a lock");
    t->fd[1] = told[1];
    call(t, SYS_fcntl, t->fd[0], F_SETLKW, whole(t, F_WRLCK), 0, 0, 0);
}
static void w_posix(struct test *t) { need(write(t->fd[1], "x", 1) == 1, "write"); }

const struct test files[] = {
    GIVES("read/pipe", s_pipe, writes, 8, got_eight),
    GIVES("readv/pipe", s_pipe_vector, writes, 8, got_eight),
    GIVES("read/eventfd", s_event, writes, 8, got_eight),
    WOKEN("write/eventfd", s_event_full, w_event, 8),
    WOKEN("read/timerfd", s_timer, w_timer, 8),
    ENDS("read/timerfd-runs", FINITE, s_timer_runs, 8),
    WOKEN("read/signalfd", s_signalfd, w_signalfd, 128),
    WOKEN("read/inotify", s_inotify, w_inotify, 32),
    GIVES("read/tty", s_tty, w_tty, 8, got_line),
    GIVES("read/tty-raw", s_tty_raw, w_tty, 8, got_line),
    GIVES("read/tty-master", s_master, writes, 8, got_eight),
    WOKEN("write/pipe", s_pipe_full, drains, 100),
    WOKEN("writev/pipe", s_pipe_full_vector, drains, 100),
    WOKEN("splice", s_splice, writes, 8),
    WOKEN("splice/full", s_splice_full, drains, 8),
    WOKEN("tee", s_tee, writes, 8),
    WOKEN("tee/full", s_tee_full, drains, 8),
    WOKEN("vmsplice", s_vmsplice, drains, 100),
    WOKEN("sendfile", s_sendfile, drains, 8),
    ENDS("sendfile/timeo", FINITE, s_sendfile_limited, -EAGAIN),
    WOKEN("open/fifo", s_fifo, w_fifo, ANY),
    WOKEN("openat/fifo", s_fifo_at, w_fifo, ANY),
    WOKEN("open/fifo-writer", s_fifo_writer, w_fifo_writer, ANY),
    WOKEN("flock", s_flock, w_flock, 0),
    WOKEN("fcntl/ofd", s_ofd, w_ofd, 0),
    WOKEN("fcntl/posix", s_posix, w_posix, 0),
    {0},
};
