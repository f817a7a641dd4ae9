/* pages.c: contents of a frozen process's pages, in and out.
 *
 * Invariants
 *  1. process_vm_readv/writev where the mapping's own protection allows it; what stops them goes by /proc/PID/mem, which a tracer may use
 *     on any private mapping (a page of a read-only file mapping becomes private, as it was when it was captured).
 *  2. Only DATA runs: their bytes follow each other in `data`. A short transfer is an error that names the page.
 *  3. A page's place in `data` follows from its position alone, so two threads may each move one half (helper.c). The second thread
 *     touches nothing of the tree; what it met is reported by the first.
 */
#define _GNU_SOURCE
#include "inject.h"
#include "scan.h"
#include <errno.h>
#include <limits.h>

enum { PIECES = 512, PAIR_PAGES = 192 };

/* One half: from a page inside a run on, so many pages. */
struct half {
    pid_t pid;
    int mem;
    bool out; /* of the target */
    const struct ckpt_run *runs;
    uint64_t skip; /* pages of the first run that are not ours */
    uint64_t pages;
    uint8_t *data;
    int error;
    ckpt_addr_t at;
};

static void pass(struct half *half, size_t bytes) {
    half->data += bytes;
    half->pages -= bytes / CKPT_PAGE;
    half->skip += bytes / CKPT_PAGE;
    while (half->pages && half->skip >= half->runs->count)
        half->skip -= half->runs++->count;
}

/* Fills `remote` with what comes next. */
static size_t gather(const struct half *half, struct iovec *remote, size_t *ret_bytes) {
    const struct ckpt_run *run = half->runs;
    uint64_t skip = half->skip, left = half->pages;
    size_t pieces = 0, bytes = 0;
    for (; left && pieces < PIECES && bytes < (size_t)1 << 30; run++, skip = 0) {
        uint64_t pages = run->count - skip < left ? run->count - skip : left;
        remote[pieces++] = (struct iovec){(void *)(uintptr_t)((run->page + skip) * CKPT_PAGE), (size_t)pages * CKPT_PAGE};
        bytes += (size_t)pages * CKPT_PAGE;
        left -= pages;
    }
    *ret_bytes = bytes;
    return pieces;
}

/* Up to the end of a run through /proc/PID/mem: where one page is protected against us, its neighbours are as well. */
static ssize_t by_mem(const struct half *half, const struct iovec *piece) {
    uint64_t at = (uint64_t)(uintptr_t)piece->iov_base;
    size_t done = 0;
    while (done < piece->iov_len) {
        size_t left = piece->iov_len - done;
        ssize_t moved = half->out ? sys_pread(half->mem, half->data + done, left, at + done) : sys_pwrite(half->mem, half->data + done, left, at + done);
        if (moved <= 0)
            return moved < 0 ? moved : -EFAULT;
        done += (size_t)moved;
    }
    return (ssize_t)done;
}

static void move_half(void *argument) {
    struct half *half = argument;
    struct iovec remote[PIECES];
    while (half->pages && !half->error) {
        size_t bytes, pieces = gather(half, remote, &bytes);
        struct iovec local = {half->data, bytes};
        ssize_t moved = half->out ? sys_vm_readv(half->pid, &local, 1, remote, pieces) : sys_vm_writev(half->pid, &local, 1, remote, pieces);
        if (moved == -EFAULT || (moved >= 0 && moved < CKPT_PAGE))
            moved = by_mem(half, &remote[0]);
        half->at = (ckpt_addr_t)(uintptr_t)remote[0].iov_base;
        if (moved < 0)
            half->error = (int)moved;
        else
            pass(half, (size_t)moved / CKPT_PAGE * CKPT_PAGE);
    }
}

static int transfer(ckpt_tree *tree, int32_t pid, const struct ckpt_run *runs, size_t count, uint8_t *data, bool out) {
    struct task *task = tree_task(tree, pid);
    if (!task)
        return tree_fail(tree, -ESRCH, "pages", pid, 0, -1, 0, NULL);
    int mem = task_mem(tree, task);
    if (mem < 0)
        return mem;
    struct half halves[2] = {{.pid = pid, .mem = mem, .out = out, .runs = runs, .data = data}};
    for (size_t i = 0; i < count; i++) {
        if (runs[i].content != CKPT_DATA)
            return tree_fail(tree, -EINVAL, "pages", pid, 0, -1, runs[i].page * CKPT_PAGE, NULL);
        halves[0].pages += runs[i].count;
    }
    bool alone = tree->doomed && !out; /* newborns are filled while other threads read the store: they need the other CPU more */
    struct helper *helper = !alone && tree->scan && halves[0].pages >= PAIR_PAGES ? tree->scan->helper : NULL;
    if (helper) {
        uint64_t first = halves[0].pages / 2;
        halves[1] = halves[0];
        pass(&halves[1], first * CKPT_PAGE);
        halves[0].pages = first;
        helper_run(helper, move_half, &halves[1]);
    }
    move_half(&halves[0]);
    if (helper) {
        helper_wait(helper);
        helper_rest(helper);
    }
    const struct half *bad = halves[0].error ? &halves[0] : &halves[1];
    return bad->error ? tree_fail(tree, bad->error, out ? "read pages" : "write pages", pid, 0, -1, bad->at, NULL) : 0;
}

int ckpt_pages_write(ckpt_tree *tree, int32_t pid, const struct ckpt_run *runs, size_t count, const uint8_t *data) {
    tree_fault_clear(tree);
    return transfer(tree, pid, runs, count, (uint8_t *)(uintptr_t)data, false);
}

int ckpt_pages_read(ckpt_tree *tree, int32_t pid, const struct ckpt_run *runs, size_t count, uint8_t *ret_data) {
    tree_fault_clear(tree);
    return transfer(tree, pid, runs, count, ret_data, true);
}
