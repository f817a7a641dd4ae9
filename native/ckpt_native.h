/* ckpt_native.h: everything that Python may call in the capture core.
 *
 * This header is also the cffi cdef, word for word (lines that begin with '#' are dropped), so it holds
 * only declarations that cffi can read: no macros with values, no attributes, no inline functions.
 *
 * Conventions
 *  1. Every function returns 0 (or a count) or a negative errno. Out-parameters come last, are named ret_...,
 *     and are written only on success.
 *  2. A page is 4096 bytes; a page number is address >> 12. An address of the target is ckpt_addr_t, never a pointer.
 *  3. Only handles, integers and caller-owned buffers cross; what a handle lends (records, pages) dies with it.
 *  4. The core knows processes, not what their bytes mean: it hands text of /proc and structs of the kernel over raw.
 *  5. Whatever happens to the caller (kill -9 included), the target goes on and computes the right result. Each
 *     function says in its .c file how it keeps that.
 *  6. Times are nanoseconds of the machine's CLOCK_MONOTONIC, in whatever time namespace the caller is (clock.c); start_ticks too are the machine's.
 */
#ifndef CKPT_NATIVE_H
#define CKPT_NATIVE_H

#include <stddef.h>
#include <stdint.h>

typedef uint64_t ckpt_addr_t;

/* ---- what went wrong, named: the detail behind the last negative return on a tree ---- */
struct ckpt_fault {
    int32_t error;     /* negative errno */
    int32_t pid;       /* process, or 0 */
    int32_t tid;       /* thread, or 0 */
    int32_t fd;        /* descriptor number, or -1 */
    ckpt_addr_t addr;  /* mapping or call, or 0 */
    char step[32];     /* short constant such as "seize", "interrupt", "scan", "read pages", "pipe contents" */
    char name[64];     /* what it was about: a file of /proc, the name of a system call */
};

/* ---- runs of pages: the one currency between scan, copy, store and rollback ---- */
enum ckpt_content {
    CKPT_DATA = 0,   /* contents follow in the data buffer, count * 4096 bytes, in the order of the runs */
    CKPT_ZERO = 1,   /* populated, all zero; no bytes follow */
    CKPT_SAME = 2,   /* populated, not written since tracking last consumed it; no bytes follow */
    CKPT_ABSENT = 3, /* not populated (or a clean page of a file): must not be in the generation */
};
struct ckpt_run {
    uint64_t page;    /* page number */
    uint32_t count;   /* pages */
    uint32_t content; /* enum ckpt_content */
};

/* ---- kernel features: probed by use, never by version (probe.c) ---- */
enum ckpt_feature {
    CKPT_F_PAGEMAP_SCAN = 0,
    CKPT_F_UFFD_WP_ASYNC = 1,
    CKPT_F_SOFT_DIRTY = 2,
    CKPT_F_PIDFD_GETFD = 3,
    CKPT_F_PROCESS_VM = 4,
    CKPT_F_KCMP = 5,
    CKPT_F_CLONE3_SET_TID = 6,
    CKPT_F_TCP_REPAIR = 7,
    CKPT_F_SCHED_FIFO = 8,
    CKPT_F_SUSPEND_SECCOMP = 9,
    CKPT_F_RSEQ_CONFIGURATION = 10,
    CKPT_F_VDSO_TAIL = 11, /* room for the stub behind the vdso's last byte */
    CKPT_F_TIME_NAMESPACE = 12, /* with offsets that may be written */
    CKPT_F_COUNT = 13,
};
/* ret_errors[i] = 0 when feature i works here, else the negative errno that the probe met. */
int ckpt_probe(int32_t *ret_errors, size_t count);

/* ---- clocks (clock.c): the machine's, or offsets from those ---- */
struct ckpt_clocks {
    int64_t monotonic, boottime; /* ns */
};
void ckpt_clocks_now(struct ckpt_clocks *ret_now);
/* What we see, minus the machine's. */
void ckpt_clocks_own(struct ckpt_clocks *ret_offsets);

/* ---- the tree: which tasks, seized or not (tree.c) ---- */
typedef struct ckpt_tree ckpt_tree;
struct ckpt_thread_id {
    int32_t pid;
    int32_t tid;
    uint64_t start_ticks; /* field 22 of the thread's stat */
    int32_t mm;           /* index of the memory that it uses: the position of the first process in the tree that shares it */
    int32_t stopped;      /* valid while frozen: the signal by which somebody else has stopped it (state T), 0 = it runs */
};
/* Opens root and all its descendants; stops nobody. -ESRCH no such process, -EPERM not allowed to ptrace.
 * start_ticks != 0 must match root's (a recycled pid gives -ESRCH). The handle is given back on failure too (unless
 * -ENOMEM left none: NULL), so that its fault can be read: close it. */
int ckpt_tree_open(int32_t root_pid, uint64_t start_ticks, ckpt_tree **ret_tree);
void ckpt_tree_close(ckpt_tree *tree); /* thaws if frozen; NULL is fine */
void ckpt_tree_last_fault(const ckpt_tree *tree, struct ckpt_fault *ret_fault);
/* Seizes and interrupts every thread of every task until no new one appears. On failure nobody stays stopped. */
int ckpt_tree_freeze(ckpt_tree *tree);
/* Detaches everybody; a thread that stopped inside a call continues as native/src/restart.c decided at the stop. */
int ckpt_tree_thaw(ckpt_tree *tree);
/* Until the handle is closed, the caller and what threads it makes keep off the CPUs where threads of the tree run just now, but for the
 * freeze itself; nothing happens where none runs, or no other CPU is left. */
void ckpt_tree_aside(ckpt_tree *tree);
/* fd: cgroup.freeze of a control group (v2) that the tree has to itself, -1 = none; the caller keeps it open. From then on the whole tree
 * is stopped through it; theirs: somebody has frozen it, and finds it frozen. */
void ckpt_tree_freezer(ckpt_tree *tree, int fd, int theirs);
/* To be called before the first freeze: from then on the death of the caller, or closing the handle while it is frozen, kills the tasks. */
int ckpt_tree_doom(ckpt_tree *tree);
/* A doomed tree runs while we stay its tracer: our death is its death until it is left (attend.c). All three by the thread that froze it. */
int ckpt_tree_run(ckpt_tree *tree);
/* Answers its stops until a signal comes to this thread (1) or nobody is left (0). */
int ckpt_tree_attend(ckpt_tree *tree);
int ckpt_tree_leave(ckpt_tree *tree);
/* Fills up to cap entries, leaders first; returns how many there are. */
int ckpt_tree_threads(const ckpt_tree *tree, struct ckpt_thread_id *threads, size_t cap);

/* ---- how an interrupted call continues; rows compiled in from syscalls/table.py (restart.c) ---- */
enum ckpt_action { CKPT_KEEP = 0, CKPT_RESTART = 1, CKPT_REBUILD = 2, CKPT_LINGER = 3, CKPT_GO_ON = 4 };
struct ckpt_decision {
    int64_t nr;        /* orig_rax at the stop; -1 when not in a call */
    int64_t shown;     /* rax at the stop */
    int64_t value;     /* rax that it continues with */
    uint32_t action;   /* enum ckpt_action */
    uint32_t disturbed; /* 1: the caller may see a later deadline, an EINTR or a short count; told by ckpt show */
};
/* Pure: the decision for one set of registers (struct user_regs_struct, 27 words). deliverable: a signal with a handler is pending. */
int ckpt_decide(const uint64_t *regs, int deliverable, struct ckpt_decision *ret_decision);

/* ---- waits with a time limit: what is known of them (waits.c), and who keeps their deadlines (keeper.c) ---- */
struct ckpt_wait {
    int32_t pid, tid;
    uint64_t start_ticks;
    int64_t nr;         /* the call; 219: the kernel has restarted it once already, and its own number is not shown */
    uint64_t arg[6];
    ckpt_addr_t sp, pc;
    uint64_t limit;     /* how long it may last from its beginning, ns; 0 = not known */
    uint64_t slept_at;  /* when it went to sleep, ns of the scheduler's clock on `cpu`; 0 = not shown */
    uint64_t switches;  /* voluntary ones while it sleeps there; 0 = not counted */
    uint64_t deadline;  /* for ckpt_keep */
    int64_t expired;    /* its result when its time is over */
    int32_t expires;    /* 1: that is all that belongs to its end */
    int32_t block;      /* 1: a live thread keeps its deadline by itself, over any freeze */
    int32_t same;       /* 1: it has slept in nothing else since the look before */
    int32_t cpu;
    int32_t timer;      /* 1: a high-resolution timer ends it */
};
/* Threads of a running tree that sleep in such a call. How many there are; up to cap are told. */
int64_t ckpt_waits_look(ckpt_tree *tree, struct ckpt_wait *ret_waits, size_t cap);
/* In a freeze or after it: those that were stopped since the last look, inside such a call. */
int64_t ckpt_waits_left(ckpt_tree *tree, struct ckpt_wait *ret_waits, size_t cap);
/* CLOCK_MONOTONIC minus the scheduler's clock of a CPU. The calling thread goes there and back. */
int ckpt_clock_gap(int32_t cpu, int64_t *ret_gap);
/* For a freeze and a thaw by a thread that ends with them (parting.c): 1 before the freeze, 0 after the thaw, both by that thread; then,
 * by whoever has joined it, parted(). Only waits that were let go so have a count of `switches`. */
int ckpt_tree_parting(ckpt_tree *tree, int begin);
int ckpt_tree_parted(ckpt_tree *tree);
/* Starts a process of its own that ends these waits at their deadlines. `switches`: as counted while asleep there. lock: the file
 * whose lock (flock) keeps other ckpt from the target. */
int ckpt_keep(const struct ckpt_wait *waits, size_t count, const char *lock);

/* ---- tracking which pages are written: userfaultfd write-protect (async) + PAGEMAP_SCAN (track.c, scan.c) ---- */
enum ckpt_tracker { CKPT_TRACK_COMPARE = 0, CKPT_TRACK_UFFD = 1, CKPT_TRACK_SOFT_DIRTY = 2, CKPT_TRACK_NONE = 3 };
struct ckpt_track {
    int32_t pid;         /* a process of the tree, the first that has this memory */
    int32_t tracker;     /* enum ckpt_tracker; COMPARE = read everything, NONE = read no pages of this memory (layout only) */
    int32_t remote_fd;   /* descriptor number of the userfaultfd inside the target, -1 = none yet */
    int32_t fresh;       /* out of ckpt_track_arm: 1 = armed anew, so everything counts as written */
    uint64_t remote_ino; /* its inode: how it is recognised */
};
/* Finds or makes the target's userfaultfd (by the self-restoring stub), moves it to the highest free number below the
 * descriptor table's size, takes a duplicate into the tree handle. Stops the one process for some 200 us when it must inject.
 * hint_fd/hint_ino: what an earlier ckpt left (-1/0 = nothing). -EPERM/-ENOSYS: fall back to COMPARE. */
int ckpt_track_arm(ckpt_tree *tree, int32_t pid, int32_t hint_fd, uint64_t hint_ino, struct ckpt_track *ret_track);
/* Closes the target's userfaultfd again (ckpt untrack, and before a program that must not have it). */
int ckpt_track_disarm(ckpt_tree *tree, const struct ckpt_track *track);

/* ---- copying (copy.c): a sink owned by the caller, reused over calls ---- */
typedef struct ckpt_sink ckpt_sink;
/* bytes: size of the page buffer, allocated and touched ahead. What does not fit goes to an unlinked file in spill_dir. */
int ckpt_sink_new(size_t bytes, const char *spill_dir, ckpt_sink **ret_sink);
/* For pre-copy and looks: nothing is touched ahead, and what does not fit fails (-ENOMEM). */
int ckpt_sink_new_running(size_t bytes, ckpt_sink **ret_sink);
void ckpt_sink_free(ckpt_sink *sink);
void ckpt_sink_reset(ckpt_sink *sink);

/* One range of one memory, as the caller read it in maps (pre-copy) or as the core read it (capture). */
struct ckpt_range {
    ckpt_addr_t start, end;
    uint32_t kind; /* enum ckpt_range_kind */
    uint32_t pad;
};
enum ckpt_range_kind {
    CKPT_RANGE_ANON = 0,         /* private anonymous, heap, stack */
    CKPT_RANGE_FILE_PRIVATE = 1, /* private file mapping: only pages that left the file are ours */
    CKPT_RANGE_SKIP = 2,         /* shared, vdso, vvar, vsyscall, device: no pages here */
};

/* Pages per round that a pre-copy brought in, or a dry count. */
struct ckpt_scan_result {
    uint64_t resident, written, absent;
    uint64_t ns;
};
/* Counts without protecting anything (sizes the sink, and is the floor of the bench). */
int ckpt_scan_count(ckpt_tree *tree, const struct ckpt_track *track, struct ckpt_scan_result *ret_result);
/* One round while the target runs: protect what was written and copy it into the sink, going on at *cursor (0 at first;
 * ~0 when the round is complete) and returning early when the sink is full, so that memory stays bounded. sink NULL: protect alone. */
int ckpt_precopy(ckpt_tree *tree, const struct ckpt_track *track, ckpt_sink *sink, uint64_t *cursor, struct ckpt_scan_result *ret_result);

/* ---- the frozen window of a snapshot: freeze, raw bytes, scan, copy, thaw in one call (capture.c) ---- */
/* Work that kinds of resource want done while frozen: a row per kind, first match wins. */
enum ckpt_work {
    CKPT_W_DUPLICATE = 1,   /* keep a duplicate until the sink is reset: record FD_DUP holds our number */
    CKPT_W_PIPE = 2,        /* F_GETPIPE_SZ and contents by tee, without consuming */
    CKPT_W_SOCKET = 4,      /* domain, type, protocol, names, the listed options */
    CKPT_W_PEEK = 8,        /* queued data by MSG_PEEK, message by message */
    CKPT_W_TIMERFD = 16,    /* timerfd_gettime on the duplicate before fdinfo is read */
    CKPT_W_SEALS = 32,      /* F_GET_SEALS */
    CKPT_W_CONTENTS = 64,   /* whole contents into the sink as an object space (memfd) */
    CKPT_W_TTY = 128,       /* termios, winsize */
    CKPT_W_UNIX_DIAG = 256, /* sock_diag answer for this inode */
    CKPT_W_EPOLL = 512,     /* kcmp EPOLL_TFD for each tfd line */
    CKPT_W_UNNAMED = 1024,  /* CONTENTS, if it has no name any more (nlink 0) and is not larger than CKPT_UNNAMED_BYTES */
    CKPT_W_QUEUED = 2048,   /* FIONREAD */
    CKPT_W_MQUEUE = 4096,   /* of a POSIX message queue, and of nothing else: its attributes, and what it says to a read */
    CKPT_W_OWNER = 8192,    /* whom it signals, and by which signal */
    CKPT_W_GROUPS = 16384,  /* of UDP sockets: multicast groups (fdgroups.c) */
    CKPT_W_SENDING = 32768, /* of a TCP connection that PEEK is for: bytes that wait to be sent, or sent again (fdsending.c) */
};
#define CKPT_UNNAMED_BYTES (64 << 20)
struct ckpt_sockopt { int32_t level, name, size, domain, type; /* of which sockets it is asked, 0 = any */ };
struct ckpt_want {
    uint32_t format;        /* S_IFMT bits to match, 0 = any */
    uint32_t work;          /* enum ckpt_work, or-ed */
    char prefix[48];        /* link text must begin so; "" = any */
    const struct ckpt_sockopt *options;
    uint32_t option_count;
    uint32_t pad;
};
/* A call to run inside every thread (per_thread) or every process while frozen, and whose answer is kept raw. */
struct ckpt_question {
    int64_t nr;
    uint64_t arg[6];
    uint32_t answer_arg;   /* which argument is the answer buffer (its value is ignored), 7 = none */
    uint32_t answer_size;
    uint32_t per_thread;
    uint32_t pad;
};
struct ckpt_capture_options {
    const char *const *proc_files; /* names under /proc/PID/ read for each process, NULL-terminated: "stat", "status", "maps"... */
    const char *const *thread_files; /* the same under /proc/PID/task/TID/ */
    const struct ckpt_want *wants;
    size_t want_count;
    const struct ckpt_question *questions;
    size_t question_count;
    const struct ckpt_track *tracks; /* one per memory; a memory that is not listed is read whole */
    size_t track_count;
    uint32_t scan_threads; /* 1 or 2 */
    uint32_t paranoid;     /* also read every SAME page: runs of content DATA in the sink's paranoid list */
    uint32_t no_inject;    /* ask no questions (seccomp) */
    uint32_t freeze_retries; /* for a vfork parent: how often to wait 10 ms and try again */
    uint32_t last_round;   /* 1: a small root is pre-copied once more just before the freeze: its space then comes twice in the sink, the
                            * first time with nothing but pages that the second may name SAME; to be taken in that order */
    uint32_t pad;
};
struct ckpt_timing { /* nanoseconds; stop is freeze's first effect to thaw's last; scan and copy may lie beside files and descriptors */
    uint64_t stop, freeze, files, descriptors, questions, scan, copy, thaw;
    uint64_t at; /* no duration: an instant at which everybody stood still, after the last write that the pages show */
};
/* On failure the tree runs on, nothing is kept, and last_fault names the resource. A tree that is frozen already stays
 * frozen, on success and on failure (rollback looks at the layout inside its own freeze). */
int ckpt_capture(ckpt_tree *tree, const struct ckpt_capture_options *options, ckpt_sink *sink, struct ckpt_timing *ret_timing);

/* Descriptors only, of a tree that runs on and is not touched: what the pre-flight judges. Give only wants whose work cannot
 * disturb (SOCKET, UNIX_DIAG, SEALS). A descriptor that is closed meanwhile fails the look: try again. */
int ckpt_look(ckpt_tree *tree, const struct ckpt_capture_options *options, ckpt_sink *sink);

/* What a sink lends until reset. Records: see struct ckpt_record. */
enum ckpt_record_kind {
    CKPT_R_PROC_FILE = 1,    /* index = position in proc_files; pid */
    CKPT_R_THREAD_FILE = 2,  /* index = position in thread_files; pid, tid */
    CKPT_R_REGS = 3,         /* struct user_regs_struct as shown at the stop, before the decision */
    CKPT_R_XSTATE = 4,       /* PTRACE_GETREGSET NT_X86_XSTATE */
    CKPT_R_SIGMASK = 5,      /* 8 bytes, PTRACE_GETSIGMASK */
    CKPT_R_PENDING_SHARED = 6, /* siginfo_t[] (128 bytes each), per process */
    CKPT_R_PENDING_THREAD = 7, /* siginfo_t[], per thread */
    CKPT_R_RSEQ = 8,         /* struct ptrace_rseq_configuration */
    CKPT_R_ROBUST = 9,       /* uint64 head, uint64 len */
    CKPT_R_DECISION = 10,    /* struct ckpt_decision */
    CKPT_R_ANSWER = 11,      /* index = question; tid 0 = of the process; int64 retval, then the answer buffer */
    CKPT_R_FD = 12,          /* struct ckpt_fd, then the link text (no NUL) */
    CKPT_R_FDINFO = 13,      /* text */
    CKPT_R_FD_WORK = 14,     /* index = the one enum ckpt_work bit; bytes as documented in descriptors.c */
    CKPT_R_FD_OPTION = 15,   /* index = position in the want's options; bytes of the option */
    CKPT_R_LIMITS = 16,      /* struct rlimit64[16] */
    CKPT_R_THREADS = 17,     /* struct ckpt_thread_id[] of the whole tree */
    CKPT_R_OBJECT = 18,      /* struct ckpt_object: a shared memory object captured as a space */
    CKPT_R_ZOMBIE = 24,      /* a dead child that its parent has not collected: text; index 0 = its stat, 1 = its status */
    CKPT_R_SHARES = 25,      /* int32[3]: the first process with the same descriptor table, cwd and root, signal handlers */
};
struct ckpt_record {
    uint32_t kind;
    int32_t pid, tid, fd, index;
    uint32_t size; /* bytes that follow; the next record begins at the next multiple of 8 */
};
struct ckpt_fd {
    uint64_t dev, ino, rdev, size, nlink;
    uint32_t mode;
    int32_t file;      /* identity of the open file description over the whole tree (kcmp): equal = shared */
    int32_t duplicate; /* our number, or -1 */
    uint32_t pad;
};
struct ckpt_object {   /* shared anonymous, memfd, SysV shm, tmpfs file: read through the file, once for the whole tree */
    uint64_t dev, ino, size;
};
/* A space is what pages belong to: a memory (index of its mm) or an object (index = 1000000 + order of its record). */
struct ckpt_space_runs {
    int32_t space;
    uint32_t pad;
    const struct ckpt_run *runs; /* sorted by page; complete: what is not named is ABSENT */
    size_t run_count;
    uint64_t data_offset;        /* where in the sink's data the first DATA page of this space lies */
    uint64_t data_pages;
    const struct ckpt_run *paranoid_runs; /* DATA only, sorted; NULL unless asked for */
    size_t paranoid_count;
    uint64_t paranoid_offset;
};
size_t ckpt_sink_records(const ckpt_sink *sink, const uint8_t **ret_bytes);
size_t ckpt_sink_spaces(const ckpt_sink *sink, const struct ckpt_space_runs **ret_spaces);
/* The page bytes: in the buffer up to its size, the rest in the spill file. Returns bytes copied, or lends the buffer. */
const uint8_t *ckpt_sink_data(const ckpt_sink *sink, uint64_t *ret_in_memory, uint64_t *ret_total);
int ckpt_sink_read_spill(const ckpt_sink *sink, uint64_t offset, uint8_t *buffer, size_t bytes);

/* ---- acting on a frozen tree: remote calls, threads, pages (remote.c, threads.c, pages.c) ---- */
enum ckpt_form { CKPT_ARG_VALUE = 0, CKPT_ARG_RESULT = 1, CKPT_ARG_DATA = 2 };
struct ckpt_call {
    int64_t nr;
    uint64_t arg[6];
    int64_t ret;        /* out */
    uint8_t form[6];    /* enum ckpt_form: a value; the ret of call arg[i]; the data area's byte arg[i] */
    uint8_t may_fail;   /* 1: a negative ret does not end the batch */
    uint8_t done;       /* out: 1 = it ran */
};
/* Runs calls in one thread of a frozen tree, in order, with every signal blocked; data is copied into the target before
 * and back after. Returns how many ran (all, or up to and with the first that failed), or a negative errno of our own. */
int ckpt_remote(ckpt_tree *tree, int32_t tid, struct ckpt_call *calls, size_t count, uint8_t *data, size_t data_bytes);
/* The same in several threads of pid at the same time, by a bridge that ckpt_remote_begin() mapped. calls: those of all lots, one lot's
 * after the other's, results counted within the lot; data likewise. What a thread did is in its lot; 0 = all of them ran, to
 * their end or a failed call. */
struct ckpt_lot {
    int32_t tid;
    uint32_t calls;
    uint32_t data_bytes; /* a multiple of 8 */
    uint32_t ran;        /* out: as what ckpt_remote() returns */
};
int ckpt_remote_each(ckpt_tree *tree, int32_t pid, struct ckpt_lot *lots, size_t count, struct ckpt_call *calls, uint8_t *data);
/* The bridge stays mapped in pid's memory from begin to end; ckpt_remote begins and ends one by itself where none is.
 * avoid: ranges where it must not be (the layout that is wanted), sorted. */
int ckpt_remote_begin(ckpt_tree *tree, int32_t pid, const struct ckpt_range *avoid, size_t avoid_count, size_t data_bytes);
int ckpt_remote_end(ckpt_tree *tree, int32_t pid);
/* Where data of so many bytes will stand in the target when ckpt_remote() runs in this thread: for structures that hold pointers. A
 * bridge must be open; -ENOENT otherwise. */
int64_t ckpt_remote_data(ckpt_tree *tree, int32_t tid, size_t data_bytes);
/* Ends threads of pid (never the leader); waits until they are gone. */
int ckpt_threads_end(ckpt_tree *tree, int32_t pid, const int32_t *tids, size_t count);
/* Makes threads with these numbers in pid (clone3 set_tid; 0 = any; numbers of its own pid namespace), stopped and part of the tree.
 * ret_tids[count]: their numbers as the caller sees them. */
int ckpt_threads_spawn(ckpt_tree *tree, int32_t pid, const int32_t *tids, size_t count, int32_t *ret_tids);
/* Makes a child of parent with this number (0 = any; a number of parent's pid namespace), stopped and part of the tree: flags as clone(2)'s
 * (CLONE_FILES, CLONE_FS, CLONE_VM, CLONE_PARENT... and in the low byte the signal that its parent gets at its end; 0 with CLONE_PARENT).
 * It dies with the caller until it is let go or kept. ret_pid: its number as the caller sees it. */
int ckpt_task_spawn(ckpt_tree *tree, int32_t parent, int32_t pid, uint64_t flags, int32_t *ret_pid);
/* From here on its life does not hang on ours: it is in a group stop, which the death of its tracer does not end. */
int ckpt_task_keep(ckpt_tree *tree, int32_t pid);
/* Ends a process (deaths.c) with this wait status: exit_group(n), or death by a signal. It is a zombie then, or gone if its parent ignores
 * that. What a core dump would add to the status (0x80) cannot be given. */
int ckpt_task_end(ckpt_tree *tree, int32_t pid, int32_t status);
/* parent collects its dead child, whose number is free then. `number`: the child's in the parent's pid namespace. */
int ckpt_task_reap(ckpt_tree *tree, int32_t parent, int32_t pid, int32_t number);
/* State of one frozen thread; any pointer may be NULL = leave alone. regs continue by decision (rax as given there). */
int ckpt_thread_set(ckpt_tree *tree, int32_t tid, const uint64_t *regs, const struct ckpt_decision *decision,
                    const uint8_t *xstate, size_t xstate_bytes, const uint64_t *sigmask);
/* The same of many threads: everything is set, from these rows. */
struct ckpt_thread_state {
    int32_t tid;
    uint32_t xstate_bytes;
    uint64_t xstate; /* where it stands in `xstates` */
    uint64_t sigmask;
    struct ckpt_decision decision;
    uint64_t regs[27];
};
int ckpt_threads_set(ckpt_tree *tree, const struct ckpt_thread_state *states, size_t count, const uint8_t *xstates);
/* After registers were set to waits that the kernel keeps (rax = -516): each is given so much time more, all together (rebuild.c). */
struct ckpt_remaining {
    int32_t tid;
    uint32_t done; /* 1 = so it is, or it has its result; 0 = it begins anew with its whole time */
    uint64_t ns;
};
int ckpt_threads_rebuild(ckpt_tree *tree, struct ckpt_remaining *waits, size_t count);
int ckpt_thread_get(ckpt_tree *tree, int32_t tid, uint64_t *ret_regs, uint8_t *ret_xstate, size_t cap, uint64_t *ret_sigmask);
/* Pages of a frozen process. Runs of DATA only; data holds them in order. Falls back to /proc/PID/mem where a mapping is not writable. */
int ckpt_pages_write(ckpt_tree *tree, int32_t pid, const struct ckpt_run *runs, size_t count, const uint8_t *data);
int ckpt_pages_read(ckpt_tree *tree, int32_t pid, const struct ckpt_run *runs, size_t count, uint8_t *ret_data);
/* Which pages a rollback writes (DATA), fills with zeros (ZERO) or drops (ABSENT); pure arithmetic (pagework.c). */
struct ckpt_page_work {
    const struct ckpt_run *hold;    /* what the generation holds: DATA, ZERO */
    size_t hold_count;
    const struct ckpt_run *seen;    /* what the memory holds: DATA = written since the baseline, SAME */
    size_t seen_count;
    const struct ckpt_run *differs; /* where generation and baseline differ, any content */
    size_t differs_count;
    const struct ckpt_range *ranges; /* sorted; ANON or FILE_PRIVATE */
    size_t range_count;
    uint32_t baseline; /* 0: there is none, everything may differ */
    uint32_t pad;
};
/* The runs of one content; returns how many, -ENOSPC when cap is too small (twice all that goes in is always enough). */
int64_t ckpt_page_work(const struct ckpt_page_work *work, uint32_t content, struct ckpt_run *ret_runs, size_t cap);
/* Parts of runs that other does not cover; both sorted and disjoint. */
int64_t ckpt_runs_subtract(const struct ckpt_run *runs, size_t count, const struct ckpt_run *other, size_t other_count,
                           struct ckpt_run *ret_runs, size_t cap);
/* Scans a frozen process; runs go to the sink as a space with no data read (rollback: what differs from the baseline).
 * protect = 1 consumes (re-arms), 0 only looks. */
int ckpt_pages_scan(ckpt_tree *tree, const struct ckpt_track *track, int protect, ckpt_sink *sink);
/* Guard pages in these ranges, of a process that may run (guards.c). How many, -ENOSPC when cap is too small, or a negative errno. */
int64_t ckpt_guards(int32_t pid, const struct ckpt_range *ranges, size_t count, struct ckpt_range *ret_guards, size_t cap);
/* ---- memory that is filled while its process runs (lazy.c) ---- */
/* A userfaultfd of the (frozen) process for missing pages; ours alone, close it when done. */
int ckpt_lazy_open(ckpt_tree *tree, int32_t pid, int32_t *ret_fd);
int ckpt_lazy_register(int32_t fd, ckpt_addr_t start, ckpt_addr_t end);
int ckpt_lazy_unregister(int32_t fd, ckpt_addr_t start, ckpt_addr_t end);
/* Pages that stand there by then, those that were there already included; -EAGAIN: an event waits to be read first; -ENOENT: nothing
 * registered is there any more; -ESRCH: the memory is gone. */
int64_t ckpt_lazy_copy(int32_t fd, ckpt_addr_t at, const uint8_t *data, uint64_t pages);
int64_t ckpt_lazy_zero(int32_t fd, ckpt_addr_t at, uint64_t pages);
enum ckpt_lazy_kind { CKPT_LAZY_FAULT = 0, CKPT_LAZY_FORK = 1, CKPT_LAZY_MOVE = 2, CKPT_LAZY_REMOVE = 3, CKPT_LAZY_UNMAP = 4 };
struct ckpt_lazy_event {
    uint32_t kind;          /* enum ckpt_lazy_kind */
    int32_t fd;             /* FORK: the child's userfaultfd */
    ckpt_addr_t start, end; /* FAULT: the page; else the range */
    ckpt_addr_t to;         /* MOVE: where the range is now */
};
/* The next event without waiting: 1 = *ret_event is set, 0 = none. Whoever caused it goes on at once. */
int ckpt_lazy_event(int32_t fd, struct ckpt_lazy_event *ret_event);

/* A signal to a process of the tree by pidfd (SIGSTOP before a rollback's first change, SIGCONT never by us). */
int ckpt_tree_signal(ckpt_tree *tree, int32_t pid, int32_t signal);

/* ---- a process for a restore to fill (newborn.c) ---- */
/* Forks an empty child with this number (0 = any): no descriptors but those of keep (sorted), all signals blocked, in a session of its own
 * if asked for. It waits to be seized and dies with the caller. -EEXIST: the number is taken; -EPERM: choosing one is not allowed.
 * offsets: of its clocks, in a time namespace of its own; where that cannot be had, and with NULL, it has our clocks. */
int ckpt_newborn(int32_t pid, int own_session, const int32_t *keep, size_t keep_count, const struct ckpt_clocks *offsets, int32_t *ret_pid);

/* The same inside a new pid namespace (and others: CLONE_NEW*), as the only child of its first process (init.c), which ends when ret_keep is
 * closed, or goes on without us when one byte is written there. pid: its number inside (not 1); ret_init, ret_pid: numbers as we see them. */
int ckpt_newborn_apart(uint64_t namespaces, int32_t pid, const int32_t *fds, size_t fd_count, const struct ckpt_clocks *offsets, int32_t *ret_init,
                       int32_t *ret_pid, int32_t *ret_keep);

/* The calling thread enters the namespace that the descriptor (of /proc/PID/ns/...) names. */
int ckpt_enter(int32_t namespace_fd);

/* One malloc arena for all threads of this process, to be called before there are any: with an arena a thread, large
 * buffers that wander between threads stay resident several times over (4 GiB captured: 480 MB against 200). */
void ckpt_one_heap(void);

/* ---- a named point of the flow; does nothing. The fault tests interpose it (LD_PRELOAD) to kill or fail here. ---- */
int ckpt_mark(const char *phase);

#endif
