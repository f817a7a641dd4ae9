/* tree.h: whom the programs look at. `tree` is one map for all of them: the processes of the tree by number, as the machine's own pid
 * namespace numbers them; the lifecycle program adds who is born into it and takes away who has ended.
 * Offsets of kernel structs come as -D from the kernel's BTF (bpf/images.py). */
#define INLINE static inline __attribute__((always_inline)) /* a program is one function: BCC links no calls */

BPF_HASH(tree, u32, u32, 16384);

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
