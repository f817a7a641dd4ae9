/* newborn.c: an empty process that a restore then turns into the wanted one.
 *
 * It is a fork of the caller, with the number that was asked for (clone3 set_tid). All that it does by itself is to give up what would
 * stand in the way of its next life: descriptors, restartable sequences (the kernel would write into memory that is gone by
 * then), the caller's session. Then it waits to be seized. Everything else is the plan's: diff(newborn, wanted).
 *
 * Invariants
 *  1. Whoever dies in between, no newborn stays behind: before it is seized the death of its maker kills it (PDEATHSIG), after that
 *     PTRACE_O_EXITKILL does (ckpt_tree_doom), to the last detach.
 *  2. Between clone3 and the wait only system calls run in the child: the caller may have threads, and locks of theirs are never released there.
 *  3. When the maker goes on, only the descriptors that it was to keep are open in it, and all signals are blocked: closing the others,
 *     the end of a pipe among them, says so.
 *  4. Clocks of its own cost it a midwife: who calls unshare(CLONE_NEWTIME) has other clocks for all whom it bears from then on, a keeper of
 *     ours among them. The midwife is a process on our memory (0.15 ms), and gone when this returns.
 */
#define _GNU_SOURCE
#include "internal.h"
#include <errno.h>
#include <fcntl.h>
#include <linux/sched.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

enum { RSEQ_UNREGISTER = 1, RSEQ_SIGNATURE = 0x53053053, RSEQ_BYTES = 32, STACK_BYTES = 16384 };

/* Since glibc 2.35; absent elsewhere, and then nobody registers. */
extern const ptrdiff_t __rseq_offset __attribute__((weak));
extern const unsigned int __rseq_size __attribute__((weak));

static void leave_rseq(void) {
    if (!&__rseq_offset || !&__rseq_size || !__rseq_size)
        return;
    char *area = (char *)__builtin_thread_pointer() + __rseq_offset;
    if (syscall(SYS_rseq, area, RSEQ_BYTES, RSEQ_UNREGISTER, RSEQ_SIGNATURE))
        syscall(SYS_rseq, area, __rseq_size, RSEQ_UNREGISTER, RSEQ_SIGNATURE);
}

/* Everything but these, which are sorted. */
static void close_others(const struct newborn_keep *keep) {
    unsigned from = 0;
    for (size_t i = 0; i < keep->count; i++) {
        if ((unsigned)keep->fds[i] > from)
            syscall(SYS_close_range, from, (unsigned)keep->fds[i] - 1, 0);
        from = (unsigned)keep->fds[i] + 1;
    }
    syscall(SYS_close_range, from, ~0U, 0);
}

void newborn_live(pid_t maker, int own_session, const struct newborn_keep *keep) {
    syscall(SYS_prctl, PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0);
    if (syscall(SYS_getppid) != maker)
        syscall(SYS_exit_group, 1);
    if (own_session)
        syscall(SYS_setsid);
    leave_rseq();
    close_others(keep);
    for (;;)
        syscall(SYS_pause);
}

struct birth {
    struct clone_args args;
    uint64_t number;
    pid_t maker;
    int own_session;
    struct newborn_keep keep;
    const char *clocks; /* clock.c */
    long child;
    int error;
};

static void bear(struct birth *birth) {
    birth->child = syscall(SYS_clone3, &birth->args, sizeof birth->args);
    birth->error = birth->child < 0 ? -errno : 0;
    if (birth->child == 0)
        newborn_live(birth->maker, birth->own_session, &birth->keep);
}

/* In a process of its own on our memory: only its children are to have these clocks. The newborn becomes our child (CLONE_PARENT), and
 * gets the exit signal that its maker has. */
static int midwife(void *argument) {
    struct birth *birth = argument;
    clocks_for_children(birth->clocks); /* where it cannot be had the caller sees that */
    birth->args.flags = CLONE_PARENT;
    birth->args.exit_signal = 0;
    bear(birth);
    _exit(0);
}

static void bear_by_midwife(struct birth *birth) {
    _Alignas(16) char stack[STACK_BYTES];
    int status;
    pid_t pid = clone(midwife, stack + sizeof stack, CLONE_VM | CLONE_VFORK | SIGCHLD, birth);
    birth->error = pid < 0 ? -errno : birth->error;
    while (pid > 0 && waitpid(pid, &status, __WALL) < 0 && errno == EINTR)
        ;
}

int ckpt_newborn(int32_t pid, int own_session, const int32_t *keep, size_t keep_count, const struct ckpt_clocks *offsets, int32_t *ret_pid) {
    sigset_t all, before;
    int done[2];
    int32_t fds[NEWBORN_KEEP];
    char clocks[CLOCKS_ROOM];
    struct lean lean;
    struct birth birth = {.number = (uint64_t)pid, .maker = getpid(), .own_session = own_session, .keep = {fds, keep_count}, .clocks = clocks,
                          .child = -1, .error = -ECHILD};
    birth.args = (struct clone_args){.exit_signal = SIGCHLD, .set_tid = pid ? (uintptr_t)&birth.number : 0, .set_tid_size = pid ? 1 : 0};
    if (keep_count > NEWBORN_KEEP)
        return -E2BIG;
    if (pipe2(done, O_CLOEXEC))
        return -errno;
    memcpy(fds, keep, keep_count * sizeof *keep);
    if (offsets)
        clocks_text(offsets, clocks);
    lean_begin(&lean);
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    if (offsets)
        bear_by_midwife(&birth);
    else
        bear(&birth);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    lean_end(&lean);
    close(done[1]);
    char none;
    while (!birth.error && read(done[0], &none, 1) < 0 && errno == EINTR)
        ;
    close(done[0]);
    if (!birth.error)
        *ret_pid = (int32_t)birth.child;
    return birth.error;
}

int ckpt_tree_doom(ckpt_tree *tree) {
    tree_fault_clear(tree);
    if (tree->frozen)
        return tree_fail(tree, -EBUSY, "doom", tree->root, 0, -1, 0, NULL);
    tree->doomed = true;
    return 0;
}
