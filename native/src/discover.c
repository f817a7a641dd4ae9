/* discover.c: which threads and children a tree has.
 *
 * Threads come from /proc/PID/task, children from each thread's "children" file (a child hangs under the thread that
 * forked it). Both lists may be cut short while somebody in them exits, so no single pass over a running tree is final.
 *
 * Invariants
 *  1. 0 means complete, provided that every known thread was stopped before the pass began: then only an unknown thread
 *     could add to the tree or cut a list, and whoever cuts a list stands in it, so was found and counted.
 *  2. A directory is read only when its link count (2 + threads, one fstat) differs from the threads known: the pass that
 *     confirms a frozen tree costs about a microsecond a process and a children file a thread.
 *  3. A number that vanished between list and look counts as found: look again.
 */
#define _GNU_SOURCE
#include "internal.h"
#include <errno.h>
#include <fcntl.h>

struct listing {
    ckpt_tree *tree;
    pid_t pid;
};

static int found_thread(void *context, pid_t tid) {
    const struct listing *listing = context;
    ckpt_tree *tree = listing->tree;
    pid_t pid = listing->pid;
    struct thread *thread = tree_thread(tree, tid);
    if (thread && thread->state != THREAD_GONE) {
        thread->listed = true;
        return 0;
    }
    if (thread)
        return 1; /* on its way out: the list may end early because of it */
    int added = tree_add_thread(tree, pid, tid);
    if (added > 0)
        tree->threads[tree->thread_count - 1].listed = true;
    return added == -ESRCH ? 1 : added;
}

/* A thread that was never attached and is no longer listed has exited. */
static void forget_unlisted(ckpt_tree *tree, pid_t pid) {
    for (size_t i = 0; i < tree->thread_count; i++)
        if (tree->threads[i].pid == pid && !tree->threads[i].listed && tree->threads[i].state == THREAD_FREE)
            tree->threads[i].state = THREAD_GONE;
}

static unsigned known_threads(ckpt_tree *tree, pid_t pid, bool clear) {
    unsigned known = 0;
    for (size_t i = 0; i < tree->thread_count; i++)
        if (tree->threads[i].pid == pid) {
            known += tree->threads[i].state != THREAD_GONE;
            if (clear)
                tree->threads[i].listed = false;
        }
    return known;
}

int task_discover(ckpt_tree *tree, struct task *task) {
    pid_t pid = task->pid;
    struct stat stat;
    int error = sys_statat(task->dir, "task", &stat, 0);
    if (error)
        return error == -ENOENT || error == -ESRCH ? 0 : error;
    unsigned threads = stat.st_nlink > 2 ? (unsigned)stat.st_nlink - 2 : 0;
    if (threads == known_threads(tree, pid, true))
        return 0;
    _cleanup_close_ int dir = sys_openat(task->dir, "task", O_RDONLY | O_DIRECTORY);
    if (dir < 0)
        return dir == -ENOENT || dir == -ESRCH ? 0 : dir;
    struct listing listing = {tree, pid};
    int found = proc_each_number(dir, found_thread, &listing);
    if (found < 0)
        return found == -ENOENT || found == -ESRCH ? 0 : found;
    forget_unlisted(tree, pid);
    return found ? found : threads > known_threads(tree, pid, false);
}

/* The text is "pid pid pid ". */
static int found_children(ckpt_tree *tree, const char *text, size_t bytes) {
    int found = 0;
    pid_t pid = 0;
    for (size_t i = 0; i < bytes; i++) {
        if (text[i] >= '0' && text[i] <= '9') {
            pid = pid * 10 + (text[i] - '0');
            continue;
        }
        int added = pid ? tree_add_task(tree, pid) : 0;
        if (added < 0 && added != -ESRCH)
            return tree_fail(tree, added, "open", pid, 0, -1, 0, NULL);
        found += added != 0;
        pid = 0;
    }
    return found;
}

static int children_of(ckpt_tree *tree, const struct thread *thread) {
    ssize_t bytes = ahead_read(tree, thread, AHEAD_CHILDREN, "children", tree->text, TEXT_BYTES);
    if (bytes == -ENOENT || bytes == -ESRCH)
        return 0; /* the thread is gone, which its own list tells */
    if (bytes < 0)
        return tree_fail(tree, (int)bytes, "children", thread->pid, thread->tid, -1, 0, NULL);
    return found_children(tree, tree->text, (size_t)bytes);
}

int tree_discover(ckpt_tree *tree) {
    int found = 0;
    for (size_t i = 0; i < tree->task_count; i++) { /* the table grows under us: new tasks are visited too */
        if (tree->tasks[i].zombie)
            continue;
        int got = task_discover(tree, &tree->tasks[i]);
        if (got < 0)
            return tree_fail(tree, got, "list threads", tree->tasks[i].pid, 0, -1, 0, NULL);
        found += got;
        for (size_t j = 0; j < tree->thread_count; j++) {
            if (tree->threads[j].pid != tree->tasks[i].pid || tree->threads[j].state == THREAD_GONE)
                continue;
            got = children_of(tree, &tree->threads[j]);
            if (got < 0)
                return got;
            found += got;
        }
    }
    return found;
}
