/* stub.c: one system call inside a frozen thread, so that the thread survives the death of its tracer at any instant.
 *
 * The sequence that the thread runs ("stub") restores it by itself: the wanted call; block all signals but one; send that
 * one to itself (the stop, while we live; ignored, when we are dead); flags, stack pointer, mask, registers; jump to where
 * it was. All of the thread's own values are constants inside the stub. The first stub of a process stands in the zero tail of
 * the vdso's last page: the only memory of a foreign process that is executable, private, and surely not used.
 *
 * Invariants
 *  1. Order: stub and note written, SETREGS (rip -> stub), SETSIGMASK, CONT. At each step the thread is either still
 *     wholly itself, or will run the whole stub and is itself again then. It never has our mask without our rip.
 *  2. At the stop: SETSIGMASK (its own) first, SETREGS (its own) second. Between the two rip is still inside the stub,
 *     whose rest sets the same mask and the same registers.
 *  3. A call that the freeze interrupted is saved as a repeat of its instruction (rip - 2, rax = nr, or restart_syscall for
 *     -516); while we live it gets back rax = -51x and orig_rax instead, and the kernel decides on detach. That works
 *     because the stop is inside get_signal(), just as EVENT_STOP is.
 *  4. The stub touches no memory, no vector or x87 register, and the stack pointer only while all signals are blocked; no sleeping
 *     call (it would drop the thread's restart_block).
 *  5. The stop signal is one that is ignored when nobody traces: SIGURG or SIGWINCH, not caught by the program. Reaching the
 *     stop is proven by rip, not by the signal: an alien SIGURG on the way is dropped, as the kernel would have done. With
 *     both caught (or pending while blocked) we go by system call stops and an interrupt; TRACESYSGOOD, or a death there is a SIGTRAP.
 *  6. The note in front of the stub is written before anything else and cleared last. See settle.c.
 *
 * What a kill can still change: a signal with a handler that arrives during the frozen window of a thread which waits in
 * pause() or epoll_wait() runs its handler before the wait begins again, so that this wait is not ended by it with EINTR.
 */
#define _GNU_SOURCE
#include "inject.h"
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/wait.h>

enum { SPIN_NS = 60000, NOT_CALLED = -1, EVENT_STOP = 128, IN_SECCOMP_STRICT = 1, RESTART_SYSCALL = 219, FLAG_TRAP = 0x100, USER_CODE_64 = 0x33 };

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

static int write_all(ckpt_tree *tree, struct task *task, ckpt_addr_t at, const void *bytes, size_t size) {
    int mem = task_mem(tree, task);
    if (mem < 0)
        return mem;
    ssize_t put = sys_pwrite(mem, bytes, size, at);
    if (put != (ssize_t)size)
        return tree_fail(tree, put < 0 ? (int)put : -EFAULT, "write code", task->pid, 0, -1, at, "mem");
    return 0;
}

/* ---- where: the vdso's tail ---- */

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

/* The image ends where its last section or its section headers end; the kernel maps whole pages, zero behind. */
static int find_tail(int mem, ckpt_addr_t base, ckpt_addr_t *ret_tail, ckpt_addr_t *ret_page_end) {
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
    const struct inject_note *note = (const void *)(image + tail);
    for (uint64_t i = end; note->magic != NOTE_MAGIC && i < page_end; i++)
        if (image[i])
            return -EBUSY; /* somebody else keeps something there */
    *ret_tail = base + tail;
    *ret_page_end = base + page_end;
    return 0;
}

int vdso_tail(ckpt_tree *tree, struct task *task) {
    ckpt_addr_t base, tail, page_end;
    int mem = task_mem(tree, task);
    if (mem < 0)
        return mem;
    int error = find_vdso(task, &base);
    if (!error)
        error = find_tail(mem, base, &tail, &page_end);
    if (error == -EFAULT || error == -ESRCH) { /* an exec since: the old descriptor shows the old memory */
        close_fd(&task->mem);
        task->mem = -1;
        if ((mem = task_mem(tree, task)) < 0)
            return mem;
        error = find_tail(mem, base, &tail, &page_end);
    }
    if (error)
        return tree_fail(tree, error == -ESRCH ? error : -ENOTSUP, "vdso tail", task->pid, 0, -1, 0, "vdso");
    task->bridge.tail = tail;
    task->bridge.tail_end = page_end;
    return 0;
}

int inject_prepare(ckpt_tree *tree, struct task *task) {
    char text[4096];
    ssize_t bytes = proc_read(task->dir, "status", text, sizeof text);
    if (bytes < 0)
        return tree_fail(tree, (int)bytes, "read status", task->pid, 0, -1, 0, "status");
    if (proc_field(text, (size_t)bytes, "Seccomp", 10, 0))
        return tree_fail(tree, -EPERM, "seccomp", task->pid, 0, -1, 0, NULL);
    task->bridge.caught = proc_field(text, (size_t)bytes, "SigCgt", 16, ~UINT64_C(0));
    return vdso_tail(tree, memory_owner(tree, task));
}

/* A thread may have a filter that its leader does not have. (Strict mode in one thread of several cannot be seen so cheaply, and
 * cannot be lived with either: it forbids futex.) */
int inject_refused(ckpt_tree *tree, const struct thread *thread) {
    long got = sys_ptrace(0x420c /* PTRACE_SECCOMP_GET_FILTER */, thread->tid, 0, 0);
    bool filtered = got >= 0;
    if (got == -EACCES || got == -EPERM) {
        char name[64], text[4096];
        snprintf(name, sizeof name, "/proc/%d/task/%d/status", thread->pid, thread->tid);
        ssize_t bytes = proc_read(AT_FDCWD, name, text, sizeof text);
        filtered = bytes < 0 || proc_field(text, (size_t)bytes, "Seccomp", 10, 0);
    }
    if (filtered)
        return tree_fail(tree, -EPERM, "seccomp", thread->pid, thread->tid, -1, 0, NULL);
    if (thread->regs.cs != USER_CODE_64)
        return tree_fail(tree, -ENOTSUP, "32-bit code", thread->pid, thread->tid, -1, thread->regs.rip, NULL);
    return 0;
}

/* ---- what: the sequence ---- */

struct writer {
    uint8_t *bytes;
    size_t used;
};

static void put(struct writer *w, const void *bytes, size_t count) {
    if (w->used + count <= STUB_BYTES)
        memcpy(w->bytes + w->used, bytes, count);
    w->used += count;
}
#define PUT(w, ...) put(w, (const uint8_t[]){__VA_ARGS__}, sizeof((const uint8_t[]){__VA_ARGS__}))

/* Registers by the number that machine code gives them. */
enum reg { RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8, R9, R10, R11, R12, R13, R14, R15 };

static void put_load(struct writer *w, enum reg reg, uint64_t value) { /* movabs reg, value */
    PUT(w, 0x48 | (reg >= R8), 0xb8 | (reg & 7));
    put(w, &value, sizeof value);
}

static void put_small(struct writer *w, enum reg reg, uint32_t value) { /* mov r32, value: clears the upper half */
    if (reg >= R8)
        PUT(w, 0x41);
    PUT(w, 0xb8 | (reg & 7));
    put(w, &value, sizeof value);
}

static void put_syscall(struct writer *w, uint32_t nr) {
    put_small(w, RAX, nr);
    PUT(w, 0x0f, 0x05);
}

static void put_sigmask(struct writer *w, ckpt_addr_t set) { /* rt_sigprocmask(SIG_SETMASK, set, NULL, 8) */
    put_small(w, RDI, SIG_SETMASK);
    put_load(w, RSI, set);
    put_small(w, RDX, 0);
    put_small(w, R10, 8);
    put_syscall(w, SYS_rt_sigprocmask);
}

void own_registers(const struct thread *thread, struct user_regs_struct *ret_regs) {
    *ret_regs = thread->regs;
    ret_regs->rax = (uint64_t)thread->decision.value;
}

/* What jumping back needs: the kernel's restart done by hand. */
static void repeat_call(struct user_regs_struct *regs) {
    int64_t shown = (int64_t)regs->rax;
    if ((int64_t)regs->orig_rax < 0)
        return;
    if (shown == -512 || shown == -513 || shown == -514)
        regs->rax = regs->orig_rax;
    else if (shown == -516)
        regs->rax = RESTART_SYSCALL;
    else
        return;
    regs->rip -= 2;
}

static void put_end(struct writer *w, const struct user_regs_struct *regs, ckpt_addr_t flags, ckpt_addr_t mask) {
    put_load(w, RSP, flags);
    PUT(w, 0x9d); /* popfq */
    put_load(w, RSP, regs->rsp);
    put_sigmask(w, mask);
    const uint64_t values[16] = {[RAX] = regs->rax, [RCX] = regs->rcx, [RDX] = regs->rdx, [RBX] = regs->rbx, [RBP] = regs->rbp,
                                 [RSI] = regs->rsi, [RDI] = regs->rdi, [R8] = regs->r8,   [R9] = regs->r9,   [R10] = regs->r10,
                                 [R11] = regs->r11, [R12] = regs->r12, [R13] = regs->r13, [R14] = regs->r14, [R15] = regs->r15};
    for (enum reg reg = RAX; reg <= R15; reg++)
        if (reg != RSP)
            put_load(w, reg, values[reg]);
}

ckpt_addr_t emit_stub(uint8_t out[STUB_BYTES], ckpt_addr_t at, const struct task *task, const struct thread *thread, bool with_call,
                      struct flight *ret_flight) {
    struct user_regs_struct regs;
    own_registers(thread, &regs);
    repeat_call(&regs);
    int sig = flight_signal(task, thread);
    const uint64_t constants[4] = {sig ? ~(UINT64_C(1) << (sig - 1)) : ~UINT64_C(0), thread->sigmask, regs.eflags & ~(uint64_t)FLAG_TRAP, regs.rip};
    struct writer w = {out, 0};
    memset(out, 0, STUB_BYTES);
    put(&w, constants, sizeof constants);
    if (with_call) {
        PUT(&w, 0x0f, 0x05);       /* syscall: the wanted one */
        PUT(&w, 0x48, 0x89, 0xc3); /* mov rbx, rax */
    }
    put_sigmask(&w, at);
    put_syscall(&w, SYS_gettid); /* by the thread itself: right in any pid namespace */
    PUT(&w, 0x89, 0xc6);         /* mov esi, eax */
    put_syscall(&w, SYS_getpid);
    PUT(&w, 0x89, 0xc7); /* mov edi, eax */
    put_small(&w, RDX, (uint32_t)sig);
    put_syscall(&w, SYS_tgkill);
    *ret_flight = (struct flight){.tid = thread->tid, .sig = sig, .park = at + w.used};
    put_end(&w, &regs, at + 16, at + 8);
    int32_t back = 24 - (int32_t)(w.used + 6); /* jmp [rip + back]: constants[3] */
    PUT(&w, 0xff, 0x25);
    put(&w, &back, sizeof back);
    return w.used <= STUB_BYTES ? at + sizeof constants : 0;
}

static bool pending(const struct thread *thread, int sig) {
    for (uint32_t shared = 0; shared < 2; shared++) {
        siginfo_t found[32];
        struct __ptrace_peeksiginfo_args args = {.off = 0, .flags = shared, .nr = 32};
        long count = sys_ptrace(PTRACE_PEEKSIGINFO, thread->tid, (uintptr_t)&args, (uintptr_t)found);
        if (count < 0 || count == 32)
            return true;
        for (long i = 0; i < count; i++)
            if (found[i].si_signo == sig)
                return true;
    }
    return false;
}

int flight_signal(const struct task *task, const struct thread *thread) {
    static const int candidates[] = {SIGURG, SIGWINCH};
    for (size_t i = 0; i < 2; i++) {
        uint64_t bit = UINT64_C(1) << (candidates[i] - 1);
        if (!(task->bridge.caught & bit) && (!(thread->sigmask & bit) || !pending(thread, candidates[i])))
            return candidates[i];
    }
    return 0;
}

/* ---- how: start, wait, give back ---- */

static int flight_resume(const struct flight *flight, int sig) {
    int request = flight->sig || flight->leaving ? PTRACE_CONT : PTRACE_SYSCALL;
    return (int)sys_ptrace(request, flight->tid, 0, (uintptr_t)sig);
}

int flight_start(ckpt_tree *tree, struct flight *flight, const struct user_regs_struct *regs) {
    uint64_t mask = flight->sig ? ~(UINT64_C(1) << (flight->sig - 1)) : ~UINT64_C(0);
    long error = 0;
    if (!flight->sig)
        error = sys_ptrace(PTRACE_SETOPTIONS, flight->tid, 0, PTRACE_O_TRACESYSGOOD);
    if (!error)
        error = sys_ptrace(PTRACE_SETREGS, flight->tid, 0, (uintptr_t)regs);
    if (!error)
        error = sys_ptrace(PTRACE_SETSIGMASK, flight->tid, sizeof mask, (uintptr_t)&mask);
    if (!error)
        error = flight_resume(flight, 0);
    return error ? tree_fail(tree, (int)error, "inject", 0, flight->tid, -1, regs->rip, NULL) : 0;
}

static int give_back(struct thread *thread) {
    struct user_regs_struct regs;
    own_registers(thread, &regs);
    long error = sys_ptrace(PTRACE_SETSIGMASK, thread->tid, sizeof thread->sigmask, (uintptr_t)&thread->sigmask);
    return error ? (int)error : (int)sys_ptrace(PTRACE_SETREGS, thread->tid, 0, (uintptr_t)&regs);
}

enum step { GO_ON, ARRIVED, FAILED };

/* One stop on the way: where does it leave us? */
static enum step flight_step(struct flight *flight, int status, struct user_regs_struct *regs, int *ret_error) {
    int sig = WSTOPSIG(status), event = status >> 16, pass = 0;
    long error = sys_ptrace(PTRACE_GETREGS, flight->tid, 0, (uintptr_t)regs);
    if (!error && event == 0 && sig == flight->sig && regs->rip == flight->park)
        return ARRIVED;
    if (!error && event == EVENT_STOP && flight->leaving && regs->rip == flight->park)
        return ARRIVED;
    if (!error && event == 0 && sig == (SIGTRAP | 0x80)) {
        if (regs->rip == flight->park && (int64_t)regs->rax != -ENOSYS) {
            flight->leaving = true;
            error = sys_ptrace(PTRACE_INTERRUPT, flight->tid, 0, 0);
        }
    } else if (!error && event == 0 && sig != flight->sig) {
        if (sig == SIGSEGV || sig == SIGBUS || sig == SIGILL || sig == SIGFPE || sig == SIGTRAP || sig == SIGSYS) {
            *ret_error = sig == SIGSYS ? -EPERM : -EFAULT; /* our own doing: not passed on */
            return FAILED;
        }
        pass = sig; /* SIGSTOP: nothing else gets through the mask */
    }
    if (!error)
        error = flight_resume(flight, pass);
    *ret_error = (int)error;
    return error ? FAILED : GO_ON;
}

/* The stop usually comes before a sleeping processor would even have been woken again: look for a while, then sleep. */
static int wait_stop(pid_t tid, int *ret_status) {
    uint64_t until = now_ns() + SPIN_NS;
    int got;
    do
        got = sys_wait(tid, ret_status, WNOHANG);
    while (got == 0 && now_ns() < until);
    return got ? got : sys_wait(tid, ret_status, 0);
}

int flight_wait(ckpt_tree *tree, struct flight *flight, int64_t *ret_value) {
    struct thread *thread = tree_thread(tree, flight->tid);
    struct user_regs_struct regs = {0};
    int status, error = 0;
    enum step step;
    do {
        int got = wait_stop(flight->tid, &status);
        if (got < 0 || WIFEXITED(status) || WIFSIGNALED(status)) {
            thread->state = THREAD_GONE;
            return 1;
        }
        step = flight_step(flight, status, &regs, &error);
    } while (step == GO_ON);
    if (error == -ESRCH) { /* killed under our hands: the next wait tells */
        thread->state = sys_wait(flight->tid, &status, 0) < 0 || !WIFSTOPPED(status) ? THREAD_GONE : thread->state;
        return 1;
    }
    ckpt_mark("batch-done");
    int back = give_back(thread);
    if (step == FAILED || back)
        return tree_fail(tree, step == FAILED ? error : back, "injected code", thread->pid, thread->tid, -1, regs.rip, NULL);
    *ret_value = (int64_t)regs.rbx;
    return 0;
}

int stub_call(ckpt_tree *tree, struct task *task, struct thread *thread, ckpt_addr_t bridge, uint64_t bytes, int64_t nr,
              const uint64_t arg[6], int64_t *ret_value) {
    struct task *owner = memory_owner(tree, task);
    struct { struct inject_note note; uint8_t code[STUB_BYTES]; } tail = {.note = {NOTE_MAGIC, bridge, bytes, 0}};
    struct flight flight;
    struct user_regs_struct regs;
    int error = inject_refused(tree, thread);
    if (error)
        return error;
    own_registers(thread, &regs);
    regs.rip = emit_stub(tail.code, owner->bridge.tail + NOTE_BYTES, task, thread, true, &flight);
    if (!regs.rip)
        return tree_fail(tree, -ENOSPC, "stub", task->pid, thread->tid, -1, 0, NULL);
    regs.rax = (uint64_t)nr;
    regs.orig_rax = (uint64_t)NOT_CALLED;
    regs.rdi = arg[0], regs.rsi = arg[1], regs.rdx = arg[2], regs.r10 = arg[3], regs.r8 = arg[4], regs.r9 = arg[5];
    error = write_all(tree, owner, owner->bridge.tail, &tail, sizeof tail);
    if (!error)
        error = ckpt_mark("inject");
    if (!error)
        error = flight_start(tree, &flight, &regs);
    if (!error)
        error = flight_wait(tree, &flight, ret_value);
    ckpt_mark("injected");
    return error > 0 ? tree_fail(tree, -ESRCH, "inject", task->pid, flight.tid, -1, 0, NULL) : error;
}

int tail_clear(ckpt_tree *tree, struct task *task) {
    static const uint8_t zero[NOTE_BYTES + STUB_BYTES];
    struct task *owner = memory_owner(tree, task);
    return write_all(tree, owner, owner->bridge.tail, zero, sizeof zero);
}

int remote_call(ckpt_tree *tree, struct thread *thread, int64_t nr, const uint64_t arg[6], int64_t *ret_value) {
    struct task *task = tree_task(tree, thread->pid);
    const struct bridge *bridge = &memory_owner(tree, task)->bridge;
    int error = inject_prepare(tree, task);
    if (error)
        return error;
    error = stub_call(tree, task, thread, bridge->code, bridge->code ? bridge->code_bytes + bridge->data_bytes : 0, nr, arg, ret_value);
    if (!error && !bridge->code)
        error = tail_clear(tree, task);
    return error;
}
