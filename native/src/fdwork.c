/* fdwork.c: what a kind wants of one descriptor that is no socket: pipe, timer, seals, terminal. Formats: descriptors.c.
 *
 * Invariants
 *  1. Nothing is consumed: a pipe's contents are tee'd into a pipe of our own and read from there.
 *  2. A write end alone is read by an end of our own, opened O_NONBLOCK and closed at once, and only when there is a reader
 *     already: otherwise writers outside the tree would for a moment see a reader that is none.
 *  3. What the kernel does not answer gives no record; the kind that parses then refuses by name. Only lack of memory, and
 *     contents that came back shorter than they are, fail the capture.
 */
#define _GNU_SOURCE
#include "capture.h"
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <string.h>
#include <sys/timerfd.h>
#include <termios.h>
#include <time.h>

#ifndef F_GET_SEALS
#define F_GET_SEALS 1034
#endif
#define CKPT_TCGETS2 0x802c542aUL
enum { TERMIOS2_BYTES = 44, TIOCGWINSZ_NR = 0x5413, WINSIZE_BYTES = 8, FIONREAD_NR = 0x541b, PIPE_HEAD = 12, SAID_ROOM = 255 };
/* TIOCGPTN, TIOCGPTLCK, TIOCGPKT, TIOCGEXCL, TIOCGPGRP, TIOCGSID, FIONREAD: each answers with an int */
static const unsigned long tty_asks[] = {0x80045430, 0x80045439, 0x80045438, 0x80045440, 0x540f, 0x5429, FIONREAD_NR};
enum { TTY_ASKS = sizeof tty_asks / sizeof *tty_asks };

static int answer(struct window *window, const struct open_fd *entry, uint32_t work, const void *bytes, size_t size) {
    return sink_record(window->sink, CKPT_R_FD_WORK, entry->pid, 0, entry->fd, (int)work, bytes, size);
}

/* The program's clocks, which an instant of its own is of: where it is in a time namespace they are not ours. */
static struct ckpt_clocks clocks_there(struct window *window, pid_t pid) {
    struct task *task = tree_task(window->tree, pid);
    struct ckpt_clocks now;
    if (task && !task->clocked) {
        task->clocks = clocks_of(task->dir);
        task->clocked = true;
    }
    ckpt_clocks_now(&now);
    return task ? (struct ckpt_clocks){now.monotonic + task->clocks.monotonic, now.boottime + task->clocks.boottime} : now;
}

int fd_timer(struct window *window, pid_t pid, int fd, int dup) {
    struct {
        struct itimerspec value;
        uint64_t monotonic, realtime, boottime; /* an absolute timer's instant = what remains + its clock at that moment */
    } timer = {0};
    struct timespec wall;
    struct ckpt_clocks there = clocks_there(window, pid);
    if (sys_timerfd_get(dup, &timer.value))
        return 0;
    clock_gettime(CLOCK_REALTIME, &wall);
    timer.monotonic = (uint64_t)there.monotonic, timer.boottime = (uint64_t)there.boottime;
    timer.realtime = (uint64_t)wall.tv_sec * 1000000000u + (uint64_t)wall.tv_nsec;
    return sink_record(window->sink, CKPT_R_FD_WORK, pid, 0, fd, CKPT_W_TIMERFD, &timer, sizeof timer);
}

static int seals(struct window *window, const struct open_fd *entry, int dup) {
    int32_t seals = sys_fcntl(dup, F_GET_SEALS, 0);
    return answer(window, entry, CKPT_W_SEALS, &seals, sizeof seals);
}

static int tty(struct window *window, const struct open_fd *entry, int dup) {
    struct {
        uint8_t termios[TERMIOS2_BYTES], winsize[WINSIZE_BYTES];
        int32_t answers[TTY_ASKS];
    } state;
    if (sys_ioctl(dup, CKPT_TCGETS2, state.termios) < 0 || sys_ioctl(dup, TIOCGWINSZ_NR, state.winsize) < 0)
        return 0;
    for (size_t i = 0; i < TTY_ASKS; i++) {
        int value, error = sys_ioctl(dup, tty_asks[i], &value);
        state.answers[i] = error < 0 ? error : value;
    }
    return answer(window, entry, CKPT_W_TTY, &state, sizeof state);
}

static int queued(struct window *window, const struct open_fd *entry, int dup) {
    int32_t bytes = 0;
    int error = sys_ioctl(dup, FIONREAD_NR, &bytes);
    bytes = error < 0 ? error : bytes;
    return answer(window, entry, CKPT_W_QUEUED, &bytes, sizeof bytes);
}

/* own: an open for reading, or -1. */
int fd_queue(struct window *window, const struct open_fd *entry, int dup, int own) {
    struct {
        int64_t attributes[4]; /* struct mq_attr without its reserved end */
        char said[SAID_ROOM];
    } queue;
    if (sys_mq_getattr(dup, queue.attributes))
        return 0;
    ssize_t got = own < 0 ? 0 : sys_pread(own, queue.said, sizeof queue.said, 0);
    size_t bytes = sizeof queue.attributes + (got > 0 ? (size_t)got : 0);
    int error = answer(window, entry, CKPT_W_MQUEUE, &queue, bytes);
    return error ? error : 1;
}

/* F_GETOWN_EX shows no owner that has ended. */
static int owner(struct window *window, const struct open_fd *entry, int dup) {
    struct f_owner_ex told = {0};
    int signal = sys_fcntl(dup, F_GETSIG, 0);
    if (sys_fcntl(dup, F_GETOWN_EX, (long)(intptr_t)&told) < 0 || signal < 0 || (!told.pid && !signal))
        return 0;
    int32_t bytes[] = {told.type, told.pid, signal};
    return answer(window, entry, CKPT_W_OWNER, bytes, sizeof bytes);
}

/* An end that can be read: the duplicate itself, or an end of our own through /proc. -1: there is nothing to read. */
static int readable_end(struct window *window, const struct open_fd *entry, int dup, short revents, int *ret_own) {
    if ((entry->flags & O_ACCMODE) != O_WRONLY)
        return dup;
    if (revents & POLLERR)
        return -1; /* no reader: what was in it is gone */
    char name[NAME_ROOM];
    *ret_own = sys_openat(tree_task(window->tree, entry->pid)->dir, proc_name(name, "fd/", (uint64_t)entry->fd, ""), O_RDONLY | O_NONBLOCK);
    return *ret_own;
}

/* Our pipe has room for as many slots as theirs, so one tee takes everything. A packet stays one (PIPE_BUF_FLAG_PACKET goes with the slot):
 * each read gives one; their sizes follow the contents in room. */
static ssize_t copy_contents(struct window *window, int from, uint32_t capacity, char *room, size_t size, size_t *ret_reads) {
    int ours = sys_fcntl(window->tee[1], F_GETPIPE_SZ, 0);
    if (ours < (int)capacity && sys_fcntl(window->tee[1], F_SETPIPE_SZ, (long)capacity) < 0)
        return -ENOSPC;
    ssize_t teed = sys_tee(from, window->tee[1], INT_MAX, SPLICE_F_NONBLOCK);
    if (teed == -EAGAIN)
        teed = 0;
    size_t reads = 0;
    for (ssize_t done = 0; done < teed; reads++) {
        ssize_t got = sys_read(window->tee[0], room + done, (size_t)(teed - done));
        if (got <= 0 || reads == capacity / CKPT_PAGE)
            return got < 0 ? got : -EIO;
        uint32_t length = (uint32_t)got;
        memcpy(room + size + reads * sizeof length, &length, sizeof length);
        done += got;
    }
    *ret_reads = reads;
    return teed < 0 ? teed : (size_t)teed == size ? teed : -EIO;
}

static int pipe_contents(struct window *window, const struct open_fd *entry, int dup) {
    int capacity = sys_fcntl(dup, F_GETPIPE_SZ, 0);
    struct pollfd poll_one = {.fd = dup};
    int error = capacity < 0 ? 0 : sys_poll(&poll_one, 1, 0);
    if (capacity < 0 || error < 0)
        return 0;
    _cleanup_close_ int own = -1;
    int from = readable_end(window, entry, dup, poll_one.revents, &own);
    int size = 0;
    if (from < -1)
        return tree_fail(window->tree, from, "pipe contents", entry->pid, 0, entry->fd, 0, "open");
    if (from >= 0 && sys_ioctl(from, FIONREAD_NR, &size) < 0)
        size = 0;
    uint32_t head[3] = {(uint32_t)capacity, (uint32_t)poll_one.revents, (uint32_t)size};
    size_t bytes = PIPE_HEAD + (size_t)size, reads = 0, most = head[0] / CKPT_PAGE;
    char *room = sink_record_begin(window->sink, CKPT_R_FD_WORK, entry->pid, 0, entry->fd, CKPT_W_PIPE, bytes + most * sizeof(uint32_t));
    if (!room)
        return -ENOMEM;
    memcpy(room, head, PIPE_HEAD);
    ssize_t got = size ? copy_contents(window, from, head[0], room + PIPE_HEAD, (size_t)size, &reads) : 0;
    if (got < 0)
        return tree_fail(window->tree, (int)got, "pipe contents", entry->pid, 0, entry->fd, 0, NULL);
    sink_record_commit(window->sink, bytes + reads * sizeof(uint32_t));
    return 0;
}

int fd_work(struct window *window, const struct open_fd *entry, int dup, const struct ckpt_want *want) {
    int error = 0;
    if (dup >= 0 && (want->work & CKPT_W_PIPE))
        error = pipe_contents(window, entry, dup);
    if (!error && dup >= 0 && (want->work & CKPT_W_SEALS))
        error = seals(window, entry, dup);
    if (!error && dup >= 0 && (want->work & CKPT_W_TTY))
        error = tty(window, entry, dup);
    if (!error && dup >= 0 && (want->work & CKPT_W_QUEUED))
        error = queued(window, entry, dup);
    if (!error && dup >= 0 && (want->work & CKPT_W_OWNER))
        error = owner(window, entry, dup);
    return error;
}
