/* mappings: one of each odd mapping, written all the time. Every page that may be written carries a pattern of (region,
 * page, generation), and a table says which generation it should have. At "verify" every page is compared, guard pages
 * must still fault, read-only ones must still refuse, VmFlags of smaps must be what they were at READY (the flags that a
 * tracker sets aside), generated code must still run, and a forked child must see what MADV_WIPEONFORK promises.
 * argv[1] = a folder for its two files. Shared file pages are not rewritten after READY: a rollback leaves files alone.
 */
#include "victim.h"
#include <setjmp.h>
#include <sys/shm.h>
#include <sys/uio.h>

enum { REGIONS = 16, MOST = 512 };
struct region {
    const char *name;
    char *at;
    size_t pages;
    bool writes, alias;
    size_t alias_of;
    uint32_t generation[MOST];
    char flags[160];
};
static struct region regions[REGIONS];
static size_t region_count, locked_kib;
static char *guard, *reserve, *grows;
static size_t grown;
static int (*code)(void);

static char *map(size_t pages, int prot, int flags, int fd, off_t offset) {
    char *at = mmap(NULL, pages * PAGE, prot, flags, fd, offset);
    need(at != MAP_FAILED, "mmap");
    return at;
}

static struct region *add(const char *name, char *at, size_t pages, bool writes) {
    struct region *region = &regions[region_count++];
    *region = (struct region){.name = name, .at = at, .pages = pages, .writes = writes};
    return region;
}

static uint64_t key(const struct region *region, size_t page) { return (uint64_t)(region - regions) * 100000 + page; }

static void write_page(struct region *region, size_t page) {
    region->generation[page]++;
    fill_page(region->at + page * PAGE, key(region, page), region->generation[page]);
}

static void vm_flags(struct region *region) { /* VmFlags without those that write tracking or page cache state move */
    char line[512], flags[160] = "";
    unsigned long start, end;
    bool here = false;
    FILE *smaps = fopen("/proc/self/smaps", "re");
    need(smaps != NULL, "smaps");
    while (fgets(line, sizeof line, smaps)) {
        if (sscanf(line, "%lx-%lx ", &start, &end) == 2 && strchr(line, '-') < strchr(line, ' '))
            here = start <= (unsigned long)region->at && (unsigned long)region->at < end;
        if (!here || strncmp(line, "VmFlags:", 8) != 0)
            continue;
        for (char *flag = strtok(line + 8, " \n"); flag; flag = strtok(NULL, " \n"))
            if (!strstr("uw um ui sd", flag)) {
                strncat(flags, flag, sizeof flags - strlen(flags) - 2);
                strcat(flags, " ");
            }
    }
    fclose(smaps);
    if (!region->flags[0])
        strcpy(region->flags, flags);
    else if (strcmp(region->flags, flags) != 0)
        wrong("%s: VmFlags were %s, are %s", region->name, region->flags, flags);
}

static void check_refusals(void) {
    char byte = 1;
    struct iovec local = {&byte, 1}, none = {guard, 1}, far = {reserve + (1ul << 35), 1}, fixed = {regions[0].at, 1};
    if (process_vm_readv(getpid(), &local, 1, &none, 1, 0) != -1 || errno != EFAULT)
        wrong("a guard page can be read");
    if (process_vm_readv(getpid(), &local, 1, &far, 1, 0) != -1 || errno != EFAULT)
        wrong("PROT_NONE can be read");
    if (process_vm_writev(getpid(), &local, 1, &fixed, 1, 0) != -1 || errno != EFAULT)
        wrong("a read-only page can be written");
    if (code() != 4711)
        wrong("generated code gives something else");
}

static void check_fork(struct region *wiped) {
    static const char zeros[PAGE];
    int status = 0;
    pid_t child = fork();
    if (child == 0)
        _exit(memcmp(wiped->at, zeros, PAGE) == 0 ? 0 : 1);
    while (waitpid(child, &status, 0) < 0 && errno == EINTR)
        wrong("waitpid: EINTR");
    if (!WIFEXITED(status) || WEXITSTATUS(status) != 0)
        wrong("MADV_WIPEONFORK: the child sees the parent's page (status %x)", status);
}

static void check_locked(void) {
    char line[256];
    size_t now = 0;
    FILE *file = fopen("/proc/self/status", "re");
    while (fgets(line, sizeof line, file))
        sscanf(line, "VmLck: %zu", &now);
    fclose(file);
    if (!locked_kib)
        locked_kib = now;
    if (now != locked_kib)
        wrong("%zu KiB were locked, now %zu", locked_kib, now);
}

static void check(struct region *wiped) {
    for (size_t i = 0; i < region_count; i++) {
        struct region *region = &regions[i];
        for (size_t page = 0; page < region->pages; page++) {
            size_t is = region->alias ? region->alias_of : i;
            if (!page_is(region->at + page * PAGE, key(&regions[is], page), regions[is].generation[page]))
                wrong("%s: page %zu is not of generation %u", region->name, page, regions[is].generation[page]);
        }
        vm_flags(region);
    }
    for (size_t page = 0; page < grown; page++)
        if (*(uint64_t *)(grows - (page + 1) * PAGE) != mix(99, page))
            wrong("growsdown: page %zu below its top", page);
    check_refusals();
    check_fork(wiped);
    check_locked();
}

static void grow(void) {
    if (grown < 200) {
        grown++;
        *(volatile uint64_t *)(grows - grown * PAGE) = mix(99, grown - 1);
    }
}

static int file(const char *folder, const char *name, size_t pages) {
    char path[512];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    int fd = open(path, O_RDWR | O_CREAT | O_TRUNC, 0600);
    need(fd >= 0 && ftruncate(fd, (off_t)(pages * PAGE)) == 0, path);
    return fd;
}

static void make_plain(void) {
    add("read-only", map(20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), 20, false); /* stays region 0 */
    char *guarded = map(66, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    guard = guarded + 65 * PAGE;
    need(mprotect(guarded, PAGE, PROT_NONE) == 0 && mprotect(guard, PAGE, PROT_NONE) == 0, "mprotect");
    add("guarded", guarded + PAGE, 64, true);
    reserve = map(1ul << 24, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0); /* 64 GiB */
    need(mprotect(reserve + (1ul << 34), 32 * PAGE, PROT_READ | PROT_WRITE) == 0, "mprotect");
    add("island in PROT_NONE", reserve + (1ul << 34), 32, true);
    char *huge = map(1024, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    huge = (char *)(((uintptr_t)huge + (2ul << 20) - 1) & ~((2ul << 20) - 1));
    madvise(huge, 2ul << 20, MADV_HUGEPAGE);
    add("huge", huge, 512, true);
    char *locked = map(16, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mlock(locked, 16 * PAGE) != 0)
        fprintf(stderr, "mlock: %s\n", strerror(errno));
    add("locked", locked, 16, true);
    /* Far from where mmap places things, so that there is room below it. */
    grows = mmap((void *)0x200000000000ul, PAGE, PROT_READ | PROT_WRITE,
                 MAP_PRIVATE | MAP_ANONYMOUS | MAP_GROWSDOWN | MAP_FIXED_NOREPLACE, -1, 0);
    need(grows != MAP_FAILED, "growsdown");
    add("advised", map(32, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), 32, true);
    madvise(regions[region_count - 1].at, 8 * PAGE, MADV_DONTDUMP);
    madvise(regions[region_count - 1].at + 8 * PAGE, 8 * PAGE, MADV_DONTFORK);
    static const unsigned char text[] = {0xb8, 0x67, 0x12, 0, 0, 0xc3}; /* mov $4711, %eax; ret */
    char *page = map(1, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    memcpy(page, text, sizeof text);
    need(mprotect(page, PAGE, PROT_READ | PROT_EXEC) == 0, "mprotect");
    code = (int (*)(void))(void *)page;
}

static void make_shared(const char *folder) {
    int fd = file(folder, "private.dat", 64);
    add("private file", map(64, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0), 64, true);
    close(fd);
    fd = file(folder, "shared.dat", 32);
    add("shared file", map(32, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0), 32, false);
    add("shared anonymous", map(48, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0), 48, true);
    int memory = memfd_create("workload", MFD_CLOEXEC);
    need(memory >= 0 && ftruncate(memory, 40 * PAGE) == 0, "memfd_create");
    struct region *one = add("memfd", map(40, PROT_READ | PROT_WRITE, MAP_SHARED, memory, 0), 40, true);
    struct region *two = add("memfd again", map(40, PROT_READ, MAP_SHARED, memory, 0), 40, false);
    two->alias = true;
    two->alias_of = (size_t)(one - regions);
    int id = shmget(IPC_PRIVATE, 24 * PAGE, IPC_CREAT | 0600);
    char *segment = id < 0 ? NULL : shmat(id, NULL, 0);
    need(segment && segment != (char *)-1 && shmctl(id, IPC_RMID, NULL) == 0, "shmat");
    add("System V", segment, 24, true);
}

int main(int argc, char **argv) {
    need(argc == 2, "usage: mappings FOLDER");
    make_plain();
    make_shared(argv[1]);
    struct region *wiped = add("wiped on fork", map(4, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), 4, true);
    need(madvise(wiped->at, 4 * PAGE, MADV_WIPEONFORK) == 0, "MADV_WIPEONFORK");
    for (size_t i = 0; i < region_count; i++)
        for (size_t page = 0; page < regions[i].pages && !regions[i].alias; page++)
            write_page(&regions[i], page);
    need(mprotect(regions[0].at, 20 * PAGE, PROT_READ) == 0, "mprotect");
    check(wiped);
    ready();
    for (uint64_t state = 1;;) {
        struct region *region = &regions[draw(&state) % region_count];
        if (region->writes)
            write_page(region, draw(&state) % region->pages);
        if (draw(&state) % 256 == 0)
            grow();
        if (draw(&state) % 16 == 0 && asked(1)) {
            check(wiped);
            answer();
        }
    }
}
