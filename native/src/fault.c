/* fault.c: naming what went wrong, the clock, and the named points of the flow.
 *
 * Every failure passes through tree_fail() once, where the resource is still known: the errno alone says "EPERM", the
 * fault says "seize, task 4121, traced by 77".
 *
 * Invariants
 *  1. The first fault of a public call is the one that is kept; cleaning up after it must not overwrite it, so
 *     clean-up code calls no tree_fail(). Each public entry begins with tree_fault_clear().
 *  2. Strings are cut, always NUL-terminated, never allocated.
 */
#include "internal.h"
#include <string.h>

static void copy_text(char *to, size_t room, const char *from) {
    size_t length = from ? strnlen(from, room - 1) : 0;
    memcpy(to, from ? from : "", length);
    memset(to + length, 0, room - length);
}

void tree_fault_clear(ckpt_tree *tree) {
    tree->fault = (struct ckpt_fault){.fd = -1};
}

int tree_fail(ckpt_tree *tree, int error, const char *step, pid_t pid, pid_t tid, int fd, ckpt_addr_t addr, const char *name) {
    struct ckpt_fault *fault = &tree->fault;
    if (fault->error)
        return error;
    *fault = (struct ckpt_fault){.error = error, .pid = pid, .tid = tid, .fd = fd, .addr = addr};
    copy_text(fault->step, sizeof fault->step, step);
    copy_text(fault->name, sizeof fault->name, name);
    return error;
}

void ckpt_tree_last_fault(const ckpt_tree *tree, struct ckpt_fault *ret_fault) { *ret_fault = tree->fault; }

/* Returns through a volatile so that a caller never learns at compile time that nothing happens here. */
__attribute__((visibility("default"), noinline)) int ckpt_mark(const char *phase) {
    static volatile int nothing;
    (void)phase;
    return nothing;
}
