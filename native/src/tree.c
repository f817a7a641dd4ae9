/* tree.c: the tables of a tree: which processes and threads, opened but not stopped.
 *
 * A row of a task holds a directory handle of /proc/PID and a pidfd: both name the process itself, so a recycled number
 * answers ESRCH instead of standing in for it. /proc/PID/mem is bound to the memory of the moment it is opened (an exec
 * replaces it), so it is opened while frozen and closed at the thaw.
 *
 * Invariants
 *  1. Every thread row's pid has a task row. A zombie has a task row and no thread rows.
 *  2. Rows move when the tables grow or are compacted: nobody keeps a pointer over tree_add_* or tree_drop_gone().
 *  3. task.mm is valid while frozen: the position of the first task with the same memory (kcmp), its own if alone.
 */
#define _GNU_SOURCE
#include "internal.h"
#include <errno.h>
#include <fcntl.h>
#include <linux/kcmp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum { PF_KTHREAD_BIT = 0x00200000, ELF_CLASS_AT = 4, ELF_CLASS_64 = 2, DEFAULT_RETRIES = 100 };

struct task *tree_task(ckpt_tree *tree, pid_t pid) {
    for (size_t i = 0; i < tree->task_count; i++)
        if (tree->tasks[i].pid == pid)
            return &tree->tasks[i];
    return NULL;
}

struct thread *tree_thread(ckpt_tree *tree, pid_t tid) {
    for (size_t i = 0; i < tree->thread_count; i++)
        if (tree->threads[i].tid == tid)
            return &tree->threads[i];
    return NULL;
}

struct thread *tree_leader(ckpt_tree *tree, pid_t pid) { return tree_thread(tree, pid); }

static int grow(void **rows, size_t count, size_t *cap, size_t size) {
    if (count < *cap)
        return 0;
    size_t wanted = *cap ? *cap * 2 : 32;
    void *moved = reallocarray(*rows, wanted, size);
    if (!moved)
        return -ENOMEM;
    *rows = moved;
    *cap = wanted;
    return 0;
}

static void task_close(struct task *task) {
    close_fd(&task->pidfd);
    close_fd(&task->dir);
    close_fd(&task->mem);
    close_fd(&task->uffd);
}

/* A 32-bit program is refused before it is touched: its interrupted calls have other numbers and registers. */
static bool is_32_bit(int dir) {
    unsigned char head[ELF_CLASS_AT + 1] = {0};
    _cleanup_close_ int exe = sys_openat(dir, "exe", O_RDONLY);
    return exe >= 0 && sys_pread(exe, head, sizeof head, 0) == sizeof head && !memcmp(head, "\177ELF", 4) && head[ELF_CLASS_AT] != ELF_CLASS_64;
}

/* Whether a ptrace would be allowed, asked of the kernel without stopping anybody: mem needs PTRACE_MODE_ATTACH. */
static int may_attach(ckpt_tree *tree, const struct task *task) {
    _cleanup_close_ int mem = sys_openat(task->dir, "mem", O_RDWR);
    if (mem >= 0)
        return 0;
    if (mem == -ESRCH || mem == -ENOENT)
        return -ESRCH;
    return tree_fail(tree, mem == -EACCES ? -EPERM : mem, "attach", task->pid, 0, -1, 0, "not permitted");
}

static unsigned count_threads(const struct task *task) {
    struct stat stat;
    return sys_statat(task->dir, "task", &stat, 0) < 0 || stat.st_nlink < 2 ? 0 : (unsigned)stat.st_nlink - 2;
}

/* Fills in a row's nature; -ESRCH (without a fault) if the process went away meanwhile. */
static int examine(ckpt_tree *tree, struct task *task) {
    struct proc_stat stat;
    int error = proc_stat(task->dir, "stat", &stat);
    if (error)
        return error;
    task->start_ticks = stat.start_ticks;
    if (stat.flags & PF_KTHREAD_BIT)
        return tree_fail(tree, -EPERM, "kernel thread", task->pid, 0, -1, 0, NULL);
    if (stat.state == 'X')
        return -ESRCH;
    if (stat.state == 'Z') {
        if (count_threads(task) > 1)
            return tree_fail(tree, -EOPNOTSUPP, "zombie", task->pid, 0, -1, 0, "its leader exited, threads live on");
        task->zombie = true;
        return 0;
    }
    if (is_32_bit(task->dir))
        return tree_fail(tree, -EOPNOTSUPP, "32-bit", task->pid, 0, -1, 0, NULL);
    return may_attach(tree, task);
}

int tree_add_task(ckpt_tree *tree, pid_t pid) {
    if (tree_task(tree, pid))
        return 0;
    int error = grow((void **)&tree->tasks, tree->task_count, &tree->task_cap, sizeof *tree->tasks);
    if (error)
        return error;
    char name[NAME_ROOM];
    struct task task = {.pid = pid, .pidfd = -1, .dir = -1, .mem = -1, .uffd = -1, .mm = (int32_t)tree->task_count};
    task.pidfd = sys_pidfd_open(pid, 0);
    task.dir = task.pidfd < 0 ? task.pidfd : sys_openat(AT_FDCWD, proc_name(name, "/proc/", (uint64_t)pid, ""), O_PATH | O_DIRECTORY);
    error = task.dir < 0 ? task.dir : examine(tree, &task);
    if (error) {
        task_close(&task);
        return error == -ENOENT ? -ESRCH : error;
    }
    tree->tasks[tree->task_count++] = task;
    return 1;
}

int tree_add_thread(ckpt_tree *tree, pid_t pid, pid_t tid) {
    if (tree_thread(tree, tid))
        return 0;
    int error = grow((void **)&tree->threads, tree->thread_count, &tree->thread_cap, sizeof *tree->threads);
    if (error)
        return error;
    char name[NAME_ROOM];
    struct proc_stat stat;
    error = proc_stat(tree_task(tree, pid)->dir, proc_name(name, "task/", (uint64_t)tid, "/stat"), &stat);
    if (error)
        return error;
    tree->threads[tree->thread_count++] = (struct thread){.pid = pid, .tid = tid, .start_ticks = stat.start_ticks, .state = THREAD_FREE};
    return 1;
}

static bool has_threads(const ckpt_tree *tree, pid_t pid) {
    for (size_t i = 0; i < tree->thread_count; i++)
        if (tree->threads[i].pid == pid)
            return true;
    return false;
}

/* Rows have moved: `mm` is the first that had the same. From the end, so that those before still hold what they had. */
static void memories_moved(ckpt_tree *tree) {
    for (size_t i = tree->task_count; i-- > 0;) {
        int32_t first = 0;
        while (tree->tasks[first].mm != tree->tasks[i].mm)
            first++;
        tree->tasks[i].mm = first;
    }
}

void tree_drop_gone(ckpt_tree *tree) {
    size_t kept = 0;
    for (size_t i = 0; i < tree->thread_count; i++)
        if (tree->threads[i].state != THREAD_GONE)
            tree->threads[kept++] = tree->threads[i];
    tree->thread_count = kept;
    kept = 0;
    for (size_t i = 0; i < tree->task_count; i++) {
        struct task *task = &tree->tasks[i];
        struct proc_stat stat;
        if (!has_threads(tree, task->pid)) {
            if (proc_stat(task->dir, "stat", &stat)) {
                task_close(task);
                continue;
            }
            task->zombie = stat.state == 'Z' || stat.state == 'X';
        }
        tree->tasks[kept++] = *task;
    }
    bool moved = tree->task_count != kept;
    tree->task_count = kept;
    if (moved)
        memories_moved(tree);
}

/* kcmp answers 0 for the same memory. Where it is not built in, every process counts as alone: a shared memory is then
 * captured twice, which is right, only larger. */
int tree_index_memories(ckpt_tree *tree) {
    for (size_t i = 0; i < tree->task_count; i++) {
        tree->tasks[i].mm = (int32_t)i;
        for (size_t j = 0; j < i && !tree->tasks[i].zombie; j++) {
            if (tree->tasks[j].zombie || tree->tasks[j].mm != (int32_t)j)
                continue;
            int order = sys_kcmp(tree->tasks[i].pid, tree->tasks[j].pid, KCMP_VM, 0, 0);
            if (order == -ENOSYS || order == -EOPNOTSUPP)
                break;
            if (order == -ESRCH)
                continue; /* one of the two has ended: whoever reads of it finds out */
            if (order < 0)
                return tree_fail(tree, order, "kcmp", tree->tasks[i].pid, 0, -1, 0, "KCMP_VM");
            if (order == 0) {
                tree->tasks[i].mm = (int32_t)j;
                break;
            }
        }
    }
    return 0;
}

static int open_root(ckpt_tree *tree, uint64_t start_ticks) {
    int added = tree_add_task(tree, tree->root);
    if (added < 0)
        return tree_fail(tree, added, "open", tree->root, 0, -1, 0, NULL);
    struct task *root = &tree->tasks[0];
    if (start_ticks && root->start_ticks != start_ticks)
        return tree_fail(tree, -ESRCH, "open", tree->root, 0, -1, 0, "another process has this number now");
    if (root->zombie)
        return tree_fail(tree, -ESRCH, "zombie", tree->root, 0, -1, 0, NULL);
    int found;
    do
        found = tree_discover(tree);
    while (found > 0);
    if (found < 0)
        return found;
    if (!tree->thread_count)
        return tree_fail(tree, -ESRCH, "open", tree->root, 0, -1, 0, NULL);
    return tree_index_memories(tree);
}

/* The handle is given back even on failure, so that its fault can be read; it then has no tasks and must be closed. */
int ckpt_tree_open(int32_t root_pid, uint64_t start_ticks, ckpt_tree **ret_tree) {
    ckpt_tree *tree = calloc(1, sizeof *tree);
    if (!tree)
        return -ENOMEM;
    tree->root = root_pid;
    tree->freeze_retries = DEFAULT_RETRIES;
    tree->freezer.fd = -1;
    tree->text = mmap(NULL, TEXT_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    tree->text = tree->text == MAP_FAILED ? NULL : tree->text;
    tree_fault_clear(tree);
    int error = tree->text ? open_root(tree, start_ticks) : -ENOMEM;
    *ret_tree = tree;
    return error;
}

void ckpt_tree_close(ckpt_tree *tree) {
    if (!tree)
        return;
    task_thaw(tree, 0);
    pace_back(&tree->pace);
    for (size_t i = 0; i < tree->task_count; i++)
        task_close(&tree->tasks[i]);
    free(tree->tasks);
    free(tree->threads);
    free(tree->attended);
    if (tree->text)
        munmap(tree->text, TEXT_BYTES);
    scan_memory_free(tree->scan);
    free(tree);
}

static struct ckpt_thread_id describe(ckpt_tree *tree, const struct thread *thread) {
    return (struct ckpt_thread_id){
        .pid = thread->pid, .tid = thread->tid, .start_ticks = thread->start_ticks, .mm = tree_task(tree, thread->pid)->mm,
        .stopped = thread->group_stopped};
}

/* Leaders first, in the order of their tasks (which is the order of a capture's records), then the others. */
int ckpt_tree_threads(const ckpt_tree *const_tree, struct ckpt_thread_id *threads, size_t cap) {
    ckpt_tree *tree = (ckpt_tree *)const_tree;
    size_t count = 0;
    for (size_t i = 0; i < tree->task_count; i++) {
        const struct thread *leader = tree_leader(tree, tree->tasks[i].pid);
        if (!leader || leader->state == THREAD_GONE)
            continue;
        if (count < cap)
            threads[count] = describe(tree, leader);
        count++;
    }
    for (size_t i = 0; i < tree->thread_count; i++) {
        const struct thread *thread = &tree->threads[i];
        if (thread->pid == thread->tid || thread->state == THREAD_GONE)
            continue;
        if (count < cap)
            threads[count] = describe(tree, thread);
        count++;
    }
    return (int)count;
}

int ckpt_tree_signal(ckpt_tree *tree, int32_t pid, int32_t signal) {
    tree_fault_clear(tree);
    struct task *task = tree_task(tree, pid);
    int error = task ? sys_pidfd_signal(task->pidfd, signal) : -ESRCH;
    return error ? tree_fail(tree, error, "signal", pid, 0, -1, 0, NULL) : 0;
}
