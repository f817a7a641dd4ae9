/* lazy.c: memory that is filled while its process runs: a userfaultfd in MISSING mode, made in the process and held by us alone.
 *
 * Measured facts behind it: the events REMOVE, UNMAP, REMAP and FORK are needed, or a forked child reads zeros and a moved mapping is
 * filled at its old place. Each of these calls waits until its event was read, and UFFDIO_COPY answers EAGAIN meanwhile
 * (fs/userfaultfd.c, mmap_changing). So whoever reads events and copies under one lock never fills what the program gave up.
 * A range that is not within one mapping is refused as a whole (ENOENT, mm/userfaultfd.c find_dst_vma), and the program may split a mapping at any
 * page without an event (mprotect, mlock, madvise): so ENOENT says that a page is nobody's only where it was asked for alone.
 *
 * Invariants
 *  1. The descriptor lives in the process for a moment only, while that is stopped; afterwards it is ours alone. When the last holder goes,
 *     the kernel lets missing pages read as zeros: so holders are more than one, and the process dies with its server (attend.c).
 *  2. A page that is there already is never overwritten (EEXIST: the next one).
 */
#define _GNU_SOURCE
#include "inject.h"
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <string.h>
#include <sys/syscall.h>

enum { FEATURES = UFFD_FEATURE_EVENT_FORK | UFFD_FEATURE_EVENT_REMAP | UFFD_FEATURE_EVENT_REMOVE | UFFD_FEATURE_EVENT_UNMAP };

int ckpt_lazy_open(ckpt_tree *tree, int32_t pid, int32_t *ret_fd) {
    tree_fault_clear(tree);
    struct task *task = tree_task(tree, pid);
    struct thread *thread = task ? task_any_thread(tree, task) : NULL;
    if (!thread)
        return tree_fail(tree, -ESRCH, "lazy", pid, 0, -1, 0, NULL);
    pid_t tid = thread->tid;
    struct ckpt_call call = {.nr = SYS_userfaultfd, .arg = {O_CLOEXEC | O_NONBLOCK}, .may_fail = 1};
    int ran = ckpt_remote(tree, tid, &call, 1, NULL, 0);
    if (ran < 0)
        return ran;
    if (call.ret < 0)
        return tree_fail(tree, (int)call.ret, "lazy", pid, tid, -1, 0, "userfaultfd");
    _cleanup_close_ int fd = sys_pidfd_getfd(tree_task(tree, pid)->pidfd, (int)call.ret);
    struct ckpt_call done = {.nr = SYS_close, .arg = {(uint64_t)call.ret}};
    ran = ckpt_remote(tree, tid, &done, 1, NULL, 0);
    if (fd < 0 || ran < 0)
        return fd < 0 ? tree_fail(tree, fd, "lazy", pid, tid, -1, 0, "pidfd_getfd") : ran;
    struct uffdio_api api = {.api = UFFD_API, .features = FEATURES};
    int error = sys_ioctl(fd, UFFDIO_API, &api);
    if (error)
        return tree_fail(tree, error, "lazy", pid, tid, -1, 0, "UFFDIO_API");
    *ret_fd = take_fd(&fd);
    return 0;
}

int ckpt_lazy_register(int32_t fd, ckpt_addr_t start, ckpt_addr_t end) {
    struct uffdio_register ask = {.range = {.start = start, .len = end - start}, .mode = UFFDIO_REGISTER_MODE_MISSING};
    return sys_ioctl(fd, UFFDIO_REGISTER, &ask);
}

int ckpt_lazy_unregister(int32_t fd, ckpt_addr_t start, ckpt_addr_t end) {
    struct uffdio_range range = {.start = start, .len = end - start};
    return sys_ioctl(fd, UFFDIO_UNREGISTER, &range);
}

/* Consecutive pages; what is there already is passed over. -EAGAIN: the layout is changing, an event waits to be read. -ENOENT: nothing
 * that is ours is mapped there. -ESRCH: the memory is gone. */
static int64_t bring(int fd, ckpt_addr_t at, const uint8_t *data, uint64_t pages) {
    uint64_t done = 0, piece = pages;
    while (done < pages) {
        ckpt_addr_t to = at + done * CKPT_PAGE;
        uint64_t now = piece < pages - done ? piece : pages - done, bytes = now * CKPT_PAGE;
        int64_t moved;
        int error;
        if (data) {
            struct uffdio_copy copy = {.dst = to, .src = (uintptr_t)(data + done * CKPT_PAGE), .len = bytes};
            error = sys_ioctl(fd, UFFDIO_COPY, &copy);
            moved = copy.copy;
        } else {
            struct uffdio_zeropage zero = {.range = {.start = to, .len = bytes}};
            error = sys_ioctl(fd, UFFDIO_ZEROPAGE, &zero);
            moved = zero.zeropage;
        }
        if (error == -EEXIST || (error == -EAGAIN && moved == -EEXIST)) {
            done++;
            struct uffdio_range wake = {.start = to, .len = CKPT_PAGE}; /* somebody may wait for just this page */
            sys_ioctl(fd, UFFDIO_WAKE, &wake);
            continue;
        }
        if (moved > 0)
            done += (uint64_t)moved / CKPT_PAGE, piece = pages;
        else if (error == -ENOENT && now > 1)
            piece = now / 2;
        else if (error)
            return done ? (int64_t)done : error;
    }
    return (int64_t)done;
}

int64_t ckpt_lazy_copy(int32_t fd, ckpt_addr_t at, const uint8_t *data, uint64_t pages) { return bring(fd, at, data, pages); }
int64_t ckpt_lazy_zero(int32_t fd, ckpt_addr_t at, uint64_t pages) { return bring(fd, at, NULL, pages); }

int ckpt_lazy_event(int32_t fd, struct ckpt_lazy_event *ret_event) {
    struct uffd_msg message;
    ssize_t got = sys_read(fd, &message, sizeof message);
    if (got == -EAGAIN || got == -EINTR)
        return 0;
    if (got != sizeof message)
        return got < 0 ? (int)got : -EIO;
    struct ckpt_lazy_event event = {.fd = -1};
    switch (message.event) {
    case UFFD_EVENT_PAGEFAULT:
        event.kind = CKPT_LAZY_FAULT, event.start = message.arg.pagefault.address & ~(uint64_t)(CKPT_PAGE - 1);
        break;
    case UFFD_EVENT_FORK:
        event.kind = CKPT_LAZY_FORK, event.fd = (int32_t)message.arg.fork.ufd;
        break;
    case UFFD_EVENT_REMAP:
        event.kind = CKPT_LAZY_MOVE, event.start = message.arg.remap.from, event.to = message.arg.remap.to;
        event.end = event.start + message.arg.remap.len;
        break;
    default: /* REMOVE, UNMAP */
        event.kind = message.event == UFFD_EVENT_REMOVE ? CKPT_LAZY_REMOVE : CKPT_LAZY_UNMAP;
        event.start = message.arg.remove.start, event.end = message.arg.remove.end;
    }
    *ret_event = event;
    return 1;
}
