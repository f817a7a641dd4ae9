/* bridge.c: the scratch mapping from which batches of calls run, its loop, and how it comes and goes.
 *
 *   code (R-X): magic | loop | one self-restoring sequence per slot (stub.c's, without the first syscall)
 *   data (RW):  per slot: struct slot_header | calls | data
 *
 * A slot serves one thread at a time; several slots run at the same time. The loop walks struct ckpt_call, fills in results of
 * earlier calls and addresses of the data area, stops at the first failure that may not be, and jumps to the slot's sequence, which
 * stops the thread (or, without a tracer, simply goes on to restore it).
 *
 * Invariants
 *  1. The mapping is made R-X by one stub call and filled through /proc/PID/mem; the first batch of each slot makes the data part
 *     writable by itself, before anything is written there, and the whole MADV_DONTFORK. Nothing is ever writable and executable.
 *  2. The loop uses no stack and no memory but its slot; r12 to r15 and rbx hold its state, as system calls leave them alone.
 *  3. A child that a clone in the batch made never walks on: it exits, should nobody hold it (its tracer died).
 *  4. The note in the vdso's tail names the mapping from before it exists until after it is gone, so a killed ckpt's bridge is found by the
 *     next one, and only removed if the magic (or still nothing) stands at its head and it is mapped as we map it.
 *  5. Addresses are chosen, not searched: a fixed ladder far from where Linux puts anything, MAP_FIXED_NOREPLACE decides.
 */
#define _GNU_SOURCE
#include "inject.h"
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>

static const char magic[16] = "ckpt bridge v1\n";

/* struct ckpt_call: nr 0, arg 8, ret 56, form 64, may_fail 70, done 71, size 72. struct slot_header: 8 words.
 * r15 slot header, r12 call, r13 end, r14 data, rbx how many ran. */
_Static_assert(sizeof(struct ckpt_call) == 72 && offsetof(struct ckpt_call, ret) == 56 && offsetof(struct ckpt_call, form) == 64 &&
                   offsetof(struct ckpt_call, may_fail) == 70 && offsetof(struct ckpt_call, done) == 71 && sizeof(struct slot_header) == 64,
               "the loop below knows these");

__asm__(".pushsection .rodata\n"
        ".intel_syntax noprefix\n"
        ".macro CKPT_ARG i, reg\n"
        "  mov \\reg, [r12 + 8 + 8 * \\i]\n"
        "  movzx ecx, byte ptr [r12 + 64 + \\i]\n"
        "  test ecx, ecx\n"
        "  jz 9f\n"
        "  cmp ecx, 2\n"
        "  jne 8f\n"
        "  add \\reg, r14\n" /* an address in the data area */
        "  jmp 9f\n"
        "8: imul \\reg, \\reg, 72\n" /* the result of an earlier call */
        "  add \\reg, [r15]\n"
        "  mov \\reg, [\\reg + 56]\n"
        "9:\n"
        ".endm\n"
        "ckpt_bridge_code:\n" /* entry: the first batch of a slot */
        "  mov rdi, [r15 + 48]\n"
        "  mov rsi, [r15 + 56]\n"
        "  mov edx, 3\n" /* PROT_READ | PROT_WRITE */
        "  mov eax, 10\n" /* mprotect */
        "  syscall\n"
        "  mov rbx, rax\n"
        "  test rax, rax\n"
        "  jnz 5f\n"
        "  mov rdi, [r15 + 32]\n"
        "  mov rsi, [r15 + 40]\n"
        "  mov edx, 10\n" /* MADV_DONTFORK */
        "  mov eax, 28\n" /* madvise */
        "  syscall\n"
        "ckpt_bridge_batch:\n" /* entry: further batches */
        "  mov r12, [r15]\n"
        "  mov r13, [r15 + 8]\n"
        "  mov r14, [r15 + 16]\n"
        "  xor ebx, ebx\n"
        "1: cmp r12, r13\n"
        "  jae 5f\n"
        "  CKPT_ARG 0, rdi\n"
        "  CKPT_ARG 1, rsi\n"
        "  CKPT_ARG 2, rdx\n"
        "  CKPT_ARG 3, r10\n"
        "  CKPT_ARG 4, r8\n"
        "  CKPT_ARG 5, r9\n"
        "  mov rax, [r12]\n"
        "  syscall\n"
        "  test rax, rax\n"
        "  jnz 3f\n"
        "  mov rcx, [r12]\n"
        "  sub rcx, 56\n" /* clone, fork, vfork: 56 to 58; clone3: 435 */
        "  cmp rcx, 2\n"
        "  jbe 6f\n"
        "  cmp rcx, 435 - 56\n"
        "  je 6f\n"
        "3: mov [r12 + 56], rax\n"
        "  mov byte ptr [r12 + 71], 1\n"
        "  inc rbx\n"
        "  cmp rax, -4095\n"
        "  jb 4f\n"
        "  cmp byte ptr [r12 + 70], 0\n"
        "  je 5f\n"
        "4: add r12, 72\n"
        "  jmp 1b\n"
        "5: jmp qword ptr [r15 + 24]\n"
        "6: xor edi, edi\n" /* a child that nobody holds */
        "  mov eax, 60\n" /* exit */
        "  syscall\n"
        "  jmp 6b\n"
        "ckpt_bridge_code_end:\n"
        ".purgem CKPT_ARG\n"
        ".att_syntax prefix\n"
        ".popsection\n");
extern const uint8_t ckpt_bridge_code[] __attribute__((visibility("hidden")));
extern const uint8_t ckpt_bridge_batch[] __attribute__((visibility("hidden")));
extern const uint8_t ckpt_bridge_code_end[] __attribute__((visibility("hidden")));

static size_t pages_up(size_t bytes) { return (bytes + CKPT_PAGE - 1) & ~(size_t)(CKPT_PAGE - 1); }

ckpt_addr_t code_slot_at(const struct bridge *bridge, uint32_t slot) { return bridge->code + CODE_SLOTS + (uint64_t)slot * STUB_BYTES; }
ckpt_addr_t data_slot_at(const struct bridge *bridge, uint32_t slot) { return bridge->data + (uint64_t)slot * bridge->slot_bytes; }

/* Anonymous, private, R-X, no longer than what the note says (the data part may be a mapping of its own by now). */
static bool is_mapped_so(const char *text, ckpt_addr_t at, uint64_t bytes) {
    char line[40];
    snprintf(line, sizeof line, "%lx-", at);
    const char *found = strncmp(text, line, strlen(line)) ? strstr(text, "\n") : text;
    while (found && strncmp(found + (found != text), line, strlen(line)))
        found = strstr(found + 1, "\n");
    char perms[5];
    uint64_t start, end, offset, inode;
    return found && sscanf(found, "%lx-%lx %4s %lx %*x:%*x %lu", &start, &end, perms, &offset, &inode) == 5 && start == at && end <= at + bytes &&
           !strcmp(perms, "r-xp") && !inode;
}

/* The magic comes by a second step: a ckpt that died between leaves zeros there. */
bool bridge_is_ours(ckpt_tree *tree, struct task *task, ckpt_addr_t at, uint64_t bytes) {
    static const char zero[sizeof magic];
    char found[sizeof magic];
    if (sys_pread(task->mem, found, sizeof found, at) != sizeof found || (memcmp(found, magic, sizeof found) && memcmp(found, zero, sizeof found)))
        return false;
    ssize_t got = proc_read(task->dir, "maps", tree->text, TEXT_BYTES - 1);
    if (got < 0)
        return false;
    tree->text[got] = 0;
    return is_mapped_so(tree->text, at, bytes);
}

struct thread *task_any_thread(ckpt_tree *tree, const struct task *task) {
    struct thread *found = tree_leader(tree, task->pid);
    if (found && found->state == THREAD_STOPPED)
        return found;
    for (size_t i = 0; i < tree->thread_count; i++)
        if (tree->threads[i].pid == task->pid && tree->threads[i].state == THREAD_STOPPED)
            return &tree->threads[i];
    return NULL;
}

static bool overlaps(ckpt_addr_t at, size_t bytes, const struct ckpt_range *avoid, size_t count) {
    for (size_t i = 0; i < count; i++)
        if (avoid[i].start < at + bytes + CKPT_PAGE && at < avoid[i].end + CKPT_PAGE)
            return true;
    return false;
}

/* Between where executables and heaps end and where libraries and stacks begin, away from sanitizers' shadows; low ones for
 * a process with a small address space. */
static ckpt_addr_t rung(unsigned i) {
    return i < 48 ? UINT64_C(0x3a0000000000) + i * UINT64_C(0x000040000000) * 7 : UINT64_C(0x10000000) + (i - 48) * UINT64_C(0x02000000);
}

static int place(ckpt_tree *tree, struct task *task, struct thread *thread, const struct ckpt_range *avoid, size_t avoid_count, size_t bytes,
                 ckpt_addr_t *ret_at) {
    pid_t tid = thread->tid;
    int64_t got = -EEXIST;
    for (unsigned i = 0; i < 160; i++) {
        ckpt_addr_t at = rung(i);
        if (overlaps(at, bytes, avoid, avoid_count))
            continue;
        const uint64_t arg[6] = {at, bytes, PROT_READ | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, (uint64_t)-1, 0};
        int error = stub_call(tree, task, thread, at, bytes, SYS_mmap, arg, &got);
        if (error)
            return error;
        if (got == (int64_t)at) {
            *ret_at = at;
            return 0;
        }
        if (got != -EEXIST && got != -ENOMEM)
            break;
    }
    return tree_fail(tree, got < 0 ? (int)got : -EEXIST, "map bridge", task->pid, tid, -1, 0, "mmap");
}

static int fill_code(ckpt_tree *tree, struct task *task, ckpt_addr_t at) {
    uint8_t head[CODE_SLOTS] = {0};
    size_t length = (size_t)(ckpt_bridge_code_end - ckpt_bridge_code);
    if (sizeof magic + length > sizeof head)
        return -ENOSPC;
    memcpy(head, magic, sizeof magic);
    memcpy(head + sizeof magic, ckpt_bridge_code, length);
    int mem = task_mem(tree, task);
    if (mem < 0)
        return mem;
    ssize_t put = sys_pwrite(mem, head, sizeof head, at);
    return put == (ssize_t)sizeof head ? 0 : tree_fail(tree, put < 0 ? (int)put : -EFAULT, "write bridge", task->pid, 0, -1, at, "mem");
}

int bridge_open(ckpt_tree *tree, struct task *task, struct thread *thread, const struct ckpt_range *avoid, size_t avoid_count,
                uint32_t slots, size_t slot_bytes) {
    struct task *owner = memory_owner(tree, task);
    struct bridge *bridge = &owner->bridge;
    if (bridge->code)
        return tree_fail(tree, -EBUSY, "bridge", task->pid, 0, -1, bridge->code, NULL);
    slot_bytes = (slot_bytes + 63) & ~(size_t)63;
    size_t code = pages_up(CODE_SLOTS + (size_t)slots * STUB_BYTES), data = pages_up((size_t)slots * slot_bytes);
    ckpt_addr_t at = 0;
    int error = inject_prepare(tree, task);
    if (!error)
        error = place(tree, task, thread, avoid, avoid_count, code + data, &at);
    if (error)
        return error;
    bridge->code = at, bridge->code_bytes = code;
    bridge->data = at + code, bridge->data_bytes = data;
    bridge->slots = slots, bridge->slot_bytes = slot_bytes;
    bridge->writable = false;
    error = fill_code(tree, owner, at);
    if (error)
        bridge_close(tree, task, thread);
    return error;
}

int bridge_close(ckpt_tree *tree, struct task *task, struct thread *thread) {
    struct bridge *bridge = &memory_owner(tree, task)->bridge;
    if (!bridge->code)
        return 0;
    int64_t got = 0;
    const uint64_t arg[6] = {bridge->code, bridge->code_bytes + bridge->data_bytes};
    pid_t tid = thread->tid;
    int error = stub_call(tree, task, thread, arg[0], arg[1], SYS_munmap, arg, &got);
    bridge->code = 0;
    bridge->persistent = false;
    if (!error && got < 0)
        error = tree_fail(tree, (int)got, "unmap bridge", task->pid, tid, -1, arg[0], "munmap");
    return error ? error : tail_clear(tree, task);
}

int bridge_aim(const struct bridge *bridge, uint32_t slot, const struct task *task, const struct thread *thread, uint8_t out[STUB_BYTES],
               struct flight *ret_flight, struct slot_header *ret_header, struct user_regs_struct *ret_regs) {
    ckpt_addr_t epilogue = emit_stub(out, code_slot_at(bridge, slot), task, thread, false, ret_flight);
    if (!epilogue)
        return -ENOSPC;
    *ret_header = (struct slot_header){.epilogue = epilogue,
                                       .map = bridge->code,
                                       .map_bytes = bridge->code_bytes + bridge->data_bytes,
                                       .writable = bridge->data,
                                       .writable_bytes = bridge->data_bytes};
    own_registers(thread, ret_regs);
    size_t entry = bridge->writable ? (size_t)(ckpt_bridge_batch - ckpt_bridge_code) : 0;
    ret_regs->rip = bridge->code + sizeof magic + entry;
    ret_regs->r15 = data_slot_at(bridge, slot);
    ret_regs->orig_rax = ~UINT64_C(0);
    return 0;
}
