/* churn: threads, mappings and descriptors come and go all the time, and a table knows which are there and what they
 * hold. argv[1] = a folder for its files (their contents never change after READY, so that a rollback finds them).
 *
 *   threads      up to 8 at a time; each lives some milliseconds and leaves a hash that the joiner computes as well
 *   mappings     up to 48; a random number of pages, a pattern each; some protected, shrunk, moved or holed on the way
 *   descriptors  up to 24; regular files at positions that move, /dev/zero, directories
 */
#include "victim.h"
#include <sys/ioctl.h>
#include <sys/stat.h>

enum { THREADS = 8, MAPPINGS = 48, FILES = 24, NAMES = 6, FILE_PAGES = 16 };
struct worker {
    pthread_t thread;
    bool there;
    uint64_t seed, rounds, result;
    _Atomic bool ended;
};
struct piece {
    char *at;
    size_t pages;
    uint64_t key, generation;
    bool sealed; /* PROT_READ */
    size_t hole; /* this page was given back by MADV_DONTNEED: zeros; pages = none */
};
struct handle {
    int fd;
    int name; /* which file; NAMES = /dev/zero, NAMES + 1 = the folder */
    off_t position;
};
static struct worker workers[THREADS];
static struct piece pieces[MAPPINGS];
static struct handle handles[FILES];
static char paths[NAMES + 2][256];
static uint64_t chance = 11, joined, made;

static uint64_t work(uint64_t seed, uint64_t rounds) {
    volatile uint64_t stack[64];
    for (uint64_t i = 0; i < 64; i++)
        stack[i] = mix(seed, i);
    for (uint64_t i = 0; i < rounds; i++)
        stack[i % 64] = mix(stack[(i + 1) % 64], stack[i % 64]);
    return stack[0] ^ stack[31] ^ stack[63];
}

static void *run(void *argument) {
    struct worker *worker = argument;
    for (int part = 0; part < 4; part++) {
        usleep(500);
        worker->result = work(worker->seed, worker->rounds);
    }
    worker->ended = true;
    return NULL;
}

static void turn_thread(struct worker *worker) {
    if (worker->there && worker->ended) {
        if (pthread_join(worker->thread, NULL) != 0)
            wrong("pthread_join");
        if (worker->result != work(worker->seed, worker->rounds))
            wrong("a thread computed something else");
        worker->there = false;
        joined++;
    } else if (!worker->there) {
        *worker = (struct worker){.there = true, .seed = draw(&chance), .rounds = 1000 + draw(&chance) % 20000};
        made++;
        if (pthread_create(&worker->thread, NULL, run, worker) != 0)
            wrong("pthread_create: %s", strerror(errno));
    }
}

/* PROCMAP_QUERY of include/uapi/linux/fs.h (6.11): the mapping at an address. */
struct map_query {
    uint64_t size, flags, address, start, end, permissions, page_size, offset, inode;
    uint32_t major, minor, name_size, build_id_size;
    uint64_t name, build_id;
};
static int maps = -1;

/* Each mapping was made by one call: it lies in one of the kernel's, or mremap() over the border would fail some day. */
static void check_whole(const struct piece *piece) {
    struct map_query query = {.size = sizeof query, .address = (uintptr_t)piece->at};
    uintptr_t end = (uintptr_t)piece->at + piece->pages * PAGE;
    if (piece->at && ioctl(maps, _IOWR('f', 17, struct map_query), &query) == 0 && query.end < end)
        wrong("mapping %zu, %zu pages at %p, is split at %lx", (size_t)(piece - pieces), piece->pages, (void *)piece->at, query.end);
}

static void check_piece(const struct piece *piece) {
    static const char zeros[PAGE];
    check_whole(piece);
    for (size_t page = 0; piece->at && page < piece->pages; page++) {
        const char *at = piece->at + page * PAGE;
        if (page == piece->hole ? memcmp(at, zeros, PAGE) != 0 : !page_is(at, piece->key + page, piece->generation))
            wrong("mapping %zu at %p: page %zu of %zu, generation %lu", (size_t)(piece - pieces), (void *)piece->at, page, piece->pages,
                  piece->generation);
    }
}

static void rewrite(struct piece *piece) {
    piece->generation++;
    piece->hole = piece->pages;
    for (size_t page = 0; page < piece->pages; page++)
        fill_page(piece->at + page * PAGE, piece->key + page, piece->generation);
}

static void turn_piece(struct piece *piece) {
    if (!piece->at) {
        size_t pages = 1 + draw(&chance) % 24;
        char *at = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (at == MAP_FAILED)
            return wrong("mmap: %s", strerror(errno));
        *piece = (struct piece){.at = at, .pages = pages, .key = draw(&chance)};
        return rewrite(piece);
    }
    check_piece(piece);
    switch (draw(&chance) % 6) {
    case 0:
        if (munmap(piece->at, piece->pages * PAGE) != 0)
            wrong("munmap: %s", strerror(errno));
        piece->at = NULL;
        break;
    case 1:
        piece->sealed = !piece->sealed;
        if (mprotect(piece->at, piece->pages * PAGE, piece->sealed ? PROT_READ : PROT_READ | PROT_WRITE) != 0)
            wrong("mprotect: %s", strerror(errno));
        break;
    case 2:
        if (piece->pages > 1) {
            char *moved = mremap(piece->at, piece->pages * PAGE, (piece->pages - 1) * PAGE, 0);
            if (moved != piece->at)
                wrong("mremap, smaller: %s", strerror(errno));
            piece->pages--;
            if (piece->hole > piece->pages)
                piece->hole = piece->pages;
        }
        break;
    case 3: {
        char *to = mmap(NULL, piece->pages * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        char *moved = mremap(piece->at, piece->pages * PAGE, piece->pages * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, to);
        if (moved == MAP_FAILED) /* it spans two mappings: somebody has split it */
            return wrong("mremap, %zu pages at %p, moved: %s", piece->pages, (void *)piece->at, strerror(errno));
        piece->at = moved;
        break;
    }
    case 4:
        if (piece->hole == piece->pages) {
            size_t hole = draw(&chance) % piece->pages;
            if (madvise(piece->at + hole * PAGE, PAGE, MADV_DONTNEED) != 0)
                wrong("MADV_DONTNEED: %s", strerror(errno));
            piece->hole = hole;
        }
        break;
    default:
        if (!piece->sealed)
            rewrite(piece);
    }
}

static void check_handle(const struct handle *handle) {
    struct stat by_fd, by_path;
    if (handle->fd < 0)
        return;
    if (fstat(handle->fd, &by_fd) != 0 || stat(paths[handle->name], &by_path) != 0 || by_fd.st_ino != by_path.st_ino)
        wrong("descriptor %d is not %s", handle->fd, paths[handle->name]);
    off_t position = handle->name < NAMES ? lseek(handle->fd, 0, SEEK_CUR) : handle->position;
    if (position != handle->position)
        wrong("descriptor %d stands at %ld, not %ld", handle->fd, (long)position, (long)handle->position);
}

static void read_handle(struct handle *handle) {
    uint64_t words[16];
    if (handle->name > NAMES)
        return;
    if (handle->name < NAMES && handle->position > (off_t)((FILE_PAGES - 1) * PAGE))
        handle->position = lseek(handle->fd, 0, SEEK_SET);
    if (read(handle->fd, words, sizeof words) != sizeof words)
        wrong("read of %s at %ld: %s", paths[handle->name], (long)handle->position, strerror(errno));
    for (uint64_t i = 0; i < 16; i++) {
        uint64_t should = handle->name == NAMES ? 0 : mix((uint64_t)handle->name, (uint64_t)handle->position / 8 + i);
        if (words[i] != should)
            wrong("%s at %ld has other contents", paths[handle->name], (long)handle->position);
    }
    if (handle->name < NAMES)
        handle->position += (off_t)sizeof words;
}

static void turn_handle(struct handle *handle) {
    check_handle(handle);
    if (handle->fd < 0) {
        handle->name = (int)(draw(&chance) % (NAMES + 2));
        handle->position = 0;
        handle->fd = open(paths[handle->name], (handle->name == NAMES + 1 ? O_DIRECTORY : 0) | O_RDONLY | (draw(&chance) % 2 ? O_CLOEXEC : 0));
        if (handle->fd < 0)
            wrong("open %s: %s", paths[handle->name], strerror(errno));
    } else if (draw(&chance) % 4 == 0) {
        if (close(handle->fd) != 0)
            wrong("close %d: %s", handle->fd, strerror(errno));
        handle->fd = -1;
    } else
        read_handle(handle);
}

static void make_files(const char *folder) {
    static uint64_t words[FILE_PAGES * PAGE / 8];
    for (int name = 0; name < NAMES; name++) {
        snprintf(paths[name], sizeof paths[name], "%s/churn-%d", folder, name);
        int fd = open(paths[name], O_RDWR | O_CREAT | O_TRUNC, 0600);
        for (uint64_t i = 0; i < FILE_PAGES * PAGE / 8; i++)
            words[i] = mix((uint64_t)name, i);
        need(fd >= 0 && write(fd, words, sizeof words) == sizeof words, paths[name]);
        close(fd);
    }
    strcpy(paths[NAMES], "/dev/zero");
    snprintf(paths[NAMES + 1], sizeof paths[0], "%s", folder);
}

static void check(void) {
    uint64_t there = 0;
    for (int i = 0; i < THREADS; i++)
        there += workers[i].there;
    if (made != joined + there)
        wrong("%lu threads made, %lu joined, %lu there", made, joined, there);
    for (int i = 0; i < MAPPINGS; i++)
        check_piece(&pieces[i]);
    for (int i = 0; i < FILES; i++)
        check_handle(&handles[i]);
}

int main(int argc, char **argv) {
    need(argc == 2, "usage: churn FOLDER");
    make_files(argv[1]);
    maps = open("/proc/self/maps", O_RDONLY | O_CLOEXEC);
    need(maps >= 0, "/proc/self/maps");
    for (int i = 0; i < FILES; i++)
        handles[i].fd = -1;
    for (uint64_t turn = 0;; turn++) {
        turn_thread(&workers[turn % THREADS]);
        turn_piece(&pieces[draw(&chance) % MAPPINGS]);
        turn_handle(&handles[draw(&chance) % FILES]);
        if (turn == 400)
            ready();
        if (turn > 400 && turn % 4 == 0 && asked(1)) {
            uint64_t until = joined + 4, deadline = clock_ns() + 10000000000u; /* threads must go on ending */
            for (uint64_t i = 0; joined < until && clock_ns() < deadline; i++) {
                turn_thread(&workers[i % THREADS]);
                usleep(200);
            }
            if (joined < until)
                wrong("no thread ends");
            check();
            answer();
        }
    }
}
