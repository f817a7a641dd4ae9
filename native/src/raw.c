/* raw.c: what the kernel shows of each process and thread, taken as it is: files of /proc, registers, signals, limits.
 *
 * Invariants
 *  1. Registers are those of the stop, before the decision: the decided rax has a record of its own.
 *  2. A thread that dies under us (SIGKILL) fails the capture with -ESRCH: half a thread is not recorded.
 *  3. What an older kernel does not know (rseq configuration) is left out, not invented.
 */
#define _GNU_SOURCE
#include "capture.h"
#include "inject.h"
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>

enum {
    XSTATE_ROOM = 16 << 10, /* AVX-512 needs 2.7 kB, AMX 11 kB */
    FILE_ROOM = 64 << 10,   /* first try for a file of /proc */
    SIGINFO_BYTES = 128,
    SIGINFO_BATCH = 32,
    LIMIT_COUNT = 16,
};
_Static_assert(sizeof(siginfo_t) == SIGINFO_BYTES, "records hold kernel siginfo");

/* Where a text comes from: a file by its name, or one of a thread (ahead.c). */
struct source {
    int dir;
    const char *name;
    const struct thread *thread; /* NULL: dir and name */
    int which;
};

static ssize_t read_text(ckpt_tree *tree, const struct source *from, void *buffer, size_t cap) {
    return from->thread ? ahead_read(tree, from->thread, from->which, from->name, buffer, cap) : proc_read(from->dir, from->name, buffer, cap);
}

/* head: all but the size. A file that is not there, or not readable for this kind of process, gives no record and 0. */
static int record_text(struct window *window, const struct ckpt_record *head, const struct source *from, struct text_at *ret_where) {
    for (size_t room = FILE_ROOM;; room *= 4) {
        char *buffer = sink_record_begin(window->sink, head->kind, head->pid, head->tid, head->fd, head->index, room);
        if (!buffer)
            return -ENOMEM;
        ssize_t size = read_text(window->tree, from, buffer, room);
        if (size == -ENOSPC)
            continue;
        if (size == -ENOENT || size == -EINVAL || size == -EIO)
            return 0;
        if (size < 0)
            return tree_fail(window->tree, (int)size, "read", head->pid, head->tid, head->fd, 0, from->name);
        if (ret_where) {
            const uint8_t *base;
            *ret_where = (struct text_at){.offset = ckpt_sink_records(window->sink, &base) + sizeof(struct ckpt_record), .size = (size_t)size};
        }
        sink_record_commit(window->sink, (size_t)size);
        return 0;
    }
}

int record_file(struct window *window, uint32_t kind, pid_t pid, pid_t tid, int fd, int index, int dir, const char *name, struct text_at *ret_where) {
    const struct ckpt_record head = {.kind = kind, .pid = pid, .tid = tid, .fd = fd, .index = index};
    return record_text(window, &head, &(struct source){.dir = dir, .name = name}, ret_where);
}

const char *text_of(const struct window *window, struct text_at where) {
    const uint8_t *base;
    ckpt_sink_records(window->sink, &base);
    return (const char *)base + where.offset;
}

static int add(struct window *window, uint32_t kind, const struct thread *thread, const void *bytes, size_t size) {
    return sink_record(window->sink, kind, thread->pid, thread->tid, -1, 0, bytes, size);
}

static int failed(struct window *window, long error, const struct thread *thread, const char *what) {
    return tree_fail(window->tree, (int)error, "registers", thread->pid, thread->tid, -1, 0, what);
}

static int xstate(struct window *window, const struct thread *thread) {
    struct iovec area = {.iov_len = XSTATE_ROOM};
    area.iov_base = sink_record_begin(window->sink, CKPT_R_XSTATE, thread->pid, thread->tid, -1, 0, XSTATE_ROOM);
    if (!area.iov_base)
        return -ENOMEM;
    long error = sys_ptrace(PTRACE_GETREGSET, thread->tid, NT_X86_XSTATE, (uintptr_t)&area);
    if (error)
        return failed(window, error, thread, "xstate");
    sink_record_commit(window->sink, area.iov_len);
    return 0;
}

/* The queue is peeked in batches until one comes back short. Nothing is consumed. */
static int pending(struct window *window, const struct thread *thread, uint32_t kind, uint32_t flags) {
    size_t count = 0;
    for (;;) {
        char *room = sink_record_begin(window->sink, kind, thread->pid, kind == CKPT_R_PENDING_THREAD ? thread->tid : 0, -1, 0,
                                       (count + SIGINFO_BATCH) * SIGINFO_BYTES);
        if (!room)
            return -ENOMEM;
        struct __ptrace_peeksiginfo_args args = {.off = count, .flags = flags, .nr = SIGINFO_BATCH};
        long got = sys_ptrace(PTRACE_PEEKSIGINFO, thread->tid, (uintptr_t)&args, (uintptr_t)(room + count * SIGINFO_BYTES));
        if (got < 0)
            return failed(window, got, thread, "pending signals");
        count += (size_t)got;
        if (got < SIGINFO_BATCH)
            break;
    }
    if (count)
        sink_record_commit(window->sink, count * SIGINFO_BYTES);
    return 0;
}

static int rseq_and_robust(struct window *window, const struct thread *thread) {
    struct rseq_place place = thread->rseq;
    int error = 0;
    if (place.pointer || rseq_place(thread, &place))
        error = add(window, CKPT_R_RSEQ, thread, &place, sizeof place);
    uint64_t robust[2];
    if (!error && sys_robust_list(thread->tid, &robust[0], &robust[1]) == 0)
        error = add(window, CKPT_R_ROBUST, thread, robust, sizeof robust);
    return error;
}

/* What the next steps would read again. */
static void note_status(const ckpt_tree *tree, struct thread *thread, const char *text, size_t size) {
    wait_counted(thread, text, size);
    if (!proc_field(text, size, "Seccomp", 10, 1))
        thread->unfiltered_at = tree->standing;
}

static int thread_files(struct window *window, struct thread *thread) {
    const char *const *files = window->options->thread_files;
    for (int i = 0; files && files[i]; i++) {
        const struct ckpt_record head = {.kind = CKPT_R_THREAD_FILE, .pid = thread->pid, .tid = thread->tid, .fd = -1, .index = i};
        struct text_at where = {0};
        int error = record_text(window, &head, &(struct source){.name = files[i], .thread = thread, .which = 1 + i}, &where);
        if (error)
            return error;
        if (!strcmp(files[i], "status"))
            note_status(window->tree, thread, text_of(window, where), where.size);
    }
    return 0;
}

static int raw_thread(struct window *window, struct thread *thread) {
    int error = add(window, CKPT_R_REGS, thread, &thread->regs, sizeof thread->regs);
    if (!error)
        error = xstate(window, thread);
    if (!error)
        error = add(window, CKPT_R_SIGMASK, thread, &thread->sigmask, sizeof thread->sigmask);
    if (!error)
        error = add(window, CKPT_R_DECISION, thread, &thread->decision, sizeof thread->decision);
    if (!error)
        error = pending(window, thread, CKPT_R_PENDING_THREAD, 0);
    if (!error)
        error = rseq_and_robust(window, thread);
    return error ? error : thread_files(window, thread);
}

/* One column of /proc/PID/limits: digits, or "unlimited". */
static rlim_t limit_of(const char *column) {
    while (*column == ' ')
        column++;
    return *column == 'u' ? RLIM_INFINITY : strtoull(column, NULL, 10);
}

/* The table of /proc/PID/limits: a head line, then one line a limit in the order of their numbers, in columns of 26, 21
 * and 21 characters (fs/proc/base.c, proc_pid_limits). */
static int limits_from_text(const struct task *task, struct rlimit *ret_limits) {
    char text[4096];
    ssize_t got = proc_read(task->dir, "limits", text, sizeof text - 1);
    if (got < 0)
        return (int)got;
    text[got] = 0;
    const char *line = text;
    for (int i = 0; i < LIMIT_COUNT; i++) {
        line = strchr(line, '\n');
        if (!line || strlen(++line) < 47)
            return -EIO;
        ret_limits[i] = (struct rlimit){.rlim_cur = limit_of(line + 26), .rlim_max = limit_of(line + 47)};
    }
    return 0;
}

/* prlimit of another user's process wants CAP_SYS_RESOURCE, which even root may lack: the text shows the same. */
static int limits(struct window *window, const struct task *task) {
    struct rlimit limit[LIMIT_COUNT];
    int error = 0;
    for (int i = 0; i < LIMIT_COUNT && !error; i++)
        error = sys_prlimit(task->pid, i, &limit[i]);
    if (error == -EPERM)
        error = limits_from_text(task, limit);
    if (error)
        return tree_fail(window->tree, error, "limits", task->pid, 0, -1, 0, NULL);
    return sink_record(window->sink, CKPT_R_LIMITS, task->pid, 0, -1, 0, limit, sizeof limit);
}

static int proc_files(struct window *window, size_t index) {
    ckpt_tree *tree = window->tree;
    struct task *task = &tree->tasks[index];
    const char *const *files = window->options->proc_files;
    for (int i = 0; files && files[i]; i++) {
        bool maps = !strcmp(files[i], "maps");
        if (maps && beside_reads(window, index))
            continue;
        struct text_at where = {0};
        int error = record_file(window, CKPT_R_PROC_FILE, task->pid, 0, -1, i, task->dir, files[i], &where);
        if (error)
            return error;
        if (maps)
            window->maps[index] = where;
        else if (!strcmp(files[i], "status"))
            inject_note_status(tree, task, text_of(window, where), where.size);
        else if (!strcmp(files[i], "timers") && !where.size)
            task->timerless_at = tree->standing;
    }
    return 0;
}

int raw_maps(struct window *window, size_t index) {
    const struct task *task = &window->tree->tasks[index];
    const char *const *files = window->options->proc_files;
    const uint8_t *base;
    int i = 0;
    while (files && files[i] && strcmp(files[i], "maps"))
        i++;
    if (!files || !files[i] || !beside_reads(window, index))
        return 0;
    size_t size;
    const char *text = beside_text(window, index, &size);
    if (!text)
        return record_file(window, CKPT_R_PROC_FILE, task->pid, 0, -1, i, task->dir, "maps", &window->maps[index]);
    window->maps[index] = (struct text_at){.offset = ckpt_sink_records(window->sink, &base) + sizeof(struct ckpt_record), .size = size};
    return sink_record(window->sink, CKPT_R_PROC_FILE, task->pid, 0, -1, i, text, size);
}

int raw_task(struct window *window, size_t index) {
    ckpt_tree *tree = window->tree;
    const struct task *task = &tree->tasks[index];
    if (task->zombie)
        return raw_zombie(window, task);
    int error = proc_files(window, index);
    if (!error)
        error = raw_shares(window, index);
    if (!error)
        error = limits(window, task);
    if (!error)
        error = pending(window, tree_leader(tree, task->pid), CKPT_R_PENDING_SHARED, PTRACE_PEEKSIGINFO_SHARED);
    for (size_t i = 0; !error && i < tree->thread_count; i++)
        if (tree->threads[i].pid == task->pid)
            error = raw_thread(window, &tree->threads[i]);
    return error;
}

int raw_tree(struct window *window) {
    size_t count = window->tree->thread_count, bytes = count * sizeof(struct ckpt_thread_id);
    struct ckpt_thread_id *threads = sink_record_begin(window->sink, CKPT_R_THREADS, window->tree->root, 0, -1, 0, bytes);
    if (!threads)
        return -ENOMEM;
    ckpt_tree_threads(window->tree, threads, count);
    sink_record_commit(window->sink, bytes);
    return 0;
}
