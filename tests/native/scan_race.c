/* scan_race.c: a page whose protection lies (suspect.c). usage: scan_race ROUNDS store|string|kernel|signal|altstack|threads
 *
 * The victim does nothing but discard a page of a writable private file mapping and write to it again. It is frozen
 * wherever it is; then each page of the mapping is judged: what the runs give back = its contents. "lies" counts pages
 * that are protected, populated, and not what they were when they were protected: so often the race was met, and a scan
 * that trusts the protection is wrong. In "signal" and "altstack" a signal handler runs half of the time.
 *
 * Prints one JSON object; exits 1 if anything was wrong.
 */
#define _GNU_SOURCE
#include "scan.h"
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>

enum { PAGES = 64, WORKED = 48, BYTES = PAGES * CKPT_PAGE }; /* the rest is written once: it is never to be read again */
#define BASE ((uint8_t *)0x200000000000)
static int data_file = -1;

/* ---- the victim ---- */

static void spin(uint64_t ns) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    uint64_t end = (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec + ns;
    do
        clock_gettime(CLOCK_MONOTONIC, &now);
    while ((uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec < end);
}

static void on_signal(int signal) { spin(60000); }

static __attribute__((noreturn)) void *work(void *argument) {
    const char *mode = argument;
    for (uint64_t i = 1;; i++) {
        uint8_t *page = BASE + i * 7 % WORKED * CKPT_PAGE;
        madvise(page, CKPT_PAGE, MADV_DONTNEED);
        if (!strcmp(mode, "kernel"))
            (void)!pread(data_file, page + i % 3000, 9, (off_t)(i % PAGES * CKPT_PAGE));
        else if (!strcmp(mode, "string"))
            __asm__ volatile("rep movsb" : : "D"(page + i % 3000), "S"(BASE + BYTES), "c"(900ul) : "memory");
        else
            *(volatile uint64_t *)(page + i % 500 * 8) = i;
    }
}

static void victim_main(const char *mode, int answers) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    static uint8_t other[1 << 16];
    char name[] = "/tmp/scan_race_XXXXXX";
    data_file = mkstemp(name), unlink(name);
    for (int i = 0; i <= PAGES; i++) {
        uint8_t bytes[CKPT_PAGE];
        memset(bytes, i + 1, sizeof bytes);
        (void)!pwrite(data_file, bytes, sizeof bytes, (off_t)i * CKPT_PAGE);
    }
    mmap(BASE, BYTES + CKPT_PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED, data_file, 0);
    memset(BASE, 99, BYTES);
    bool altstack = !strcmp(mode, "altstack");
    struct sigaction action = {.sa_handler = on_signal, .sa_flags = SA_RESTART | (altstack ? SA_ONSTACK : 0)};
    sigaction(SIGUSR1, &action, NULL);
    sigaltstack(&(stack_t){.ss_sp = other, .ss_size = sizeof other}, NULL);
    int32_t uffd = (int32_t)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
    struct uffdio_api api = {.api = UFFD_API, .features = UFFD_FEATURE_WP_ASYNC | UFFD_FEATURE_WP_UNPOPULATED};
    if (uffd < 0 || ioctl(uffd, UFFDIO_API, &api))
        _exit(1);
    (void)!write(answers, &uffd, sizeof uffd);
    pthread_t thread;
    for (int i = 0; i < 3 && !strcmp(mode, "threads"); i++)
        pthread_create(&thread, NULL, work, (void *)(uintptr_t)mode);
    work((void *)(uintptr_t)mode);
}

/* ---- the judge ---- */

static void must(int error, const char *what) {
    if (error < 0) {
        fprintf(stderr, "scan_race: %s: %s\n", what, strerror(-error));
        exit(2);
    }
}

static uint8_t given[BYTES], real[BYTES]; /* what the generations give back; what there is */
static uint64_t wrong, lies, read_pages, checked;

static void take(const ckpt_sink *sink) {
    const struct ckpt_space_runs *space;
    uint64_t in_memory, total;
    ckpt_sink_spaces(sink, &space);
    const uint8_t *data = ckpt_sink_data(sink, &in_memory, &total) + space->data_offset;
    for (size_t i = 0; i < space->run_count; i++)
        for (uint32_t k = 0; k < space->runs[i].count && space->runs[i].content == CKPT_DATA; k++, data += CKPT_PAGE) {
            uint64_t offset = (space->runs[i].page + k) * CKPT_PAGE - (uintptr_t)BASE;
            if (offset < BYTES)
                memcpy(given + offset, data, CKPT_PAGE), read_pages++;
        }
}

/* The protected pages as the kernel tells them, before we consume. */
static void count_lies(int pagemap) {
    struct page_region regions[PAGES];
    struct pm_scan_arg arg = {.size = sizeof arg, .start = (uintptr_t)BASE, .end = (uintptr_t)BASE + BYTES, .vec = (uintptr_t)regions, .vec_len = PAGES,
                              .category_inverted = PAGE_IS_WRITTEN | PAGE_IS_FILE, .category_mask = PAGE_IS_WRITTEN | PAGE_IS_FILE | PAGE_IS_PRESENT,
                              .return_mask = PAGE_IS_PRESENT};
    int got = sys_ioctl(pagemap, PAGEMAP_SCAN, &arg);
    must(got, "PAGEMAP_SCAN");
    for (int i = 0; i < got; i++)
        for (uint64_t at = regions[i].start - (uintptr_t)BASE; at < regions[i].end - (uintptr_t)BASE; at += CKPT_PAGE)
            lies += memcmp(given + at, real + at, CKPT_PAGE) != 0;
}

/* Pages of ours only: one that is the file's again is not in the generation. */
static void judge(int pagemap, int round) {
    uint64_t entries[PAGES];
    must(pread(pagemap, entries, sizeof entries, (off_t)((uintptr_t)BASE / CKPT_PAGE * 8)) == sizeof entries ? 0 : -EIO, "pagemap");
    for (int i = 0; i < PAGES; i++) {
        if (!(entries[i] >> 63) || (entries[i] >> 61 & 1))
            continue;
        checked++;
        if (memcmp(given + i * CKPT_PAGE, real + i * CKPT_PAGE, CKPT_PAGE) && wrong++ < 10)
            fprintf(stderr, "round %d page %d: contents differ\n", round, i);
    }
}

static void one_round(ckpt_tree *tree, struct ckpt_track *track, ckpt_sink *sink, int round) {
    struct ckpt_scan_result result;
    struct ckpt_timing timing = {0};
    struct ckpt_capture_options options = {.scan_threads = 1};
    _cleanup_free_ struct map_line *lines = NULL;
    size_t count;
    if (round % 3 == 1)
        must(ckpt_scan_count(tree, track, &result), "count");
    usleep((useconds_t)(round * 37 % 400));
    must(ckpt_tree_freeze(tree), "freeze");
    struct task *task = tree_task(tree, track->pid);
    must(layout_read(tree, task, &lines, &count), "layout");
    struct iovec local = {real, BYTES}, remote = {BASE, BYTES};
    _cleanup_close_ int pagemap = sys_openat(task->dir, "pagemap", O_RDONLY);
    if (round)
        count_lies((must((int)process_vm_readv(track->pid, &local, 1, &remote, 1, 0), "read"), pagemap));
    ckpt_sink_reset(sink);
    must(scan_and_copy(tree, task, track, lines, count, &options, sink, &timing), "scan");
    take(sink);
    must((int)process_vm_readv(track->pid, &local, 1, &remote, 1, 0), "read");
    judge(pagemap, round);
    must(ckpt_tree_thaw(tree), "thaw");
    track->fresh = 0;
}

int main(int argc, char **argv) {
    int rounds = argc > 1 ? atoi(argv[1]) : 100, answers[2];
    const char *mode = argc > 2 ? argv[2] : "store";
    int32_t uffd;
    if (pipe2(answers, O_CLOEXEC))
        return 2;
    pid_t pid = fork(), sender = 0;
    if (pid == 0)
        victim_main(mode, answers[1]);
    if (read(answers[0], &uffd, sizeof uffd) != sizeof uffd)
        return 77;
    if ((!strcmp(mode, "signal") || !strcmp(mode, "altstack")) && !(sender = fork())) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        for (;;)
            kill(pid, SIGUSR1), spin(100000);
    }
    ckpt_tree *tree;
    ckpt_sink *sink;
    struct ckpt_track track = {.pid = pid, .tracker = CKPT_TRACK_UFFD, .remote_fd = uffd, .fresh = 1};
    must(ckpt_tree_open(pid, 0, &tree), "open");
    struct task *task = tree_task(tree, pid);
    must(task->uffd = sys_pidfd_getfd(task->pidfd, uffd), "getfd");
    must(ckpt_sink_new(16 << 20, "/tmp", &sink), "sink");
    for (int round = 0; round < rounds && wrong < 10; round++)
        one_round(tree, &track, sink, round);
    ckpt_sink_free(sink), ckpt_tree_close(tree);
    kill(pid, SIGKILL), waitpid(pid, NULL, 0);
    if (sender)
        kill(sender, SIGKILL), waitpid(sender, NULL, 0);
    printf("{\"rounds\": %d, \"wrong\": %llu, \"lies\": %llu, \"checked\": %llu, \"read\": %llu}\n", rounds, (unsigned long long)wrong,
           (unsigned long long)lies, (unsigned long long)checked, (unsigned long long)read_pages);
    return wrong != 0;
}
