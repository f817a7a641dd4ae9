/* transfer.h: what transfer.c, cut.c, lists.c and frames.c share: the slots in which threads go on with what a stop has cut short. */
#ifndef CKPT_TRANSFER_H
#define CKPT_TRANSFER_H

#include "inject.h"

enum { BACK = 64 /* bytes of code */ };
#define SLOT_MAGIC UINT32_C(0x73656f67) /* "goes" */

struct slot {
    uint8_t code[BACK];               /* of a second slot that goes with one: its list of buffers */
    ckpt_addr_t back;
    uint32_t magic;
    uint32_t stack;                   /* its thread's rsp, in units of 64 KiB; 0 = not known */
    uint64_t buffer, count;           /* arguments as the program gave them */
    uint32_t done;
    int32_t tid;                      /* whose it is */
    uint16_t nr;
    uint8_t buffer_arg, count_arg;    /* buffer_arg: NO_ARG = none */
    uint32_t sends : 8, turn : 24;    /* turn: which of them was taken last; 0 = never */
};
_Static_assert(sizeof(struct slot) == TRANSFER_SLOT, "vdso.c counts them");

/* What the program goes on with, of a thread at `at` in the slot's code. */
uint64_t slot_count_at(const struct slot *slot, size_t at, int64_t rax);
static inline ckpt_addr_t slot_place(const struct bridge *bridge, unsigned index) { return bridge->tail_end - (index + 1) * TRANSFER_SLOT; }
/* How many slots there is room for. */
unsigned slot_count(const struct bridge *bridge);
/* All of a memory by one read; slots[0] is the last there. Returns how many. */
int slots_read(const struct task *owner, struct slot slots[TRANSFER_SLOTS]);

/* lists.c: buffers that are left behind `done` bytes of a call with a list of them, as the call's own list or message, which is to stand at
 * `at`; 0 = none, or it cannot be asked for so. */
struct restart_row;
unsigned list_left(const struct task *owner, const struct restart_row *row, const uint64_t arg[6], uint64_t done, ckpt_addr_t at, uint8_t ret_list[BACK]);

/* frames.c: frames on a thread's stack that return into a slot get the short count: near its stack pointer, and below where it
 * stood when the slot of this number was taken. */
int frames_patch(const struct task *owner, ckpt_addr_t from, const struct slot *slots, unsigned count, unsigned index);
enum { STACK_UNIT = 16 /* bits */ };

#endif
