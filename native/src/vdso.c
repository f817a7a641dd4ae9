/* vdso.c: where the first stub of a process stands, and whether anything may be injected at all.
 *
 * Behind the image of the vdso the kernel maps zeros up to the page's end (about 1.4 kB): executable, private once written, and not
 * known to anybody.
 *
 * Invariants
 *  1. The room is taken only if it is all zero, or begins with our note (inject.h), or ends with slots of transfers that go on (transfer.c).
 *  2. What was read since all stopped is not read again (tree_knows()).
 *  3. A seccomp filter on the process or on the thread: -EPERM, step "seccomp", nothing is written.
 */
#define _GNU_SOURCE
#include "inject.h"
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>

enum { USER_CODE_64 = 0x33 };

struct task *memory_owner(ckpt_tree *tree, const struct task *task) {
    return &tree->tasks[task->mm >= 0 && (size_t)task->mm < tree->task_count ? (size_t)task->mm : (size_t)(task - tree->tasks)];
}

int task_mem(ckpt_tree *tree, struct task *task) {
    if (task->mem < 0) {
        int fd = sys_openat(task->dir, "mem", O_RDWR);
        if (fd < 0)
            return tree_fail(tree, fd, "open mem", task->pid, 0, -1, 0, "mem");
        task->mem = fd;
    }
    return task->mem;
}

static int find_vdso(struct task *task, ckpt_addr_t *ret_base) {
    uint64_t auxv[64][2];
    ssize_t bytes = proc_read(task->dir, "auxv", auxv, sizeof auxv);
    if (bytes < 0)
        return (int)bytes;
    for (size_t i = 0; i < (size_t)bytes / sizeof auxv[0]; i++) {
        if (auxv[i][0] == 33 /* AT_SYSINFO_EHDR */) {
            *ret_base = auxv[i][1];
            return 0;
        }
    }
    return -ENOENT;
}

/* All zero, or our note stands where it would, and slots (transfer.c) behind what it may use. */
static bool is_free(const uint8_t *room, size_t note_at, size_t size) {
    const struct inject_note *note = (const void *)(room + note_at);
    size_t stub_end = note_at + NOTE_BYTES + STUB_BYTES;
    for (size_t i = 0; note->magic != NOTE_MAGIC && i < stub_end; i++)
        if (room[i])
            return false; /* somebody else keeps something there */
    return transfer_slots_only(room + stub_end, size - stub_end);
}

/* The image ends where its last section or its section headers end; the kernel maps whole pages, zero behind. */
static int find_tail(int mem, ckpt_addr_t base, struct bridge *bridge) {
    uint8_t image[4 * CKPT_PAGE];
    ssize_t got = sys_pread(mem, image, sizeof image, base);
    if (got < (ssize_t)CKPT_PAGE)
        return got < 0 ? (int)got : -EFAULT;
    const Elf64_Ehdr *head = (const void *)image;
    uint64_t end = head->e_shoff + (uint64_t)head->e_shnum * head->e_shentsize;
    if (memcmp(head->e_ident, ELFMAG, SELFMAG) || head->e_ident[EI_CLASS] != ELFCLASS64 || head->e_shentsize != sizeof(Elf64_Shdr) ||
        end > (uint64_t)got)
        return -ENOEXEC;
    const Elf64_Shdr *sections = (const void *)(image + head->e_shoff);
    for (unsigned i = 0; i < head->e_shnum; i++)
        if (sections[i].sh_type != SHT_NOBITS && sections[i].sh_offset + sections[i].sh_size > end)
            end = sections[i].sh_offset + sections[i].sh_size;
    uint64_t tail = (end + 63) & ~UINT64_C(63), page_end = (end + CKPT_PAGE - 1) & ~(uint64_t)(CKPT_PAGE - 1);
    if (tail + NOTE_BYTES + STUB_BYTES > page_end || page_end > (uint64_t)got)
        return -ENOSPC;
    if (!is_free(image + end, tail - end, page_end - end))
        return -EBUSY;
    bridge->image = base, bridge->image_end = base + end;
    bridge->tail = base + tail, bridge->tail_end = base + page_end;
    return 0;
}

/* The same vdso as when it was last looked at (addresses are random: an exec moves it): the image need not be read again. */
static int find_tail_again(int mem, struct bridge *bridge) {
    uint8_t room[CKPT_PAGE];
    size_t size = bridge->tail_end - bridge->image_end;
    ssize_t got = size <= sizeof room ? sys_pread(mem, room, size, bridge->image_end) : -EFAULT;
    if (got != (ssize_t)size)
        return got < 0 ? (int)got : -EFAULT;
    return is_free(room, bridge->tail - bridge->image_end, size) ? 0 : -EBUSY;
}

int vdso_tail(ckpt_tree *tree, struct task *task) {
    ckpt_addr_t base;
    struct bridge *bridge = &task->bridge;
    int mem = task_mem(tree, task);
    if (mem < 0)
        return mem;
    if (bridge->tail && tree_knows(tree, bridge->tail_at))
        return 0;
    int error = find_vdso(task, &base);
    if (!error)
        error = bridge->tail && bridge->image == base ? find_tail_again(mem, bridge) : find_tail(mem, base, bridge);
    if (error == -EFAULT || error == -ESRCH) { /* an exec since: the old descriptor shows the old memory */
        close_fd(&task->mem);
        task->mem = -1;
        if ((mem = task_mem(tree, task)) < 0)
            return mem;
        error = find_tail(mem, base, bridge);
    }
    if (error)
        return tree_fail(tree, error == -ESRCH ? error : -ENOTSUP, "vdso tail", task->pid, 0, -1, 0, "vdso");
    bridge->tail_at = tree->standing;
    return 0;
}

void inject_note_status(const ckpt_tree *tree, struct task *task, const char *text, size_t bytes) {
    task->bridge.filtered = proc_field(text, bytes, "Seccomp", 10, 0) != 0;
    task->bridge.caught = proc_field(text, bytes, "SigCgt", 16, ~UINT64_C(0));
    task->bridge.ignored = proc_field(text, bytes, "SigIgn", 16, 0);
    task->bridge.status_at = tree->standing;
}

int inject_prepare(ckpt_tree *tree, struct task *task) {
    char text[4096];
    if (!tree_knows(tree, task->bridge.status_at)) {
        ssize_t bytes = proc_read(task->dir, "status", text, sizeof text);
        if (bytes < 0)
            return tree_fail(tree, (int)bytes, "read status", task->pid, 0, -1, 0, "status");
        inject_note_status(tree, task, text, (size_t)bytes);
    }
    if (task->bridge.filtered)
        return tree_fail(tree, -EPERM, "seccomp", task->pid, 0, -1, 0, NULL);
    if (memory_owner(tree, task)->bridge.blocked)
        return tree_fail(tree, -EBUSY, "remains", task->pid, 0, -1, 0, "a signal handler returns into a killed ckpt's code");
    return vdso_tail(tree, memory_owner(tree, task));
}

/* A thread may have a filter that its leader does not have. (Strict mode in one thread of several cannot be seen so cheaply, and
 * cannot be lived with either: it forbids futex.) */
static int filter_refused(ckpt_tree *tree, const struct thread *thread) {
    if (tree_knows(tree, thread->unfiltered_at))
        return 0;
    long got = sys_ptrace(0x420c /* PTRACE_SECCOMP_GET_FILTER */, thread->tid, 0, 0);
    bool filtered = got >= 0;
    if (got == -EACCES || got == -EPERM) {
        char name[NAME_ROOM], text[4096];
        proc_name(name, "task/", (uint64_t)thread->tid, "/status");
        ssize_t bytes = proc_read(tree_task(tree, thread->pid)->dir, name, text, sizeof text);
        filtered = bytes < 0 || proc_field(text, (size_t)bytes, "Seccomp", 10, 0);
    }
    return filtered ? tree_fail(tree, -EPERM, "seccomp", thread->pid, thread->tid, -1, 0, NULL) : 0;
}

int inject_refused(ckpt_tree *tree, const struct thread *thread) {
    int error = filter_refused(tree, thread);
    if (error)
        return error;
    if (thread->regs.cs != USER_CODE_64)
        return tree_fail(tree, -ENOTSUP, "32-bit code", thread->pid, thread->tid, -1, thread->regs.rip, NULL);
    return 0;
}
