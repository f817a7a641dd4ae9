/* cut.c: whether a transfer that a stop has cut can go on (transfer.c): whether a second call does what the first had left.
 *
 * Invariants
 *  1. Only calls that the stop alone has cut (restart.c), that wait without a limit (a time-out would begin again), and whose descriptor blocks.
 *  2. Only streams: a message that is shorter than the room for it, and a file's short count, are whole.
 *  3. Not under a seccomp filter or syscall user dispatch, which may look at where a call comes from.
 *  4. Only as many as there are slots are told so: who is told goes on. What a stop has promised beyond that is withdrawn when all stand still.
 */
#define _GNU_SOURCE
#include "restart.h"
#include "transfer.h"
#include <errno.h>
#include <fcntl.h>
#include <sys/ioctl.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>

enum { GET_DISPATCH = 0x4210 /* PTRACE_GET_SYSCALL_USER_DISPATCH_CONFIG */ };
enum use { STREAM, LISTED, SOURCE, SINK }; /* of a descriptor: with a buffer, with several, or between two */

/* A message that is shorter than the room for it is whole. */
static bool has_no_messages(int ours) {
    int type = 0;
    size_t size = sizeof type;
    return !sys_getsockopt(ours, SOL_SOCKET, SO_TYPE, &type, &size) && type == SOCK_STREAM;
}

/* Of a file nobody waits for more. What is read on must be there already: a splice ends where its source is empty, so going on there
 * would wait for bytes that nobody may send before this call has returned. */
static bool fits(int ours, enum use use) {
    struct stat stat;
    int ready = 0;
    if (sys_statat(ours, "", &stat, AT_EMPTY_PATH) || (S_ISSOCK(stat.st_mode) && !has_no_messages(ours)))
        return false;
    bool stream = S_ISFIFO(stat.st_mode) || S_ISSOCK(stat.st_mode);
    if (use == SOURCE)
        return !stream || (!sys_ioctl(ours, FIONREAD, &ready) && ready > 0);
    if (use == LISTED)
        return stream; /* to a device each buffer may be something of its own (sound: one for each channel) */
    return use == SINK || stream || S_ISCHR(stat.st_mode); /* a file's short count is its own: the disk is full, a limit is reached */
}

/* Blocks without a limit: of a pipe or a file there is none. `option`: the socket's limit for this direction. */
static bool waits_for_ever(const struct task *task, int fd, enum use use, int option) {
    _cleanup_close_ int ours = sys_pidfd_getfd(task->pidfd, fd);
    int flags = ours < 0 ? ours : sys_fcntl(ours, F_GETFL, 0);
    struct timeval time = {0};
    size_t size = sizeof time;
    if (flags < 0 || (flags & O_NONBLOCK) || !fits(ours, use))
        return false;
    int error = sys_getsockopt(ours, SOL_SOCKET, option, &time, &size);
    return error == -ENOTSOCK || !(error || time.tv_sec || time.tv_usec);
}

static bool filtered(ckpt_tree *tree, const struct thread *thread) {
    struct { uint64_t mode, selector, offset, length; } dispatch = {0};
    char name[NAME_ROOM];
    proc_name(name, "task/", (uint64_t)thread->tid, "/status");
    ssize_t bytes = proc_read(tree_task(tree, thread->pid)->dir, name, tree->text, TEXT_BYTES);
    if (bytes < 0 || proc_field(tree->text, (size_t)bytes, "Seccomp", 10, 0))
        return true;
    return !sys_ptrace(GET_DISPATCH, thread->tid, sizeof dispatch, (uintptr_t)&dispatch) && dispatch.mode;
}

/* What a second call would not do as one call does: peek further, open a connection once more, count its notices, and find the room for
 * an address as it was (the first one has written there how long the address is). */
static bool repeats(const struct restart_row *row, const uint64_t arg[6]) {
    uint64_t flags = row->flags_arg == NO_ARG ? 0 : arg[row->flags_arg];
    if (row->nr == SYS_recvfrom && arg[4])
        return false;
    return !(flags & (row->timeout_form == TIMEOUT_RECEIVE ? MSG_PEEK : MSG_FASTOPEN | MSG_ZEROCOPY));
}

static bool blocks(const struct task *task, const struct restart_row *row, const uint64_t arg[6]) {
    if (row->timeout_form != TIMEOUT_RECEIVE && row->timeout_form != TIMEOUT_SEND)
        return true; /* its descriptors are files, or it has none */
    if (row->goes_on != GOES_ON_BY_COUNT)
        return waits_for_ever(task, (int)arg[0], row->goes_on == GOES_ON_LIST ? LISTED : STREAM, row->timeout_form == TIMEOUT_SEND ? SO_SNDTIMEO : SO_RCVTIMEO);
    bool splice = row->wanted_arg == 4; /* splice(in, offset, out, ...), sendfile(out, in, ...) */
    return waits_for_ever(task, (int)arg[splice ? 0 : 1], SOURCE, SO_RCVTIMEO) && waits_for_ever(task, (int)arg[splice ? 2 : 0], SINK, SO_SNDTIMEO);
}

static unsigned wants(const struct restart_row *row) { return row->goes_on == GOES_ON_LIST ? 2 : 1; }

bool transfer_can_go_on(ckpt_tree *tree, const struct thread *thread, const struct user_regs_struct *regs) {
    const struct restart_row *row = restart_row((int64_t)regs->orig_rax);
    struct task *task = tree_task(tree, thread->pid);
    uint64_t arg[6];
    restart_arguments(regs, arg);
    if (!row || row->goes_on == GOES_ON_NOT || !task || (int64_t)regs->rax <= 0 || regs->rax > INT32_MAX || filtered(tree, thread))
        return false;
    bool room = !vdso_tail(tree, task) && task->bridge.promised + wants(row) <= slot_count(&task->bridge);
    tree_fault_clear(tree);
    uint8_t list[BACK];
    if (!room || !repeats(row, arg) || !blocks(task, row, arg) || (row->goes_on == GOES_ON_LIST && !list_left(task, row, arg, regs->rax, 0, list)))
        return false;
    task->bridge.promised += wants(row);
    return true;
}

/* At their stops nobody knew which processes share a memory, and so its slots, nor which slots others hold (frames.c). */
void transfer_withdraw(ckpt_tree *tree) {
    for (size_t i = 0; i < tree->task_count; i++)
        if (tree->tasks[i].bridge.settled)
            tree->tasks[i].bridge.promised = 0;
    for (size_t i = 0; i < tree->thread_count; i++) {
        struct ckpt_decision *decision = &tree->threads[i].decision;
        const struct task *task = tree_task(tree, tree->threads[i].pid);
        if (tree->threads[i].state != THREAD_STOPPED || decision->action != CKPT_GO_ON || !task || !task->bridge.settled)
            continue;
        struct bridge *bridge = &memory_owner(tree, task)->bridge;
        unsigned need = wants(restart_row(decision->nr)), held = (unsigned)__builtin_popcount(bridge->transfers);
        if (bridge->promised + held + need <= slot_count(bridge)) {
            bridge->promised += need;
        } else {
            decision->action = CKPT_KEEP;
            decision->disturbed = 1;
        }
    }
}
