/* descriptors.c: every descriptor of every distinct table, as raw bytes; what it means is for the kinds of ckpt/kinds/fd.
 *
 * For each number in /proc/PID/fd: link text, stat, fdinfo, identity, and the work that the first matching row of wants asks
 * for, mostly on a duplicate by pidfd_getfd. Records, in this order: CKPT_R_FD, CKPT_R_FDINFO, then the work and the options.
 * CKPT_R_FD_WORK's index is the one work bit; its bytes (little endian; n = bytes that follow):
 *
 *   PIPE        u32 capacity, u32 revents of poll() on the duplicate before we open an end ourselves (POLLHUP: no writer,
 *               POLLERR: no reader), u32 n, contents[n], then to the end u32[]: how much each read gave (packets)
 *   SOCKET      i32 domain, type, protocol, listening, inq, outq, n_local, n_peer (each -errno where there is none), then the
 *               two struct sockaddr
 *   PEEK        AF_UNIX, UDP, TCP of one address: per message of the receive queue u32 n, u32 flags (1: carries descriptors or other
 *               control data; 2: a pending error forbids to look), u32 n_from, bytes[n], from[n_from]: the sender's struct sockaddr, of datagrams; a stream is one message.
 *   TIMERFD     struct itimerspec, asked before fdinfo is read (until then an expired periodic timer shows nonsense there);
 *               u64 CLOCK_MONOTONIC, CLOCK_REALTIME, CLOCK_BOOTTIME of that moment, as the program sees them, ns
 *   SEALS       i32 seals or -errno
 *   CONTENTS    no bytes; the pages are an object space with its CKPT_R_OBJECT
 *   TTY         struct termios2 (44 bytes), struct winsize (8), then i32, each -errno where there is none: TIOCGPTN, TIOCGPTLCK,
 *               TIOCGPKT, TIOCGEXCL, TIOCGPGRP, TIOCGSID, FIONREAD
 *   UNIX_DIAG   AF_UNIX only: struct unix_diag_msg and its attributes, as the kernel answered
 *   EPOLL       per tfd line of fdinfo, in order: i32 tfd, i32 identity of the watched file (-1: no descriptor of the tree)
 *   UNNAMED     no bytes; as CONTENTS
 *   QUEUED      i32 bytes or -errno
 *   MQUEUE      i64 flags, room, size of a message, count, then what it says to a read (who is notified), at most 255 bytes; no
 *               record of what is no POSIX message queue
 *   GROUPS      of UDP sockets that are in multicast groups: fdgroups.c
 *   SENDING     of a TCP connection of this machine with itself: u64 how much was written, and where it is stuck the bytes that are not
 *               acknowledged: fdsending.c
 *   OWNER       i32 type, number, signal; no record where nothing is set
 *   DUPLICATE   no record: struct ckpt_fd.duplicate is our number
 *
 * The work is done once for an open file description, under the first descriptor that shows it (processes in the order of
 * ckpt_tree_threads(), numbers ascending); fdinfo is read for each, for FD_CLOEXEC stands only there. TIMERFD: for each.
 *
 * Invariants
 *  1. A table that several processes share (CLONE_FILES) is walked once, under its first process.
 *  2. A duplicate shares its description with the target: position, flags and queues are not touched, or put back at once.
 *  3. The tracker's own userfaultfd (by inode) is left out, in the forked children that inherited it too.
 *  4. Identities are complete before EPOLL is answered: it names descriptions of the whole tree.
 */
#define _GNU_SOURCE
#include "capture.h"
#include <errno.h>
#include <fcntl.h>
#include <linux/kcmp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sysmacros.h>

enum {
    DENTS_BYTES = 32 << 10,
    LINK_ROOM = 4096,
    WORK_BY_DUPLICATE = CKPT_W_DUPLICATE | CKPT_W_PIPE | CKPT_W_SOCKET | CKPT_W_PEEK | CKPT_W_SEALS | CKPT_W_TTY | CKPT_W_QUEUED | CKPT_W_OWNER,
    CLOEXEC_FLAG = 02000000,
};

struct look {
    pid_t pid;
    int fd, fd_dir, info_dir, pidfd;
    char name[NAME_ROOM];
    char link[LINK_ROOM];
    size_t link_size;
    struct stat stat;
};

static bool is_tracker(const struct window *window, const struct look *look) {
    if (strcmp(look->link, "anon_inode:[userfaultfd]"))
        return false;
    for (size_t i = 0; i < window->options->track_count; i++)
        if (window->options->tracks[i].remote_fd >= 0 && window->options->tracks[i].remote_ino == look->stat.st_ino)
            return true;
    return false;
}

static const struct ckpt_want *want_for(const struct window *window, const struct look *look) {
    for (size_t i = 0; i < window->options->want_count; i++) {
        const struct ckpt_want *want = &window->options->wants[i];
        size_t length = strnlen(want->prefix, sizeof want->prefix);
        if (want->format && (look->stat.st_mode & S_IFMT) != want->format)
            continue;
        if (!strncmp(look->link, want->prefix, length))
            return want;
    }
    return NULL;
}

static uint64_t device(dev_t dev) { return (uint64_t)dev; }

static struct ckpt_fd *head_of(const struct window *window, size_t record) {
    return (struct ckpt_fd *)(void *)text_of(window, (struct text_at){.offset = record});
}

static int fd_record(struct window *window, const struct look *look, size_t *ret_at) {
    size_t size = sizeof(struct ckpt_fd) + look->link_size;
    const uint8_t *base;
    size_t at = ckpt_sink_records(window->sink, &base) + sizeof(struct ckpt_record);
    char *room = sink_record_begin(window->sink, CKPT_R_FD, look->pid, 0, look->fd, 0, size);
    if (!room)
        return -ENOMEM;
    struct ckpt_fd head = {.dev = device(look->stat.st_dev), .ino = look->stat.st_ino, .rdev = device(look->stat.st_rdev),
                           .size = (uint64_t)look->stat.st_size, .nlink = look->stat.st_nlink, .mode = look->stat.st_mode,
                           .file = -1, .duplicate = -1};
    memcpy(room, &head, sizeof head);
    memcpy(room + sizeof head, look->link, look->link_size);
    sink_record_commit(window->sink, size);
    *ret_at = at;
    return 0;
}

static uint32_t flags_of(const char *fdinfo, size_t bytes) {
    return (uint32_t)proc_field(fdinfo, bytes, "flags", 8, 0) & ~(uint32_t)CLOEXEC_FLAG;
}

/* Adds the row and its identity; *ret_new: no descriptor before it was the same open file description. */
static int add_entry(struct window *window, const struct look *look, const struct ckpt_want *want, size_t record, struct text_at info,
                     bool *ret_new) {
    int error = rows_grow((void **)&window->fds, window->fd_count, &window->fd_cap, sizeof *window->fds);
    if (error)
        return error;
    struct open_fd *entry = &window->fds[window->fd_count++];
    *entry = (struct open_fd){.pid = look->pid, .fd = look->fd, .dev = device(look->stat.st_dev), .ino = look->stat.st_ino,
                              .flags = flags_of(text_of(window, info), info.size), .record = record, .fdinfo = info.offset,
                              .fdinfo_size = info.size};
    size_t known = window->file_count;
    error = identify(window, window->fd_count - 1);
    if (error)
        return error;
    *ret_new = window->file_count > known;
    entry->work = *ret_new && want ? want->work : 0;
    head_of(window, record)->file = entry->file;
    return 0;
}

static int contents(struct window *window, const struct look *look) {
    _cleanup_close_ int own = sys_openat(look->fd_dir, look->name, O_RDONLY);
    int error = own < 0 ? own : capture_object(window, own, look->pid);
    return error ? tree_fail(window->tree, error, "contents", look->pid, 0, look->fd, 0, look->link) : 0;
}

static int keep_duplicate(struct window *window, size_t record, int *dup) {
    head_of(window, record)->duplicate = *dup;
    return sink_keep_fd(window->sink, take_fd(dup));
}

static bool wants_contents(const struct ckpt_want *want, const struct look *look) {
    bool unnamed = !look->stat.st_nlink && look->stat.st_size <= CKPT_UNNAMED_BYTES;
    return want->work & CKPT_W_CONTENTS || (want->work & CKPT_W_UNNAMED && unnamed);
}

/* "/name", on a device of the kernel's own, as large as what it says (ipc/mqueue.c, FILENT_SIZE); then mq_getattr tells for sure. */
static int may_be_queue(const struct look *look) {
    enum { SAID_BYTES = 80 };
    return S_ISREG(look->stat.st_mode) && look->stat.st_size == SAID_BYTES && major(look->stat.st_dev) == 0 && look->link[0] == '/' &&
           !strchr(look->link + 1, '/');
}

/* 1: it is one, and has been answered for. */
static int message_queue(struct window *window, const struct look *look, const struct open_fd *entry) {
    _cleanup_close_ int queue = sys_pidfd_getfd(look->pidfd, look->fd), own = sys_openat(look->fd_dir, look->name, O_RDONLY);
    return queue < 0 ? 0 : fd_queue(window, entry, queue, own);
}

/* A description that a descriptor before showed already (dup, fork) has its answers there. */
static int work_once(struct window *window, const struct look *look, const struct ckpt_want *want, size_t record, int *dup) {
    struct open_fd entry = window->fds[window->fd_count - 1];
    if ((want->work & CKPT_W_MQUEUE) && may_be_queue(look)) {
        int found = message_queue(window, look, &entry);
        if (found)
            return found < 0 ? found : 0;
    }
    if (*dup < 0 && (want->work & WORK_BY_DUPLICATE))
        *dup = sys_pidfd_getfd(look->pidfd, look->fd);
    int error = fd_work(window, &entry, *dup, want);
    if (!error && S_ISSOCK(look->stat.st_mode))
        error = fd_socket(window, &entry, *dup, want);
    if (!error && wants_contents(want, look))
        error = contents(window, look);
    if (!error && (want->work & CKPT_W_DUPLICATE) && *dup >= 0)
        error = keep_duplicate(window, record, dup);
    return error;
}

static int record_descriptor(struct window *window, const struct look *look, const struct ckpt_want *want) {
    size_t record;
    struct text_at info = {0};
    bool is_new = false;
    _cleanup_close_ int dup = -1;
    int error = fd_record(window, look, &record);
    if (!error && want && (want->work & CKPT_W_TIMERFD)) {
        dup = sys_pidfd_getfd(look->pidfd, look->fd);
        error = dup >= 0 ? fd_timer(window, look->pid, look->fd, dup) : 0;
    }
    if (!error)
        error = record_file(window, CKPT_R_FDINFO, look->pid, 0, look->fd, 0, look->info_dir, look->name, &info);
    if (!error)
        error = add_entry(window, look, want, record, info, &is_new);
    return error || !is_new || !want ? error : work_once(window, look, want, record, &dup);
}

static int one_descriptor(struct window *window, struct look *look) {
    ssize_t length = sys_readlinkat(look->fd_dir, look->name, look->link, sizeof look->link - 1);
    if (length == -ENOENT)
        return 0; /* closed by a process outside that shares the table */
    int error = length < 0 ? (int)length : sys_statat(look->fd_dir, look->name, &look->stat, 0);
    if (error)
        return tree_fail(window->tree, error, "descriptor", look->pid, 0, look->fd, 0, NULL);
    look->link[length] = 0;
    look->link_size = (size_t)length;
    if (is_tracker(window, look))
        return 0;
    error = record_descriptor(window, look, want_for(window, look));
    return error ? tree_fail(window->tree, error, "descriptor", look->pid, 0, look->fd, 0, look->link) : 0;
}

struct dirent_head { /* getdents64(2) */
    uint64_t ino;
    int64_t off;
    uint16_t length;
    uint8_t type;
    char name[];
};

static int one_table(struct window *window, const struct task *task) {
    _cleanup_close_ int fd_dir = sys_openat(task->dir, "fd", O_RDONLY | O_DIRECTORY);
    _cleanup_close_ int info_dir = sys_openat(task->dir, "fdinfo", O_PATH | O_DIRECTORY);
    if (fd_dir < 0 || info_dir < 0)
        return tree_fail(window->tree, fd_dir < 0 ? fd_dir : info_dir, "descriptors", task->pid, 0, -1, 0, NULL);
    struct look look = {.pid = task->pid, .fd_dir = fd_dir, .info_dir = info_dir, .pidfd = task->pidfd};
    _Alignas(8) char dents[DENTS_BYTES];
    for (;;) {
        ssize_t bytes = sys_getdents(fd_dir, dents, sizeof dents);
        if (bytes <= 0)
            return bytes < 0 ? tree_fail(window->tree, (int)bytes, "descriptors", task->pid, 0, -1, 0, NULL) : 0;
        for (ssize_t at = 0; at < bytes;) {
            const struct dirent_head *entry = (const void *)(dents + at);
            at += entry->length;
            if (entry->name[0] == '.')
                continue;
            look.fd = (int)strtol(entry->name, NULL, 10);
            proc_name(look.name, "", (uint64_t)look.fd, "");
            int error = one_descriptor(window, &look);
            if (error)
                return error;
        }
    }
}

static int same_table(pid_t a, pid_t b) { return sys_kcmp(a, b, KCMP_FILES, 0, 0) == 0; }

/* On its way out of a running process it has given its table up already, and compares as if it had another. */
static bool exiting(const struct task *task, const struct thread *thread) {
    enum { PF_EXITING = 0x4 };
    char name[NAME_ROOM];
    struct proc_stat stat;
    return proc_stat(task->dir, proc_name(name, "task/", (uint64_t)thread->tid, "/stat"), &stat) || (stat.flags & PF_EXITING);
}

/* A thread may have left its process's table by unshare(CLONE_FILES); such descriptors stand in no record of ours. */
static int check_threads(struct window *window, const struct task *task) {
    for (size_t i = 0; i < window->tree->thread_count; i++) {
        const struct thread *thread = &window->tree->threads[i];
        if (thread->pid != task->pid || thread->tid == task->pid)
            continue;
        if (sys_kcmp(task->pid, thread->tid, KCMP_FILES, 0, 0) > 0 && !exiting(task, thread))
            return tree_fail(window->tree, -EOPNOTSUPP, "descriptors", task->pid, thread->tid, -1, 0, "a thread with a table of its own");
    }
    return 0;
}

/* A look at a running tree passes over a child that has ended meanwhile; half of its records may be there. */
static bool child_ended(const ckpt_tree *tree, const struct task *task, int error) {
    return (error == -ESRCH || error == -ENOENT) && !tree->frozen && task->pid != tree->root;
}

int capture_descriptors(struct window *window) {
    ckpt_tree *tree = window->tree;
    for (size_t i = 0; i < tree->task_count; i++) {
        bool seen = tree->tasks[i].zombie;
        for (size_t j = 0; j < i && !seen; j++)
            seen = !tree->tasks[j].zombie && same_table(tree->tasks[i].pid, tree->tasks[j].pid);
        int error = check_threads(window, &tree->tasks[i]);
        if (!error && !seen)
            error = one_table(window, &tree->tasks[i]);
        if (error && !child_ended(tree, &tree->tasks[i], error))
            return error;
    }
    for (size_t i = 0; i < window->fd_count; i++) {
        int error = window->fds[i].work & CKPT_W_EPOLL ? epoll_targets(window, &window->fds[i]) : 0;
        if (error)
            return error;
    }
    return 0;
}
