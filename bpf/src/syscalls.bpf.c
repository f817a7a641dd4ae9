/* syscalls.bpf.c: the call that each thread of the tree is in, since when, and what the last one gave; and how mappings change.
 *
 * 1. A record is written by its own thread alone and copied by the reader meanwhile, word by word in any order. So it has a sum over its words,
 *    each weighted by its place, made when it is written: a copy of some words of one state and some of another does not have its sum.
 * 2. A call that was interrupted and goes on (a signal, a freeze) is one call: it exits with a restart code and is entered again, by its own
 *    number or as restart_syscall. It keeps its number, its arguments and the time at which it began.
 * 3. What a thread calls while it is traced, its tracer has put into it (a snapshot asks its questions so): such calls are left out, and the
 *    call that was interrupted for them goes on afterwards. So of a program under a debugger nothing is told; /proc must do there.
 * 4. A mapping's change is told at the call's exit, with its arguments and its result; one that failed is not told. */
enum { NR_MMAP = 9, NR_MUNMAP = 11, NR_BRK = 12, NR_MREMAP = 25 };
enum { NR_RESTART_SYSCALL = 219, EINTR = 4, ERESTARTSYS = 512, ERESTARTNOINTR = 513, ERESTARTNOHAND = 514, ERESTART_RESTARTBLOCK = 516 };

struct call {
    u64 sum;         /* of all that follows: bpf/syscalls.py has the same */
    s64 nr;          /* -1: in user space */
    u64 entry_ns;    /* 0: it was in the call before we looked */
    u64 arg[6];
    s64 last_nr;     /* -1: none has ended since we look */
    s64 last_result;
    u64 last_exit_ns;
    u64 count;       /* calls that have ended */
    u64 tgid;
    u64 goes_on;     /* the last one was interrupted, and is entered again */
};
enum { WORDS = sizeof(struct call) / sizeof(u64) };
#define WEIGHT 0x9e3779b97f4a7c15ull /* odd, and far from all that differs between two states of a record: their differences do not cancel out */
BPF_HASH(calls, u32, struct call, 16384);
BPF_ARRAY(lost, u64, 1);

struct saved { u64 r10, r9, r8, ax, cx, dx, si, di; };
_Static_assert(AT_PT_REGS_DI - AT_PT_REGS_R10 == 56 && AT_PT_REGS_R9 - AT_PT_REGS_R10 == 8 && AT_PT_REGS_R8 - AT_PT_REGS_R10 == 16 &&
                   AT_PT_REGS_DX - AT_PT_REGS_R10 == 40 && AT_PT_REGS_SI - AT_PT_REGS_R10 == 48,
               "struct saved is a part of struct pt_regs");

INLINE void summed(struct call *call) {
    const u64 *word = &call->sum;
    u64 sum = 0;
#pragma unroll
    for (int place = 1; place < WORDS; place++)
        sum = sum * WEIGHT + word[place];
    call->sum = sum;
}

INLINE struct call *mine(u64 id) {
    u32 tid = id;
    struct call *call = calls.lookup(&tid);
    if (call)
        return call;
    struct call fresh = {.nr = -1, .last_nr = -1, .tgid = id >> 32};
    summed(&fresh);
    if (calls.update(&tid, &fresh))
        lost.increment(0);
    return calls.lookup(&tid);
}

INLINE bool traced(void) { return FIELD(u32, bpf_get_current_task(), AT_TASK_STRUCT_PTRACE) != 0; }

/* A call that the kernel does not restart by itself (epoll_wait) shows EINTR; a tracer that stopped it has it restarted (ckpt/syscalls/table.py). */
INLINE bool goes_on(s64 result) {
    return (result == -EINTR && traced()) || result == -ERESTARTSYS || result == -ERESTARTNOINTR || result == -ERESTARTNOHAND || result == -ERESTART_RESTARTBLOCK;
}

int entered(struct bpf_raw_tracepoint_args *ctx) {
    u64 id = bpf_get_current_pid_tgid();
    if (!of_tree(id) || traced())
        return 0;
    struct call *call = mine(id);
    if (!call)
        return 0;
    s64 nr = ctx->args[1];
    struct saved saved = {};
    bpf_probe_read_kernel(&saved, sizeof saved, (const char *)ctx->args[0] + AT_PT_REGS_R10);
    bool again = call->goes_on && (nr == call->last_nr || nr == NR_RESTART_SYSCALL);
    call->goes_on = 0;
    if (again) {
        call->nr = call->last_nr;
    } else {
        call->nr = nr;
        call->entry_ns = bpf_ktime_get_ns();
        call->arg[0] = saved.di, call->arg[1] = saved.si, call->arg[2] = saved.dx;
        call->arg[3] = saved.r10, call->arg[4] = saved.r8, call->arg[5] = saved.r9;
    }
    summed(call);
    return 0;
}

INLINE void mapped(u64 id, struct call *call, s64 result) {
    s64 nr = call->nr;
    if ((nr != NR_MMAP && nr != NR_MUNMAP && nr != NR_BRK && nr != NR_MREMAP) || (result < 0 && result > -4096))
        return;
    struct change change = {.kind = MAPPING, .tgid = id >> 32, .tid = id, .value = nr, .result = result};
    change.arg[0] = call->arg[0];
    if (nr != NR_BRK) /* it has one argument; what stands in the register of the second is anybody's */
        change.arg[1] = call->arg[1];
    tell(&change);
}

int exited(struct bpf_raw_tracepoint_args *ctx) {
    u64 id = bpf_get_current_pid_tgid();
    if (!of_tree(id))
        return 0;
    struct call *call = mine(id);
    if (!call)
        return 0;
    s64 result = ctx->args[1];
    bool on = goes_on(result);
    if (call->nr < 0 && !on && traced())
        return 0;
    if (call->nr < 0) { /* it was in the call before we looked */
        struct saved saved = {};
        bpf_probe_read_kernel(&saved, sizeof saved, (const char *)ctx->args[0] + AT_PT_REGS_R10);
        call->nr = FIELD(s64, ctx->args[0], AT_PT_REGS_ORIG_AX);
        call->entry_ns = 0;
        call->arg[0] = saved.di, call->arg[1] = saved.si, call->arg[2] = saved.dx;
        call->arg[3] = saved.r10, call->arg[4] = saved.r8, call->arg[5] = saved.r9;
    }
    mapped(id, call, result);
    call->last_nr = call->nr;
    call->last_result = result;
    call->last_exit_ns = bpf_ktime_get_ns();
    call->count += !on;
    call->goes_on = on;
    call->nr = -1;
    summed(call);
    return 0;
}
