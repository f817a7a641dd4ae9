/* waits.c: threads that wait with a time limit: when they began, and whether it is still the same wait after a freeze.
 *
 * Some calls (epoll_wait, semtimedop, a receive with a time-out, ...) begin anew after a freeze, with their whole time; others leave
 * their deadline in the kernel's restart block, which no rollback and no restore can set. For both it has to be known when they
 * began, and the kernel does not tell. But a thread that sleeps in one went to sleep when it began, and the scheduler
 * remembers when that was (se.exec_start in /proc/PID/task/TID/sched).
 *
 * Invariants
 *  1. A look is taken while the tree runs; it costs the frozen window nothing. Inside, one small file is read for each thread that is
 *     in a finite wait of the EINTR family (5-10 us), before it is interrupted; for no other. At the stop the capture's own copy is used.
 *  2. The same wait, not another one with the same arguments: the count of voluntary switches tells. Asleep it is n, at the stop n + 1; what
 *     it has when it sleeps there again after the thaw is seen by parting.c.
 *     Whoever woke in between has another count, or was seen awake just before the interrupt.
 *  3. The scheduler's clock leaves out what a hypervisor or interrupts took: it lags (30 ms a second were seen), so a beginning is never
 *     taken to be earlier than it was. Where /proc/timer_list can be read, the nearest timer at or before that says the deadline
 *     exactly (ckpt/live/waits.py). A thread that woke in between for nothing seems to have begun then.
 */
#define _GNU_SOURCE
#include "waits.h"
#include "restart.h"
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/time.h>

enum { SHOWN_WORDS = 8, RESTART_SYSCALL = 219, NO_HANDLER = -514, RESTART_BLOCK = -516, MILLION = 1000000, BILLION = 1000000000, TABLE_ROOM = 8192 };
enum { PAUSE_NS = 100 * 1000, PATIENCE_NS = 30 * 1000 * 1000 };

/* ---- texts ---- */

/* "name   :   123.456789" or "name   :   123": the digits as one number; 0 if the line is not there. */
static uint64_t table_field(const char *text, size_t bytes, const char *name) {
    const char *at = memmem(text, bytes, name, strlen(name)), *end = text + bytes;
    at = at ? memchr(at, ':', (size_t)(end - at)) : NULL;
    uint64_t value = 0;
    while (at && ++at < end && *at != '\n')
        if (*at >= '0' && *at <= '9')
            value = value * 10 + (uint64_t)(*at - '0');
    return value;
}

/* "232 0x4 0x7f... (six arguments) sp pc"; false for a thread that runs, or is in no call. */
static bool parse_call(const char *text, struct ckpt_wait *wait) {
    uint64_t words[SHOWN_WORDS];
    char *end;
    wait->nr = strtoll(text, &end, 10);
    if (end == text || wait->nr < 0)
        return false;
    for (int i = 0; i < SHOWN_WORDS; i++) {
        const char *from = end;
        words[i] = strtoull(from, &end, 16);
        if (end == from)
            return false;
    }
    memcpy(wait->arg, words, sizeof wait->arg);
    wait->sp = words[6];
    wait->pc = words[7];
    return true;
}

bool wait_shown(int dir, pid_t tid, struct ckpt_wait *ret_wait) {
    char name[NAME_ROOM], text[256];
    ssize_t bytes = proc_read(dir, proc_name(name, "task/", (uint64_t)tid, "/syscall"), text, sizeof text - 1);
    if (bytes <= 0)
        return false;
    text[bytes] = 0;
    return parse_call(text, ret_wait);
}

uint64_t voluntary_switches(ckpt_tree *tree, const struct thread *thread) {
    char state;
    return switches_and_state(tree, thread, &state);
}

uint64_t switches_and_state(ckpt_tree *tree, const struct thread *thread, char *ret_state) {
    *ret_state = 0;
    char name[NAME_ROOM];
    const struct task *task = tree_task(tree, thread->pid);
    ssize_t bytes = task ? proc_read(task->dir, proc_name(name, "task/", (uint64_t)thread->tid, "/status"), tree->text, TEXT_BYTES) : -ESRCH;
    if (bytes < 0)
        return 0;
    const char *at = memmem(tree->text, (size_t)bytes, "\nState:\t", 8);
    *ret_state = at && at + 8 < tree->text + bytes ? at[8] : 0;
    return proc_field(tree->text, (size_t)bytes, "voluntary_ctxt_switches", 10, 0);
}

/* ---- how long it may last ---- */

static uint64_t limit_in_memory(pid_t pid, ckpt_addr_t at, int64_t unit) {
    int64_t pair[2];
    struct iovec here = {pair, sizeof pair}, there = {(void *)(uintptr_t)at, sizeof pair};
    if (sys_vm_readv(pid, &here, 1, &there, 1) != sizeof pair || pair[0] < 0 || pair[0] > INT64_MAX / BILLION - 1)
        return 0;
    return (uint64_t)(pair[0] * BILLION + pair[1] * unit);
}

static uint64_t limit_of_socket(const struct task *task, int fd, int option) {
    struct timeval time = {0};
    size_t size = sizeof time;
    _cleanup_close_ int ours = sys_pidfd_getfd(task->pidfd, fd);
    if (ours < 0 || sys_getsockopt(ours, SOL_SOCKET, option, &time, &size))
        return 0;
    return (uint64_t)time.tv_sec * BILLION + (uint64_t)time.tv_usec * 1000;
}

static uint64_t limit_of(const struct task *task, const struct restart_row *row, const uint64_t arg[6]) {
    uint64_t value = row->timeout_arg < 6 ? arg[row->timeout_arg] : 0;
    switch ((enum timeout_form)row->timeout_form) {
    case TIMEOUT_MS: return (uint64_t)(int32_t)value * MILLION;
    case TIMEOUT_TIMESPEC: return limit_in_memory(task->pid, value, 1);
    case TIMEOUT_TIMEVAL: return limit_in_memory(task->pid, value, 1000);
    case TIMEOUT_RECEIVE: return limit_of_socket(task, (int)arg[0], SO_RCVTIMEO);
    case TIMEOUT_SEND: return limit_of_socket(task, (int)arg[0], SO_SNDTIMEO);
    case TIMEOUT_NONE:
    case TIMEOUT_EXT_ARG: break;
    }
    return 0;
}

/* Fills in what the table knows; false if it is no wait whose deadline anybody has to keep. */
static bool examine(struct ckpt_wait *wait) {
    const struct restart_row *row = restart_row(wait->nr);
    if (wait->nr == RESTART_SYSCALL) {
        wait->block = 1;
        return true;
    }
    if (!row || !(row->family & (FAMILY_BLOCK | FAMILY_EXPIRES)) || !restart_finite(row, wait->arg))
        return false;
    wait->block = (row->family & FAMILY_BLOCK) != 0;
    wait->expires = (row->family & FAMILY_EXPIRES) != 0;
    wait->expired = row->expired;
    wait->timer = row->timeout_form != TIMEOUT_RECEIVE && row->timeout_form != TIMEOUT_SEND;
    return true;
}

/* A unix socket waits for room in the listener's queue, others for the handshake: at their time's end connect() says so. */
static int64_t expired_connect(const struct task *task, const struct ckpt_wait *wait) {
    int domain = 0;
    size_t size = sizeof domain;
    _cleanup_close_ int ours = sys_pidfd_getfd(task->pidfd, (int)wait->arg[0]);
    bool local = ours >= 0 && !sys_getsockopt(ours, SOL_SOCKET, SO_DOMAIN, &domain, &size) && domain == AF_UNIX;
    return local ? -EAGAIN : wait->expired;
}

/* Reads its limit; false for a socket that has none. */
static bool limited(const struct task *task, struct ckpt_wait *wait) {
    const struct restart_row *row = restart_row(wait->nr);
    if (wait->nr == SYS_connect)
        wait->expired = (int32_t)expired_connect(task, wait);
    wait->limit = row ? limit_of(task, row, wait->arg) : 0;
    return wait->limit || wait->timer || wait->nr == RESTART_SYSCALL;
}

static bool still_there(const struct task *task, const struct ckpt_wait *wait) {
    struct ckpt_wait now = {0};
    return wait_shown(task->dir, wait->tid, &now) && now.sp == wait->sp && now.pc == wait->pc && !memcmp(now.arg, wait->arg, sizeof now.arg);
}

/* ---- before a freeze ---- */

bool wait_must_be_kept(const struct thread *thread) {
    const struct ckpt_decision *decision = &thread->decision;
    if (decision->shown != -EINTR || decision->value != NO_HANDLER)
        return false;
    const struct restart_row *row = restart_row(decision->nr);
    uint64_t arg[6];
    restart_arguments(&thread->regs, arg);
    return row && (row->family & FAMILY_EXPIRES) && restart_finite(row, arg);
}

/* A kernel without sched tells only how often it switched: then the beginning is known from an earlier freeze, or not at all. */
static void sleep_of(ckpt_tree *tree, const struct task *task, const struct thread *thread, struct ckpt_wait *wait) {
    char name[NAME_ROOM], text[TABLE_ROOM];
    struct proc_stat stat;
    ssize_t bytes = proc_read(task->dir, proc_name(name, "task/", (uint64_t)wait->tid, "/sched"), text, sizeof text);
    wait->switches = bytes > 0 ? table_field(text, (size_t)bytes, "nr_voluntary_switches") : voluntary_switches(tree, thread);
    if (bytes <= 0 || proc_stat(task->dir, proc_name(name, "task/", (uint64_t)wait->tid, "/stat"), &stat))
        return;
    wait->slept_at = table_field(text, (size_t)bytes, "se.exec_start");
    wait->cpu = stat.cpu;
}

/* Whom we have just let go into its wait may not sleep there yet: the look gives all of them together a moment for it. */
static bool shown_soon(const struct task *task, const struct thread *thread, uint64_t until, struct ckpt_wait *wait) {
    bool on_its_way = thread->wait.stops && (thread->decision.value == RESTART_BLOCK || wait_must_be_kept(thread));
    while (!wait_shown(task->dir, thread->tid, wait)) {
        if (!on_its_way || now_ns() > until)
            return false;
        nanosleep(&(struct timespec){.tv_nsec = PAUSE_NS}, NULL);
    }
    return true;
}

int64_t ckpt_waits_look(ckpt_tree *tree, struct ckpt_wait *ret_waits, size_t cap) {
    size_t count = 0;
    uint64_t until = now_ns() + PATIENCE_NS;
    for (size_t i = 0; i < tree->thread_count; i++) {
        struct thread *thread = &tree->threads[i];
        const struct task *task = tree_task(tree, thread->pid);
        struct ckpt_wait wait = {.pid = thread->pid, .tid = thread->tid, .start_ticks = thread->start_ticks};
        bool shown = task && !task->zombie && shown_soon(task, thread, until, &wait);
        uint64_t expected = thread->wait.woken ? 0 : thread->wait.asleep;
        memset(&thread->wait, 0, sizeof thread->wait);
        if (!shown || !examine(&wait))
            continue;
        sleep_of(tree, task, thread, &wait);
        if (!limited(task, &wait) || voluntary_switches(tree, thread) != wait.switches)
            continue; /* it woke between two reads: they are of two waits */
        wait.same = wait.switches && wait.switches == expected;
        thread->wait.asleep = wait.switches;
        thread->wait.block = wait.block;
        if (count < cap)
            ret_waits[count] = wait;
        count++;
    }
    return (int64_t)count;
}

int ckpt_clock_gap(int32_t cpu, int64_t *ret_gap) {
    cpu_set_t before, wanted;
    char text[TABLE_ROOM];
    CPU_ZERO(&wanted);
    CPU_SET((size_t)cpu, &wanted);
    if (sched_getaffinity(0, sizeof before, &before) || sched_setaffinity(0, sizeof wanted, &wanted))
        return -errno;
    nanosleep(&(struct timespec){.tv_nsec = 1}, NULL); /* whoever wakes is given the clock's time */
    uint64_t now = now_ns();
    ssize_t bytes = proc_read(AT_FDCWD, "/proc/thread-self/sched", text, sizeof text);
    sched_setaffinity(0, sizeof before, &before);
    uint64_t clock = bytes > 0 ? table_field(text, (size_t)bytes, "se.exec_start") : 0;
    if (!clock)
        return -ENOENT;
    *ret_gap = (int64_t)(now - clock);
    return 0;
}

/* ---- in a freeze, and after it ---- */

/* One that has been woken, and has begun the next wait but does not sleep in it yet, has the count of one that still sleeps in the first.
 * Asleep here it is in the first, for between here and the interrupt there is no time to get from one to the other. */
void wait_looked_at_last(ckpt_tree *tree, struct thread *thread) {
    char name[NAME_ROOM];
    struct proc_stat stat;
    const struct task *task = tree_task(tree, thread->pid);
    if (!thread->wait.asleep || thread->wait.woken || thread->wait.block || !task)
        return;
    if (proc_stat(task->dir, proc_name(name, "task/", (uint64_t)thread->tid, "/stat"), &stat) || stat.state != 'S')
        thread->wait.woken = true;
}

/* Stopped again before it slept again: one switch less. The calls that the kernel keeps are not counted at each thaw: any number of such. */
static void check(struct thread *thread) {
    uint64_t at = thread->wait.stopped, asleep = thread->wait.asleep, stops = thread->wait.stops;
    bool block = thread->decision.value == RESTART_BLOCK;
    if (asleep && at && !thread->wait.placed && (at < asleep + (stops == 1) || at > asleep + (block ? 2 * stops - 1 : 1)))
        thread->wait.woken = true;
}

void wait_counted(struct thread *thread, const char *status, size_t bytes) {
    if (!thread->wait.stopped && (thread->decision.value == RESTART_BLOCK || wait_must_be_kept(thread))) {
        thread->wait.stopped = proc_field(status, bytes, "voluntary_ctxt_switches", 10, 0);
        check(thread);
    }
}

void wait_stopped(ckpt_tree *tree, struct thread *thread) {
    if (thread->wait.stopped || thread->state != THREAD_STOPPED || !wait_must_be_kept(thread))
        return;
    thread->wait.stopped = voluntary_switches(tree, thread);
    check(thread);
}

void wait_let_go(ckpt_tree *tree, struct thread *thread) {
    if (!wait_must_be_kept(thread))
        return;
    wait_stopped(tree, thread);
    if (!tree->parting)
        thread->wait.asleep = 0; /* nobody will know where it sleeps: parting.c */
}

int64_t ckpt_waits_left(ckpt_tree *tree, struct ckpt_wait *ret_waits, size_t cap) {
    size_t count = 0;
    for (size_t i = 0; i < tree->thread_count; i++) {
        const struct thread *thread = &tree->threads[i];
        const struct task *task = tree_task(tree, thread->pid);
        bool block = thread->decision.value == RESTART_BLOCK;
        if (!task || !thread->wait.stops || thread->state == THREAD_GONE || !(block || wait_must_be_kept(thread)))
            continue;
        struct ckpt_wait wait = {.pid = thread->pid, .tid = thread->tid, .start_ticks = thread->start_ticks, .nr = thread->decision.nr,
                                 .sp = thread->regs.rsp, .pc = thread->regs.rip, .switches = thread->wait.asleep, .same = !thread->wait.woken};
        restart_arguments(&thread->regs, wait.arg);
        if (!examine(&wait) || !limited(task, &wait))
            continue;
        bool ends_by_itself = thread->wait.placed && block; /* with the time that it was given: what its limit was tells nobody anything */
        if (thread->state != THREAD_STOPPED && !ends_by_itself && !still_there(task, &wait))
            wait.limit = 0; /* what stands in its memory by now is something else */
        if (count < cap)
            ret_waits[count] = wait;
        count++;
    }
    return (int64_t)count;
}
