/* maps.c: the text of /proc/PID/maps, as little of it as scanning needs.
 *
 * A line is "start-end perms offset major:minor inode  path", all hexadecimal but the inode. The parse runs while the
 * target is frozen: no stdio, no allocation (maps_parse_into), one pass over the bytes.
 *
 * Invariants
 *  1. A line that does not look so ends the parse with -EBADMSG: a memory is scanned whole or not at all.
 *  2. Lines come sorted by address and do not overlap (the kernel's promise), and stay so.
 */
#include "internal.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>

struct cursor {
    const char *at, *end;
    bool bad;
};

static int digit(char c) {
    if (c >= '0' && c <= '9')
        return c - '0';
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : 99;
}

static uint64_t number(struct cursor *text, int base) {
    uint64_t value = 0;
    const char *begin = text->at;
    while (text->at < text->end && digit(*text->at) < base)
        value = value * (uint64_t)base + (uint64_t)digit(*text->at++);
    text->bad |= text->at == begin;
    return value;
}

static void expect(struct cursor *text, char c) {
    if (text->at < text->end && *text->at == c)
        text->at++;
    else
        text->bad = true;
}

static void path(struct cursor *text, struct map_line *line) {
    while (text->at < text->end && *text->at == ' ')
        text->at++;
    const char *newline = memchr(text->at, '\n', (size_t)(text->end - text->at));
    if (!newline) {
        text->bad = true; /* cut in the middle: the reader's buffer was too small */
        return;
    }
    size_t length = (size_t)(newline - text->at);
    size_t kept = length < sizeof line->path ? length : sizeof line->path - 1;
    memcpy(line->path, text->at, kept);
    memset(line->path + kept, 0, sizeof line->path - kept);
    static const char deleted[] = " (deleted)";
    size_t tail = sizeof deleted - 1;
    line->deleted = length > tail && !memcmp(newline - tail, deleted, tail);
    text->at = newline + 1;
}

static void one_line(struct cursor *text, struct map_line *line) {
    line->start = number(text, 16);
    expect(text, '-');
    line->end = number(text, 16);
    expect(text, ' ');
    if (text->end - text->at < (ptrdiff_t)sizeof line->perms) {
        text->bad = true;
        return;
    }
    memcpy(line->perms, text->at, sizeof line->perms);
    text->at += sizeof line->perms;
    expect(text, ' ');
    line->offset = number(text, 16);
    expect(text, ' ');
    line->dev_major = (uint32_t)number(text, 16);
    expect(text, ':');
    line->dev_minor = (uint32_t)number(text, 16);
    expect(text, ' ');
    line->ino = number(text, 10);
    path(text, line);
}

/* Returns the number of lines, -EBADMSG, or -ENOSPC when there are more than cap. */
ssize_t maps_parse_into(const char *text, size_t bytes, struct map_line *lines, size_t cap) {
    struct cursor cursor = {.at = text, .end = text + bytes};
    size_t count = 0;
    while (cursor.at < cursor.end) {
        if (count == cap)
            return -ENOSPC;
        one_line(&cursor, &lines[count++]);
        if (cursor.bad)
            return -EBADMSG;
    }
    return (ssize_t)count;
}

int maps_parse(const char *text, size_t bytes, struct map_line **ret_lines, size_t *ret_count) {
    size_t cap = 1;
    for (size_t i = 0; i < bytes; i++)
        cap += text[i] == '\n';
    _cleanup_free_ struct map_line *lines = malloc(cap * sizeof *lines);
    if (!lines)
        return -ENOMEM;
    ssize_t count = maps_parse_into(text, bytes, lines, cap);
    if (count < 0)
        return (int)count;
    *ret_lines = take_ptr(&lines);
    *ret_count = (size_t)count;
    return 0;
}

static bool is(const struct map_line *line, const char *name) { return !strcmp(line->path, name); }

/* [vvar] and [vvar_vclock] are the kernel's clocks; [vdso] is its code (its identity is recorded, not its bytes);
 * [vsyscall] lies outside user memory; [uprobes] belongs to whoever traces. */
enum ckpt_range_kind maps_kind(const struct map_line *line) {
    if (line->perms[3] == 's' || line->perms[3] == 'S')
        return CKPT_RANGE_SKIP;
    if (is(line, "[vdso]") || is(line, "[vvar]") || is(line, "[vvar_vclock]") || is(line, "[vsyscall]") || is(line, "[uprobes]"))
        return CKPT_RANGE_SKIP;
    return line->ino || line->path[0] == '/' ? CKPT_RANGE_FILE_PRIVATE : CKPT_RANGE_ANON;
}
