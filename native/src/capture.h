/* capture.h: what the files of the frozen window share. One struct, made before the freeze, so that nothing in the window
 * has to be opened or grown that could have been before. */
#ifndef CKPT_CAPTURE_H
#define CKPT_CAPTURE_H

#include "internal.h"

/* One descriptor of one table. */
struct open_fd {
    pid_t pid;
    int fd;
    uint64_t dev, ino;
    uint32_t flags;            /* fdinfo's, without O_CLOEXEC */
    int32_t file;              /* identity, see identity.c */
    size_t record;             /* where its CKPT_R_FD record's payload begins in the sink's records */
    size_t fdinfo, fdinfo_size; /* the same for its fdinfo's text */
    uint32_t work;             /* enum ckpt_work that it is to get */
};

struct shared_object {
    uint64_t dev, ino;
};

struct text_at {
    size_t offset, size; /* of a payload in the sink's records; they may move, offsets do not */
};

/* Pages taken by the helper while the tracer does the rest (memories.c). */
struct beside {
    bool wanted, early, begun, running; /* early: it reads maps, and waits for `word` */
    uint32_t word;         /* enum word of memories.c; changed by the tracer, awaited by the helper */
    uint32_t looked;       /* enum look of memories.c; changed by the helper, awaited by the tracer */
    char *text;            /* what the helper reads of /proc, touched ahead */
    struct text_at *maps;  /* by task: in text */
    struct layout_of {     /* by task: whose maps are read, as the tracer knew it when it said so */
        pid_t pid;
        int dir;
        bool reads;
    } *rows;
    size_t row_count, row_cap; /* of both */
    size_t next;           /* the first task whose memory is not done */
    bool scanned;          /* its runs are known, its pages are to be copied */
    bool objects;          /* among the memories that are done there are mappings of shared objects, perhaps */
    int error;
    struct ckpt_timing timing;
    struct helper *helper; /* taken from the scan's memory while it works: it cannot help itself */
    ckpt_tree view;        /* the tree with a fault of its own; its tables are shared, and stand still */
};

struct window {
    ckpt_tree *tree;
    const struct ckpt_capture_options *options;
    ckpt_sink *sink;
    struct ckpt_timing timing;
    int tee[2]; /* a pipe of our own */
    int diag;   /* NETLINK_SOCK_DIAG, or -1 */
    struct open_fd *fds;
    size_t fd_count, fd_cap;
    size_t *by_file; /* indices into fds: the first descriptor of each identity, sorted (identity.c) */
    size_t file_count, file_cap;
    struct shared_object *objects;
    size_t object_count, object_cap;
    struct text_at *maps; /* by task */
    struct map_line *lines;
    size_t line_cap;
    struct beside beside;
    uint8_t *groups; /* fdgroups.c: the record that it is making */
    size_t groups_bytes;
};

/* Makes room for one more; 0 or -ENOMEM. */
int rows_grow(void **rows, size_t count, size_t *cap, size_t size);
/* Reads dir/name straight into a record. A file that is not there (an optional one) gives no record and 0. */
int record_file(struct window *window, uint32_t kind, pid_t pid, pid_t tid, int fd, int index, int dir, const char *name, struct text_at *ret_where);
const char *text_of(const struct window *window, struct text_at where);

/* raw.c */
int raw_tree(struct window *window);
int raw_task(struct window *window, size_t task); /* without maps, if the helper reads them */
int raw_maps(struct window *window, size_t task); /* those */
/* kin.c */
int raw_zombie(struct window *window, const struct task *task);
int raw_shares(struct window *window, size_t task);
/* memories.c: the pages. Before the freeze; as soon as it stands; the rest, or all of it; done; after the thaw. */
int beside_prepare(struct window *window);
/* Both for tree->told, their argument is the window. */
void beside_stands(void *argument);
void beside_falls(void *argument);
int beside_run(struct window *window);
int pages_phase(struct window *window);
void beside_join(struct window *window);
void beside_end(struct window *window);
/* Whether the helper reads this task's maps, and (waiting until it has) what it read; NULL = it could not. */
bool beside_reads(const struct window *window, size_t task);
const char *beside_text(struct window *window, size_t task, size_t *ret_size);
/* descriptors.c */
int capture_descriptors(struct window *window);
/* identity.c: sets entry->file; equal numbers = one open file description over the whole tree */
int identify(struct window *window, size_t entry);
int epoll_targets(struct window *window, const struct open_fd *entry);
/* fdwork.c, fdsocket.c: the answers to what a kind wants of one descriptor; dup is ours. 0 also when there is no answer. */
int fd_work(struct window *window, const struct open_fd *entry, int dup, const struct ckpt_want *want);
/* 1: it is a POSIX message queue, and its record is made; 0: it is none. */
int fd_queue(struct window *window, const struct open_fd *entry, int dup, int own);
int fd_timer(struct window *window, pid_t pid, int fd, int dup);
int fd_groups(struct window *window, const struct open_fd *entry, int dup, int domain);
int fd_sending(struct window *window, const struct open_fd *entry, int dup);
int fd_socket(struct window *window, const struct open_fd *entry, int dup, const struct ckpt_want *want);
int diag_open(void);
/* objects.c */
int capture_mapped_objects(struct window *window, const struct task *task, const struct map_line *lines, size_t count);
/* False: there is surely nothing for capture_mapped_objects(). */
bool may_map_objects(const struct map_line *lines, size_t count);
/* file is our own open, never a duplicate: reading moves its position. */
int capture_object(struct window *window, int file, pid_t pid);

#endif
