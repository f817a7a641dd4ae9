/* floors.c: what the kernel itself costs, for the ratios of `make bench`. One program, sub-commands, JSON on standard output.
 *
 *   floors scan [MIB] [DIRTY%] [ROUNDS]       PAGEMAP_SCAN (write-protecting) of a range of MIB, DIRTY% of it written at random
 *   floors scan-copy [MIB] [DIRTY%] [ROUNDS]  the same, then process_vm_readv of the pages found
 *   floors fill [MIB] [ROUNDS]                map MIB, populate it, copy as much into it from a buffer touched ahead
 *   floors freeze PID [ROUNDS]                interrupt every thread, read raw what a capture reads of /proc, and the registers, detach
 *
 * These are floors, not an implementation: one mapping known beforehand, buffers touched ahead, no lists kept, no errors
 * survived. The victim of the first two is a forked child that tracks itself by its own userfaultfd and waits in read(2).
 * "us" is the median of the rounds, "min_us" the fastest.
 */
#define _GNU_SOURCE
#include "../../native/src/kernel.h"
#include <dirent.h>
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define REGIONS 8192
#define CALL_VECS 1024
#define MAX_ROUNDS 1000

static void fail(const char *what) {
    fprintf(stderr, "floors: %s: %s\n", what, strerror(errno));
    exit(1);
}

static uint64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static int by_value(const void *a, const void *b) {
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}

/* One number of a set of rounds: median and minimum in microseconds. */
static void print_field(const char *name, uint64_t *ns, size_t rounds) {
    qsort(ns, rounds, sizeof *ns, by_value);
    printf("\"%sus\": %.1f, \"%smin_us\": %.1f", name, (double)ns[rounds / 2] / 1e3, name, (double)ns[0] / 1e3);
}

/* ---- the victim of scan and scan-copy ---- */

struct victim {
    pid_t pid;
    uint8_t *memory; /* the same address here and there: it is forked */
    size_t bytes;
    int order, done; /* pipes: a byte in: write DIRTY%; a byte out: it is written */
};

static void victim_main(struct victim *v, double percent, int order, int done) {
    int uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | UFFD_USER_MODE_ONLY);
    struct uffdio_api api = {.api = UFFD_API, .features = UFFD_FEATURE_WP_ASYNC | UFFD_FEATURE_WP_UNPOPULATED};
    if (uffd < 0 || ioctl(uffd, UFFDIO_API, &api))
        fail("userfaultfd");
    struct uffdio_register reg = {.range = {(uintptr_t)v->memory, v->bytes}, .mode = UFFDIO_REGISTER_MODE_WP};
    if (ioctl(uffd, UFFDIO_REGISTER, &reg))
        fail("UFFDIO_REGISTER");
    size_t pages = v->bytes / CKPT_PAGE, dirty = (size_t)((double)pages * percent / 100);
    for (size_t p = 0; p < pages; p++)
        memset(v->memory + p * CKPT_PAGE, (int)(p % 255 + 1), CKPT_PAGE);
    uint64_t seed = 88172645463325252u;
    char byte = 1;
    while (write(done, &byte, 1) == 1 && read(order, &byte, 1) == 1)
        for (size_t n = 0; n < dirty; n++) {
            seed ^= seed << 13, seed ^= seed >> 7, seed ^= seed << 17;
            v->memory[seed % pages * CKPT_PAGE + seed % 4000]++;
        }
    _exit(0);
}

static void victim_start(struct victim *v, size_t mib, double percent) {
    int order[2], done[2];
    v->bytes = mib << 20;
    v->memory = mmap(NULL, v->bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (v->memory == MAP_FAILED || pipe(order) || pipe(done))
        fail("victim");
    madvise(v->memory, v->bytes, MADV_NOHUGEPAGE);
    v->pid = fork();
    if (v->pid == 0) {
        close(order[1]), close(done[0]);
        victim_main(v, percent, order[0], done[1]);
    }
    close(order[0]), close(done[1]);
    v->order = order[1], v->done = done[0];
    char byte;
    if (read(v->done, &byte, 1) != 1)
        fail("victim");
}

/* Lets it write once more and waits until it sleeps in read again. */
static void victim_write(struct victim *v) {
    char byte = 1;
    if (write(v->order, &byte, 1) != 1 || read(v->done, &byte, 1) != 1)
        fail("victim");
    usleep(1000);
}

static void victim_end(struct victim *v) {
    close(v->order);
    waitpid(v->pid, NULL, 0);
}

/* ---- scan, copy ---- */

static size_t scan(int pagemap, const struct victim *v, struct page_region *regions, size_t cap) {
    struct pm_scan_arg arg = {.size = sizeof arg, .flags = PM_SCAN_WP_MATCHING | PM_SCAN_CHECK_WPASYNC,
                              .start = (uintptr_t)v->memory, .end = (uintptr_t)v->memory + v->bytes,
                              .category_mask = PAGE_IS_WRITTEN, .return_mask = PAGE_IS_WRITTEN};
    size_t count = 0;
    while (arg.start < arg.end && count < cap) {
        arg.vec = (uintptr_t)(regions + count), arg.vec_len = cap - count;
        int got = ioctl(pagemap, PAGEMAP_SCAN, &arg);
        if (got < 0)
            fail("PAGEMAP_SCAN");
        count += (size_t)got;
        arg.start = arg.walk_end;
    }
    return count;
}

static size_t copy(pid_t pid, const struct page_region *regions, size_t count, uint8_t *buffer) {
    struct iovec remote[CALL_VECS], local = {.iov_base = buffer};
    size_t total = 0;
    for (size_t i = 0; i < count;) {
        size_t n = 0, bytes = 0;
        for (; n < CALL_VECS && i < count; n++, i++) {
            remote[n].iov_base = (void *)(uintptr_t)regions[i].start;
            bytes += remote[n].iov_len = regions[i].end - regions[i].start;
        }
        local.iov_len = bytes;
        if (process_vm_readv(pid, &local, 1, remote, n, 0) != (ssize_t)bytes)
            fail("process_vm_readv");
        local.iov_base = (uint8_t *)local.iov_base + bytes;
        total += bytes;
    }
    return total;
}

static void run_scan(bool with_copy, size_t mib, double percent, size_t rounds) {
    struct victim v;
    victim_start(&v, mib, percent);
    size_t cap = (mib << 8) + 1;
    struct page_region *regions = malloc(cap * sizeof *regions);
    uint8_t *buffer = mmap(NULL, v.bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (!regions || buffer == MAP_FAILED)
        fail("memory");
    memset(regions, 0, cap * sizeof *regions);
    memset(buffer, 1, (size_t)((double)v.bytes * percent / 100) + CKPT_PAGE);
    static uint64_t whole[MAX_ROUNDS], scanned[MAX_ROUNDS];
    uint64_t pages = 0;
    for (size_t round = 0; round < rounds + 1; round++) {
        victim_write(&v);
        uint64_t t0 = now_ns();
        int pagemap;
        char path[64];
        snprintf(path, sizeof path, "/proc/%d/pagemap", v.pid);
        if ((pagemap = open(path, O_RDONLY | O_CLOEXEC)) < 0)
            fail(path);
        size_t count = scan(pagemap, &v, regions, cap);
        uint64_t t1 = now_ns();
        size_t bytes = with_copy && round ? copy(v.pid, regions, count, buffer) : 0;
        uint64_t t2 = now_ns();
        close(pagemap);
        if (round == 0)
            continue; /* the first pass protects everything */
        whole[round - 1] = t2 - t0, scanned[round - 1] = t1 - t0;
        pages = with_copy ? bytes / CKPT_PAGE : 0;
        for (size_t i = 0; !with_copy && i < count; i++)
            pages += (regions[i].end - regions[i].start) / CKPT_PAGE;
    }
    victim_end(&v);
    printf("{\"floor\": \"%s\", \"mib\": %zu, \"dirty_percent\": %g, \"pages\": %llu, ", with_copy ? "scan-copy" : "scan", mib, percent,
           (unsigned long long)pages);
    print_field("", whole, rounds);
    printf(", ");
    print_field("scan_", scanned, rounds);
    printf("}\n");
}

/* ---- freeze ---- */

/* What a capture reads while the target stands still: the tables of ckpt/kinds ("process_files", "thread_files"; test_floors.py
 * compares), auxv (where the vdso is) and the children of each thread (whether the tree is complete). No more, no less. */
static const char *const process_files[] = {"stat", "status", "maps", "oom_score_adj", "timers", "auxv", NULL};
static const char *const thread_files[] = {"stat", "status", "children", NULL};

static size_t read_raw(const char *path, char *buffer, size_t cap) {
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    size_t total = 0;
    ssize_t got;
    while (fd >= 0 && total < cap && (got = read(fd, buffer + total, cap - total)) > 0)
        total += (size_t)got;
    if (fd >= 0)
        close(fd);
    return total;
}

/* Link, stat and fdinfo of every descriptor. */
static size_t read_descriptors(pid_t pid, char *buffer, size_t cap) {
    char path[300];
    size_t count = 0;
    snprintf(path, sizeof path, "/proc/%d/fd", pid);
    DIR *dir = opendir(path);
    for (struct dirent *e; dir && (e = readdir(dir));) {
        if (e->d_name[0] == '.')
            continue;
        snprintf(path, sizeof path, "/proc/%d/fd/%s", pid, e->d_name);
        struct stat stat_of;
        if (readlink(path, buffer, cap) > 0 && !stat(path, &stat_of))
            count++;
        snprintf(path, sizeof path, "/proc/%d/fdinfo/%s", pid, e->d_name);
        read_raw(path, buffer, cap);
    }
    if (dir)
        closedir(dir);
    return count;
}

static size_t list_threads(pid_t pid, pid_t *tids, size_t cap) {
    char path[64];
    size_t count = 0;
    snprintf(path, sizeof path, "/proc/%d/task", pid);
    DIR *dir = opendir(path);
    for (struct dirent *e; dir && count < cap && (e = readdir(dir));)
        if (e->d_name[0] != '.')
            tids[count++] = atoi(e->d_name);
    if (dir)
        closedir(dir);
    return count;
}

static void freeze_round(pid_t pid, char *buffer, size_t cap, uint64_t *ret_ns, size_t *ret_threads) {
    static pid_t tids[8192];
    static uint8_t xstate[16384];
    struct user_regs_struct regs;
    struct iovec regs_io = {&regs, sizeof regs}, xstate_io = {xstate, sizeof xstate};
    char path[96];
    size_t threads = list_threads(pid, tids, 8192);
    for (size_t i = 0; i < threads; i++)
        if (ptrace(PTRACE_SEIZE, tids[i], 0, PTRACE_O_TRACESYSGOOD))
            fail("PTRACE_SEIZE");
    uint64_t t0 = now_ns();
    for (size_t i = 0; i < threads; i++)
        ptrace(PTRACE_INTERRUPT, tids[i], 0, 0);
    for (size_t i = 0; i < threads; i++)
        waitpid(tids[i], NULL, __WALL);
    for (size_t i = 0; process_files[i]; i++) {
        snprintf(path, sizeof path, "/proc/%d/%s", pid, process_files[i]);
        read_raw(path, buffer, cap);
    }
    read_descriptors(pid, buffer, cap);
    for (size_t i = 0; i < threads; i++) {
        regs_io.iov_len = sizeof regs, xstate_io.iov_len = sizeof xstate;
        ptrace(PTRACE_GETREGSET, tids[i], NT_PRSTATUS, &regs_io);
        ptrace(PTRACE_GETREGSET, tids[i], NT_X86_XSTATE, &xstate_io);
        for (size_t k = 0; thread_files[k]; k++) {
            snprintf(path, sizeof path, "/proc/%d/task/%d/%s", pid, tids[i], thread_files[k]);
            read_raw(path, buffer, cap);
        }
    }
    for (size_t i = 0; i < threads; i++)
        ptrace(PTRACE_DETACH, tids[i], 0, 0);
    *ret_ns = now_ns() - t0;
    *ret_threads = threads;
}

static void run_freeze(pid_t pid, size_t rounds) {
    static char buffer[1 << 20];
    static uint64_t ns[MAX_ROUNDS];
    size_t threads = 0;
    memset(buffer, 1, sizeof buffer);
    for (size_t round = 0; round < rounds; round++) {
        freeze_round(pid, buffer, sizeof buffer, &ns[round], &threads);
        usleep(20000);
    }
    printf("{\"floor\": \"freeze\", \"pid\": %d, \"threads\": %zu, \"descriptors\": %zu, ", pid, threads,
           read_descriptors(pid, buffer, sizeof buffer));
    print_field("", ns, rounds);
    printf("}\n");
}

/* ---- memory filled ---- */

static void run_fill(size_t mib, size_t rounds) {
    static uint64_t ns[MAX_ROUNDS];
    size_t bytes = mib << 20;
    uint8_t *from = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (from == MAP_FAILED)
        fail("mmap");
    for (size_t at = 0; at < bytes; at += sizeof(uint64_t))
        *(uint64_t *)(from + at) = at * 0x9E3779B97F4A7C15u;
    for (size_t round = 0; round < rounds; round++) {
        uint64_t t0 = now_ns();
        uint8_t *to = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
        if (to == MAP_FAILED)
            fail("mmap");
        memcpy(to, from, bytes);
        ns[round] = now_ns() - t0;
        munmap(to, bytes);
    }
    printf("{\"floor\": \"fill\", \"mib\": %zu, ", mib);
    print_field("", ns, rounds);
    printf("}\n");
}

int main(int argc, char **argv) {
    const char *command = argc > 1 ? argv[1] : "";
    if (!strcmp(command, "freeze") && argc > 2) {
        size_t rounds = argc > 3 ? strtoul(argv[3], NULL, 10) : 20;
        run_freeze(atoi(argv[2]), rounds < MAX_ROUNDS ? rounds : MAX_ROUNDS);
    } else if (!strcmp(command, "scan") || !strcmp(command, "scan-copy")) {
        size_t mib = argc > 2 ? strtoul(argv[2], NULL, 10) : 1024, rounds = argc > 4 ? strtoul(argv[4], NULL, 10) : 20;
        double percent = argc > 3 ? strtod(argv[3], NULL) : 1;
        run_scan(!strcmp(command, "scan-copy"), mib, percent, rounds < MAX_ROUNDS ? rounds : MAX_ROUNDS);
    } else if (!strcmp(command, "fill")) {
        size_t mib = argc > 2 ? strtoul(argv[2], NULL, 10) : 1024, rounds = argc > 3 ? strtoul(argv[3], NULL, 10) : 5;
        run_fill(mib, rounds < MAX_ROUNDS ? rounds : MAX_ROUNDS);
    } else {
        fprintf(stderr, "usage: floors scan|scan-copy [MIB] [DIRTY%%] [ROUNDS] | fill [MIB] [ROUNDS] | freeze PID [ROUNDS]\n");
        return 2;
    }
    return 0;
}
