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
#include <sched.h>
#include <stdbool.h>
#include <sys/types.h>
#include <sys/user.h>
#include <time.h>

enum thread_state {
    THREAD_FREE,    /* not attached */
    THREAD_SEIZED,  /* attached, running */
    THREAD_PARTING, /* attached, running into its wait; our end lets it go (parting.c) */
    THREAD_STOPPED, /* at PTRACE_EVENT_STOP: inside get_signal(), so a -51x in rax is honoured on detach */
    THREAD_GONE,    /* exited, or reaped by us */
};

struct rseq_place { /* struct ptrace_rseq_configuration: where a thread has its struct rseq */
    uint64_t pointer;
    uint32_t size, signature, flags, pad;
};

struct thread {
    pid_t pid, tid;
    uint64_t start_ticks;
    enum thread_state state;
    int group_stopped;              /* the signal by which somebody has stopped it (detach leaves it so); 0 = nobody */
    bool interrupted;               /* PTRACE_INTERRUPT sent, stop not yet seen */
    bool listed;                    /* discover.c: seen in the listing being read */
    struct user_regs_struct regs;   /* as shown at the stop; valid while STOPPED */
    struct ckpt_decision decision;  /* already written to the thread's rax at the stop */
    uint64_t sigmask;               /* PTRACE_GETSIGMASK at the stop */
    struct rseq_place rseq;         /* as asked at the stop; pointer = 0: not asked, or none */
    uint32_t unfiltered_at;         /* when status said that no seccomp filter is on: tree_knows() */
    struct {                        /* since the last look at waits (waits.c) */
        uint32_t stops;             /* freezes */
        bool woken;                 /* it has been elsewhere in between */
        bool block;                 /* its wait is one that the kernel keeps */
        bool placed;                /* a rollback has put it there */
        bool entered, parted;       /* parting.c: it has begun its wait anew; it was let go by the tracer's end */
        uint64_t asleep;            /* voluntary switches while it sleeps in its wait; 0 = it is in none, or nobody counts */
        uint64_t stopped;           /* the same at its stop, before it ran for us; 0 = not counted */
    } wait;
};

/* The scratch mapping that remote calls run from; see remote.c. */
struct bridge {
    ckpt_addr_t code;  /* 0 = none */
    ckpt_addr_t data;
    size_t code_bytes, data_bytes;
    bool persistent;   /* begun by ckpt_remote_begin: calls do not end it */
    bool writable;     /* a batch ran: the data part is RW */
    bool blocked;      /* a killed ckpt's remains are still in use: no injection now */
    uint32_t slots;    /* one thread each */
    size_t slot_bytes; /* of data, per slot */
    ckpt_addr_t tail, tail_end; /* free bytes behind the vdso's image: note and stub; 0 = not looked for */
    ckpt_addr_t image, image_end; /* the vdso that they belong to: where its bytes begin and end */
    uint64_t caught, ignored; /* SigCgt and SigIgn of the process: which stop signal is free, which dispositions are known */
    bool filtered;            /* it has a seccomp filter */
    uint32_t transfers;       /* slots that are taken, by bits (transfer.c) */
    bool settled;             /* ... and they tell all, of this freeze */
    uint32_t promised;        /* so many threads are to have one when they are let go */
    uint32_t status_at, tail_at; /* when these, and that the tail is free, were read: tree_knows() */
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
    uint32_t timerless_at; /* when /proc showed no POSIX timers: tree_knows() */
    bool timerless;        /* so it was when questions began */
    bool clocked; /* `clocks` is known: its offsets (clock.c) */
    struct ckpt_clocks clocks;
    bool zombie; /* exited, not yet waited for by its parent: no threads, no memory; captures say how it ended (kin.c) */
    struct bridge bridge;
};

/* pace.c: the caller's own scheduling while a tree is stopped. */
struct pace {
    bool begun, raised, moved, clocked, ticking;
    int policy, priority, slack, cpu, signal;
    cpu_set_t cpus;
    timer_t clock;
    bool aside;     /* this and `home` stay from one freeze to the next */
    cpu_set_t home; /* where the caller may run; while it is aside, that is less */
};
/* Keeps the caller, and threads that it makes from now on, off the CPUs where the target runs, if any other is left to it. */
void pace_aside(struct pace *pace, const cpu_set_t *targets);
void pace_back(struct pace *pace);
/* Real-time priority where that is permitted, and a clock for waits. */
void pace_begin(struct pace *pace);
/* To the CPU where the target runs; once. From here on the target may be off its CPU. */
void pace_move(struct pace *pace, int cpu);
void pace_end(struct pace *pace);
/* While on, a blocked sys_wait_once() ends after 2 ms; returns false where there is no clock, so nobody may block. */
bool pace_ticking(struct pace *pace, bool on);

struct ckpt_tree {
    pid_t root;
    struct task *tasks;
    size_t task_count, task_cap;
    struct thread *threads; /* leaders are not first here: order of discovery */
    size_t thread_count, thread_cap;
    bool frozen;
    struct { /* freezer.c; fd -1 = none */
        int fd;
        bool theirs, shut;
    } freezer;
    bool parting; /* the tracer ends with this freeze (parting.c) */
    bool doomed; /* our death is theirs (newborn.c) */
    bool expected;      /* the next freeze goes to expected_cpu if nobody runs then: what it needs is warm on the others */
    int expected_cpu;
    struct { /* whoever wants to begin early with a tree that is being frozen; {0} = nobody */
        void (*stands)(void *argument); /* everybody who is known has stopped */
        void (*falls)(void *argument);  /* there are others, or the freeze has failed: before anybody is let go, before rows move */
        void *argument;
    } told;
    uint32_t standing, stood; /* number of the time in which nobody has run since all stopped, 0 = somebody may have; the last one given */
    struct ahead *ahead; /* files of threads opened before the freeze (ahead.c), or NULL */
    uint64_t frozen_at; /* ns (clock.c) of the first interrupt */
    uint32_t freeze_retries; /* waits of 10 ms for a thread that cannot be stopped yet (a vfork parent) */
    uint64_t thawed_at; /* the last detach */
    pid_t *attended;    /* threads that run with us as their tracer (attend.c) */
    size_t attended_count, attended_cap;
    struct pace pace;   /* the caller's scheduling, put back at thaw */
    char *text;              /* one buffer for reading /proc, TEXT_BYTES, touched ahead, reused */
    struct scan_memory *scan; /* kept between scans (runs.c); NULL until something is scanned */
    struct ckpt_fault fault;
};

enum {
    TEXT_BYTES = 1 << 20,
    NAME_ROOM = 64, /* for proc_name(): prefix, number and suffix */
};

/* tree.c: the tables */
struct task *tree_task(ckpt_tree *tree, pid_t pid);
struct thread *tree_thread(ckpt_tree *tree, pid_t tid);
struct thread *tree_leader(ckpt_tree *tree, pid_t pid);
/* Adds a row, not attached. -EEXIST is not an error: it returns 0 and adds nothing; 1 = added; else a negative errno. */
int tree_add_thread(ckpt_tree *tree, pid_t pid, pid_t tid);
int tree_add_task(ckpt_tree *tree, pid_t pid);
void tree_drop_gone(ckpt_tree *tree); /* forgets threads that are GONE and tasks without any; moves rows */
int tree_index_memories(ckpt_tree *tree); /* task.mm by kcmp */

/* All have stopped: what is read from now on is true until somebody runs. */
static inline void tree_stands(ckpt_tree *tree) { tree->standing = ++tree->stood; }
static inline void tree_moves(ckpt_tree *tree) { tree->standing = 0; }
static inline bool tree_knows(const ckpt_tree *tree, uint32_t read_at) { return read_at && read_at == tree->standing; }

/* discover.c: which threads and children there are.
 * Finds threads and children that are not known yet; returns how many rows were added or found dying, 0 = complete. */
int tree_discover(ckpt_tree *tree);
/* The same for the threads of one process only. */
int task_discover(ckpt_tree *tree, struct task *task);

/* stop.c: one thread */
int thread_seize(ckpt_tree *tree, struct thread *thread);
/* Asks it to stop; thread_stop() or threads_collect() waits for it. */
int thread_interrupt(ckpt_tree *tree, struct thread *thread);
/* Interrupt, wait for the stop, read regs and mask, decide, write the decided rax. */
int thread_stop(ckpt_tree *tree, struct thread *thread);
/* Reads one status: 1 = at its EVENT_STOP and decided, 0 = not yet, -ESRCH = gone. With wait, and while the
 * tree's clock ticks, it blocks until a status or a tick comes; else it takes what is there. */
int thread_poll(ckpt_tree *tree, struct thread *thread, bool wait);
/* At an EVENT_STOP that was waited for: reads, decides, writes. 1 = STOPPED, 0 = a SIGKILL is on the way, or a fault. */
int thread_at_stop(ckpt_tree *tree, struct thread *thread, int signal);
int thread_detach(ckpt_tree *tree, struct thread *thread);
/* Waits for the next ptrace stop of one thread; *ret_status as waitpid's. -ESRCH when it is gone. */
int thread_wait(ckpt_tree *tree, struct thread *thread, int *ret_status);

/* A thread that has not stopped since then: 0 = wait on, -EAGAIN = in an uninterruptible sleep, -ESRCH = gone, -ETIMEDOUT. */
int thread_look(ckpt_tree *tree, struct thread *thread, uint64_t since);
/* Between polls: nothing at first (stops come within microseconds), then sleeps that grow to 0.5 ms. */
struct backoff {
    unsigned polls;
    uint64_t ns;
};
void backoff(struct backoff *wait);

/* newborn.c: what a newborn does between its birth and its seizure. maker: who its parent must be. */
enum { NEWBORN_KEEP = 4096 }; /* at most: they stand on the stack */
struct newborn_keep {
    const int32_t *fds; /* sorted: what it does not close */
    size_t count;
};
__attribute__((noreturn)) void newborn_live(pid_t maker, int own_session, const struct newborn_keep *keep);

/* lean.c: between the two, a fork takes only what a newborn needs: what else the child reads is to be on its stack. */
enum { LEAN_RANGES = 256 };
struct lean {
    struct ckpt_range ranges[LEAN_RANGES];
    size_t count;
};
void lean_begin(struct lean *lean); /* on the stack of the thread that forks */
void lean_end(const struct lean *lean);

/* births.c: the first stop of a task that was cloned with CLONE_PTRACE, and its row. The process has a row already. */
int thread_welcome(ckpt_tree *tree, pid_t pid, pid_t tid);
/* Whether it is in our own pid namespace. */
bool task_same_numbers(const struct task *task);
/* Our number of a thread that is not in the tree yet, from the one that its own pid namespace gave it; a negative errno. */
pid_t thread_number(ckpt_tree *tree, struct task *task, pid_t inner);

/* freeze.c: all threads. pid 0 = of every task, else of that one (arming). */
int task_freeze(ckpt_tree *tree, pid_t pid);
/* Where the next freeze will have its tracer, if nobody runs then; -1 = nobody knows. */
int freeze_expect(ckpt_tree *tree);
int task_thaw(ckpt_tree *tree, pid_t pid);

/* rseq.c: one that has just stopped in a restartable sequence is put to its abort handler */
int rseq_abort(ckpt_tree *tree, struct thread *thread);
/* Asks the kernel for it; false: there is none, or this kernel does not tell. */
bool rseq_place(const struct thread *thread, struct rseq_place *ret_place);

/* freezer.c: the control group that the tree is alone in; each does nothing where there is none */
int freezer_shut(ckpt_tree *tree);
int freezer_open(ckpt_tree *tree);
int freezer_leave(ckpt_tree *tree); /* as whoever stops and goes leaves it; before the first detach */

/* proc.c: small reads of /proc without stdio or allocation */
/* Reads a whole file into buffer; bytes read, -ENOSPC if it did not fit, or another negative errno. */
ssize_t proc_read(int dir, const char *name, void *buffer, size_t cap);
ssize_t proc_read_open(int fd, const char *name, void *buffer, size_t cap); /* the same of a file that is open */
/* ahead.c: files of /proc/PID/task/TID that a frozen window will read, opened before it. `wanted`: as ckpt_capture_options.thread_files. */
int ahead_open(ckpt_tree *tree, const char *const *wanted);
void ahead_close(ckpt_tree *tree);
/* As proc_read() of the thread's file `which`: AHEAD_CHILDREN, or 1 + its place in `wanted`. `name`: what follows task/TID/. */
enum { AHEAD_CHILDREN = 0 };
ssize_t ahead_read(ckpt_tree *tree, const struct thread *thread, int which, const char *name, void *buffer, size_t cap);
/* What stat says of a process or thread. */
struct proc_stat {
    char state;
    pid_t ppid;           /* field 4 */
    uint32_t flags;       /* field 9, PF_* */
    uint64_t start_ticks; /* field 22 */
    int cpu;              /* field 39: where it runs or last ran */
};
int proc_stat(int dir, const char *name, struct proc_stat *ret_stat);
/* Calls visit for each entry of an open directory of numbers; the sum of what it returns, or the first negative errno. */
int proc_each_number(int dir, int (*visit)(void *context, pid_t number), void *context);
/* Writes prefix, the number and suffix into buffer (NUL-terminated); returns buffer. */
char *proc_name(char *buffer, const char *prefix, uint64_t number, const char *suffix);
/* prefix + "start-end" in hexadecimal, as map_files names its entries. */
char *proc_hex_range(char *buffer, const char *prefix, uint64_t start, uint64_t end);
/* The number behind "key:" in a status text; missing if the line is not there. base 10 or 16. */
uint64_t proc_field(const char *text, size_t bytes, const char *key, int base, uint64_t missing);

/* fault.c: record what failed and pass the errno through: return tree_fail(tree, -EPERM, "seize", pid, tid, -1, 0, NULL) */
void tree_fault_clear(ckpt_tree *tree); /* at the head of each public entry */
int tree_fail(ckpt_tree *tree, int error, const char *step, pid_t pid, pid_t tid, int fd, ckpt_addr_t addr, const char *name);

/* stub.c, remote.c: the self-restoring injection */
/* One system call in a stopped thread by the stub in the vdso's tail; on return the thread is STOPPED at an
 * equivalent of EVENT_STOP with its own registers and mask back in place. */
int remote_call(ckpt_tree *tree, struct thread *thread, int64_t nr, const uint64_t arg[6], int64_t *ret_value);
/* ask.c: every question in every frozen process or thread, answers as CKPT_R_ANSWER records (tid = who answered). Threads run at
 * the same time. A task with a seccomp filter gives -EPERM (step "seccomp"). */
int remote_ask(ckpt_tree *tree, const struct ckpt_question *questions, size_t count, ckpt_sink *sink);
/* settle.c: called by every freeze for each task once all its threads are STOPPED: lets threads that a killed ckpt left inside
 * its code run out of it, and removes what it left. One read (4 us) when there is nothing. */
int remote_settle(ckpt_tree *tree, struct task *task);
/* Where note and stub stand in this memory (bridge.tail); -ENOTSUP = there is no room. */
int vdso_tail(ckpt_tree *tree, struct task *task);
/* transfer.c: frames of handlers return into no slot of a transfer that goes on. */
int transfer_settle(ckpt_tree *tree, struct task *task);
/* cut.c: behind that, for all: no more threads are told that they go on than there are slots. */
void transfer_withdraw(ckpt_tree *tree);

/* waits.c: the count of voluntary switches says whether a stopped thread is in the very wait that a look has seen it in */
void wait_looked_at_last(ckpt_tree *tree, struct thread *thread);           /* just before it is interrupted */
void wait_counted(struct thread *thread, const char *status, size_t bytes); /* its status as read at the stop */
void wait_stopped(ckpt_tree *tree, struct thread *thread);                  /* before it runs for us: reads that where nobody has */
void wait_let_go(ckpt_tree *tree, struct thread *thread);                   /* before its detach */

/* parting.c: a freeze by a thread of its own where somebody sleeps in a wait that is to be ended later; run(argument) freezes and thaws */
int by_own_tracer(ckpt_tree *tree, int (*run)(void *argument), void *argument);
/* At the thaw: not detached, but sent into its wait. */
bool parting_wanted(const ckpt_tree *tree, const struct thread *thread);
int parting_begin(const ckpt_tree *tree, struct thread *thread);
/* Looks after them until they sleep; the calling thread must end then. */
void parting_end(ckpt_tree *tree);
void parting_await(ckpt_tree *tree); /* until that has happened */

/* maps.c: the text of /proc/PID/maps, as little as scanning needs */
struct map_line {
    ckpt_addr_t start, end;
    uint64_t offset, ino;
    uint32_t dev_major, dev_minor;
    char perms[4];
    char path[63]; /* cut; enough for [vdso] and /dev/zero */
    bool deleted;  /* its whole path ends in " (deleted)" */
};
int maps_parse(const char *text, size_t bytes, struct map_line **ret_lines, size_t *ret_count);
/* Without allocation; the number of lines, -ENOSPC if there are more than cap, -EBADMSG if the text is not whole. */
ssize_t maps_parse_into(const char *text, size_t bytes, struct map_line *lines, size_t cap);
enum ckpt_range_kind maps_kind(const struct map_line *line);

/* sink.c: what a capture fills */
int sink_record(ckpt_sink *sink, uint32_t kind, pid_t pid, pid_t tid, int fd, int index, const void *bytes, size_t size);
/* Reserves size bytes for a record that is read into place; commit cuts it to what came. */
void *sink_record_begin(ckpt_sink *sink, uint32_t kind, pid_t pid, pid_t tid, int fd, int index, size_t size);
void sink_record_commit(ckpt_sink *sink, size_t size);
/* Starts a space; runs then data are appended to it. */
int sink_space(ckpt_sink *sink, int32_t space);
/* Forgets the current space, its runs and its bytes; there must be one. */
void sink_space_undo(ckpt_sink *sink);
/* From here on runs and bytes of the current space are its paranoid list (all contents DATA). Once a space. */
int sink_paranoid(ckpt_sink *sink);
/* Appends; merges with the run before it when content and pages continue. */
int sink_run(ckpt_sink *sink, uint64_t page, uint32_t count, enum ckpt_content content);
/* Room for page bytes: lends a pointer to at most want bytes of contiguous buffer (or of the spill's staging). */
uint8_t *sink_room(ckpt_sink *sink, size_t want, size_t *ret_got);
int sink_filled(ckpt_sink *sink, size_t bytes);
/* What the buffer still holds before pages go to the spill file (pre-copy stops there). */
uint64_t sink_free_bytes(const ckpt_sink *sink);
/* Numbers the next object space: 1000000 + n. */
int32_t sink_next_object(ckpt_sink *sink);
/* The sink closes fd at its next reset. */
int sink_keep_fd(ckpt_sink *sink, int fd);

/* helper.c: the stack that the window will need is there before it (fresh memory costs 3-5 us a page) */
void stack_touch(void);

/* runs.c: buffers and the second thread, made before the freeze (threads: scan_threads); without it the first scan makes them */
int scan_prepare(ckpt_tree *tree, uint32_t threads);
void scan_memory_free(struct scan_memory *memory);

/* Called by a freeze: the second thread gets ready for the work that a capture has for it at once (memories.c). */
void scan_freezing(ckpt_tree *tree, int cpu); /* cpu: where the tracer will be */
void scan_stopped(ckpt_tree *tree);

/* frozen.c: one memory, frozen. track NULL = not listed: everything populated is DATA */
int scan_and_copy(ckpt_tree *tree, struct task *task, const struct ckpt_track *track, const struct map_line *lines, size_t count,
                  const struct ckpt_capture_options *options, ckpt_sink *sink, struct ckpt_timing *timing);

/* clock.c */
uint64_t now_ns(void);                      /* the machine's CLOCK_MONOTONIC */
uint64_t own_instant(uint64_t when);        /* the same as our own clock shows it */
uint64_t machine_ticks(uint64_t shown);     /* when a process began, field 22 as we are shown it */
struct ckpt_clocks clocks_of(int dir);      /* the offsets of the process whose /proc/PID that is; AT_FDCWD: ours */
enum { CLOCKS_ROOM = 128 };
void clocks_text(const struct ckpt_clocks *offsets, char *text); /* CLOCKS_ROOM bytes */
int clocks_for_children(const char *text);  /* those whom the caller bears from now on; only makes system calls */

#endif
