/* memops: executes memory operations for the page oracle (tests/fuzz): one command a line, answered by "OK" or
 * "ERR errno" (a store to a page that refuses is ERR 14: signals are caught, so no order of commands ends the program).
 * It checks nothing itself: the oracle compares every page in the freeze. argv[1] = a folder for files.
 *
 *   map S KIND PAGES        slot S := anon | private (file) | shared (anonymous) | memfd | sparse (noreserve, huge) | file (shared)
 *   over S AT PAGES KIND    mmap MAP_FIXED over a part           unmap S AT PAGES
 *   remap S PAGES           mremap, may move                     move S              mremap to another place
 *   protect S AT PAGES P    P = 0 none, 1 read, 3 write          advise S AT PAGES WHAT (a number of madvise)
 *   punch S AT PAGES        hole in the memfd behind S           write S AT PAGES SEED HOW
 *       HOW: store | thread | read | recv | remote (process_vm_writev of a child) | pwrite (memfd) | alias (a second mapping)
 *   scatter S COUNT SEED    single words all over the slot       zero S AT PAGES     stores zeros
 *   same S AT PAGES         writes what is there already         brk PAGES           grows (or shrinks) the heap
 *   stack PAGES             a deeper stack                       fork | exited | zombie | reap   a child that lives, that has come and gone, that nobody waits for; ends all
 *   background PAGES        a thread writes all the time         exec                itself again: READY anew
 *   closeall                closes every descriptor >= 3         resident            answers with mincore's count of slot pages
 */
#include "victim.h"
#include <setjmp.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/uio.h>

enum { SLOTS = 16, CHILDREN = 8 };
struct slot {
    char *at;
    size_t pages;
    int memory; /* memfd, or -1 */
};
static struct slot slots[SLOTS];
static pid_t kids[CHILDREN];
static char *folder, **arguments;
static __thread sigjmp_buf recover;
static __thread volatile sig_atomic_t storing;
static _Atomic(char *) background;
static _Atomic size_t background_pages;

static void caught(int signal) {
    if (!storing)
        _exit(100 + signal);
    siglongjmp(recover, 1);
}

static int file_of(size_t pages) {
    static int number;
    char path[512];
    snprintf(path, sizeof path, "%s/map-%d-%d", folder, getpid(), number++);
    int fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    for (size_t page = 0; fd >= 0 && page < pages; page++) {
        char text[PAGE];
        fill_page(text, (uint64_t)number, page);
        if (write(fd, text, PAGE) != (ssize_t)PAGE)
            return -1;
    }
    return fd;
}

/* Maps at a place (fixed) or anywhere; *ret_memory gets the memfd, which stays open. */
static char *map_kind(const char *kind, char *at, size_t pages, int *ret_memory) {
    int flags = at ? MAP_FIXED : 0, fd = -1;
    *ret_memory = -1;
    if (strcmp(kind, "anon") == 0)
        flags |= MAP_PRIVATE | MAP_ANONYMOUS;
    else if (strcmp(kind, "shared") == 0)
        flags |= MAP_SHARED | MAP_ANONYMOUS;
    else if (strcmp(kind, "sparse") == 0)
        flags |= MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    else if (strcmp(kind, "memfd") == 0) {
        fd = *ret_memory = memfd_create("memops", MFD_CLOEXEC);
        if (fd >= 0 && ftruncate(fd, (off_t)(pages * PAGE)) != 0)
            return MAP_FAILED;
        flags |= MAP_SHARED;
    } else {
        fd = file_of(pages);
        flags |= strcmp(kind, "file") == 0 ? MAP_SHARED : MAP_PRIVATE;
    }
    char *got = mmap(at, pages * PAGE, PROT_READ | PROT_WRITE, flags, fd, 0);
    if (fd >= 0 && fd != *ret_memory)
        close(fd);
    return got;
}

static int do_map(struct slot *slot, const char *kind, size_t pages) {
    if (slot->pages)
        munmap(slot->at, slot->pages * PAGE);
    if (slot->memory >= 0)
        close(slot->memory);
    slot->pages = 0;
    slot->at = map_kind(kind, NULL, pages, &slot->memory);
    if (slot->at == MAP_FAILED)
        return errno;
    slot->pages = pages;
    return 0;
}

static int do_remap(struct slot *slot, size_t pages, bool move) {
    char *to = NULL;
    if (move)
        to = mmap(NULL, pages * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    char *got = mremap(slot->at, slot->pages * PAGE, pages * PAGE, MREMAP_MAYMOVE | (move ? MREMAP_FIXED : 0), to);
    if (got == MAP_FAILED) {
        int error = errno;
        if (move)
            munmap(to, pages * PAGE);
        return error;
    }
    slot->at = got;
    slot->pages = pages;
    return 0;
}

struct job {
    char *at;
    size_t pages;
    uint64_t seed;
    int error;
};

static void *store(void *argument) { /* may be interrupted by a fault in the middle: the pages before it are written */
    struct job *job = argument;
    if (sigsetjmp(recover, 1)) {
        storing = 0;
        job->error = EFAULT;
        return NULL;
    }
    storing = 1;
    for (size_t page = 0; page < job->pages; page++)
        fill_page(job->at + page * PAGE, job->seed, page);
    storing = 0;
    return NULL;
}

/* The kernel writes for us: from a pipe or a socket, page by page. */
static int from_kernel(struct job *job, bool socket) {
    int pair[2];
    char text[PAGE];
    if ((socket ? socketpair(AF_UNIX, SOCK_STREAM, 0, pair) : pipe(pair)) != 0)
        return errno;
    int error = 0;
    for (size_t page = 0; page < job->pages && !error; page++) {
        fill_page(text, job->seed, page);
        if (write(pair[1], text, PAGE) != (ssize_t)PAGE)
            error = EIO;
        else if ((socket ? recv(pair[0], job->at + page * PAGE, PAGE, MSG_WAITALL) : read(pair[0], job->at + page * PAGE, PAGE)) < 0)
            error = errno;
    }
    close(pair[0]);
    close(pair[1]);
    return error;
}

static int from_child(struct job *job) {
    pid_t child = fork();
    if (child == 0) {
        char text[PAGE];
        for (size_t page = 0; page < job->pages; page++) {
            fill_page(text, job->seed, page);
            struct iovec local = {text, PAGE}, remote = {job->at + page * PAGE, PAGE};
            if (process_vm_writev(getppid(), &local, 1, &remote, 1, 0) != (ssize_t)PAGE)
                _exit(errno);
        }
        _exit(0);
    }
    int status = 0;
    return child < 0 ? errno : waitpid(child, &status, 0) < 0 ? errno : WEXITSTATUS(status);
}

static int through_memory(struct slot *slot, struct job *job, bool alias) {
    size_t offset = (size_t)(job->at - slot->at);
    if (slot->memory < 0)
        return EBADF;
    char *other = alias ? mmap(NULL, job->pages * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, slot->memory, (off_t)offset) : NULL;
    if (other == MAP_FAILED)
        return errno;
    if (alias) { /* may lie behind the memfd's end: a fault like any store's */
        struct job there = {other, job->pages, job->seed, 0};
        store(&there);
        return munmap(other, job->pages * PAGE) ? errno : there.error;
    }
    for (size_t page = 0; page < job->pages; page++) {
        char text[PAGE];
        fill_page(text, job->seed, page);
        if (pwrite(slot->memory, text, PAGE, (off_t)(offset + page * PAGE)) != (ssize_t)PAGE)
            return errno;
    }
    return 0;
}

static int do_write(struct slot *slot, size_t at, size_t pages, uint64_t seed, const char *how) {
    struct job job = {slot->at + at * PAGE, pages, seed, 0};
    pthread_t thread;
    if (strcmp(how, "thread") == 0) {
        if (pthread_create(&thread, NULL, store, &job) != 0)
            return EAGAIN;
        pthread_join(thread, NULL);
    } else if (strcmp(how, "read") == 0 || strcmp(how, "recv") == 0)
        return from_kernel(&job, how[2] == 'c');
    else if (strcmp(how, "remote") == 0)
        return from_child(&job);
    else if (strcmp(how, "pwrite") == 0 || strcmp(how, "alias") == 0)
        return through_memory(slot, &job, how[0] == 'a');
    else
        store(&job);
    return job.error;
}

/* Stores one word per chosen page: scattered, zeros, or what is there already. */
__attribute__((noinline)) static void words(struct slot *slot, const char *what, size_t at, size_t pages, uint64_t chance) {
    for (size_t i = 0; i < pages; i++) {
        volatile uint64_t *word = (void *)(slot->at + (at + i) * PAGE);
        if (what[1] == 'c')
            *(uint64_t *)(void *)(slot->at + draw(&chance) % (slot->pages * PAGE / 8) * 8) = draw(&chance);
        else if (what[0] == 'z')
            memset((void *)word, 0, PAGE);
        else
            *word = *word;
    }
}

static int do_words(struct slot *slot, const char *what, size_t at, size_t pages, uint64_t seed) {
    if (sigsetjmp(recover, 1)) {
        storing = 0;
        return EFAULT;
    }
    storing = 1;
    words(slot, what, at, pages, seed);
    storing = 0;
    return 0;
}

static void deeper(size_t pages) {
    volatile char here[PAGE];
    here[0] = (char)pages;
    if (pages > 1)
        deeper(pages - 1);
    here[1] = here[0];
}

static void *write_always(void *argument) {
    (void)argument;
    for (uint64_t state = 1;;) {
        char *at = background;
        size_t pages = background_pages;
        if (pages)
            *(uint64_t *)(void *)(at + draw(&state) % (pages * PAGE / 8) * 8) = state;
        if (state % 64 == 0)
            usleep(200);
    }
    return NULL;
}

static int do_background(size_t pages) {
    static pthread_t thread;
    background_pages = 0;
    /* Far from the slots: into a hole that "unmap" left in one the kernel would put it otherwise, and the next "map" of that slot pulls it away. */
    static uintptr_t place = 0x100000000000;
    char *at = mmap((void *)place, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
    if (at == MAP_FAILED)
        return errno;
    place += (pages + 16) * PAGE;
    background = at; /* the mapping before it stays: the thread may still be in it */
    background_pages = pages;
    return thread ? 0 : pthread_create(&thread, NULL, write_always, NULL);
}

enum child { LIVES, EXITS, STAYS_ZOMBIE };

static int do_fork(enum child what) {
    for (int i = 0; i < CHILDREN; i++) {
        if (kids[i])
            continue;
        kids[i] = fork();
        if (kids[i] && what == EXITS) {
            waitpid(kids[i], NULL, 0);
            kids[i] = 0;
            return 0;
        }
        if (kids[i])
            return kids[i] < 0 ? errno : 0;
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        deeper(3);
        char *page = mmap(NULL, 8 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        for (uint64_t turn = 0; what == LIVES; turn++) {
            fill_page(page + turn % 8 * PAGE, 77, turn);
            usleep(2000);
        }
        _exit(0);
    }
    return EAGAIN;
}

static int do_reap(void) {
    for (int i = 0; i < CHILDREN; i++)
        if (kids[i]) {
            kill(kids[i], SIGKILL);
            waitpid(kids[i], NULL, 0);
            kids[i] = 0;
        }
    return 0;
}

/* Gives back only what it took: what lies below is malloc's. */
static int do_brk(long pages) {
    static long taken;
    if (taken + pages < 0)
        return ERANGE;
    if (sbrk(pages * (long)PAGE) == (void *)-1)
        return errno;
    taken += pages;
    return 0;
}

static int do_process(const char *word, long number) {
    if (strcmp(word, "brk") == 0)
        return do_brk(number);
    if (strcmp(word, "stack") == 0)
        return deeper((size_t)number), 0;
    if (strcmp(word, "background") == 0)
        return do_background((size_t)number);
    if (strcmp(word, "fork") == 0)
        return do_fork(LIVES);
    if (strcmp(word, "exited") == 0)
        return do_fork(EXITS);
    if (strcmp(word, "zombie") == 0)
        return do_fork(STAYS_ZOMBIE);
    if (strcmp(word, "reap") == 0)
        return do_reap();
    if (strcmp(word, "closeall") == 0) {
        for (int i = 0; i < SLOTS; i++)
            slots[i].memory = -1;
        return close_range(3, ~0u, 0) ? errno : 0;
    }
    if (strcmp(word, "exec") == 0) {
        do_reap();
        execv("/proc/self/exe", arguments);
        return errno;
    }
    return ENOSYS;
}

static int do_slot(const char *word, struct slot *slot, char *a, char *b, char *c, char *d) {
    size_t at = a ? strtoul(a, NULL, 10) : 0, pages = b ? strtoul(b, NULL, 10) : 0;
    char *start = slot->at + at * PAGE;
    if (strcmp(word, "map") == 0)
        return do_map(slot, a, pages);
    if (!slot->pages)
        return ENOENT;
    if (strcmp(word, "remap") == 0)
        return do_remap(slot, at, false);
    if (strcmp(word, "move") == 0)
        return do_remap(slot, slot->pages, true);
    if (strcmp(word, "scatter") == 0)
        return do_words(slot, word, 0, at, pages);
    if (at + pages > slot->pages || pages == 0)
        return ERANGE;
    if (strcmp(word, "over") == 0) {
        int memory = -1;
        int error = map_kind(c, start, pages, &memory) == MAP_FAILED ? errno : 0;
        return memory >= 0 ? close(memory), error : error;
    }
    if (strcmp(word, "unmap") == 0)
        return munmap(start, pages * PAGE) ? errno : 0;
    if (strcmp(word, "protect") == 0)
        return mprotect(start, pages * PAGE, atoi(c)) ? errno : 0;
    if (strcmp(word, "advise") == 0)
        return madvise(start, pages * PAGE, atoi(c)) ? errno : 0;
    if (strcmp(word, "punch") == 0)
        return fallocate(slot->memory, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)(at * PAGE), (off_t)(pages * PAGE)) ? errno : 0;
    if (strcmp(word, "write") == 0)
        return do_write(slot, at, pages, strtoul(c, NULL, 10), d);
    if (strcmp(word, "zero") == 0 || strcmp(word, "same") == 0)
        return do_words(slot, word, at, pages, 0);
    return ENOSYS;
}

static long resident(void) {
    static unsigned char there[1 << 16];
    long count = 0;
    for (int i = 0; i < SLOTS; i++)
        for (size_t page = 0; page < slots[i].pages; page++)
            count += mincore(slots[i].at + page * PAGE, PAGE, there) == 0 && (there[0] & 1);
    return count;
}

int main(int argc, char **argv) {
    need(argc == 2, "usage: memops FOLDER");
    folder = argv[1];
    arguments = argv;
    struct sigaction action = {.sa_handler = caught, .sa_flags = SA_NODEFER};
    sigaction(SIGSEGV, &action, NULL);
    sigaction(SIGBUS, &action, NULL);
    for (int i = 0; i < SLOTS; i++)
        slots[i].memory = -1;
    ready();
    for (;;) {
        char *line = question(), *word = strtok(line, " "), *a = strtok(NULL, " "), *b = strtok(NULL, " ");
        char *c = strtok(NULL, " "), *d = strtok(NULL, " "), *e = strtok(NULL, " ");
        if (!word || strcmp(word, "verify") == 0) {
            verdict();
            continue;
        }
        if (strcmp(word, "resident") == 0) {
            say("%ld", resident());
            continue;
        }
        int error = do_process(word, a ? strtol(a, NULL, 10) : 0);
        if (error == ENOSYS && a)
            error = do_slot(word, &slots[atoi(a) % SLOTS], b, c, d, e);
        if (error)
            say("ERR %d", error);
        else
            say("OK");
    }
}
