/* int80.c: calls that a 64-bit program makes by `int 0x80`. What they are, and how they go on: ckpt/syscalls/int80.py.
 *
 * Invariants
 *  1. Known by three things at once: `cd 80` before rip, orig_rax, and a result that only an interrupted call has. A handler's entry has rax = 0;
 *     behind `syscall` rcx is rip. The code is read only where those two fit, which is nearly never.
 *  2. The decision is the one of the same call of x86-64; its nr is the 32-bit number + INT80.
 */
#define _GNU_SOURCE
#include "internal.h"
#include "restart.h"
#include <errno.h>
#include <stddef.h>

static const struct int80_row {
    uint16_t nr, same;
} table[] = {
#include "int80_table.inc"
};

enum { RESTART_SYSCALL = 219 };

static int64_t same_call(int64_t nr) {
    if (!nr)
        return RESTART_SYSCALL;
    for (size_t i = 0; i < sizeof table / sizeof *table; i++)
        if (table[i].nr == nr)
            return table[i].same;
    return nr + INT80; /* nobody's */
}

void int80_as_syscall(const struct user_regs_struct *regs, struct user_regs_struct *ret_regs) {
    *ret_regs = *regs;
    ret_regs->rdi = (uint32_t)regs->rbx;
    ret_regs->rsi = (uint32_t)regs->rcx;
    ret_regs->rdx = (uint32_t)regs->rdx;
    ret_regs->r10 = (uint32_t)regs->rsi;
    ret_regs->r8 = (uint32_t)regs->rdi;
    ret_regs->r9 = (uint32_t)regs->rbp;
    ret_regs->rcx = regs->rip;
    ret_regs->orig_rax = (uint64_t)same_call((int64_t)regs->orig_rax);
}

static bool interrupted(int64_t shown) { return shown == -EINTR || (shown <= -512 && shown >= -516 && shown != -515); }

bool int80_made(pid_t pid, const struct user_regs_struct *regs) {
    int64_t nr = (int64_t)regs->orig_rax;
    if (nr < 0 || nr >= INT80 || regs->rcx == regs->rip || !interrupted((int64_t)regs->rax))
        return false;
    uint8_t code[2] = {0};
    const struct iovec here = {code, sizeof code}, there = {(void *)(uintptr_t)(regs->rip - sizeof code), sizeof code};
    return sys_vm_readv(pid, &here, 1, &there, 1) == sizeof code && code[0] == 0xcd && code[1] == 0x80;
}
