/* unfinished.c: weak stand-ins so that the module loads while its parts are being written. The real definition of a
 * function overrides its line here; this file goes when the last one has come. */
#include "internal.h"
#include <errno.h>

#define UNFINISHED(declaration) __attribute__((weak)) declaration { return -ENOSYS; }
#pragma GCC diagnostic ignored "-Wunused-parameter"

UNFINISHED(int ckpt_probe(int32_t *a, size_t b))
UNFINISHED(int ckpt_scan_count(ckpt_tree *a, const struct ckpt_track *b, struct ckpt_scan_result *c))
UNFINISHED(int ckpt_precopy(ckpt_tree *a, const struct ckpt_track *b, ckpt_sink *c, uint64_t *d, struct ckpt_scan_result *e))
UNFINISHED(int ckpt_capture(ckpt_tree *a, const struct ckpt_capture_options *b, ckpt_sink *c, struct ckpt_timing *d))
UNFINISHED(int ckpt_pages_scan(ckpt_tree *a, const struct ckpt_track *b, int c, ckpt_sink *d))
UNFINISHED(int scan_and_copy(ckpt_tree *a, struct task *b, const struct ckpt_track *c, const struct map_line *d, size_t e, const struct ckpt_capture_options *f, ckpt_sink *g, struct ckpt_timing *h))
