/* deadlines.bpf.c: when the call that a freeze interrupts would have ended. Attached for a freeze only.
 *
 * 1. Who waits with a time limit has its timer on its own kernel stack, and takes it back itself when it is interrupted. So the timer passes by
 *    here on its way out, with the instant at which it would have gone off: also of a wait that began long before we came.
 * 2. It is told at the call's exit, and only if the call ends as an interrupted one does. What a call took back that ended otherwise
 *    is forgotten: the call after it has a timer of its own, or none.
 * 3. Calls that the kernel restarts by -516 leave their instant in the restart block too; of one that was interrupted before
 *    (number 219) the block says which call it is.
 * 4. A timer is asked for its earliest instant: the later one has the timer slack in it, which is not the program's.
 *    Clocks other than CLOCK_MONOTONIC are given with their distance from it. Sockets wait by jiffies. */
enum { EINTR = 4, ERESTARTSYS = 512, ERESTARTNOINTR = 513, ERESTARTNOHAND = 514, ERESTART_RESTARTBLOCK = 516 };
enum { STACK_BYTES = 16384 }; /* THREAD_SIZE of x86-64 */
enum { HRTIMER = 1, JIFFIES = 2 }; /* 0: none */

struct timer {
    u64 expires;    /* HRTIMER: ns of its clock; JIFFIES: of them */
    s64 distance;   /* HRTIMER: its clock minus CLOCK_MONOTONIC; JIFFIES: how many of them there were at `ns` */
    u64 ns;         /* CLOCK_MONOTONIC: when it was taken back */
    u64 kind;
};
BPF_HASH(timers, u32, struct timer, 4096);

struct interrupted {
    u64 ns;         /* when the call ended */
    u32 tgid, tid;
    s64 nr, result;
    u64 ip, sp;
    struct timer timer;
    struct {        /* the restart block, where the result is -516: which of the three it is, `fn` or the call tells */
        u64 fn, sleep_clock, sleep_expires, futex_time, poll_end[2];
    } block;
};
BPF_RINGBUF_OUTPUT(interruptions, 64);
BPF_ARRAY(lost, u64, 1);

INLINE bool on_own_stack(const void *timer) {
    u64 stack = FIELD(u64, bpf_get_current_task(), AT_TASK_STRUCT_STACK);
    return (u64)timer - stack < STACK_BYTES;
}

INLINE void taken_back(struct timer *timer) {
    u32 tid = bpf_get_current_pid_tgid();
    timer->ns = bpf_ktime_get_ns();
    if (timers.update(&tid, timer))
        lost.increment(0);
}

int hrtimer_taken(struct bpf_raw_tracepoint_args *ctx) {
    const void *at = (const void *)ctx->args[0];
    if (!of_tree(bpf_get_current_pid_tgid()) || !on_own_stack(at))
        return 0;
    u64 clock = FIELD(u64, at, AT_HRTIMER_BASE);
    struct timer timer = {.kind = HRTIMER, .expires = FIELD(u64, at, AT_HRTIMER__SOFTEXPIRES)};
    timer.distance = FIELD(s64, clock, AT_HRTIMER_CLOCK_BASE_OFFSET);
    taken_back(&timer);
    return 0;
}

int timer_taken(struct bpf_raw_tracepoint_args *ctx) {
    const void *at = (const void *)ctx->args[0];
    if (!of_tree(bpf_get_current_pid_tgid()) || !on_own_stack(at))
        return 0;
    struct timer timer = {.kind = JIFFIES, .expires = FIELD(u64, at, AT_TIMER_LIST_EXPIRES), .distance = bpf_jiffies64()};
    taken_back(&timer);
    return 0;
}

INLINE bool interrupts(s64 result) {
    return result == -EINTR || result == -ERESTARTSYS || result == -ERESTARTNOINTR || result == -ERESTARTNOHAND || result == -ERESTART_RESTARTBLOCK;
}

int left(struct bpf_raw_tracepoint_args *ctx) {
    u64 id = bpf_get_current_pid_tgid();
    u32 tid = id;
    if (!of_tree(id))
        return 0;
    s64 result = ctx->args[1];
    struct timer *timer = timers.lookup(&tid);
    if (interrupts(result) && (timer || result == -ERESTART_RESTARTBLOCK)) {
        const void *regs = (const void *)ctx->args[0];
        struct interrupted told = {.ns = bpf_ktime_get_ns(), .tgid = id >> 32, .tid = tid, .result = result};
        told.nr = FIELD(s64, regs, AT_PT_REGS_ORIG_AX);
        told.ip = FIELD(u64, regs, AT_PT_REGS_IP);
        told.sp = FIELD(u64, regs, AT_PT_REGS_SP);
        if (timer)
            told.timer = *timer;
        if (result == -ERESTART_RESTARTBLOCK) {
            const char *block = (const char *)bpf_get_current_task() + AT_TASK_STRUCT_RESTART_BLOCK;
            told.block.fn = FIELD(u64, block, AT_RESTART_BLOCK_FN);
            told.block.sleep_clock = FIELD(u32, block, AT_RESTART_BLOCK_NANOSLEEP_CLOCKID);
            told.block.sleep_expires = FIELD(u64, block, AT_RESTART_BLOCK_NANOSLEEP_EXPIRES);
            told.block.futex_time = FIELD(u64, block, AT_RESTART_BLOCK_FUTEX_TIME);
            bpf_probe_read_kernel(&told.block.poll_end, sizeof told.block.poll_end, block + AT_RESTART_BLOCK_POLL_TV_SEC);
        }
        if (interruptions.ringbuf_output(&told, sizeof told, 1 /* BPF_RB_NO_WAKEUP: it is asked */))
            lost.increment(0);
    }
    timers.delete(&tid);
    return 0;
}
