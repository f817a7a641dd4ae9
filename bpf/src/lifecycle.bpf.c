/* lifecycle.bpf.c: who is born, executes, ends, and how mappings change. Keeps `tree` (tree.h) up to date for all programs.
 *
 * 1. A fork is seen in its parent before the child can run, so nothing of the child is missed.
 * 2. A process leaves the tree when its last thread ends (signal->live is already counted down there), so that nobody who gets its number is
 *    taken for it.
 * 3. A mapping's change is told at the call's exit, with its arguments and its result; one that failed is not told. */
enum { FORK = 1, THREAD = 2, EXEC = 3, END = 4, MAPPING = 5 };
enum { NR_MMAP = 9, NR_MUNMAP = 11, NR_BRK = 12, NR_MREMAP = 25 };

struct change {
    u64 ns;
    u32 kind, tgid, tid;
    s32 value;    /* END: wait status; MAPPING: number of the call */
    u64 arg[2];   /* MAPPING: address and size that were asked for */
    s64 result;   /* FORK, THREAD: its parent; EXEC: its thread's number before; END: 1 = the last thread; MAPPING: what the call gave */
};
BPF_RINGBUF_OUTPUT(changes, 64);
BPF_ARRAY(lost, u64, 1);

INLINE void tell(struct change *change) {
    change->ns = bpf_ktime_get_ns();
    if (changes.ringbuf_output(change, sizeof *change, 1 /* BPF_RB_NO_WAKEUP: it is asked */))
        lost.increment(0);
}

int forked(struct bpf_raw_tracepoint_args *ctx) {
    u32 parent = FIELD(u32, ctx->args[0], AT_TASK_STRUCT_TGID);
    if (!tree.lookup(&parent))
        return 0;
    struct change change = {.kind = THREAD, .result = parent};
    change.tid = FIELD(u32, ctx->args[1], AT_TASK_STRUCT_PID);
    u32 tgid = change.tgid = FIELD(u32, ctx->args[1], AT_TASK_STRUCT_TGID);
    if (tgid != parent) {
        u32 one = 1;
        change.kind = FORK;
        tree.update(&tgid, &one);
    }
    tell(&change);
    return 0;
}

int executed(struct bpf_raw_tracepoint_args *ctx) {
    u64 id = bpf_get_current_pid_tgid();
    if (!of_tree(id))
        return 0;
    struct change change = {.kind = EXEC, .tgid = id >> 32, .tid = id, .result = (u32)ctx->args[1]};
    tell(&change);
    return 0;
}

int ended(struct bpf_raw_tracepoint_args *ctx) {
    u64 id = bpf_get_current_pid_tgid();
    if (!of_tree(id))
        return 0;
    u32 tgid = id >> 32;
    struct change change = {.kind = END, .tgid = tgid, .tid = id};
    change.value = FIELD(s32, ctx->args[0], AT_TASK_STRUCT_EXIT_CODE);
    u64 signal = FIELD(u64, ctx->args[0], AT_TASK_STRUCT_SIGNAL);
    if (FIELD(s32, signal, AT_SIGNAL_STRUCT_LIVE) == 0) {
        change.result = 1;
        tree.delete(&tgid);
    }
    tell(&change);
    return 0;
}

int mapped(struct bpf_raw_tracepoint_args *ctx) {
    u64 id = bpf_get_current_pid_tgid();
    if (!of_tree(id))
        return 0;
    u64 nr = FIELD(u64, ctx->args[0], AT_PT_REGS_ORIG_AX);
    s64 result = ctx->args[1];
    if ((nr != NR_MMAP && nr != NR_MUNMAP && nr != NR_BRK && nr != NR_MREMAP) || (result < 0 && result > -4096))
        return 0;
    struct change change = {.kind = MAPPING, .tgid = id >> 32, .tid = id, .value = nr, .result = result};
    change.arg[0] = FIELD(u64, ctx->args[0], AT_PT_REGS_DI);
    if (nr != NR_BRK) /* it has one argument; what stands in the register of the second is anybody's */
        change.arg[1] = FIELD(u64, ctx->args[0], AT_PT_REGS_SI);
    tell(&change);
    return 0;
}
