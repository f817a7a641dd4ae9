/* internal.h: what the files of the capture core share. Nothing here is seen by Python.
 *
 * Ownership: a ckpt_tree owns its tasks and threads; pointers into the arrays die when the tree grows (discovery), so
 * keep indices over calls that may discover. One tree is used by one thread at a time, and ptrace requests come from
 * the thread that seized (ptrace binds to a thread: helpers that scan or copy must never call ptrace).
 */
#ifndef CKPT_INTERNAL_H
#define CKPT_INTERNAL_H

#include "../ckpt_native.h"
#include "kernel.h"
#include "sys.h"
#include <stdbool.h>
#include <sys/types.h>
#include <sys/user.h>

enum thread_state {
    THREAD_FREE,    /* not attached */
    THREAD_SEIZED,  /* attached, running */
    THREAD_STOPPED, /* at PTRACE_EVENT_STOP: inside get_signal(), so a -51x in rax is honoured on detach */
    THREAD_GONE,    /* exited, or reaped by us */
};

struct thread {
    pid_t pid, tid;
    uint64_t start_ticks;
    enum thread_state state;
    bool group_stopped;             /* SIGSTOPped by somebody: detach leaves it so */
    struct user_regs_struct regs;   /* as shown at the stop; valid while STOPPED */
    struct ckpt_decision decision;  /* already written to the thread's rax at the stop */
    uint64_t sigmask;               /* PTRACE_GETSIGMASK at the stop */
};

/* The scratch mapping that remote calls run from; see remote.c. */
struct bridge {
    ckpt_addr_t code;  /* 0 = none */
    ckpt_addr_t data;
    size_t code_bytes, data_bytes;
    bool persistent;   /* begun by ckpt_remote_begin: calls do not end it */
};

struct task {
    pid_t pid;
    uint64_t start_ticks;
    int pidfd;
    int dir;     /* /proc/PID, O_PATH|O_DIRECTORY */
    int mem;     /* /proc/PID/mem, or -1 until wanted */
    int uffd;    /* our duplicate of the target's userfaultfd, or -1 */
    int32_t mm;  /* index in tree->tasks of the first task with this memory */
    ckpt_addr_t vdso, vdso_end; /* from maps; 0 = none */
    struct bridge bridge;
};

struct ckpt_tree {
    pid_t root;
    struct task *tasks;
    size_t task_count, task_cap;
    struct thread *threads; /* leaders are not first here: order of discovery */
    size_t thread_count, thread_cap;
    bool frozen;
    uint64_t frozen_at; /* CLOCK_MONOTONIC ns of the first interrupt */
    struct ckpt_fault fault;
};

/* tree.c */
struct task *tree_task(ckpt_tree *tree, pid_t pid);
struct thread *tree_thread(ckpt_tree *tree, pid_t tid);
struct thread *tree_leader(ckpt_tree *tree, pid_t pid);
/* Finds threads and children that are not known yet; returns how many were added. */
int tree_discover(ckpt_tree *tree);
int thread_seize(ckpt_tree *tree, struct thread *thread);
/* Interrupt, wait for the stop, read regs and mask, decide, write the decided rax. */
int thread_stop(ckpt_tree *tree, struct thread *thread);
int thread_detach(ckpt_tree *tree, struct thread *thread);
/* Waits for the next ptrace stop of one thread; *ret_status as waitpid's. -ESRCH when it is gone. */
int thread_wait(ckpt_tree *tree, struct thread *thread, int *ret_status);
/* Stops one process only (arming): as freeze, for its threads alone. */
int task_freeze(ckpt_tree *tree, pid_t pid);
int task_thaw(ckpt_tree *tree, pid_t pid);

/* fault.c: record what failed and pass the errno through: return tree_fail(tree, -EPERM, "seize", pid, tid, -1, 0, NULL) */
int tree_fail(ckpt_tree *tree, int error, const char *step, pid_t pid, pid_t tid, int fd, ckpt_addr_t addr, const char *name);

/* stub.c, remote.c: the self-restoring injection */
/* One system call in a stopped thread by the stub in the vdso's tail; on return the thread is STOPPED at an
 * equivalent of EVENT_STOP with its own registers and mask back in place. */
int remote_call(ckpt_tree *tree, struct thread *thread, int64_t nr, const uint64_t arg[6], int64_t *ret_value);

/* maps.c: the text of /proc/PID/maps, as little as scanning needs */
struct map_line {
    ckpt_addr_t start, end;
    uint64_t offset, ino;
    uint32_t dev_major, dev_minor;
    char perms[4];
    char path[64]; /* cut; enough for [vdso] and /dev/zero */
};
int maps_parse(const char *text, size_t bytes, struct map_line **ret_lines, size_t *ret_count);
enum ckpt_range_kind maps_kind(const struct map_line *line);

/* sink.c: what a capture fills */
int sink_record(ckpt_sink *sink, uint32_t kind, pid_t pid, pid_t tid, int fd, int index, const void *bytes, size_t size);
/* Reserves size bytes for a record that is read into place; commit cuts it to what came. */
void *sink_record_begin(ckpt_sink *sink, uint32_t kind, pid_t pid, pid_t tid, int fd, int index, size_t size);
void sink_record_commit(ckpt_sink *sink, size_t size);
/* Starts a space; runs then data are appended to it. */
int sink_space(ckpt_sink *sink, int32_t space);
int sink_run(ckpt_sink *sink, uint64_t page, uint32_t count, enum ckpt_content content);
/* Room for page bytes: lends a pointer to at most want bytes of contiguous buffer (or of the spill's staging). */
uint8_t *sink_room(ckpt_sink *sink, size_t want, size_t *ret_got);
int sink_filled(ckpt_sink *sink, size_t bytes);

/* scan.c, copy.c: one memory, frozen */
int scan_and_copy(ckpt_tree *tree, struct task *task, const struct ckpt_track *track, const struct map_line *lines, size_t count,
                  const struct ckpt_capture_options *options, ckpt_sink *sink, struct ckpt_timing *timing);

uint64_t now_ns(void);

#endif
