/* tree.h: whom the programs look at, and what they tell of it. Each program is this text and its own.
 *
 * `tree` is one map for all of them: the processes of the tree by number, as the machine's own pid namespace numbers them, with the process
 * whose memory each has: its own, but for one that was born by vfork() and has executed nothing yet, or that shares it for good. The lifecycle
 * program adds who is born and takes away who has ended. `changes` is one ring for all of them too.
 * Offsets of kernel structs come as -D from the kernel's BTF (bpf/images.py). */
#define INLINE static inline __attribute__((always_inline)) /* a program is one function: BCC links no calls */

struct member {
    u64 lent;       /* mm_struct of `owner`, if it is another process */
    u32 owner, pad;
};
BPF_HASH(tree, u32, struct member, 16384);

INLINE bool of_tree(u64 pid_tgid) {
    u32 tgid = pid_tgid >> 32;
    return tree.lookup(&tgid) != 0;
}

#define FIELD(type, base, offset)                                                                                                            \
    ({                                                                                                                                     \
        type value_ = 0;                                                                                                                     \
        bpf_probe_read_kernel(&value_, sizeof value_, (const char *)(base) + (offset));                                                        \
        value_;                                                                                                                            \
    })

enum { FORK = 1, THREAD = 2, EXEC = 3, END = 4, MAPPING = 5 };

struct change {
    u64 ns;
    u32 kind, tgid, tid;
    s32 value;    /* END: wait status; MAPPING: number of the call */
    u64 arg[2];   /* MAPPING: address and size that were asked for */
    s64 result;   /* FORK, THREAD: its parent; EXEC: its thread's number before; END: 1 = the last thread; MAPPING: what the call gave */
};
BPF_RINGBUF_OUTPUT(changes, 64);
BPF_ARRAY(untold, u64, 1);

INLINE void tell(struct change *change) {
    change->ns = bpf_ktime_get_ns();
    if (changes.ringbuf_output(change, sizeof *change, 1 /* BPF_RB_NO_WAKEUP: it is asked */))
        untold.increment(0);
}
