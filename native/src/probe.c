/* probe.c: what this kernel and these rights allow, found out by doing it.
 *
 * Each feature is used once the way the capture core uses it, on memory of our own or on a forked child, and the errno of
 * the step that failed is the answer. Versions are never looked at: kernels are patched, containers filter system calls.
 *
 * The caller is a Python process with threads, so
 *  1. the child is made by a raw clone: no atfork handlers run, and after it the child only makes raw system calls;
 *  2. its exit signal is 0: no SIGCHLD for the caller, and no wait(-1) of the caller's can reap it;
 *  3. it dies with us (PDEATHSIG), and is killed and reaped before the probe returns;
 *  4. what would touch the caller's own state (clear_refs, scheduling) happens in the child.
 */
#define _GNU_SOURCE
#include "internal.h"
#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <linux/kcmp.h>
#include <linux/sched.h>
#include <linux/userfaultfd.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>

enum { VDSO_ROOM = 256, RSEQ_REQUEST = 0x420f, RSEQ_BYTES = 24, SUSPEND_SECCOMP = 1 << 21 };

/* Shared with the child; its memory page is where the child and we look. */
struct board {
    uint32_t done; /* futex: the child has filled in its answers */
    int32_t soft_dirty, sched_fifo, time_namespace;
    int32_t number; /* what process_vm_readv should find */
};

struct probe {
    struct board *board;
    pid_t child;
    int pidfd, pipe_read, pipe_write;
};

static int last(long value) { return value < 0 ? -errno : 0; }

/* ---- answers of the child, about itself ---- */

static uint64_t pagemap_entry(int fd, const void *page) {
    uint64_t entry = 0;
    ssize_t got = sys_pread(fd, &entry, sizeof entry, (uintptr_t)page / CKPT_PAGE * sizeof entry);
    return got == sizeof entry ? entry : 0;
}

static int soft_dirty_here(void) {
    const uint64_t dirty = 1ull << 55;
    volatile char *page = mmap(NULL, CKPT_PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    int clear = sys_openat(AT_FDCWD, "/proc/self/clear_refs", O_WRONLY), pagemap = sys_openat(AT_FDCWD, "/proc/self/pagemap", O_RDONLY);
    if (page == MAP_FAILED || clear < 0 || pagemap < 0)
        return clear < 0 ? clear : pagemap < 0 ? pagemap : -ENOMEM;
    *page = 1;
    ssize_t wrote = sys_pwrite(clear, "4", 1, 0);
    if (wrote < 0)
        return (int)wrote;
    bool before = pagemap_entry(pagemap, (void *)page) & dirty;
    *page = 2;
    bool after = pagemap_entry(pagemap, (void *)page) & dirty;
    return !before && after ? 0 : -EOPNOTSUPP; /* CONFIG_MEM_SOFT_DIRTY is not set */
}

static void child_main(struct board *board) {
    struct sched_param param = {.sched_priority = 1};
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    board->soft_dirty = soft_dirty_here();
    board->sched_fifo = last(syscall(SYS_sched_setscheduler, 0, SCHED_FIFO | SCHED_RESET_ON_FORK, &param));
    board->time_namespace = clocks_for_children("monotonic 0 0\n");
    __atomic_store_n(&board->done, 1, __ATOMIC_RELEASE);
    syscall(SYS_futex, &board->done, FUTEX_WAKE, 1, NULL, NULL, 0);
    for (;;)
        syscall(SYS_pause);
}

/* ---- on our own memory ---- */

static int pagemap_scan(int pagemap, void *page, uint64_t flags, uint64_t *ret_categories) {
    struct page_region region = {0};
    struct pm_scan_arg arg = {.size = sizeof arg, .flags = flags, .start = (uintptr_t)page, .end = (uintptr_t)page + CKPT_PAGE,
                              .vec = (uintptr_t)&region, .vec_len = 1, .category_anyof_mask = PAGE_IS_PRESENT | PAGE_IS_SWAPPED,
                              .return_mask = PAGE_IS_PRESENT | PAGE_IS_WRITTEN};
    int got = sys_ioctl(pagemap, PAGEMAP_SCAN, &arg);
    *ret_categories = got > 0 ? region.categories : 0;
    return got < 0 ? got : 0;
}

static int try_pagemap_scan(volatile char *page) {
    uint64_t is;
    _cleanup_close_ int pagemap = sys_openat(AT_FDCWD, "/proc/self/pagemap", O_RDONLY);
    if (pagemap < 0)
        return pagemap;
    *page = 1;
    int error = pagemap_scan(pagemap, (void *)page, 0, &is);
    return error ? error : is & PAGE_IS_PRESENT ? 0 : -EOPNOTSUPP;
}

/* A page of our own is tracked, protected, written, and must show so. */
static int try_uffd(volatile char *page) {
    _cleanup_close_ int uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
    if (uffd < 0 && errno == EPERM)
        uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY);
    if (uffd < 0)
        return -errno;
    struct uffdio_api api = {.api = UFFD_API, .features = UFFD_FEATURE_WP_ASYNC | UFFD_FEATURE_WP_UNPOPULATED};
    struct uffdio_register reg = {.range = {(uintptr_t)page, CKPT_PAGE}, .mode = UFFDIO_REGISTER_MODE_WP};
    int error = sys_ioctl(uffd, UFFDIO_API, &api);
    if (!error)
        error = sys_ioctl(uffd, UFFDIO_REGISTER, &reg);
    _cleanup_close_ int pagemap = sys_openat(AT_FDCWD, "/proc/self/pagemap", O_RDONLY);
    if (error || pagemap < 0)
        return error ? error : pagemap;
    uint64_t armed, clean, written;
    *page = 1;
    error = pagemap_scan(pagemap, (void *)page, PM_SCAN_WP_MATCHING | PM_SCAN_CHECK_WPASYNC, &armed);
    if (!error)
        error = pagemap_scan(pagemap, (void *)page, 0, &clean);
    *page = 2;
    if (!error)
        error = pagemap_scan(pagemap, (void *)page, 0, &written);
    if (error)
        return error;
    return (armed & PAGE_IS_WRITTEN) && !(clean & PAGE_IS_WRITTEN) && (written & PAGE_IS_WRITTEN) ? 0 : -EOPNOTSUPP;
}

static int try_tcp_repair(void) {
    int on = 1;
    _cleanup_close_ int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return -errno;
    return last(setsockopt(fd, IPPROTO_TCP, TCP_REPAIR, &on, sizeof on));
}

/* ---- on the child ---- */

static int try_pidfd_getfd(const struct probe *probe) {
    _cleanup_close_ int fd = probe->pidfd < 0 ? probe->pidfd : sys_pidfd_getfd(probe->pidfd, probe->pipe_read);
    return fd < 0 ? fd : 0;
}

static int try_process_vm(const struct probe *probe) {
    int32_t number = 0;
    struct iovec local = {&number, sizeof number}, remote = {&probe->board->number, sizeof number};
    ssize_t got = sys_vm_readv(probe->child, &local, 1, &remote, 1);
    return got < 0 ? (int)got : number == probe->board->number ? 0 : -EIO;
}

static int try_kcmp(const struct probe *probe) {
    int answer = sys_kcmp(getpid(), probe->child, KCMP_FILE, (uintptr_t)probe->pipe_read, (uintptr_t)probe->pipe_read);
    return answer < 0 ? answer : answer == 0 ? 0 : -EIO;
}

/* The number of a process that has just been reaped is free, and the kernel will not give it out again soon. */
static int try_set_tid(void) {
    int status, error = -EAGAIN;
    for (int attempt = 0; attempt < 3 && error == -EAGAIN; attempt++) {
        pid_t pid = (pid_t)syscall(SYS_clone, 0, NULL, NULL, NULL, NULL);
        if (pid == 0)
            syscall(SYS_exit_group, 0);
        if (pid < 0 || sys_wait(pid, &status, 0) < 0)
            return -errno;
        struct clone_args args = {.set_tid = (uintptr_t)&pid, .set_tid_size = 1};
        pid_t again = (pid_t)syscall(SYS_clone3, &args, sizeof args);
        if (again == 0)
            syscall(SYS_exit_group, 0);
        error = again == pid ? 0 : errno == EEXIST ? -EAGAIN : -errno;
        if (again > 0)
            sys_wait(again, &status, 0);
    }
    return error;
}

/* End of the mapping that holds addr, by our own maps (the child's are the same). */
static uintptr_t mapping_end(uintptr_t addr) {
    static const char digits[] = "0123456789abcdef";
    char text[16384];
    uintptr_t value[2] = {0, 0};
    int field = 0;
    _cleanup_close_ int fd = sys_openat(AT_FDCWD, "/proc/self/maps", O_RDONLY);
    ssize_t got;
    while (fd >= 0 && (got = read(fd, text, sizeof text)) > 0)
        for (ssize_t i = 0; i < got; i++) {
            const char *digit = field < 2 && text[i] ? strchr(digits, text[i]) : NULL;
            if (digit)
                value[field] = value[field] * 16 + (uintptr_t)(digit - digits);
            else if (text[i] == '\n')
                field = 0, value[0] = value[1] = 0;
            else if (field < 2 && ++field == 2 && addr >= value[0] && addr < value[1])
                return value[1];
        }
    return 0;
}

/* Zero bytes behind the vdso's code, which can be written from outside and stay private to the process. */
static int try_vdso_tail(const struct probe *probe) {
    uintptr_t vdso = getauxval(AT_SYSINFO_EHDR), end = vdso ? mapping_end(vdso) : 0;
    if (!end)
        return -ENOENT;
    const uint8_t *tail = (const uint8_t *)end - VDSO_ROOM;
    for (size_t i = 0; i < VDSO_ROOM; i++)
        if (tail[i])
            return -ENOSPC;
    char path[32], *at = path + sizeof path;
    *--at = 0, at -= 4, memcpy(at, "/mem", 4);
    for (pid_t rest = probe->child; rest; rest /= 10)
        *--at = (char)('0' + rest % 10);
    at -= 6, memcpy(at, "/proc/", 6);
    _cleanup_close_ int mem = sys_openat(AT_FDCWD, at, O_RDWR);
    uint64_t wrote = 0x90909090, back = 0;
    ssize_t got = mem < 0 ? mem : sys_pwrite(mem, &wrote, sizeof wrote, (uintptr_t)tail);
    if (got > 0)
        got = sys_pread(mem, &back, sizeof back, (uintptr_t)tail);
    return got < 0 ? (int)got : back == wrote && !*tail ? 0 : -EIO;
}

/* Last: it stops the child. Both answers need it traced. */
static void try_ptrace(const struct probe *probe, int32_t *ret_seccomp, int32_t *ret_rseq) {
    int status;
    uint8_t configuration[64];
    long error = sys_ptrace(PTRACE_SEIZE, probe->child, 0, SUSPEND_SECCOMP);
    *ret_seccomp = (int32_t)error;
    if (error)
        error = sys_ptrace(PTRACE_SEIZE, probe->child, 0, 0);
    if (!error)
        error = sys_ptrace(PTRACE_INTERRUPT, probe->child, 0, 0);
    if (!error && sys_wait(probe->child, &status, 0) > 0)
        error = sys_ptrace(RSEQ_REQUEST, probe->child, RSEQ_BYTES, (uintptr_t)configuration);
    *ret_rseq = error < 0 ? (int32_t)error : 0;
}

/* ---- surroundings ---- */

static void child_end(struct probe *probe) {
    int status;
    if (probe->child > 0) {
        syscall(SYS_kill, probe->child, SIGKILL);
        while (sys_wait(probe->child, &status, 0) > 0 && !WIFSIGNALED(status) && !WIFEXITED(status))
            ;
    }
    close_fd(&probe->pidfd);
    close_fd(&probe->pipe_read);
    close_fd(&probe->pipe_write);
}

static int child_start(struct probe *probe) {
    int ends[2];
    struct timespec patience = {.tv_sec = 2};
    if (pipe2(ends, O_CLOEXEC) < 0)
        return -errno;
    probe->pipe_read = ends[0];
    probe->pipe_write = ends[1];
    probe->board->number = 4711;
    probe->child = (pid_t)syscall(SYS_clone, 0, NULL, NULL, NULL, NULL);
    if (probe->child == 0)
        child_main(probe->board);
    if (probe->child < 0)
        return -errno;
    probe->pidfd = sys_pidfd_open(probe->child, 0);
    while (!__atomic_load_n(&probe->board->done, __ATOMIC_ACQUIRE))
        if (syscall(SYS_futex, &probe->board->done, FUTEX_WAIT, 0, &patience, NULL, 0) < 0 && errno == ETIMEDOUT)
            return -ETIMEDOUT;
    return 0;
}

int ckpt_probe(int32_t *ret_errors, size_t count) {
    int32_t found[CKPT_F_COUNT];
    struct probe probe = {.pidfd = -1, .pipe_read = -1, .pipe_write = -1};
    char *page = mmap(NULL, CKPT_PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    probe.board = mmap(NULL, CKPT_PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    int error = page == MAP_FAILED || (void *)probe.board == MAP_FAILED ? -ENOMEM : child_start(&probe);
    if (!error) {
        found[CKPT_F_PAGEMAP_SCAN] = try_pagemap_scan(page);
        found[CKPT_F_UFFD_WP_ASYNC] = try_uffd(page);
        found[CKPT_F_SOFT_DIRTY] = probe.board->soft_dirty;
        found[CKPT_F_PIDFD_GETFD] = try_pidfd_getfd(&probe);
        found[CKPT_F_PROCESS_VM] = try_process_vm(&probe);
        found[CKPT_F_KCMP] = try_kcmp(&probe);
        found[CKPT_F_CLONE3_SET_TID] = try_set_tid();
        found[CKPT_F_TCP_REPAIR] = try_tcp_repair();
        found[CKPT_F_SCHED_FIFO] = probe.board->sched_fifo;
        found[CKPT_F_TIME_NAMESPACE] = probe.board->time_namespace;
        found[CKPT_F_VDSO_TAIL] = try_vdso_tail(&probe);
        try_ptrace(&probe, &found[CKPT_F_SUSPEND_SECCOMP], &found[CKPT_F_RSEQ_CONFIGURATION]);
        memcpy(ret_errors, found, (count < CKPT_F_COUNT ? count : CKPT_F_COUNT) * sizeof *ret_errors);
    }
    child_end(&probe);
    if (page != MAP_FAILED)
        munmap(page, CKPT_PAGE);
    if ((void *)probe.board != MAP_FAILED)
        munmap(probe.board, CKPT_PAGE);
    return error;
}
