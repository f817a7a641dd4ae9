/* restart.c: how a thread that was stopped inside a system call continues. Pure: registers in, decision out.
 *
 * A stop interrupts the call, and the kernel leaves in rax what it will do when the thread runs again: -512..-514 and
 * -516 restart by themselves, but a family of calls (epoll_wait, semop, a receive with a time-out, ...) shows -EINTR,
 * which the program would see though nobody sent it a signal. For those rax becomes -514 (ERESTARTNOHAND): at
 * PTRACE_EVENT_STOP the thread is still inside get_signal(), so the kernel itself then chooses: a handler is pending:
 * EINTR; otherwise the call starts again.
 *
 * Invariants
 *  1. "Returning from a SYSCALL instruction" is orig_rax >= 0 and rcx == rip; a handler's entry has orig_rax too.
 *  2. Never -513 in place of -4 (a genuine EINTR would be lost), never orig_rax-and-rewind.
 *  3. A live thread keeps its restart block, so -516 continues as it is; a second stop shows it as call 219. A wait without a limit, or until
 *     an instant, needs no block: by -514 it begins anew and keeps its number.
 *  4. A finite wait of the -4 family starts again with its full time: disturbed says so. Who keeps its deadline: keeper.c.
 *  5. Rows come from ckpt/syscalls/table.py, sorted by number; what is not in the table is left alone. The rules are
 *     those of ckpt/syscalls/decide.py, which tells them in words; a test holds the two equal.
 */
#include "restart.h"
#include "internal.h"
#include <errno.h>
#include <stddef.h>
#include <string.h>

static const struct restart_row table[] = {
#include "restart_table.inc"
};
static const size_t rows = sizeof table / sizeof *table;

enum { IORING_ENTER_EXT_ARG_BIT = 1 << 3 };

const struct restart_row *restart_row(int64_t nr) {
    size_t low = 0, high = rows;
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (table[middle].nr < nr)
            low = middle + 1;
        else
            high = middle;
    }
    return low < rows && table[low].nr == nr ? &table[low] : NULL;
}

void restart_arguments(const struct user_regs_struct *regs, uint64_t ret_arg[6]) {
    const uint64_t arg[6] = {regs->rdi, regs->rsi, regs->rdx, regs->r10, regs->r8, regs->r9};
    memcpy(ret_arg, arg, sizeof arg);
}

static uint64_t argument(const uint64_t arg[6], unsigned index) { return index < 6 ? arg[index] : 0; }

bool restart_finite(const struct restart_row *row, const uint64_t arg[6]) {
    uint64_t value = argument(arg, row->timeout_arg);
    if (argument(arg, row->absolute_arg) & row->absolute_bits)
        return false;
    switch ((enum timeout_form)row->timeout_form) {
    case TIMEOUT_NONE: return false;
    case TIMEOUT_MS: return (int32_t)value >= 0;
    case TIMEOUT_TIMESPEC:
    case TIMEOUT_TIMEVAL: return value != 0;
    case TIMEOUT_RECEIVE:
    case TIMEOUT_SEND: return true;
    case TIMEOUT_EXT_ARG: return (value & IORING_ENTER_EXT_ARG_BIT) != 0;
    }
    return true;
}

static bool may_be_short(const struct restart_row *row, const uint64_t arg[6], int64_t shown) {
    uint64_t flags = argument(arg, row->flags_arg);
    if ((flags & row->flags_need) != row->flags_need || (flags & row->flags_veto))
        return false;
    if (row->vector == VECTOR_MMSGHDR && (flags & row->last_need) == row->last_need)
        return true;
    return row->wanted_arg == NO_ARG || (uint64_t)shown < argument(arg, row->wanted_arg);
}

static void decide(const struct restart_row *row, const uint64_t arg[6], int deliverable, struct ckpt_decision *decision) {
    int64_t shown = decision->shown;
    unsigned family = row ? row->family : 0;
    if (shown == -516 && (family & FAMILY_BLOCK) && !restart_finite(row, arg)) {
        decision->action = CKPT_RESTART;
        decision->value = -514;
    } else if (shown == -512 || shown == -513 || shown == -514 || shown == -516) {
        decision->action = CKPT_RESTART;
        decision->disturbed = shown == -514 && (family & FAMILY_FULL) && restart_finite(row, arg);
    } else if (shown == -EINTR && (family & FAMILY_EINTR)) {
        decision->action = CKPT_RESTART;
        decision->value = -514;
        decision->disturbed = restart_finite(row, arg);
    } else if (shown > 0 && (family & FAMILY_PARTIAL)) {
        decision->disturbed = !deliverable && may_be_short(row, arg, shown);
    }
}

_Static_assert(sizeof(struct user_regs_struct) == 27 * 8, "the header promises 27 words");

int ckpt_decide(const uint64_t *words, int deliverable, struct ckpt_decision *ret_decision) {
    const struct user_regs_struct *regs = (const void *)words;
    struct ckpt_decision decision = {.nr = -1, .shown = (int64_t)regs->rax, .value = (int64_t)regs->rax, .action = CKPT_KEEP};
    int64_t nr = (int64_t)regs->orig_rax;
    if (nr >= 0 && regs->rcx == regs->rip) {
        decision.nr = nr;
        uint64_t arg[6];
        restart_arguments(regs, arg);
        decide(restart_row(nr), arg, deliverable, &decision);
    }
    *ret_decision = decision;
    return 0;
}
