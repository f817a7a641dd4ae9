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
#include <unistd.h>

enum { RSEQ_UNREGISTER = 1, RSEQ_SIGNATURE = 0x53053053, RSEQ_BYTES = 32 };

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

int ckpt_newborn(int32_t pid, int own_session, const int32_t *keep, size_t keep_count, int32_t *ret_pid) {
    uint64_t number = (uint64_t)pid;
    struct clone_args args = {.exit_signal = SIGCHLD, .set_tid = pid ? (uintptr_t)&number : 0, .set_tid_size = pid ? 1 : 0};
    pid_t maker = getpid();
    sigset_t all, before;
    int done[2];
    int32_t fds[NEWBORN_KEEP];
    struct lean lean;
    if (keep_count > NEWBORN_KEEP)
        return -E2BIG;
    if (pipe2(done, O_CLOEXEC))
        return -errno;
    memcpy(fds, keep, keep_count * sizeof *keep);
    lean_begin(&lean);
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    long child = syscall(SYS_clone3, &args, sizeof args);
    int error = child < 0 ? -errno : 0;
    if (child == 0)
        newborn_live(maker, own_session, &(struct newborn_keep){fds, keep_count});
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    lean_end(&lean);
    close(done[1]);
    char none;
    while (!error && read(done[0], &none, 1) < 0 && errno == EINTR)
        ;
    close(done[0]);
    if (!error)
        *ret_pid = (int32_t)child;
    return error;
}

int ckpt_tree_doom(ckpt_tree *tree) {
    tree_fault_clear(tree);
    if (tree->frozen)
        return tree_fail(tree, -EBUSY, "doom", tree->root, 0, -1, 0, NULL);
    tree->doomed = true;
    return 0;
}
