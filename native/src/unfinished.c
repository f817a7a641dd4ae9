/* unfinished.c: weak stand-ins so that the module loads while its parts are being written. The real definition of a
 * function overrides its line here; this file goes when the last one has come. */
#include "internal.h"
#include <errno.h>

#define UNFINISHED(declaration) __attribute__((weak)) declaration { return -ENOSYS; }
#pragma GCC diagnostic ignored "-Wunused-parameter"

UNFINISHED(int ckpt_probe(int32_t *a, size_t b))
UNFINISHED(int ckpt_track_arm(ckpt_tree *a, int32_t b, int32_t c, uint64_t d, struct ckpt_track *e))
UNFINISHED(int ckpt_track_disarm(ckpt_tree *a, const struct ckpt_track *b))
UNFINISHED(int ckpt_scan_count(ckpt_tree *a, const struct ckpt_track *b, struct ckpt_scan_result *c))
UNFINISHED(int ckpt_precopy(ckpt_tree *a, const struct ckpt_track *b, ckpt_sink *c, uint64_t *d, struct ckpt_scan_result *e))
UNFINISHED(int ckpt_capture(ckpt_tree *a, const struct ckpt_capture_options *b, ckpt_sink *c, struct ckpt_timing *d))
UNFINISHED(int ckpt_remote(ckpt_tree *a, int32_t b, struct ckpt_call *c, size_t d, uint8_t *e, size_t f))
UNFINISHED(int ckpt_remote_begin(ckpt_tree *a, int32_t b, const struct ckpt_range *c, size_t d, size_t e))
UNFINISHED(int ckpt_remote_end(ckpt_tree *a, int32_t b))
UNFINISHED(int ckpt_threads_end(ckpt_tree *a, int32_t b, const int32_t *c, size_t d))
UNFINISHED(int ckpt_threads_spawn(ckpt_tree *a, int32_t b, const int32_t *c, size_t d))
UNFINISHED(int ckpt_thread_set(ckpt_tree *a, int32_t b, const uint64_t *c, const struct ckpt_decision *d, const uint8_t *e, size_t f, const uint64_t *g))
UNFINISHED(int ckpt_thread_get(ckpt_tree *a, int32_t b, uint64_t *c, uint8_t *d, size_t e, uint64_t *f))
UNFINISHED(int ckpt_pages_write(ckpt_tree *a, int32_t b, const struct ckpt_run *c, size_t d, const uint8_t *e))
UNFINISHED(int ckpt_pages_read(ckpt_tree *a, int32_t b, const struct ckpt_run *c, size_t d, uint8_t *e))
UNFINISHED(int ckpt_pages_scan(ckpt_tree *a, const struct ckpt_track *b, int c, ckpt_sink *d))
UNFINISHED(int scan_and_copy(ckpt_tree *a, struct task *b, const struct ckpt_track *c, const struct map_line *d, size_t e, const struct ckpt_capture_options *f, ckpt_sink *g, struct ckpt_timing *h))
