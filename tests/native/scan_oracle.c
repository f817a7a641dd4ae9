/* scan_oracle.c: random programs against the scan. usage: scan_oracle ROUNDS SEED [pinning|own|compare]
 *
 * A forked victim works on its memory at random: maps over, unmaps, moves, grows and shrinks, protects, discards, frees,
 * punches holes in files it has mapped, lets the kernel write for it, forks, grows its stack and heap. It makes its own
 * userfaultfd, which we take by pidfd_getfd. In each round we pre-copy at random moments while it works, freeze it
 * wherever it is, scan and copy, and then, in the same freeze, judge every page of every private mapping:
 *
 *  1. named by the runs <=> populated (and not a page of the file), by the bits of /proc/PID/pagemap: another interface;
 *  2. what the runs give back (DATA: the copied bytes; SAME: what earlier rounds gave; ZERO) = a full read of the page.
 *
 * Prints one JSON object; exits 1 if anything was wrong.
 */
#define _GNU_SOURCE
#include "scan.h"
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>

static uint64_t seed = 1;
static uint64_t rnd(uint64_t below) {
    seed ^= seed << 13, seed ^= seed >> 7, seed ^= seed << 17;
    return below ? (seed >> 11) % below : 0;
}

/* ---- the victim ---- */

enum { SLOTS = 12, SLOT_PAGES = 1536 };
#define BASE ((char *)0x200000000000)
#define MADV_GUARD 102
static sigjmp_buf hurt;
static int data_file = -1, stream[2];

static void on_fault(int signal) { siglongjmp(hurt, signal); }
static char *slot(void) { return BASE + rnd(SLOTS) * SLOT_PAGES * CKPT_PAGE; }
static char *any_page(void) { return slot() + rnd(SLOT_PAGES) * CKPT_PAGE; }

/* A stretch inside one slot. */
static char *stretch(size_t most, size_t *ret_bytes) {
    size_t pages = 1 + rnd(most), first = rnd(SLOT_PAGES - pages);
    *ret_bytes = pages * CKPT_PAGE;
    return slot() + first * CKPT_PAGE;
}

static void write_some(void) {
    for (size_t n = rnd(60); n; n--)
        any_page()[rnd(4096)] = (char)rnd(256);
}

static void write_stretch(void) {
    size_t bytes;
    char *at = stretch(400, &bytes);
    for (size_t i = 0; i < bytes; i += CKPT_PAGE)
        at[i + rnd(4096)] = (char)rnd(256);
}

static void read_some(void) {
    static volatile char sum;
    for (size_t n = rnd(60); n; n--)
        sum = (char)(sum + *any_page());
}

static void map_new(void) {
    size_t bytes;
    char *at = rnd(3) ? slot() : stretch(SLOT_PAGES - 1, &bytes);
    size_t pages = 1 + rnd(SLOT_PAGES - (size_t)(at - BASE) / CKPT_PAGE % SLOT_PAGES);
    int kind = (int)rnd(8), flags = MAP_PRIVATE | MAP_FIXED | MAP_NORESERVE | (rnd(2) ? MAP_POPULATE : 0);
    int prot = rnd(6) ? PROT_READ | PROT_WRITE : PROT_NONE;
    if (kind < 3)
        mmap(at, pages * CKPT_PAGE, prot, flags, data_file, (off_t)(rnd(64) * CKPT_PAGE));
    else
        mmap(at, pages * CKPT_PAGE, prot, flags | MAP_ANONYMOUS | (kind == 7 ? MAP_STACK : 0), -1, 0);
    if (kind == 3)
        madvise(at, pages * CKPT_PAGE, MADV_HUGEPAGE);
}

static void move(void) {
    size_t bytes;
    char *from = stretch(300, &bytes), *to = slot();
    if (rnd(2))
        mremap(from, bytes, CKPT_PAGE * (1 + rnd(SLOT_PAGES)), MREMAP_MAYMOVE | MREMAP_FIXED, to);
    else
        mremap(from, bytes, CKPT_PAGE * (1 + rnd(bytes / CKPT_PAGE + 8)), 0);
}

/* Guard pages go into anonymous memory only: in a tracked private file mapping MADV_GUARD_INSTALL never returns (the
 * kernel zaps what is in the way, which leaves a write-protect marker, which is in the way). scan.c, last paragraph. */
static bool all_anonymous(char *at, size_t bytes) {
    static struct map_line lines[2048];
    static char text[1 << 18];
    _cleanup_close_ int maps = open("/proc/self/maps", O_RDONLY | O_CLOEXEC);
    ssize_t got = 0, more;
    while ((more = read(maps, text + got, sizeof text - (size_t)got)) > 0)
        got += more;
    ssize_t count = maps_parse_into(text, (size_t)got, lines, sizeof lines / sizeof *lines); /* heap() may have taken malloc's */
    for (ssize_t i = 0; i < count; i++)
        if (lines[i].start < (uintptr_t)at + bytes && lines[i].end > (uintptr_t)at && maps_kind(&lines[i]) != CKPT_RANGE_ANON)
            return false;
    return count > 0;
}

static void advise(void) {
    static const int advice[] = {MADV_DONTNEED, MADV_DONTNEED, MADV_DONTNEED, MADV_FREE, MADV_COLD, MADV_PAGEOUT, MADV_HUGEPAGE, MADV_GUARD, MADV_GUARD + 1};
    size_t bytes;
    char *at = stretch(rnd(3) ? 40 : 1000, &bytes);
    int what = advice[rnd(sizeof advice / sizeof *advice)];
    if (what != MADV_GUARD || all_anonymous(at, bytes))
        madvise(at, bytes, what);
}

static void protect(void) {
    static const int prot[] = {PROT_NONE, PROT_READ, PROT_READ | PROT_WRITE, PROT_READ | PROT_WRITE};
    size_t bytes;
    char *at = stretch(200, &bytes);
    mprotect(at, bytes, prot[rnd(4)]);
}

/* A page pinned across a pre-copy's scan is written without a trace (precopy.c, race 4): off unless asked for. */
static bool pinning;

static void by_kernel(void) {
    char bytes[9000];
    memset(bytes, (int)rnd(256), sizeof bytes);
    char *to = any_page() + rnd(4096);
    struct iovec local = {bytes, sizeof bytes}, remote = {to, 1 + rnd(sizeof bytes)};
    switch (rnd(4)) {
    case 0: if (pinning) process_vm_writev(getpid(), &local, 1, &remote, 1, 0); break;
    case 1: (void)!pread(data_file, to, 1 + rnd(20000), (off_t)rnd(100000)); break;
    case 2:
        send(stream[0], bytes, sizeof bytes, MSG_DONTWAIT);
        recv(stream[1], to, sizeof bytes, MSG_DONTWAIT);
        break;
    case 3: (void)!syscall(SYS_getrandom, to, 100, 0); break;
    }
}

static void with_file(void) {
    switch (rnd(3)) {
    case 0: fallocate(data_file, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)(rnd(400) * CKPT_PAGE), (off_t)((1 + rnd(60)) * CKPT_PAGE)); break;
    case 1:
        (void)!ftruncate(data_file, (off_t)((1 + rnd(1600)) * CKPT_PAGE));
        (void)!ftruncate(data_file, 2000 * CKPT_PAGE);
        break;
    case 2: (void)!pwrite(data_file, &seed, sizeof seed, (off_t)(rnd(1600) * CKPT_PAGE)); break;
    }
}

static void heap(void) { (void)!sbrk(rnd(2) ? (intptr_t)(rnd(40) * CKPT_PAGE) : -(intptr_t)(rnd(20) * CKPT_PAGE)); }

static __attribute__((noinline)) void deep(size_t bytes) {
    volatile char buffer[bytes];
    for (size_t i = 0; i < bytes; i += 512)
        buffer[i] = (char)rnd(256);
    (void)buffer[0];
}

static void fork_once(void) {
    pid_t pid = fork();
    if (pid == 0) {
        if (!sigsetjmp(hurt, 1))
            write_some();
        _exit(0);
    }
    write_some();
    waitpid(pid, NULL, 0);
}

static void one_operation(void) {
    size_t bytes;
    char *at;
    if (sigsetjmp(hurt, 1))
        return;
    switch (rnd(22)) {
    case 0: map_new(); break;
    case 1: at = stretch(300, &bytes), munmap(at, bytes); break;
    case 2: move(); break;
    case 3: case 4: case 5: advise(); break;
    case 6: protect(); break;
    case 7: case 8: by_kernel(); break;
    case 9: with_file(); break;
    case 10: heap(); break;
    case 11: deep(1 + rnd(300000)); break;
    case 12: if (!rnd(4)) fork_once(); break;
    case 13: case 14: read_some(); break;
    case 15: case 16: write_stretch(); break;
    default: write_some();
    }
}

/* A userfaultfd of the program's own: 64 pages protected, the first half written since. Nobody may change that. */
#define OWN ((char *)0x210000000000)
static bool own;

static void track_own(void) {
    mmap(OWN, 64 * CKPT_PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_POPULATE, -1, 0);
    int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
    struct uffdio_api api = {.api = UFFD_API, .features = UFFD_FEATURE_WP_ASYNC | UFFD_FEATURE_WP_UNPOPULATED};
    struct uffdio_register reg = {.range = {(uintptr_t)OWN, 64 * CKPT_PAGE}, .mode = UFFDIO_REGISTER_MODE_WP};
    struct uffdio_writeprotect wp = {.range = reg.range, .mode = UFFDIO_WRITEPROTECT_MODE_WP};
    if (fd < 0 || ioctl(fd, UFFDIO_API, &api) || ioctl(fd, UFFDIO_REGISTER, &reg) || ioctl(fd, UFFDIO_WRITEPROTECT, &wp))
        _exit(1);
    for (int i = 0; i < 32; i++)
        OWN[i * CKPT_PAGE] = (char)i;
}

static void victim_main(int orders, int answers) {
    struct sigaction action = {.sa_handler = on_fault, .sa_flags = SA_NODEFER};
    sigaction(SIGSEGV, &action, NULL), sigaction(SIGBUS, &action, NULL);
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    char name[] = "/tmp/scan_oracle_XXXXXX";
    data_file = mkstemp(name), unlink(name);
    for (int i = 0; i < 2000; i++)
        (void)!pwrite(data_file, &i, sizeof i, (off_t)i * CKPT_PAGE);
    socketpair(AF_UNIX, SOCK_STREAM, 0, stream);
    mmap(BASE - (1ul << 33), 1ul << 32, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0); /* sparse */
    for (int i = 0; i < SLOTS; i++)
        map_new();
    if (own)
        track_own();
    int32_t uffd = (int32_t)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK), order;
    struct uffdio_api api = {.api = UFFD_API, .features = UFFD_FEATURE_WP_ASYNC | UFFD_FEATURE_WP_UNPOPULATED};
    if (uffd < 0 || ioctl(uffd, UFFDIO_API, &api))
        _exit(1);
    while (write(answers, &uffd, sizeof uffd) == sizeof uffd && read(orders, &order, sizeof order) == sizeof order)
        for (int i = 0; i < order; i++)
            one_operation();
    _exit(0);
}

/* ---- the model: what the generation would give back ---- */

struct known { uint64_t page, hash; uint32_t how; }; /* page 0 = empty */
struct model { struct known *at; size_t cap, count; };
static uint64_t zero_hash;

static uint64_t hash_page(const uint8_t *bytes) {
    uint64_t hash = 14695981039346656037u, word;
    for (size_t i = 0; i < CKPT_PAGE; i += 8) {
        memcpy(&word, bytes + i, 8);
        hash = (hash ^ word) * 0x9e3779b97f4a7c15u;
        hash ^= hash >> 29;
    }
    return hash;
}

static struct known *model_find(struct model *model, uint64_t page) {
    size_t i = page * 0x9e3779b97f4a7c15u >> 44 & (model->cap - 1);
    while (model->at[i].page && model->at[i].page != page)
        i = (i + 1) & (model->cap - 1);
    return &model->at[i];
}

static uint32_t how; /* the content of the run that is being taken */

static void model_put(struct model *model, uint64_t page, uint64_t hash) {
    struct known *known = model_find(model, page);
    model->count += !known->page;
    *known = (struct known){page, hash, how};
    if (model->count * 2 > model->cap)
        fprintf(stderr, "scan_oracle: model full\n"), exit(2);
}

static struct model model_new(void) {
    struct model model = {.cap = 1 << 17};
    model.at = calloc(model.cap, sizeof *model.at);
    return model;
}

static uint64_t wrong, data_pages, same_pages, zero_pages, checked, precopied;

static void complain(int round, uint64_t page, const char *what) {
    if (wrong++ < 20)
        fprintf(stderr, "round %d page %#llx: %s\n", round, (unsigned long long)page * CKPT_PAGE, what);
}

/* Takes the last space of the sink into the model; old = where SAME pages come from. */
static void model_take(struct model *model, struct model *old, const ckpt_sink *sink, int round) {
    const struct ckpt_space_runs *spaces;
    uint64_t in_memory, total, last = 0;
    size_t count = ckpt_sink_spaces(sink, &spaces);
    if (!count)
        return; /* a pre-copy that brings nothing (untracked, it could not stop the victim) begins no space */
    const struct ckpt_space_runs *space = &spaces[count - 1];
    const uint8_t *data = ckpt_sink_data(sink, &in_memory, &total) + space->data_offset;
    for (size_t i = 0; i < space->run_count; i++) {
        const struct ckpt_run *run = &space->runs[i];
        if (run->page < last)
            complain(round, run->page, "runs not sorted");
        last = run->page + run->count;
        how = run->content;
        for (uint64_t page = run->page; page < last; page++) {
            if (run->content == CKPT_DATA) {
                model_put(model, page, hash_page(data)), data += CKPT_PAGE, data_pages++;
            } else if (run->content == CKPT_ZERO) {
                model_put(model, page, zero_hash), zero_pages++;
            } else {
                struct known *known = model_find(old, page);
                same_pages++;
                if (!known->page)
                    complain(round, page, "SAME, but unknown");
                model_put(model, page, known->hash);
            }
        }
    }
    if (space->data_offset + space->data_pages * CKPT_PAGE != total)
        complain(round, 0, "data does not match runs");
}

/* ---- the judgement ---- */

static void judge_line(const struct map_line *line, int pagemap, int mem, struct model *model, int round) {
    static uint64_t entries[4096];
    static uint8_t bytes[CKPT_PAGE];
    bool file = maps_kind(line) == CKPT_RANGE_FILE_PRIVATE;
    for (uint64_t first = line->start / CKPT_PAGE, end = line->end / CKPT_PAGE; first < end; first += 4096) {
        size_t want = end - first < 4096 ? (size_t)(end - first) : 4096;
        if (pread(pagemap, entries, want * 8, (off_t)(first * 8)) != (ssize_t)(want * 8))
            complain(round, first, "pagemap");
        for (size_t i = 0; i < want; i++) {
            uint64_t entry = entries[i];
            bool populated = (entry >> 62 & 3) && !(entry >> 58 & 1) && !(file && (entry >> 61 & 1));
            struct known *known = line->end - line->start > 1ul << 31 && !populated ? &(struct known){0} : model_find(model, first + i);
            if (file && (entry >> 62 & 3) == 1 && !known->page && pread(mem, bytes, 1, (off_t)((first + i) * CKPT_PAGE)) != 1)
                continue; /* a marker behind the end of the file */
            if (populated != !!known->page)
                complain(round, first + i, populated ? "populated, not named" : "named, not populated");
            if (!populated || !known->page)
                continue;
            checked++;
            if (pread(mem, bytes, CKPT_PAGE, (off_t)((first + i) * CKPT_PAGE)) != CKPT_PAGE)
                complain(round, first + i, "cannot be read");
            else if (hash_page(bytes) != known->hash)
                complain(round, first + i, known->how == CKPT_SAME ? "contents differ: SAME" : known->how == CKPT_DATA ? "contents differ: DATA" : "contents differ: ZERO");
        }
    }
}

static void judge(pid_t pid, const struct map_line *lines, size_t count, struct model *model, int round) {
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/pagemap", pid);
    _cleanup_close_ int pagemap = open(path, O_RDONLY | O_CLOEXEC);
    snprintf(path, sizeof path, "/proc/%d/mem", pid);
    _cleanup_close_ int mem = open(path, O_RDONLY | O_CLOEXEC);
    uint64_t entries[64] = {0};
    if (own && pread(pagemap, entries, sizeof entries, (off_t)((uintptr_t)OWN / CKPT_PAGE * 8)) == sizeof entries)
        for (int i = 0; i < 64; i++)
            if ((entries[i] >> 57 & 1) != (i >= 32))
                complain(round, (uintptr_t)OWN / CKPT_PAGE + (uint64_t)i, "the program's own protection was changed");
    for (size_t i = 0; i < count; i++)
        if (maps_kind(&lines[i]) != CKPT_RANGE_SKIP && lines[i].end - lines[i].start < 1ul << 34) /* not a sanitizer's shadow */
            judge_line(&lines[i], pagemap, mem, model, round);
}

/* ---- one round ---- */

static void must(int error, const char *what, ckpt_tree *tree) {
    struct ckpt_fault fault = {0};
    if (error >= 0)
        return;
    ckpt_tree_last_fault(tree, &fault);
    fprintf(stderr, "scan_oracle: %s: %s (%s %s at %#llx)\n", what, strerror(-error), fault.step, fault.name, (unsigned long long)fault.addr);
    exit(2);
}

static void precopy(ckpt_tree *tree, const struct ckpt_track *track, ckpt_sink *sink, struct model *model, int round) {
    uint64_t cursor = 0, before = data_pages;
    struct ckpt_scan_result result;
    for (int calls = 0; ~cursor && calls < 1000; calls++) {
        ckpt_sink_reset(sink);
        must(ckpt_precopy(tree, track, sink, &cursor, &result), "precopy", tree);
        model_take(model, model, sink, round);
        if (!rnd(20))
            break; /* a round may be dropped in the middle */
    }
    precopied += data_pages - before;
}

static void one_round(ckpt_tree *tree, struct task *task, struct ckpt_track *track, ckpt_sink *sink, ckpt_sink *small, struct model *model, int round) {
    struct ckpt_scan_result counted;
    struct ckpt_timing timing = {0};
    struct ckpt_capture_options options = {.scan_threads = 1 + (uint32_t)rnd(2), .paranoid = !rnd(8)};
    _cleanup_free_ struct map_line *lines = NULL;
    size_t count;
    if (rnd(3))
        must(ckpt_scan_count(tree, track, &counted), "count", tree);
    for (size_t rounds = rnd(3); rounds; rounds--)
        precopy(tree, track, small, model, round);
    if (rnd(2))
        usleep((useconds_t)rnd(2000));
    int error;
    while ((error = ckpt_tree_freeze(tree)) == -EBUSY) /* it forks */
        usleep(1000);
    must(error, "freeze", tree);
    task = tree_task(tree, track->pid);
    ckpt_sink_reset(sink);
    must(layout_read(tree, task, &lines, &count), "layout", tree);
    if (!rnd(6)) { /* looking changes nothing: what follows finds the same pages written */
        must(ckpt_pages_scan(tree, track, 0, small), "look", tree);
        ckpt_sink_reset(small);
    }
    must(scan_and_copy(tree, task, track, lines, count, &options, sink, &timing), "scan", tree);
    struct model next = model_new();
    if (!options.paranoid)
        model_take(&next, model, sink, round);
    else { /* the paranoid list must say what SAME pages hold; the model is checked against it by the judge */
        const struct ckpt_space_runs *spaces;
        ckpt_sink_spaces(sink, &spaces);
        uint64_t in_memory, total;
        ckpt_sink_data(sink, &in_memory, &total);
        uint64_t same = 0, listed = 0;
        for (size_t i = 0; i < spaces->run_count; i++)
            same += spaces->runs[i].content == CKPT_SAME ? spaces->runs[i].count : 0;
        for (size_t i = 0; i < spaces->paranoid_count; i++)
            listed += spaces->paranoid_runs[i].count;
        if (same != listed || total != (spaces->data_pages + listed) * CKPT_PAGE)
            complain(round, 0, "paranoid list incomplete");
        const uint8_t *data = ckpt_sink_data(sink, &in_memory, &total), *extra = data + spaces->paranoid_offset;
        for (size_t i = 0; i < spaces->run_count; i++)
            for (uint64_t k = 0, page = spaces->runs[i].page; k < spaces->runs[i].count; k++, page++) {
                uint32_t content = how = spaces->runs[i].content;
                uint64_t hash = content == CKPT_ZERO ? zero_hash : hash_page(content == CKPT_DATA ? data : extra);
                data += content == CKPT_DATA ? CKPT_PAGE : 0, extra += content == CKPT_SAME ? CKPT_PAGE : 0;
                if (content == CKPT_SAME && model_find(model, page)->hash != hash)
                    complain(round, page, "paranoid: SAME page differs from what was given");
                model_put(&next, page, hash);
            }
    }
    judge(task->pid, lines, count, &next, round);
    must(ckpt_tree_thaw(tree), "thaw", tree);
    free(model->at);
    *model = next;
    track->fresh = 0;
}

int main(int argc, char **argv) {
    int rounds = argc > 1 ? atoi(argv[1]) : 100, orders[2], answers[2];
    int32_t uffd, order;
    seed = argc > 2 ? strtoull(argv[2], NULL, 10) * 0x9e3779b97f4a7c15u | 1 : 1;
    pinning = argc > 3 && !strcmp(argv[3], "pinning");
    own = argc > 3 && !strcmp(argv[3], "own");
    bool compare = argc > 3 && !strcmp(argv[3], "compare"); /* everything is read, nothing protected */
    zero_hash = hash_page((const uint8_t[CKPT_PAGE]){0});
    if (pipe2(orders, O_CLOEXEC) || pipe2(answers, O_CLOEXEC))
        return 2;
    pid_t pid = fork();
    if (pid == 0)
        close(orders[1]), close(answers[0]), victim_main(orders[0], answers[1]);
    close(orders[0]), close(answers[1]);
    if (read(answers[0], &uffd, sizeof uffd) != sizeof uffd)
        return 77;
    ckpt_tree *tree;
    ckpt_sink *sink, *small;
    struct model model = model_new();
    struct ckpt_track track = {.pid = pid, .tracker = compare ? CKPT_TRACK_COMPARE : CKPT_TRACK_UFFD, .remote_fd = uffd, .fresh = 1};
    must(ckpt_tree_open(pid, 0, &tree), "open", NULL);
    struct task *task = tree_task(tree, pid);
    task->uffd = sys_pidfd_getfd(task->pidfd, uffd);
    must(task->uffd, "getfd", tree);
    must(ckpt_sink_new(256 << 20, "/tmp", &sink), "sink", tree);
    must(ckpt_sink_new(50 * CKPT_PAGE, "/tmp", &small), "sink", tree);
    for (int round = 0; round < rounds && wrong < 20; round++) {
        order = (int)rnd(40);
        if (write(orders[1], &order, sizeof order) != sizeof order)
            break;
        if (rnd(2) && read(answers[0], &uffd, sizeof uffd) != sizeof uffd) /* else it works on while we do */
            complain(round, 0, "the victim died");
        one_round(tree, task, &track, sink, small, &model, round);
    }
    ckpt_sink_free(sink), ckpt_sink_free(small), ckpt_tree_close(tree), free(model.at);
    kill(pid, SIGKILL), waitpid(pid, NULL, 0);
    printf("{\"rounds\": %d, \"wrong\": %llu, \"checked\": %llu, \"data\": %llu, \"same\": %llu, \"zero\": %llu, \"precopied\": %llu}\n", rounds,
           (unsigned long long)wrong, (unsigned long long)checked, (unsigned long long)data_pages, (unsigned long long)same_pages,
           (unsigned long long)zero_pages, (unsigned long long)precopied);
    return wrong != 0;
}
