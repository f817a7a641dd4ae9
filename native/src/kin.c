/* kin.c: what binds the processes of a tree, as records: the dead whose parents have not collected them, and what processes share
 * beside memory.
 *
 * Invariants
 *  1. A dead child is recorded by the texts that /proc still shows of it: while its parent stands still they do not change.
 *  2. Sharing is said by a number: the first process of the tree that has the same table (its own where it shares with nobody
 *     before it). Threads share all of it by nature.
 *  3. Where kcmp is not built in, every process counts as alone.
 */
#define _GNU_SOURCE
#include "capture.h"
#include <errno.h>
#include <linux/kcmp.h>

int raw_zombie(struct window *window, const struct task *task) {
    static const char *const names[] = {"stat", "status"};
    int error = 0;
    for (int i = 0; i < 2 && !error; i++)
        error = record_file(window, CKPT_R_ZOMBIE, task->pid, 0, -1, i, task->dir, names[i], NULL);
    return error;
}

/* The first task that shares with task `index`; itself where none does. */
static int first_sharer(ckpt_tree *tree, size_t index, int type, int32_t *ret_pid) {
    *ret_pid = tree->tasks[index].pid;
    for (size_t i = 0; i < index; i++) {
        if (tree->tasks[i].zombie)
            continue;
        int order = sys_kcmp(tree->tasks[i].pid, tree->tasks[index].pid, type, 0, 0);
        if (order == -ENOSYS || order == -EOPNOTSUPP)
            return 0;
        if (order < 0)
            return tree_fail(tree, order, "kcmp", tree->tasks[index].pid, 0, -1, 0, "sharing");
        if (order == 0) {
            *ret_pid = tree->tasks[i].pid;
            return 0;
        }
    }
    return 0;
}

int raw_shares(struct window *window, size_t index) {
    static const int types[] = {KCMP_FILES, KCMP_FS, KCMP_SIGHAND};
    int32_t first[3];
    int error = 0;
    for (int i = 0; i < 3 && !error; i++)
        error = first_sharer(window->tree, index, types[i], &first[i]);
    pid_t pid = window->tree->tasks[index].pid;
    return error ? error : sink_record(window->sink, CKPT_R_SHARES, pid, 0, -1, 0, first, sizeof first);
}
