/* lifecycle.bpf.c: who is born, executes, ends. Keeps `tree` up to date for all programs.
 *
 * 1. A fork is seen in its parent before the child can run, so nothing of the child is missed.
 * 2. A process leaves the tree when its last thread ends (signal->live is already counted down there), so that nobody who gets its number is
 *    taken for it.
 * 3. Whoever is born with its parent's memory (vfork, posix_spawn) writes into it until it executes. */

int forked(struct bpf_raw_tracepoint_args *ctx) {
    u32 parent = FIELD(u32, ctx->args[0], AT_TASK_STRUCT_TGID);
    struct member *above = tree.lookup(&parent);
    if (!above)
        return 0;
    struct change change = {.kind = THREAD, .result = parent};
    change.tid = FIELD(u32, ctx->args[1], AT_TASK_STRUCT_PID);
    u32 tgid = change.tgid = FIELD(u32, ctx->args[1], AT_TASK_STRUCT_TGID);
    if (tgid != parent) {
        u64 memory = FIELD(u64, ctx->args[0], AT_TASK_STRUCT_MM);
        struct member member = {.owner = tgid};
        if (memory == FIELD(u64, ctx->args[1], AT_TASK_STRUCT_MM)) {
            member.owner = above->owner;
            member.lent = memory;
        }
        change.kind = FORK;
        tree.update(&tgid, &member);
    }
    tell(&change);
    return 0;
}

int executed(struct bpf_raw_tracepoint_args *ctx) {
    u64 id = bpf_get_current_pid_tgid();
    if (!of_tree(id))
        return 0;
    u32 tgid = id >> 32;
    struct member member = {.owner = tgid};
    tree.update(&tgid, &member);
    struct change change = {.kind = EXEC, .tgid = tgid, .tid = id, .result = (u32)ctx->args[1]};
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
