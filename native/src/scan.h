/* scan.h: what the files that find and read pages share. See scan.c for the method and its invariants. */
#ifndef CKPT_SCAN_H
#define CKPT_SCAN_H

#include "internal.h"

enum {
    /* struct page_region per PAGEMAP_SCAN call, and no more: the kernel collects 512 at a time, and a call that fills its own
     * buffer once and then comes to the end leaves walk_end where that buffer was full (fs/proc/task_mmu.c, do_pagemap_scan():
     * "walk_end isn't set when ret is zero"), so the caller would walk the rest a second time. */
    SCAN_REGIONS = 512,
    SCAN_LOOK_AGAIN = 8,   /* a written stretch of a dense range that is at least so long may be a hole: look again */
};
/* Thresholds that a build may set otherwise (the oracle of tests/native does, so that small victims reach every path). */
#ifndef SCAN_DENSE_PAGES
#define SCAN_DENSE_PAGES 512u /* a stretch with no hole that is at least so long is worth the fast path */
#endif
#ifndef SCAN_PAIR_PAGES
#define SCAN_PAIR_PAGES 16384u /* below this many pages a second scanning thread costs more than it brings */
#endif
#ifndef COPY_PAIR_PAGES
#define COPY_PAIR_PAGES 192u /* the same for a second copying thread */
#endif

/* A growing array of runs; neighbours of equal content are merged. */
struct run_list {
    struct ckpt_run *at;
    size_t count, cap;
};
int run_list_reserve(struct run_list *list, size_t cap); /* touches the memory, so that the frozen window need not */
int run_list_add(struct run_list *list, uint64_t page, uint64_t count, enum ckpt_content content);

/* A second thread that is there before the freeze and ends with the tree. It never calls ptrace. */
struct helper;
int helper_new(struct helper **ret_helper);
void helper_free(struct helper *helper);
/* Runs work(argument) there; the scheduling policy of the caller is lent to it until helper_rest(). */
void helper_run(struct helper *helper, void (*work)(void *), void *argument);
/* Not on this CPU (-1: anywhere) until helper_rest(), or until it is told another one. */
void helper_off(struct helper *helper, int cpu);
/* Ahead of helper_run(): the policy; awake and spinning for a short while. */
void helper_lend(struct helper *helper);
void helper_ready(struct helper *helper);
void helper_wait(struct helper *helper);
void helper_rest(struct helper *helper);
/* A word that one thread changes and another waits for: a short spin, then asleep. */
void helper_tell(uint32_t *word, uint32_t value);
uint32_t helper_await(uint32_t *word, uint32_t old);

/* Stretches without a hole, as the last look at the running target saw them; sorted. Hints: being out of date costs
 * time, never correctness (scan.c, invariant 3). */
struct scan_hints {
    pid_t pid;
    bool reset; /* a fresh track's protection was dropped already */
    bool lost;  /* a pre-copy could not tell what it had protected: the freeze drops all protection */
    bool others; /* the process has userfaultfds besides ours: ask before each mapping that is to be protected */
    uint64_t resident, written; /* pages, when it was last counted; UNCOUNTED before */
    struct ckpt_range *at;
    size_t count, cap;
};

#define UNCOUNTED UINT64_MAX

struct scan_layout {
    const struct map_line *lines;
    size_t count;
};

/* A part of a mapping, scanned by one of the two methods. */
struct piece {
    ckpt_addr_t start, end;
    const struct map_line *line; /* the mapping that it lies in; borrowed from the layout */
    uint32_t kind;               /* enum ckpt_range_kind */
    bool dense;
    bool follows;  /* between it and the piece before there is nothing, or only addresses that are not mapped */
};

/* Pages of private file mappings that count as written though they are protected; sorted, perhaps twice (suspect.c). */
enum { SUSPECT_PAGES = 1024 };
struct suspects {
    bool all; /* every page of every private file mapping */
    size_t count;
    uint64_t page[SUSPECT_PAGES];
};

/* Kept between calls; owned by the tree. */
struct scan_memory {
    struct suspects suspects;
    struct scan_hints *hints;
    size_t hint_count, hint_cap;
    struct piece *pieces;
    size_t piece_cap;
    struct run_list runs[2];
    struct page_region *regions[2];
    struct helper *helper; /* NULL until two threads are wanted, and while it works by itself (memories.c) */
    bool soon; /* the helper gets work as soon as the tree stands still */
};
int scan_memory_get(ckpt_tree *tree, bool pair, struct scan_memory **ret_memory);
struct scan_hints *scan_hints_of(struct scan_memory *memory, pid_t pid); /* NULL = no memory */
int scan_hints_add(struct scan_hints *hints, ckpt_addr_t start, ckpt_addr_t end);

/* One pass over ranges of one memory by one thread. */
struct scan {
    int dir;     /* /proc/PID; borrowed */
    int pagemap; /* opened anew for each pass: one from before an exec silently reports nothing */
    int uffd;    /* or -1 */
    bool tracked;     /* by userfaultfd; else everything populated is DATA */
    bool protect;     /* consume: what is reported is write-protected by the same walk */
    bool running;     /* pre-copy: only what is written, and at most max_pages of it */
    bool others;      /* see struct scan_hints */
    bool no_guard;    /* kernel before 6.16: there is no category for guard pages */
    uint64_t max_pages;
    const struct suspects *suspects; /* NULL = while it runs */
    struct page_region *regions;
    struct run_list *out;
    int error;
    ckpt_addr_t at; /* where error was met; running: where the walk ended */
};
/* Appends the runs of one piece. -EPERM never comes out: such mappings are registered, or read whole. */
int scan_piece(struct scan *scan, const struct piece *piece);
/* The same for several sparse pieces that follow one another. 1 = not by one question: nothing was done. */
int scan_batch(struct scan *scan, const struct piece *pieces, size_t count);
/* Looks at all of a running memory and forgets what it saw: the frozen scan then finds entries and struct pages in the CPU's cache. */
void scan_warm(const struct task *task, struct scan_layout layout, struct page_region *regions);
/* What scan.c and batch.c share: one call of the kernel (regions filled; moves arg->start), its question, and a region's runs. */
int scan_walk(struct scan *scan, struct pm_scan_arg *arg);
struct pm_scan_arg scan_question(const struct scan *scan, ckpt_addr_t start, ckpt_addr_t end, enum ckpt_range_kind kind, bool protect);
int scan_take(struct scan *scan, const struct page_region *region, enum ckpt_range_kind kind, bool everything);
/* Appends list without the guard pages of its DATA runs; how many there were, or a negative errno. */
int64_t scan_drop_guards(struct scan *scan, const struct run_list *list, struct run_list *ret_kept);
/* Look only, every category: nothing is protected. everything: all that is populated is DATA. */
int scan_look(struct scan *scan, ckpt_addr_t start, ckpt_addr_t end, enum ckpt_range_kind kind, bool everything);
/* Running: what was written in a range, protected as it is reported; stops at max_pages, *ret_end = where. */
int scan_written(struct scan *scan, ckpt_addr_t start, ckpt_addr_t end, enum ckpt_range_kind kind, ckpt_addr_t *ret_end);

/* register.c */
int uffd_register(int uffd, ckpt_addr_t start, ckpt_addr_t end);
int uffd_unprotect(int uffd, ckpt_addr_t start, ckpt_addr_t end);
/* Drops the protection of a range that is ours: everything in it counts as written. */
int uffd_reset(int uffd, ckpt_addr_t start, ckpt_addr_t end);

/* Whether the mapping that begins there is registered with an asynchronous userfaultfd (ours, where there are no others). */
bool uffd_covers(const struct scan *scan, const struct map_line *line);
/* Stops the process for a moment, reads its layout anew into *lines and registers all of it. Whatever was not registered, and whatever
 * lies in `span`, counts as written from here on. -EBUSY: it cannot be stopped just now. Afterwards struct task may stand elsewhere. */
int uffd_take_in(ckpt_tree *tree, pid_t pid, struct scan *scan, struct scan_hints *hints, struct ckpt_range span, struct map_line **lines,
                 size_t *count);

/* Whether the process has a userfaultfd besides `ours`, a number in its table. Reads its links: while it runs. */
bool uffd_others(const struct task *task, int ours);

/* suspect.c: of a frozen memory; layout as read in this freeze. */
void suspects_find(ckpt_tree *tree, const struct task *task, struct scan_layout layout, struct suspects *ret_suspects);

/* softdirty.c */
int softdirty_look(struct scan *scan, const struct piece *piece, bool by_bit);
int softdirty_clear(const struct task *task);

/* pieces.c: into memory->pieces. Then: the first piece of the second thread (== *count: one thread does it all), which may be a part of what
 * was one piece. */
int pieces_cut(struct scan_memory *memory, struct scan_layout layout, const struct scan_hints *hints, size_t *ret_count);
int pieces_split(struct scan_memory *memory, size_t *count, size_t *ret_second);

/* frozen.c */
int scan_open(const struct task *task, const struct ckpt_track *track, bool protect, struct scan *ret_scan);
/* Runs of the whole memory, in order: memory->runs[0], then memory->runs[1]. */
int scan_frozen(ckpt_tree *tree, struct task *task, const struct ckpt_track *track, struct scan_layout layout, bool protect,
                struct scan_memory *memory);

/* The two halves of scan_and_copy(): how many DATA pages that found; into the sink with them, and with what paranoid wants. */
uint64_t scan_found(const struct scan_memory *memory);
int copy_scanned(ckpt_tree *tree, struct task *task, const struct ckpt_track *track, const struct ckpt_capture_options *options,
                 ckpt_sink *sink, struct ckpt_timing *timing);

/* copy.c */
struct copy_from {
    pid_t pid;
    int mem; /* /proc/PID/mem, for what process_vm_readv refuses */
    const struct run_list *lists; /* read in order; runs that are not `content` are passed over */
    size_t list_count;
    enum ckpt_content content;
    size_t list, run; /* where it stands */
    uint64_t page;    /* inside the run */
};
/* Copies everything that is left into the sink. Returns 0 or a negative errno with *ret_at = the page that failed. */
int copy_all(struct copy_from *from, struct helper *helper, ckpt_sink *sink, ckpt_addr_t *ret_at);
/* Reads count pages into buffer; how many came before one that cannot be read, or a negative errno. */
ssize_t copy_pages(struct copy_from *from, uint8_t *buffer, size_t count, ckpt_addr_t *ret_at);

/* layout.c */
int layout_read(ckpt_tree *tree, struct task *task, struct map_line **ret_lines, size_t *ret_count);

#endif
