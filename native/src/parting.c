/* parting.c: a thread that is let go into a wait that somebody is to end later must be known to sleep in that very wait.
 *
 * Detached, it might return from it at once (what it waits for is there already), run, and sleep in the next wait: the same call, the same
 * arguments, the same count of switches. So it is not detached but resumed to its next system call stop, and looked at until it sleeps; then it has
 * begun the wait and not returned. Detaching wants it stopped, and a stop would end the wait again; but a tracer that ends lets its threads
 * go as they are, asleep. Therefore a freeze that meets such waits is done by a thread of its own, which ends with it.
 *
 * Invariants
 *  1. Between the thaw and the end of that thread (some 100 us) the wait may end: the thread then stands at the call's exit for so long.
 *  2. Whoever does not sleep within PATIENCE_NS is let go all the same: nobody ends its wait (asleep = 0).
 *  3. A joined thread may not have let go yet (the kernel tells of its end before): that is waited for.
 *  4. Where nobody waits so, nothing of this happens: the caller is the tracer, and detaches.
 *  5. A doomed tree (newborn.c) is let go by the end of the thread that filled it: EXITKILL is taken off each such thread first.
 */
#define _GNU_SOURCE
#include "waits.h"
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/wait.h>
#include <time.h>

enum { PATIENCE_NS = 20 * 1000 * 1000, PAUSE_NS = 20 * 1000, SYSCALL_STOP = SIGTRAP | 0x80 };

bool parting_wanted(const ckpt_tree *tree, const struct thread *thread) {
    bool known = thread->wait.placed || (thread->wait.asleep && !thread->wait.woken);
    return tree->parting && !tree->freezer.theirs && known && wait_must_be_kept(thread);
}

int parting_begin(const ckpt_tree *tree, struct thread *thread) {
    long error = tree->doomed ? sys_ptrace(PTRACE_SETOPTIONS, thread->tid, 0, PTRACE_O_TRACESYSGOOD) : 0; /* our end is not its end any more */
    if (!error)
        error = sys_ptrace(PTRACE_SYSCALL, thread->tid, 0, 0);
    if (error)
        return (int)error;
    thread->state = THREAD_PARTING;
    thread->wait.parted = true;
    thread->wait.entered = false;
    return 0;
}

static void let_go(struct thread *thread, int signal) {
    sys_ptrace(PTRACE_DETACH, thread->tid, 0, (uintptr_t)signal);
    thread->wait.asleep = 0;
    thread->state = THREAD_FREE;
}

/* A stop on the way: the entry of the call that begins anew, its exit, or a signal. */
static void met(struct thread *thread, int status) {
    int signal = WSTOPSIG(status);
    bool event = status >> 16, at_call = !event && signal == SYSCALL_STOP;
    bool notice = event && signal == SIGTRAP; /* a group stop has ended: the registers are what they were */
    if (!WIFSTOPPED(status)) {
        thread->state = THREAD_GONE;
    } else if ((at_call || notice) && !thread->wait.entered) {
        thread->wait.entered = at_call;
        if (sys_ptrace(PTRACE_SYSCALL, thread->tid, 0, 0))
            thread->state = THREAD_GONE; /* killed */
    } else {
        let_go(thread, at_call || event ? 0 : signal);
    }
}

/* State and count come from one text; a stop that came meanwhile is seen by the next round. */
static bool sleeps(ckpt_tree *tree, struct thread *thread) {
    char state;
    uint64_t switches = switches_and_state(tree, thread, &state);
    if (!thread->wait.entered || state != 'S' || !switches)
        return false;
    thread->wait.asleep = switches;
    return true;
}

void parting_end(ckpt_tree *tree) {
    uint64_t until = now_ns() + PATIENCE_NS;
    for (size_t left = 1; left;) {
        left = 0;
        for (size_t i = 0; i < tree->thread_count; i++) {
            struct thread *thread = &tree->threads[i];
            int status;
            if (thread->state != THREAD_PARTING)
                continue;
            int got = sys_wait(thread->tid, &status, WNOHANG);
            if (got > 0)
                met(thread, status);
            else if (got < 0)
                thread->state = THREAD_GONE;
            else if (sleeps(tree, thread))
                thread->state = THREAD_FREE; /* at our end */
            left += thread->state == THREAD_PARTING;
        }
        if (left && now_ns() > until)
            break;
        if (left)
            nanosleep(&(struct timespec){.tv_nsec = PAUSE_NS}, NULL);
    }
    for (size_t i = 0; i < tree->thread_count; i++) {
        if (tree->threads[i].state != THREAD_PARTING)
            continue;
        tree->threads[i].wait.asleep = 0;
        tree->threads[i].state = THREAD_FREE;
    }
}

struct work {
    ckpt_tree *tree;
    int (*run)(void *argument);
    void *argument;
    int result;
};

static void *tracer(void *argument) {
    struct work *work = argument;
    stack_touch();
    work->tree->parting = true;
    work->result = work->run(work->argument);
    parting_end(work->tree);
    work->tree->parting = false;
    return NULL;
}

static bool traced(ckpt_tree *tree, const struct thread *thread) {
    char name[NAME_ROOM];
    const struct task *task = tree_task(tree, thread->pid);
    ssize_t bytes = task ? proc_read(task->dir, proc_name(name, "task/", (uint64_t)thread->tid, "/status"), tree->text, TEXT_BYTES) : -ESRCH;
    return bytes > 0 && proc_field(tree->text, (size_t)bytes, "TracerPid", 10, 0);
}

void parting_await(ckpt_tree *tree) {
    uint64_t until = now_ns() + PATIENCE_NS;
    for (size_t i = 0; i < tree->thread_count; i++)
        while (tree->threads[i].wait.parted && traced(tree, &tree->threads[i]) && now_ns() < until)
            nanosleep(&(struct timespec){.tv_nsec = PAUSE_NS}, NULL);
}

static bool anybody(const ckpt_tree *tree) {
    for (size_t i = 0; i < tree->thread_count; i++)
        if (tree->threads[i].wait.asleep && !tree->threads[i].wait.block && !tree->threads[i].wait.woken)
            return true;
    return false;
}

int by_own_tracer(ckpt_tree *tree, int (*run)(void *argument), void *argument) {
    struct work work = {tree, run, argument, 0};
    sigset_t all, before;
    pthread_t thread;
    if (tree->parting || tree->frozen || !anybody(tree))
        return run(argument);
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int error = pthread_create(&thread, NULL, tracer, &work);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (error)
        return run(argument); /* as where nobody waits: their deadlines come late */
    pthread_join(thread, NULL);
    parting_await(tree);
    return work.result;
}

int ckpt_tree_parting(ckpt_tree *tree, int begin) {
    if (!begin)
        parting_end(tree);
    tree->parting = begin;
    return 0;
}

int ckpt_tree_parted(ckpt_tree *tree) {
    parting_await(tree);
    return 0;
}
