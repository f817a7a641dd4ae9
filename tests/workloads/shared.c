/* shared: memory that the program shares with itself, so that a restore must make each object once: one anonymous object in three mappings
 * (the second at another offset, the third read-only), a memfd that only descriptors have (one to write, one that only reads, at
 * positions of their own), a sealed memfd in a read-only mapping, a System V segment with a key, attached twice, a file of tmpfs that
 * has no name any more; and what only page tables and smaps know: guard pages, advice, locks, a sealed mapping.
 * At "verify" what is written through one is read through the others, the guard pages are still in the way, and VmFlags,
 * seals, size, positions, id and inode numbers that mean something are what they were. */
#include "victim.h"
#include <sys/ipc.h>
#include <sys/shm.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>

#ifndef MADV_GUARD_INSTALL
#define MADV_GUARD_INSTALL 102
#endif
enum { PAGES = 8, WATCHED = 16 };
static char *first, *second, *reader, *sealed, *segment, *again, *nameless, *guarded, *plain;
static int writer_fd, reader_fd, shmid;
static bool guards;
static uint64_t generation;
static struct { const char *name; char *at, flags[160]; } watched[WATCHED];
static size_t watched_count;

static void fill(char *at, size_t pages, uint64_t key) {
    for (size_t page = 0; page < pages; page++)
        fill_page(at + page * PAGE, key * 100 + page, (uint32_t)generation);
}

static void holds(const char *name, char *at, size_t pages, uint64_t key) {
    for (size_t page = 0; page < pages; page++)
        if (!page_is(at + page * PAGE, key * 100 + page, (uint32_t)generation))
            wrong("%s: page %zu is not of generation %lu", name, page, generation);
}

static void flags_of(const char *at, char *ret_flags) {
    char line[512];
    unsigned long start, end;
    bool here = false;
    FILE *smaps = fopen("/proc/self/smaps", "re");
    need(smaps != NULL, "smaps");
    ret_flags[0] = 0;
    while (fgets(line, sizeof line, smaps)) {
        if (sscanf(line, "%lx-%lx ", &start, &end) == 2 && strchr(line, '-') < strchr(line, ' '))
            here = start <= (unsigned long)at && (unsigned long)at < end;
        if (here && strncmp(line, "VmFlags:", 8) == 0)
            for (char *flag = strtok(line + 8, " \n"); flag; flag = strtok(NULL, " \n"))
                if (!strstr("uw um ui sd gu sh", flag)) /* the tracker's; gu stays once it was; sh: of a sealed file it depends on the open */
                    strcat(strcat(ret_flags, flag), " ");
    }
    fclose(smaps);
}

static void watch(const char *name, char *at) {
    watched[watched_count].name = name;
    watched[watched_count].at = at;
    flags_of(at, watched[watched_count++].flags);
}

static char *map(size_t pages, int prot, int flags, int fd) {
    char *at = mmap(NULL, pages * PAGE, prot, flags, fd, 0);
    need(at != MAP_FAILED, "mmap");
    return at;
}

static void make_anonymous(void) {
    first = map(PAGES, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1);
    second = mremap(first + 2 * PAGE, 0, 4 * PAGE, MREMAP_MAYMOVE);
    reader = mremap(first, 0, PAGES * PAGE, MREMAP_MAYMOVE);
    need(second != MAP_FAILED && reader != MAP_FAILED && mprotect(reader, PAGES * PAGE, PROT_READ) == 0, "mremap");
}

static void make_files(void) {
    char path[64];
    writer_fd = memfd_create("held", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    need(writer_fd >= 0 && ftruncate(writer_fd, 3 * PAGE + 5) == 0, "memfd_create");
    need(fcntl(writer_fd, F_ADD_SEALS, F_SEAL_GROW) == 0, "F_ADD_SEALS");
    snprintf(path, sizeof path, "/proc/self/fd/%d", writer_fd);
    reader_fd = open(path, O_RDONLY);
    need(reader_fd >= 0, path);
    int fd = memfd_create("sealed", MFD_ALLOW_SEALING);
    need(fd >= 0 && ftruncate(fd, 2 * PAGE) == 0, "memfd_create");
    char *once = map(2, PROT_READ | PROT_WRITE, MAP_SHARED, fd);
    memset(once, 7, 2 * PAGE);
    need(munmap(once, 2 * PAGE) == 0 && fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) == 0, "F_ADD_SEALS");
    sealed = map(2, PROT_READ, MAP_SHARED, fd);
    need(close(fd) == 0, "close");
    snprintf(path, sizeof path, "/dev/shm/ckpt-shared-%d", getpid());
    fd = open(path, O_RDWR | O_CREAT | O_EXCL, 0600);
    need(fd >= 0 && unlink(path) == 0 && ftruncate(fd, 2 * PAGE) == 0, path);
    nameless = map(2, PROT_READ | PROT_WRITE, MAP_SHARED, fd);
    need(close(fd) == 0, "close");
}

static void make_segment(void) {
    shmid = shmget(0x636b7074 ^ getpid(), 3 * PAGE, IPC_CREAT | IPC_EXCL | 0640);
    need(shmid >= 0, "shmget");
    segment = shmat(shmid, NULL, 0);
    again = shmat(shmid, NULL, SHM_RDONLY);
    need(segment != (void *)-1 && again != (void *)-1 && shmctl(shmid, IPC_RMID, NULL) == 0, "shmat");
}

static void make_advised(void) {
    guarded = map(16, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
    guards = madvise(guarded + PAGE, PAGE, MADV_GUARD_INSTALL) == 0 && madvise(guarded + 13 * PAGE, 3 * PAGE, MADV_GUARD_INSTALL) == 0;
    plain = map(64, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1);
    memset(plain, 1, 64 * PAGE);
    static const int advice[] = {MADV_DONTDUMP, MADV_SEQUENTIAL, MADV_RANDOM, MADV_NOHUGEPAGE, MADV_HUGEPAGE, MADV_DONTFORK, MADV_WIPEONFORK};
    for (size_t i = 0; i < sizeof advice / sizeof *advice; i++)
        madvise(plain + 4 * i * PAGE, 2 * PAGE, advice[i]);
    need(mlock(plain + 32 * PAGE, 2 * PAGE) == 0 && mlock2(plain + 36 * PAGE, 2 * PAGE, MLOCK_ONFAULT) == 0, "mlock");
    memset(plain + 40 * PAGE, 0, 2 * PAGE); /* zeros that were written */
    need(mprotect(plain + 44 * PAGE, 2 * PAGE, PROT_NONE) == 0 && mprotect(plain + 48 * PAGE, 2 * PAGE, PROT_READ) == 0, "mprotect");
    syscall(462, plain + 52 * PAGE, 2 * PAGE, 0); /* mseal; absent on older kernels */
}

static void put(void) {
    char page[PAGE];
    generation++;
    fill(first, PAGES, 1);
    fill(segment, 3, 2);
    fill(nameless, 2, 3);
    for (size_t i = 0; i < 3; i++) {
        fill_page(page, 400 + i, (uint32_t)generation);
        need(pwrite(writer_fd, page, PAGE, (off_t)(i * PAGE)) == PAGE, "pwrite");
    }
    for (size_t i = 0; i < 13; i++)
        if (i != 1)
            fill_page(guarded + i * PAGE, 500 + i, (uint32_t)generation);
}

static void check_memory(void) {
    char page[PAGE];
    struct iovec local = {page, 1}, one = {guarded + PAGE, 1}, two = {guarded + 15 * PAGE, 1};
    holds("anonymous", first, PAGES, 1);
    holds("anonymous, read-only", reader, PAGES, 1);
    if (memcmp(second, first + 2 * PAGE, 4 * PAGE) != 0)
        wrong("the second mapping of the anonymous object is another object");
    first[3 * PAGE] ^= 1;
    if (second[PAGE] != first[3 * PAGE] || reader[3 * PAGE] != first[3 * PAGE])
        wrong("what is written into the anonymous object is not seen through its other mappings");
    first[3 * PAGE] ^= 1;
    holds("segment", segment, 3, 2);
    holds("segment again", again, 3, 2);
    holds("file without a name", nameless, 2, 3);
    for (size_t i = 0; i < 13; i++)
        if (i != 1 && !page_is(guarded + i * PAGE, 500 + i, (uint32_t)generation))
            wrong("guarded: page %zu", i);
    for (size_t i = 0; i < 2 * PAGE; i++)
        if (sealed[i] != 7)
            wrong("sealed memfd: byte %zu", i);
    if (guards && (process_vm_readv(getpid(), &local, 1, &one, 1, 0) != -1 || process_vm_readv(getpid(), &local, 1, &two, 1, 0) != -1))
        wrong("a guard page can be read");
}

static void check_objects(void) {
    char page[PAGE], flags[160];
    struct stat stat, other;
    struct shmid_ds ds;
    for (size_t i = 0; i < 3; i++)
        if (pread(reader_fd, page, PAGE, (off_t)(i * PAGE)) != PAGE || !page_is(page, 400 + i, (uint32_t)generation))
            wrong("held memfd: page %zu", i);
    if (fstat(writer_fd, &stat) || fstat(reader_fd, &other) || stat.st_ino != other.st_ino || stat.st_size != 3 * PAGE + 5)
        wrong("the held memfd is two files, or of %ld bytes", (long)stat.st_size);
    if (lseek(writer_fd, 0, SEEK_CUR) != 77 || lseek(reader_fd, 0, SEEK_CUR) != 4)
        wrong("positions of the held memfd");
    if (fcntl(reader_fd, F_GET_SEALS) != F_SEAL_GROW || write(reader_fd, "", 1) != -1)
        wrong("seals or access mode of the held memfd");
    if (mprotect(sealed, PAGE, PROT_READ | PROT_WRITE) == 0)
        wrong("a sealed memfd can be made writable");
    if (shmctl(shmid, IPC_STAT, &ds) || ds.shm_nattch != 2 || (ds.shm_perm.mode & 0777) != 0640 || !(ds.shm_perm.mode & SHM_DEST))
        wrong("System V segment %d: %s, attached %ld times, mode %o", shmid, strerror(errno), (long)ds.shm_nattch, ds.shm_perm.mode);
    for (size_t i = 0; i < watched_count; i++) {
        flags_of(watched[i].at, flags);
        if (strcmp(flags, watched[i].flags) != 0)
            wrong("%s: VmFlags were %s, are %s", watched[i].name, watched[i].flags, flags);
    }
}

int main(void) {
    make_anonymous();
    make_files();
    make_segment();
    make_advised();
    put();
    need(lseek(writer_fd, 77, SEEK_SET) == 77 && lseek(reader_fd, 4, SEEK_SET) == 4, "lseek");
    static char names[32][16];
    watch("anonymous", first);
    watch("anonymous, read-only", reader);
    watch("sealed", sealed);
    watch("segment", segment);
    watch("segment again", again);
    watch("guarded", guarded);
    for (size_t i = 0; i < 10; i++) {
        snprintf(names[i], sizeof names[i], "advised %zu", i);
        watch(names[i], plain + 4 * (i + (i > 6) * 1) * PAGE);
    }
    check_memory();
    check_objects();
    ready();
    for (;;) {
        put();
        if (asked(1)) {
            check_memory();
            check_objects();
            answer();
        }
    }
}
