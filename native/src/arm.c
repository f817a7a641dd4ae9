/* arm.c: the userfaultfd that tracks a target's writes: found again, or made inside the target by a batch of three calls.
 *
 * It stays open in the target, so that tracking goes on without us, on the highest free number below the size of its descriptor table:
 * nothing that the program opens gets another number than it would have got.
 *
 * Invariants
 *  1. Only what the caller's record names (number and inode) is used again. Any other descriptor that looks like ours is a child's inherited copy
 *     (it tracks the parent's memory) or one whose record was lost: it is closed, and the new one starts with everything written. Where
 *     processes share a table, what was armed for another of them stays.
 *  2. Making, moving and closing are one batch: however ckpt dies, no descriptor stays on a low number.
 *  3. Ours is recognised by its inode (each userfaultfd has its own), and by its exact set of features in fdinfo; a number that no
 *     handshake has reached yet only where we would have put it.
 *  4. A seccomp filter: -EPERM before anything is stopped.
 */
#define _GNU_SOURCE
#include "inject.h"
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>

enum { STALE_MAX = 16, NEAR_TOP = 16 };
#define FEATURES (UFFD_FEATURE_WP_ASYNC | UFFD_FEATURE_WP_UNPOPULATED | UFFD_FEATURE_WP_HUGETLBFS_SHMEM)
#define INITIALIZED (UINT64_C(1) << 31) /* fs/userfaultfd.c: the handshake was made */
static const char link_text[] = "anon_inode:[userfaultfd]";

struct table { /* the target's descriptors */
    int size, top_free, lowest_free;
    int stale[STALE_MAX];
    size_t stale_count;
};

static bool is_userfaultfd(const struct task *task, int fd) {
    char name[NAME_ROOM], text[sizeof link_text];
    ssize_t bytes = readlinkat(task->dir, proc_name(name, "fd/", (uint64_t)fd, ""), text, sizeof text);
    return bytes == sizeof link_text - 1 && !memcmp(text, link_text, sizeof link_text - 1);
}

/* fdinfo: "API:\taa:<features>:<ioctls>" */
static bool has_our_features(const struct task *task, int fd, bool near_top) {
    char name[NAME_ROOM], text[512];
    ssize_t bytes = proc_read(task->dir, proc_name(name, "fdinfo/", (uint64_t)fd, ""), text, sizeof text - 1);
    if (bytes < 0)
        return false;
    text[bytes] = 0;
    const char *at = strstr(text, "API:\taa:");
    if (!at)
        return false;
    uint64_t features = strtoull(at + 8, NULL, 16);
    return (features & ~INITIALIZED) == FEATURES || (!features && near_top);
}

/* Processes may share a table and not the memory: what tracks another one's memory, and was armed by us just now, stands there too. */
static bool is_anothers(const ckpt_tree *tree, const struct task *task, int fd) {
    char name[NAME_ROOM];
    struct stat there, armed;
    if (sys_statat(task->dir, proc_name(name, "fd/", (uint64_t)fd, ""), &there, 0))
        return false;
    for (size_t i = 0; i < tree->task_count; i++)
        if (&tree->tasks[i] != task && tree->tasks[i].uffd >= 0 && !fstat(tree->tasks[i].uffd, &armed) && armed.st_ino == there.st_ino)
            return true;
    return false;
}

static bool is_stale(const ckpt_tree *tree, const struct task *task, int fd, bool near_top) {
    return is_userfaultfd(task, fd) && has_our_features(task, fd, near_top) && !is_anothers(tree, task, fd);
}

static int table_size(ckpt_tree *tree, struct task *task, int *ret_size) {
    char text[4096];
    ssize_t bytes = proc_read(task->dir, "status", text, sizeof text);
    if (bytes < 0)
        return tree_fail(tree, (int)bytes, "read status", task->pid, 0, -1, 0, "status");
    if (proc_field(text, (size_t)bytes, "Seccomp", 10, 0))
        return tree_fail(tree, -EPERM, "seccomp", task->pid, 0, -1, 0, NULL);
    *ret_size = (int)proc_field(text, (size_t)bytes, "FDSize", 10, 64);
    return 0;
}

/* Which numbers are taken, and (look) which of them hold a tracker that is not to stay. */
static int read_table(ckpt_tree *tree, struct task *task, bool look, struct table *ret_table) {
    int size, error = table_size(tree, task, &size);
    if (error)
        return error;
    _cleanup_free_ uint8_t *taken = calloc(1, (size_t)size + 1);
    int folder = taken ? sys_openat(task->dir, "fd", O_RDONLY | O_DIRECTORY) : -ENOMEM;
    DIR *names = folder < 0 ? NULL : fdopendir(folder);
    if (!names) {
        close_fd(&folder);
        return tree_fail(tree, folder < 0 ? folder : -ENOMEM, "list descriptors", task->pid, 0, -1, 0, "fd");
    }
    struct table *table = ret_table;
    table->size = size;
    if (look)
        table->stale_count = 0;
    for (struct dirent *entry; (entry = readdir(names));) {
        int fd = entry->d_name[0] == '.' ? -1 : atoi(entry->d_name);
        if (fd < 0 || fd >= size)
            continue;
        taken[fd] = 1;
        if (look && table->stale_count < STALE_MAX && is_stale(tree, task, fd, fd >= size - NEAR_TOP))
            table->stale[table->stale_count++] = fd;
    }
    closedir(names);
    table->top_free = table->lowest_free = -1;
    for (int fd = 0; fd < size; fd++)
        if (!taken[fd]) {
            table->top_free = fd;
            table->lowest_free = table->lowest_free < 0 ? fd : table->lowest_free;
        }
    return 0;
}

/* Runs a batch in the process, which is stopped for it unless it stands still already. */
static int run_in(ckpt_tree *tree, pid_t pid, struct ckpt_call *calls, size_t count) {
    struct thread *thread = task_any_thread(tree, tree_task(tree, pid));
    if (!thread)
        return tree_fail(tree, -ESRCH, "arm", pid, 0, -1, 0, NULL);
    return ckpt_remote(tree, thread->tid, calls, count, NULL, 0);
}

static struct ckpt_call call(int64_t nr, uint64_t a, uint64_t b, uint64_t c, uint8_t form, uint8_t may_fail) {
    return (struct ckpt_call){.nr = nr, .arg = {a, b, c}, .form = {form}, .may_fail = may_fail};
}

static int make(ckpt_tree *tree, struct task *task, const struct table *table, int *ret_fd) {
    struct ckpt_call calls[STALE_MAX + 3];
    size_t count = 0;
    for (size_t i = 0; i < table->stale_count; i++)
        calls[count++] = call(SYS_close, (uint64_t)table->stale[i], 0, 0, CKPT_ARG_VALUE, 1);
    size_t maker = count;
    calls[count++] = call(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY, 0, 0, CKPT_ARG_VALUE, 0);
    if (table->top_free > table->lowest_free) {
        calls[count++] = call(SYS_fcntl, maker, F_DUPFD_CLOEXEC, (uint64_t)table->top_free, CKPT_ARG_RESULT, 0);
        calls[count++] = call(SYS_close, maker, 0, 0, CKPT_ARG_RESULT, 1);
    }
    pid_t pid = task->pid;
    int ran = run_in(tree, pid, calls, count);
    if (ran > (int)maker && (calls[maker].ret == -EINVAL || calls[maker].ret == -EPERM)) { /* before 5.11, or another policy */
        calls[maker].arg[0] = O_CLOEXEC | O_NONBLOCK;
        ran = run_in(tree, pid, calls, count);
    }
    if (ran < 0)
        return ran;
    if (calls[maker].ret < 0)
        return tree_fail(tree, (int)calls[maker].ret, "arm", pid, 0, -1, 0, "userfaultfd");
    bool moved = count > maker + 1 && calls[maker + 1].ret >= 0;
    *ret_fd = (int)(moved ? calls[maker + 1].ret : calls[maker].ret);
    return 0;
}

/* A duplicate for us, if number and inode are what they should be. */
static int take(struct task *task, int fd, uint64_t inode, uint64_t *ret_inode) {
    struct stat stat;
    _cleanup_close_ int ours = is_userfaultfd(task, fd) ? sys_pidfd_getfd(task->pidfd, fd) : -EBADF;
    if (ours < 0)
        return ours;
    if (fstat(ours, &stat) || (inode && stat.st_ino != inode))
        return -EBADF;
    *ret_inode = stat.st_ino;
    close_fd(&task->uffd);
    task->uffd = take_fd(&ours);
    return 0;
}

static int shake_hands(ckpt_tree *tree, struct task *task, int fd) {
    struct uffdio_api api = {.api = UFFD_API, .features = FEATURES};
    int error = sys_ioctl(task->uffd, UFFDIO_API, &api);
    return error ? tree_fail(tree, error == -EINVAL ? -ENOSYS : error, "arm", task->pid, 0, fd, 0, "UFFDIO_API") : 0;
}

static int close_in(ckpt_tree *tree, pid_t pid, int fd) {
    struct ckpt_call calls[] = {call(SYS_close, (uint64_t)fd, 0, 0, CKPT_ARG_VALUE, 1)};
    int ran = run_in(tree, pid, calls, 1);
    return ran < 0 ? ran : 0;
}

/* The process is stopped. */
static int arm_stopped(ckpt_tree *tree, pid_t pid, struct table *table, struct ckpt_track *track) {
    int fd = -1, error = read_table(tree, tree_task(tree, pid), false, table);
    if (!error)
        error = make(tree, tree_task(tree, pid), table, &fd);
    if (error)
        return error;
    struct task *task = tree_task(tree, pid);
    error = take(task, fd, 0, &track->remote_ino);
    if (error)
        tree_fail(tree, error, "arm", pid, 0, fd, 0, "pidfd_getfd");
    else
        error = shake_hands(tree, task, fd);
    if (error) {
        struct ckpt_fault first = tree->fault;
        close_in(tree, pid, fd);
        close_fd(&task->uffd);
        task->uffd = -1;
        tree->fault = first;
        return error;
    }
    track->remote_fd = fd;
    return 0;
}

/* The program's own numbers have come near, or its table has grown: to the top again. The tracking itself goes on. */
static int move_up(ckpt_tree *tree, pid_t pid, const struct table *table, struct ckpt_track *track) {
    struct ckpt_call calls[] = {call(SYS_fcntl, (uint64_t)track->remote_fd, F_DUPFD_CLOEXEC, (uint64_t)table->top_free, CKPT_ARG_VALUE, 0),
                                call(SYS_close, (uint64_t)track->remote_fd, 0, 0, CKPT_ARG_VALUE, 1)};
    int ran = run_in(tree, pid, calls, 2);
    if (ran == 2)
        track->remote_fd = (int)calls[0].ret;
    return ran < 0 ? ran : 0; /* no room above: it stays where it is */
}

struct arming {
    ckpt_tree *tree;
    pid_t pid;
    struct table *table;
    struct ckpt_track *track;
};

static int while_stopped(void *argument) {
    struct arming *arming = argument;
    ckpt_tree *tree = arming->tree;
    pid_t pid = arming->pid;
    struct ckpt_track *track = arming->track;
    bool stopped = tree->frozen;
    int error = stopped ? 0 : task_freeze(tree, pid);
    if (error)
        return error;
    error = ckpt_mark("arm");
    if (!error)
        error = track->fresh ? arm_stopped(tree, pid, arming->table, track) : move_up(tree, pid, arming->table, track);
    if (!stopped) {
        struct ckpt_fault first = tree->fault;
        int thawed = task_thaw(tree, pid);
        if (error)
            tree->fault = first;
        else
            error = thawed;
    }
    return error;
}

int ckpt_track_arm(ckpt_tree *tree, int32_t pid, int32_t hint_fd, uint64_t hint_ino, struct ckpt_track *ret_track) {
    struct task *task = tree_task(tree, pid);
    struct table table = {0};
    tree_fault_clear(tree);
    if (!task)
        return tree_fail(tree, -ESRCH, "arm", pid, 0, -1, 0, NULL);
    struct ckpt_track track = {.pid = pid, .tracker = CKPT_TRACK_UFFD, .remote_fd = hint_fd, .remote_ino = hint_ino};
    bool found = hint_fd >= 0 && hint_ino && !take(task, hint_fd, hint_ino, &track.remote_ino);
    int error = read_table(tree, task, !found, &table);
    if (error && !found)
        return error;
    if (!found)
        track.fresh = 1;
    if (!found || (!error && hint_fd < table.size / 2 && table.top_free > hint_fd))
        error = by_own_tracer(tree, while_stopped, &(struct arming){tree, pid, &table, &track});
    if (error && !found)
        return error;
    tree_fault_clear(tree);
    ckpt_mark("armed");
    *ret_track = track;
    return 0;
}

int ckpt_track_disarm(ckpt_tree *tree, const struct ckpt_track *track) {
    tree_fault_clear(tree);
    struct task *task = tree_task(tree, track->pid);
    uint64_t inode;
    if (!task)
        return tree_fail(tree, -ESRCH, "disarm", track->pid, 0, -1, 0, NULL);
    int error = take(task, track->remote_fd, track->remote_ino, &inode);
    close_fd(&task->uffd);
    task->uffd = -1;
    if (error)
        return 0; /* the program closed it, or became another one */
    bool stopped = tree->frozen;
    error = stopped ? 0 : task_freeze(tree, track->pid);
    if (error)
        return error;
    error = close_in(tree, track->pid, track->remote_fd);
    int thawed = stopped ? 0 : task_thaw(tree, track->pid);
    return error ? error : thawed;
}
