/* objects.c: memory that several mappings, descriptors or processes may share and that no named file keeps: shared anonymous
 * memory, memfd, System V segments, deleted files. Each is read once, through the file, as a space of its own
 * (1000000 + n), and announced by CKPT_R_OBJECT with that number as index. Pages are by offset.
 *
 * Tracking does not see every write to them (pwrite, other mappings, other processes), so they are read whole each time;
 * holes are skipped by SEEK_DATA, which for tmpfs means: never written pages cost nothing.
 *
 * Invariants
 *  1. Identity is (device, inode) of the file itself; a second mapping or descriptor adds nothing.
 *  2. We read through an open of our own (/proc/PID/map_files, /proc/PID/fd): the target's position is not moved.
 *  3. A tail behind the end of the file reads as zeros.
 *  4. A deleted file that is only mapped is read if it is of tmpfs, or not larger than CKPT_UNNAMED_BYTES: it may be an old version of a
 *     library, which nobody can bring back otherwise. Not of FUSE: who answers may stand still with the tree.
 *  5. Runs come in order of pages; a page of zeros becomes ZERO and takes no room in the sink.
 */
#define _GNU_SOURCE
#include "capture.h"
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/vfs.h>

enum {
    TMPFS_TYPE = 0x01021994,
    FUSE_TYPE = 0x65735546,
    CHUNK = 256 << 10,
};
static const unsigned long HUGETLBFS_TYPE = 0x958458f6;

static bool is_zero(const uint8_t *page) { return !page[0] && !memcmp(page, page + 1, CKPT_PAGE - 1); }

/* Reads up to `bytes` at offset into room; what lies behind the end is zeros. */
static int read_pages(int file, uint8_t *room, size_t bytes, uint64_t offset) {
    size_t done = 0;
    while (done < bytes) {
        ssize_t got = sys_pread(file, room + done, bytes - done, offset + done);
        if (got == -EINTR)
            continue;
        if (got < 0)
            return (int)got;
        if (got == 0)
            break;
        done += (size_t)got;
    }
    memset(room + done, 0, bytes - done);
    return 0;
}

/* Names the chunk's pages and moves its data pages together; *ret_kept bytes of them remain in room. */
static int name_pages(ckpt_sink *sink, uint8_t *room, size_t bytes, uint64_t first_page, size_t *ret_kept) {
    size_t kept = 0;
    for (size_t at = 0; at < bytes; at += CKPT_PAGE) {
        bool zero = is_zero(room + at);
        int error = sink_run(sink, first_page + at / CKPT_PAGE, 1, zero ? CKPT_ZERO : CKPT_DATA);
        if (error)
            return error;
        if (zero)
            continue;
        if (kept != at)
            memcpy(room + kept, room + at, CKPT_PAGE);
        kept += CKPT_PAGE;
    }
    *ret_kept = kept;
    return 0;
}

static int read_extent(ckpt_sink *sink, int file, uint64_t start, uint64_t end) {
    while (start < end) {
        size_t got, kept, want = end - start < CHUNK ? (size_t)(end - start) : CHUNK;
        uint8_t *room = sink_room(sink, want, &got);
        got -= got % CKPT_PAGE;
        if (!got)
            return -ENOSPC;
        int error = read_pages(file, room, got, start);
        if (!error)
            error = name_pages(sink, room, got, start / CKPT_PAGE, &kept);
        if (!error)
            error = sink_filled(sink, kept);
        if (error)
            return error;
        start += got;
    }
    return 0;
}

static uint64_t page_up(uint64_t bytes) { return (bytes + CKPT_PAGE - 1) / CKPT_PAGE * CKPT_PAGE; }
static uint64_t page_down(uint64_t bytes) { return bytes / CKPT_PAGE * CKPT_PAGE; }

static int read_object(ckpt_sink *sink, int file, uint64_t size) {
    for (uint64_t at = 0; at < size;) {
        int64_t data = sys_lseek(file, (int64_t)at, SEEK_DATA);
        if (data == -ENXIO)
            return 0; /* only a hole is left */
        if (data < 0)
            return (int)data;
        int64_t hole = sys_lseek(file, data, SEEK_HOLE);
        if (hole < 0)
            return (int)hole;
        uint64_t start = page_down((uint64_t)data) < at ? at : page_down((uint64_t)data), end = page_up((uint64_t)hole);
        int error = read_extent(sink, file, start, end);
        if (error)
            return error;
        at = end;
    }
    return 0;
}

static int remember(struct window *window, const struct stat *stat, bool *ret_new) {
    for (size_t i = 0; i < window->object_count; i++)
        if (window->objects[i].dev == stat->st_dev && window->objects[i].ino == stat->st_ino) {
            *ret_new = false;
            return 0;
        }
    int error = rows_grow((void **)&window->objects, window->object_count, &window->object_cap, sizeof *window->objects);
    if (error)
        return error;
    window->objects[window->object_count++] = (struct shared_object){.dev = stat->st_dev, .ino = stat->st_ino};
    *ret_new = true;
    return 0;
}

int capture_object(struct window *window, int file, pid_t pid) {
    struct stat stat;
    bool is_new;
    beside_join(window); /* the sink takes one space at a time */
    int error = sys_statat(file, "", &stat, AT_EMPTY_PATH);
    if (!error)
        error = remember(window, &stat, &is_new);
    if (error || !is_new)
        return error;
    uint64_t began = now_ns();
    int32_t space = sink_next_object(window->sink);
    struct ckpt_object object = {.dev = stat.st_dev, .ino = stat.st_ino, .size = (uint64_t)stat.st_size};
    error = sink_record(window->sink, CKPT_R_OBJECT, pid, 0, -1, space, &object, sizeof object);
    if (!error)
        error = sink_space(window->sink, space);
    if (!error)
        error = read_object(window->sink, file, object.size);
    window->timing.copy += now_ns() - began;
    return error;
}

static bool begins(const char *text, const char *prefix) { return !strncmp(text, prefix, strlen(prefix)); }

/* Surely one of ours by its name; others on a device without a disk are opened to see. */
static bool named_so(const struct map_line *line) {
    return begins(line->path, "/memfd:") || begins(line->path, "/dev/zero (deleted)") || begins(line->path, "/SYSV");
}

static bool may_be_object(const struct map_line *line) {
    if (!line->ino && !named_so(line))
        return false; /* a System V segment may have inode 0 */
    return line->path[0] == '/' && (line->deleted || (line->dev_major == 0 && (named_so(line) || line->perms[3] == 's')));
}

/* A file with a name is the file system's, not ours. Where nothing is ever stored (no blocks) a file is a driver's. */
static bool kept_by_nobody(int file, const struct stat *stat, bool named_so) {
    struct statfs fs;
    if (sys_statfs(file, &fs))
        return false;
    unsigned long type = (unsigned long)fs.f_type;
    if (type == TMPFS_TYPE || type == HUGETLBFS_TYPE)
        return named_so || !stat->st_nlink;
    return !stat->st_nlink && S_ISREG(stat->st_mode) && fs.f_blocks && type != FUSE_TYPE && stat->st_size <= CKPT_UNNAMED_BYTES;
}

static int mapped_object(struct window *window, const struct task *task, const struct map_line *line) {
    char name[NAME_ROOM];
    struct stat stat;
    proc_hex_range(name, "map_files/", line->start, line->end);
    _cleanup_close_ int file = sys_openat(task->dir, name, O_RDONLY);
    if (file < 0)
        return named_so(line) ? tree_fail(window->tree, file, "shared memory", task->pid, 0, -1, line->start, line->path) : 0;
    if (sys_statat(file, "", &stat, AT_EMPTY_PATH) || !kept_by_nobody(file, &stat, named_so(line)))
        return 0;
    int error = capture_object(window, file, task->pid);
    return error ? tree_fail(window->tree, error, "shared memory", task->pid, 0, -1, line->start, line->path) : 0;
}

bool may_map_objects(const struct map_line *lines, size_t count) {
    bool found = false;
    for (size_t i = 0; i < count && !found; i++)
        found = may_be_object(&lines[i]);
    return found;
}

int capture_mapped_objects(struct window *window, const struct task *task, const struct map_line *lines, size_t count) {
    for (size_t i = 0; i < count; i++) {
        int error = may_be_object(&lines[i]) ? mapped_object(window, task, &lines[i]) : 0;
        if (error)
            return error;
    }
    return 0;
}
