/* pages.c: contents of a frozen process's pages, in and out.
 *
 * Invariants
 *  1. process_vm_readv/writev where the mapping's own protection allows it; what stops them goes by /proc/PID/mem, which a tracer may use
 *     on any private mapping (a page of a read-only file mapping becomes private, as it was when it was captured).
 *  2. Only DATA runs: their bytes follow each other in `data`. A short transfer is an error that names the page.
 */
#define _GNU_SOURCE
#include "inject.h"
#include <errno.h>
#include <limits.h>

enum { PIECES = 512 };

typedef ssize_t (*vm_transfer)(pid_t, const struct iovec *, size_t, const struct iovec *, size_t);

/* One run through /proc/PID/mem. */
static int by_mem(ckpt_tree *tree, struct task *task, ckpt_addr_t at, uint8_t *data, size_t bytes, bool out) {
    int mem = task_mem(tree, task);
    if (mem < 0)
        return mem;
    while (bytes) {
        ssize_t moved = out ? sys_pread(mem, data, bytes, at) : sys_pwrite(mem, data, bytes, at);
        if (moved <= 0)
            return tree_fail(tree, moved < 0 ? (int)moved : -EFAULT, out ? "read pages" : "write pages", task->pid, 0, -1, at, "mem");
        at += (size_t)moved, data += moved, bytes -= (size_t)moved;
    }
    return 0;
}

static int transfer(ckpt_tree *tree, int32_t pid, const struct ckpt_run *runs, size_t count, uint8_t *data, bool out) {
    struct task *task = tree_task(tree, pid);
    vm_transfer move = out ? sys_vm_readv : sys_vm_writev;
    struct iovec remote[PIECES];
    size_t next = 0;
    if (!task)
        return tree_fail(tree, -ESRCH, "pages", pid, 0, -1, 0, NULL);
    while (next < count) {
        size_t pieces = 0, bytes = 0;
        for (; next + pieces < count && pieces < PIECES && bytes < (size_t)1 << 30; pieces++) {
            const struct ckpt_run *run = &runs[next + pieces];
            if (run->content != CKPT_DATA)
                return tree_fail(tree, -EINVAL, "pages", pid, 0, -1, run->page * CKPT_PAGE, NULL);
            remote[pieces] = (struct iovec){(void *)(uintptr_t)(run->page * CKPT_PAGE), (size_t)run->count * CKPT_PAGE};
            bytes += remote[pieces].iov_len;
        }
        struct iovec local = {data, bytes};
        ssize_t moved = move(pid, &local, 1, remote, pieces);
        if (moved < 0 && moved != -EFAULT)
            return tree_fail(tree, (int)moved, out ? "read pages" : "write pages", pid, 0, -1, (ckpt_addr_t)(uintptr_t)remote[0].iov_base, NULL);
        size_t done = moved < 0 ? 0 : (size_t)moved;
        data += done;
        size_t i = 0;
        while (i < pieces && done >= remote[i].iov_len)
            done -= remote[i++].iov_len;
        if (i < pieces) { /* this one is protected against us */
            int error = by_mem(tree, task, (ckpt_addr_t)(uintptr_t)remote[i].iov_base + done, data, remote[i].iov_len - done, out);
            if (error)
                return error;
            data += remote[i++].iov_len - done;
        }
        next += i;
    }
    return 0;
}

int ckpt_pages_write(ckpt_tree *tree, int32_t pid, const struct ckpt_run *runs, size_t count, const uint8_t *data) {
    tree_fault_clear(tree);
    return transfer(tree, pid, runs, count, (uint8_t *)(uintptr_t)data, false);
}

int ckpt_pages_read(ckpt_tree *tree, int32_t pid, const struct ckpt_run *runs, size_t count, uint8_t *ret_data) {
    tree_fault_clear(tree);
    return transfer(tree, pid, runs, count, ret_data, true);
}
