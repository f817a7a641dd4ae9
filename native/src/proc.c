/* proc.c: small reads of /proc. They run while a target is frozen, so: open, read, close into the caller's buffer, numbers
 * by hand, no stdio and no allocation.
 *
 * Invariants
 *  1. A text that did not fit is an error (-ENOSPC), never a shorter text.
 *  2. A file that the kernel makes as one record comes whole with the first read, so its end is not asked for. (It is for maps,
 *     timers and children: lists, which come a page at a time.)
 *  3. Names are made from integers only, so no buffer here can overflow: NAME_ROOM holds any of them.
 */
#define _GNU_SOURCE
#include "internal.h"
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>

/* single_open() or simple_read_from_buffer() in fs/proc. */
static bool is_one_record(const char *name) {
    static const char *const known[] = {"stat", "status", "auxv", "oom_score_adj"};
    const char *slash = strrchr(name, '/'), *last = slash ? slash + 1 : name;
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (!strcmp(last, known[i]))
            return true;
    return last[0] >= '0' && last[0] <= '9'; /* fdinfo/N */
}

ssize_t proc_read_open(int fd, const char *name, void *buffer, size_t cap) {
    bool whole = is_one_record(name);
    size_t used = 0;
    for (;;) {
        ssize_t got = sys_pread(fd, (char *)buffer + used, cap - used, used);
        if (got == -EINTR)
            continue;
        if (got < 0)
            return got;
        used += (size_t)got;
        if (used == cap)
            return -ENOSPC;
        if (got == 0 || whole)
            return (ssize_t)used;
    }
}

ssize_t proc_read(int dir, const char *name, void *buffer, size_t cap) {
    _cleanup_close_ int fd = sys_openat(dir, name, O_RDONLY);
    return fd < 0 ? fd : proc_read_open(fd, name, buffer, cap);
}

enum { DENTS_BYTES = 32 << 10 };

struct linux_dirent64_head { /* getdents64(2) */
    uint64_t ino;
    int64_t off;
    uint16_t length;
    uint8_t type;
    char name[];
};

int proc_each_number(int dir, int (*visit)(void *context, pid_t number), void *context) {
    _Alignas(8) char dents[DENTS_BYTES];
    int sum = 0;
    for (;;) {
        ssize_t bytes = sys_getdents(dir, dents, sizeof dents);
        if (bytes <= 0)
            return bytes < 0 ? (int)bytes : sum;
        for (ssize_t at = 0; at < bytes;) {
            const struct linux_dirent64_head *entry = (const void *)(dents + at);
            at += entry->length;
            if (entry->name[0] == '.')
                continue;
            int got = visit(context, (pid_t)strtol(entry->name, NULL, 10));
            if (got < 0)
                return got;
            sum += got;
        }
    }
}

char *proc_name(char *buffer, const char *prefix, uint64_t number, const char *suffix) {
    char digits[24];
    size_t count = 0;
    do
        digits[count++] = (char)('0' + number % 10);
    while (number /= 10);
    char *at = stpcpy(buffer, prefix);
    while (count)
        *at++ = digits[--count];
    strcpy(at, suffix);
    return buffer;
}

/* The command's name (field 2) may hold anything, ")" and spaces included: the fields start behind the last ")". */
int proc_stat(int dir, const char *name, struct proc_stat *ret_stat) {
    char text[1024];
    ssize_t bytes = proc_read(dir, name, text, sizeof text);
    if (bytes < 0)
        return bytes == -ENOENT ? -ESRCH : (int)bytes;
    const char *at = memrchr(text, ')', (size_t)bytes), *end = text + bytes;
    if (!at || end - at < 4)
        return -EBADMSG;
    struct proc_stat stat = {.state = at[2]};
    uint64_t value = 0;
    int field = 2;
    for (at++; at < end; at++) {
        if (*at == ' ' || *at == '\n') {
            if (field == 4)
                stat.ppid = (pid_t)value;
            if (field == 9)
                stat.flags = (uint32_t)value;
            if (field == 22)
                stat.start_ticks = machine_ticks(value);
            if (field == 39)
                stat.cpu = (int)value;
            field++;
            value = 0;
        } else if (*at >= '0' && *at <= '9') {
            value = value * 10 + (uint64_t)(*at - '0');
        }
    }
    *ret_stat = stat;
    return field > 22 ? 0 : -EBADMSG;
}

uint64_t proc_field(const char *text, size_t bytes, const char *key, int base, uint64_t missing) {
    size_t length = strlen(key);
    const char *at = text, *end = text + bytes;
    while (at && (size_t)(end - at) > length) {
        if (!memcmp(at, key, length) && at[length] == ':')
            break;
        at = memchr(at, '\n', (size_t)(end - at));
        at += at != NULL;
    }
    if (!at || (size_t)(end - at) <= length)
        return missing;
    uint64_t value = 0;
    for (at += length + 1; at < end && (*at == ' ' || *at == '\t'); at++)
        ;
    for (; at < end; at++) {
        int digit = *at >= 'a' && *at <= 'f' ? *at - 'a' + 10 : *at - '0';
        if (digit < 0 || digit >= base)
            break;
        value = value * (uint64_t)base + (uint64_t)digit;
    }
    return value;
}

static char *hex(char *at, uint64_t number) {
    char digits[17];
    size_t count = 0;
    do
        digits[count++] = "0123456789abcdef"[number % 16];
    while (number /= 16);
    while (count)
        *at++ = digits[--count];
    *at = 0;
    return at;
}

char *proc_hex_range(char *buffer, const char *prefix, uint64_t start, uint64_t end) {
    char *at = hex(stpcpy(buffer, prefix), start);
    hex(stpcpy(at, "-"), end);
    return buffer;
}
