/* ahead.c: the files of each thread that a frozen window reads, opened before the freeze.
 *
 * Of a small read of /proc the open is the largest part (finding the task, a new file, an inode): with stat, status and children of six
 * threads open, a stop of CPython is some 40 us shorter (2 us a file).
 *
 * Invariants
 *  1. Only files that belong to the thread, not to its memory: after an exec they still show what is.
 *  2. What is not here (a thread that came later, more threads than AHEAD_THREADS, no descriptors left) is opened when it is read.
 *  3. A descriptor shows the thread that it was opened for, whoever has its number now: of one that is gone the read fails, and
 *     the file of the name is read.
 */
#define _GNU_SOURCE
#include "internal.h"
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>

enum { AHEAD_THREADS = 64, AHEAD_FILES = 4 };

struct ahead {
    size_t threads;
    int files; /* of each thread: children, then those wanted */
    struct {
        pid_t tid;
        int fd[AHEAD_FILES];
    } of[AHEAD_THREADS];
};

static int name_of(const struct thread *thread, const char *file, char name[2 * NAME_ROOM]) {
    if (strlen(file) >= NAME_ROOM)
        return -ENAMETOOLONG;
    strcat(proc_name(name, "task/", (uint64_t)thread->tid, "/"), file);
    return 0;
}

static int open_one(ckpt_tree *tree, const struct thread *thread, const char *file) {
    char name[2 * NAME_ROOM];
    int error = name_of(thread, file, name);
    return error ? error : sys_openat(tree_task(tree, thread->pid)->dir, name, O_RDONLY);
}

int ahead_open(ckpt_tree *tree, const char *const *wanted) {
    struct ahead *ahead = calloc(1, sizeof *ahead);
    if (!ahead)
        return -ENOMEM;
    ahead->files = 1;
    while (wanted && wanted[ahead->files - 1] && ahead->files < AHEAD_FILES)
        ahead->files++;
    for (size_t i = 0; i < tree->thread_count && ahead->threads < AHEAD_THREADS; i++) {
        const struct thread *thread = &tree->threads[i];
        ahead->of[ahead->threads].tid = thread->tid;
        for (int k = 0; k < ahead->files; k++)
            ahead->of[ahead->threads].fd[k] = open_one(tree, thread, k ? wanted[k - 1] : "children");
        ahead->threads++;
    }
    tree->ahead = ahead;
    return 0;
}

void ahead_close(ckpt_tree *tree) {
    struct ahead *ahead = tree->ahead;
    for (size_t i = 0; ahead && i < ahead->threads; i++)
        for (int k = 0; k < ahead->files; k++)
            close_fd(&ahead->of[i].fd[k]);
    free(ahead);
    tree->ahead = NULL;
}

/* Threads stand in the same order as they did, but for those that came or went. */
static int kept(const struct ahead *ahead, size_t hint, pid_t tid, int which) {
    if (!ahead || which >= ahead->files)
        return -1;
    for (size_t i = 0; i < ahead->threads; i++) {
        size_t at = (hint + i) % ahead->threads;
        if (ahead->of[at].tid == tid)
            return ahead->of[at].fd[which];
    }
    return -1;
}

ssize_t ahead_read(ckpt_tree *tree, const struct thread *thread, int which, const char *file, void *buffer, size_t cap) {
    char name[2 * NAME_ROOM];
    int fd = kept(tree->ahead, (size_t)(thread - tree->threads), thread->tid, which);
    ssize_t got = fd < 0 ? -ESRCH : proc_read_open(fd, file, buffer, cap);
    if (got != -ESRCH && got != -ENOENT)
        return got;
    const struct task *task = tree_task(tree, thread->pid);
    int error = task ? name_of(thread, file, name) : -ESRCH;
    return error ? error : proc_read(task->dir, name, buffer, cap);
}
