/* inject.h: what vdso.c, stub.c, flight.c, bridge.c, settle.c, remote.c, each.c, ask.c, threads.c and arm.c share: making a frozen thread execute something for us. */
#ifndef CKPT_INJECT_H
#define CKPT_INJECT_H

#include "internal.h"

enum {
    STUB_BYTES = 384,  /* room for one self-restoring sequence; emit_stub() checks */
    STUB_CONSTANTS = 32, /* in front of its first instruction */
    NOTE_BYTES = 32,
    SLOT_HEADER = 64,  /* struct slot_header */
    BRIDGE_SLOTS = 64, /* of a bridge that stays for a while: so many threads may be in it at once (each.c) */
    CODE_SLOTS = 1024, /* where the threads' sequences begin in a bridge, behind magic and loop */
};

/* Stands in the zero tail of the vdso from before the first injection until nothing of ours is left in the process, so
 * that a later ckpt sees at once (one read) that an earlier one died here, and where it left a bridge. */
struct inject_note {
    uint64_t magic;
    ckpt_addr_t bridge; /* 0 = none yet */
    uint64_t bytes;
    uint64_t reserved;
};
#define NOTE_MAGIC UINT64_C(0x6b7074207761732e) /* ".saw tpk" */

/* One thread on its way through injected code. */
struct flight {
    pid_t tid;
    int sig;          /* the signal that stops it at the end; 0 = none is free: by system call stops */
    ckpt_addr_t park; /* rip at that stop */
    bool leaving;     /* by system call stops: the exit stop was seen, the EVENT_STOP is awaited */
};

/* vdso.c */
int task_mem(ckpt_tree *tree, struct task *task); /* /proc/PID/mem for writing, opened when first wanted */
struct task *memory_owner(ckpt_tree *tree, const struct task *task);
/* Finds the tail of the vdso and reads what decides how to inject (SigCgt, Seccomp). -EPERM when a seccomp filter is on. */
int inject_prepare(ckpt_tree *tree, struct task *task);
int inject_refused(ckpt_tree *tree, const struct thread *thread);
/* What inject_prepare() wants of /proc/PID/status, where somebody has read it since all stopped. */
void inject_note_status(const ckpt_tree *tree, struct task *task, const char *text, size_t bytes);

/* transfer.c */
enum { TRANSFER_SLOT = 112, TRANSFER_SLOTS = 12 };
/* At a stop: a thread in a slot is put back behind its call, with a short count. */
int transfer_met(struct thread *thread);
bool transfer_can_go_on(ckpt_tree *tree, const struct thread *thread, const struct user_regs_struct *regs);
/* When it is let go: into a slot, if that was decided. */
void transfer_go_on(ckpt_tree *tree, struct thread *thread);
/* Whether in the last bytes of the tail nothing but slots stands. */
bool transfer_slots_only(const uint8_t *room, size_t size);

/* stub.c */
/* The registers that the thread continues with: as shown at the stop, rax as decided. */
void own_registers(const struct thread *thread, struct user_regs_struct *ret_regs);
/* Writes the sequence for `thread` as it would stand at `at`; with_call: begins with the wanted `syscall`.
 * Sets all of *ret_flight; returns the entry, 0 = it does not fit. */
ckpt_addr_t emit_stub(uint8_t out[STUB_BYTES], ckpt_addr_t at, const struct task *task, const struct thread *thread, bool with_call,
                      struct flight *ret_flight);

/* The registers and the mask that a sequence gives back at its end (segments stay). -ENOENT: none stands there. */
int stub_own(const uint8_t code[STUB_BYTES], struct user_regs_struct *regs, uint64_t *ret_sigmask);

/* flight.c */
int flight_start(ckpt_tree *tree, struct flight *flight, const struct user_regs_struct *regs);
/* Waits for the end and gives the thread its own mask and registers back. 1 = the thread is gone (no fault recorded). */
int flight_wait(ckpt_tree *tree, struct flight *flight, int64_t *ret_value);
/* One call by the stub in the tail; the tail stays written. bridge, bytes: what the note says. */
int stub_call(ckpt_tree *tree, struct task *task, struct thread *thread, ckpt_addr_t bridge, uint64_t bytes, int64_t nr,
              const uint64_t arg[6], int64_t *ret_value);
int tail_clear(ckpt_tree *tree, struct task *task);

/* bridge.c */
struct slot_header {
    uint64_t calls, calls_end, data, epilogue, map, map_bytes, writable, writable_bytes;
};
int bridge_open(ckpt_tree *tree, struct task *task, struct thread *thread, const struct ckpt_range *avoid, size_t avoid_count,
                uint32_t slots, size_t slot_bytes);
/* What a batch that runs alone, through slot 0, has for header, calls and data: all of the data part. */
static inline size_t bridge_room(const struct bridge *bridge) { return bridge->data_bytes; }
int bridge_close(ckpt_tree *tree, struct task *task, struct thread *thread);
/* True when the bridge that a note names stands there. */
bool bridge_is_ours(ckpt_tree *tree, struct task *task, ckpt_addr_t at, uint64_t bytes);
/* Loads the thread's own sequence into the slot (out: what goes to code_slot_at()) and prepares the flight and the registers. */
ckpt_addr_t code_slot_at(const struct bridge *bridge, uint32_t slot);
ckpt_addr_t data_slot_at(const struct bridge *bridge, uint32_t slot);
int bridge_aim(const struct bridge *bridge, uint32_t slot, const struct task *task, const struct thread *thread, uint8_t out[STUB_BYTES],
               struct flight *ret_flight, struct slot_header *ret_header, struct user_regs_struct *ret_regs);
/* Any stopped thread of the process, its leader first; NULL = none. */
struct thread *task_any_thread(ckpt_tree *tree, const struct task *task);

#endif
