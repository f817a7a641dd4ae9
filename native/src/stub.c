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
 *  vdso.c says where the first stub stands, flight.c how a thread is sent through it.
 *
 * What a kill can still change: a signal with a handler that arrives during the frozen window of a thread which waits in
 * pause() or epoll_wait() runs its handler before the wait begins again, so that this wait is not ended by it with EINTR.
 */
#define _GNU_SOURCE
#include "inject.h"
#include "restart.h"
#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>

enum { RESTART_SYSCALL = 219, FLAG_TRAP = 0x100 };

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

/* What jumping back needs: the kernel's restart done by hand. Each way into the kernel has its own number of restart_syscall. */
static void repeat_call(struct user_regs_struct *regs, int64_t nr) {
    int64_t shown = (int64_t)regs->rax;
    if ((int64_t)regs->orig_rax < 0)
        return;
    if (shown == -512 || shown == -513 || shown == -514)
        regs->rax = regs->orig_rax;
    else if (shown == -516)
        regs->rax = nr >= INT80 ? 0 : RESTART_SYSCALL;
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

static int flight_signal(const struct task *task, const struct thread *thread) {
    static const int candidates[] = {SIGURG, SIGWINCH};
    for (size_t i = 0; i < 2; i++) {
        uint64_t bit = UINT64_C(1) << (candidates[i] - 1);
        if (!(task->bridge.caught & bit) && (!(thread->sigmask & bit) || !pending(thread, candidates[i])))
            return candidates[i];
    }
    return 0;
}

ckpt_addr_t emit_stub(uint8_t out[STUB_BYTES], ckpt_addr_t at, const struct task *task, const struct thread *thread, bool with_call,
                      struct flight *ret_flight) {
    struct user_regs_struct regs;
    own_registers(thread, &regs);
    repeat_call(&regs, thread->decision.nr);
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

/* ---- and back: what a sequence holds that a dead ckpt left ---- */

enum { LOAD_BYTES = 10, LOADS = 15, SIGMASK_BYTES = 5 + LOAD_BYTES + 5 + 6 + 5 + 2 };

static uint64_t word_at(const uint8_t *bytes) {
    uint64_t value;
    memcpy(&value, bytes, sizeof value);
    return value;
}

int stub_own(const uint8_t code[STUB_BYTES], struct user_regs_struct *regs, uint64_t *ret_sigmask) {
    size_t jump = 32 + SIGMASK_BYTES + LOADS * LOAD_BYTES;
    for (int32_t back; jump + 6 <= STUB_BYTES; jump++) { /* the one place where the last jump can stand: it names constants[3] */
        memcpy(&back, code + jump + 2, sizeof back);
        if (code[jump] == 0xff && code[jump + 1] == 0x25 && back == 24 - (int32_t)(jump + 6))
            break;
    }
    if (jump + 6 > STUB_BYTES)
        return -ENOENT;
    const uint8_t *loads = code + jump - LOADS * LOAD_BYTES + 2;
    unsigned long long *const order[LOADS] = {&regs->rax, &regs->rcx, &regs->rdx, &regs->rbx, &regs->rbp, &regs->rsi, &regs->rdi, &regs->r8,
                                              &regs->r9,  &regs->r10, &regs->r11, &regs->r12, &regs->r13, &regs->r14, &regs->r15};
    for (size_t i = 0; i < LOADS; i++)
        *order[i] = word_at(loads + i * LOAD_BYTES);
    regs->rsp = word_at(loads - SIGMASK_BYTES - LOAD_BYTES);
    regs->eflags = word_at(code + 16);
    regs->rip = word_at(code + 24);
    regs->orig_rax = ~UINT64_C(0);
    *ret_sigmask = word_at(code + 8);
    return 0;
}
