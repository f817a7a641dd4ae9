/* freezer.c: a tree that stands in a control group (v2) of its own is stopped by the group's freezer: all of it by one write.
 *
 * Interrupted one by one, a task still runs for as long as those before it are being told (some 2 us each). The freezer tells all of them under
 * one lock. What a frozen task shows is the same: it waits inside get_signal() too, and an interrupt that comes then, or on the way,
 * makes it an ordinary PTRACE_EVENT_STOP (measured on 6.18: at once, with the rax of the interrupted call).
 *
 * Two uses: the group is ours to freeze for a moment, or it is theirs: somebody froze it before, and it must be frozen when we go.
 *
 * Invariants
 *  1. A frozen task runs nothing, not even our calls: told to go on, it goes from one stop into the freezer's (measured). So the group is
 *     opened as soon as everybody stands at a ptrace stop, which opening does not end, and a group of theirs is shut before the first detach.
 *     Nobody runs code of the program's in between.
 *  2. Ours is open after every attempt, whatever came of it. What a death of ours leaves, the record beside the target's lock
 *     tells (ckpt/live/freezer.py): written before, ended by the command's front or by the next ckpt.
 *  3. Only freezes of the whole tree shut it; one process alone is stopped by ptrace (arming).
 */
#define _GNU_SOURCE
#include "internal.h"
#include <errno.h>

static int write_state(ckpt_tree *tree, bool shut) {
    if (tree->freezer.fd < 0 || tree->freezer.shut == shut)
        return 0;
    ssize_t put = sys_pwrite(tree->freezer.fd, shut ? "1" : "0", 1, 0);
    if (put != 1)
        return tree_fail(tree, put < 0 ? (int)put : -EIO, shut ? "freeze the control group" : "thaw the control group", tree->root, 0, -1, 0, NULL);
    tree->freezer.shut = shut;
    return 0;
}

int freezer_shut(ckpt_tree *tree) { return write_state(tree, true); }
int freezer_open(ckpt_tree *tree) { return write_state(tree, false); }
int freezer_leave(ckpt_tree *tree) { return write_state(tree, tree->freezer.theirs); }

void ckpt_tree_freezer(ckpt_tree *tree, int fd, int theirs) {
    tree->freezer.fd = fd;
    tree->freezer.theirs = tree->freezer.shut = theirs;
}
