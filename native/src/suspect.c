/* suspect.c: the few pages of private file mappings whose write-protection does not mean "as it was".
 *
 * Zapping a protected page of a private file mapping (MADV_DONTNEED, truncation) leaves a marker. A write fault on the
 * marker makes a new copy of the file's page that carries the protection, and only the repetition of the instruction
 * takes it off. Whoever looks between the two sees a protected page, populated as before, that is another page.
 *
 * That takes a thread that stands between an exception and the repetition, which is where the kernel stops a thread that
 * was running its program: in user mode (orig_rax -1) with rip at the instruction. A call that faults on the program's
 * memory repeats inside the kernel and stops only afterwards (fault_signal_pending() ends a kernel-mode fault for fatal
 * signals alone; helpers that fault once, as futex's, loop around it). So only what such an instruction may write
 * (operand.c) is in doubt: those pages count as written, whatever their protection says. That costs a page or two for
 * each thread that runs its program, and nothing for one that waits in a call.
 *
 * A signal may have taken the thread away from the instruction first: then its registers lie in the handler's frame. A
 * handler runs with its own signal blocked, so for a thread that blocks any, the stack above rsp is searched for frames
 * (struct rt_sigframe), and each frame's instruction is treated the same. From a frame that was found the search goes on
 * where that one's rsp points, so that an alternate stack leads back to the thread's own. Old frames that happen to lie
 * there cost a page, not exactness.
 *
 * Invariants
 *  1. What is not understood (instruction, unreadable code, more than SUSPECT_PAGES) makes every private file mapping of
 *     the memory suspect: it is read whole in this freeze.
 *  2. All threads that use the memory are looked at, of whatever process of the tree; a page of a mapping that was made
 *     read-only in between is found as well.
 *
 * Not covered, all of it needing a zap, a write to that page and this within the microsecond between fault and
 * repetition: a handler installed with SA_NODEFER, or more than SUSPECT_STACK bytes deep; and a thread that never comes
 * back to the instruction (siglongjmp out of the handler, a restartable sequence that was aborted, the end of a process
 * that shares its memory without being a thread).
 */
#include "operand.h"
#include "scan.h"
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>

enum { SUSPECT_STACK = 32 << 10, SUSPECT_STACKS = 4 };

/* struct rt_sigframe of the kernel (arch/x86/include/asm/sigframe.h), in words from the return address on. */
enum { F_FLAGS = 1, F_LINK = 2, F_R8 = 6, F_RFLAGS = 23, F_SEGMENTS = 24, F_WORDS = 32 };

struct looker {
    pid_t pid;
    int mem;
    struct scan_layout layout;
    struct suspects *found;
};

static ssize_t peek(const struct looker *looker, void *buffer, size_t bytes, ckpt_addr_t addr) {
    struct iovec local = {buffer, bytes}, remote = {(void *)(uintptr_t)addr, bytes};
    ssize_t got = sys_vm_readv(looker->pid, &local, 1, &remote, 1);
    return got > 0 ? got : sys_pread(looker->mem, buffer, bytes, addr); /* code that can only be executed */
}

static const struct map_line *line_at(struct scan_layout layout, ckpt_addr_t addr) {
    size_t low = 0, high = layout.count;
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (layout.lines[middle].end <= addr)
            low = middle + 1;
        else
            high = middle;
    }
    return low < layout.count && layout.lines[low].start <= addr ? &layout.lines[low] : NULL;
}

static void suspect(struct looker *looker, ckpt_addr_t start, ckpt_addr_t end) {
    struct suspects *found = looker->found;
    for (uint64_t page = start / CKPT_PAGE; page <= (end - 1) / CKPT_PAGE; page++) {
        const struct map_line *line = line_at(looker->layout, page * CKPT_PAGE);
        if (!line || maps_kind(line) != CKPT_RANGE_FILE_PRIVATE)
            continue;
        found->all |= found->count == SUSPECT_PAGES;
        if (!found->all)
            found->page[found->count++] = page;
    }
}

static void by_instruction(struct looker *looker, const struct user_regs_struct *regs) {
    uint8_t code[OPERAND_BYTES];
    struct operand operand;
    ssize_t got = peek(looker, code, sizeof code, regs->rip);
    if (got <= 0 || !operand_find(code, (size_t)got, regs, &operand)) {
        looker->found->all = true;
        return;
    }
    for (size_t i = 0; i < operand.count; i++)
        suspect(looker, operand.at[i].start, operand.at[i].end);
}

/* ---- frames of signal handlers ---- */

static bool is_frame(const uint64_t *word) {
    uint64_t cs = word[F_SEGMENTS] & 0xffff, ss = word[F_SEGMENTS] >> 48;
    return cs == 0x33 && (ss == 0x2b || ss == 0) && word[F_FLAGS] < 8 && !word[F_LINK] && (word[F_RFLAGS] & 2) && word[F_RFLAGS] < 1 << 22;
}

static struct user_regs_struct frame_regs(const uint64_t *word, const struct user_regs_struct *now) {
    const uint64_t *saved = word + F_R8;
    struct user_regs_struct regs = {.r8 = saved[0], .r9 = saved[1], .r10 = saved[2], .r11 = saved[3], .r12 = saved[4], .r13 = saved[5],
                                    .r14 = saved[6], .r15 = saved[7], .rdi = saved[8], .rsi = saved[9], .rbp = saved[10], .rbx = saved[11],
                                    .rdx = saved[12], .rax = saved[13], .rcx = saved[14], .rsp = saved[15], .rip = saved[16]};
    regs.fs_base = now->fs_base;
    regs.gs_base = now->gs_base;
    return regs;
}

/* Every frame between rsp and the end of its mapping, and one that begins a word below: the handler has returned, which took the return
 * address off the stack, and rt_sigreturn has not begun (seen once in some ten thousand freezes). *ret_next = the stack that the last one came from. */
static bool frames(struct looker *looker, ckpt_addr_t rsp, const struct user_regs_struct *now, ckpt_addr_t *ret_next) {
    uint64_t stack[SUSPECT_STACK / 8];
    const struct map_line *line = line_at(looker->layout, rsp);
    bool found = false;
    if (!line)
        return false;
    ckpt_addr_t start = rsp & ~(ckpt_addr_t)7;
    start -= start - line->start >= 8 ? 8 : 0;
    size_t room = line->end - start < SUSPECT_STACK ? (size_t)(line->end - start) : SUSPECT_STACK;
    ssize_t got = peek(looker, stack, room, start);
    for (size_t i = 0; got > 0 && i + F_WORDS <= (size_t)got / 8; i++) {
        if (!is_frame(stack + i))
            continue;
        struct user_regs_struct regs = frame_regs(stack + i, now);
        uint8_t code[OPERAND_BYTES];
        if (peek(looker, code, sizeof code, regs.rip) <= 0)
            continue; /* no frame: it could not return there */
        by_instruction(looker, &regs);
        *ret_next = regs.rsp;
        found = true;
    }
    return found;
}

static void one_thread(struct looker *looker, const struct thread *thread) {
    if ((int64_t)thread->regs.orig_rax < 0)
        by_instruction(looker, &thread->regs);
    ckpt_addr_t rsp = thread->regs.rsp;
    for (int i = 0; thread->sigmask && i < SUSPECT_STACKS && frames(looker, rsp, &thread->regs, &rsp); i++)
        continue;
}

static int by_page(const void *a, const void *b) {
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

void suspects_find(ckpt_tree *tree, const struct task *task, struct scan_layout layout, struct suspects *ret_suspects) {
    struct looker looker = {.pid = task->pid, .mem = sys_openat(task->dir, "mem", O_RDONLY), .layout = layout, .found = ret_suspects};
    ret_suspects->count = 0;
    ret_suspects->all = looker.mem < 0;
    for (size_t i = 0; i < tree->thread_count && !ret_suspects->all; i++) {
        const struct thread *thread = &tree->threads[i];
        const struct task *user = thread->state == THREAD_STOPPED ? tree_task(tree, thread->pid) : NULL;
        if (user && (user == task || user->mm == task->mm))
            one_thread(&looker, thread);
    }
    close_fd(&looker.mem);
    qsort(ret_suspects->page, ret_suspects->count, sizeof *ret_suspects->page, by_page);
}
