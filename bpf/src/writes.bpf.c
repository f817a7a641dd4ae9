/* writes.bpf.c: who writes a page for the first time since it was protected: thread, time, instruction.
 *
 * 1. Tracking protects pages; a write to a protected one faults, once. So these events are the first writes, at no cost for the others. A page
 *    that is not there yet faults too (not "present"), and so does one that is shared with a child: several events of one page are
 *    usual, and the first is meant.
 * 2. Written by the program itself, the instruction is the fault's. Written by the kernel for it (read, recv), it is the one that made the call.
 * 3. Not seen, since nothing faults in the thread that is meant: direct I/O, process_vm_writev and ptrace by others, io_uring's own threads.
 *    What was written the scan says, not this. */
enum { WRITE = 2 /* X86_PF_WRITE */ };

struct event {
    u64 ns;
    u64 page;   /* address of the page; bit 0: written by the kernel */
    u64 ip;
    u32 tid;
    u32 owner;  /* the process whose memory it is */
    s32 nr;     /* number of the call, -1: none */
    u32 pad;
};
BPF_RINGBUF_OUTPUT(events, 1024);
BPF_ARRAY(lost, u64, 1);

INLINE int fault(struct bpf_raw_tracepoint_args *ctx, bool kernel) {
    u64 id = bpf_get_current_pid_tgid();
    u32 tgid = id >> 32, owner = tgid;
    struct member *member = tree.lookup(&tgid);
    if (!member || !(ctx->args[2] & WRITE) || ctx->args[0] >> 47)
        return 0;
    if (member->lent && member->lent == FIELD(u64, bpf_get_current_task(), AT_TASK_STRUCT_MM))
        owner = member->owner; /* else it is just executing, and the kernel fills its new memory */
    struct event event = {.ns = bpf_ktime_get_ns(), .page = (ctx->args[0] & ~0xfffULL) | kernel, .tid = id, .owner = owner, .nr = -1};
    const void *regs = (const void *)ctx->args[1];
    if (kernel) {
        regs = (const void *)bpf_task_pt_regs((void *)bpf_get_current_task_btf());
        event.nr = FIELD(s64, regs, AT_PT_REGS_ORIG_AX);
    }
    event.ip = FIELD(u64, regs, AT_PT_REGS_IP);
    if (events.ringbuf_output(&event, sizeof event, 1 /* BPF_RB_NO_WAKEUP: it is asked */))
        lost.increment(0);
    return 0;
}

int by_user(struct bpf_raw_tracepoint_args *ctx) { return fault(ctx, false); }
int by_kernel(struct bpf_raw_tracepoint_args *ctx) { return fault(ctx, true); }
