/* operand.h: where one instruction may write. See operand.c; suspect.c is its user. */
#ifndef CKPT_OPERAND_H
#define CKPT_OPERAND_H

#include "internal.h"

enum {
    OPERAND_BYTES = 15,   /* the longest instruction */
    OPERAND_REACH = 128,  /* bytes on both sides of an address that is named: covers operands, pushes, an immediate's length */
    OPERAND_AREA = 16384, /* XSAVE's area, with AMX */
    OPERAND_PLACES = 12,
};

/* Stretches of memory, [start, end); more than the instruction writes, never less. */
struct operand {
    struct {
        ckpt_addr_t start, end;
    } at[OPERAND_PLACES];
    size_t count;
};

/* Fills in every place that the instruction at regs->rip may write. False = not understood: it may be anywhere. */
bool operand_find(const uint8_t *code, size_t bytes, const struct user_regs_struct *regs, struct operand *ret_operand);

#endif
