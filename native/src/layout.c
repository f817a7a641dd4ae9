/* layout.c: the mappings of one process, read while it may run. */
#include "scan.h"
#include <errno.h>
#include <stdlib.h>

enum { LAYOUT_FIRST = 256 << 10, LAYOUT_MOST = 256 << 20 };

int layout_read(ckpt_tree *tree, struct task *task, struct map_line **ret_lines, size_t *ret_count) {
    ssize_t got = -ENOSPC;
    _cleanup_free_ char *text = NULL;
    for (size_t cap = LAYOUT_FIRST; got == -ENOSPC && cap <= LAYOUT_MOST; cap *= 4) {
        char *grown = realloc(text, cap);
        if (!grown)
            return tree_fail(tree, -ENOMEM, "read maps", task->pid, 0, -1, 0, "maps");
        text = grown;
        got = proc_read(task->dir, "maps", text, cap);
    }
    int error = got < 0 ? (int)got : maps_parse(text, (size_t)got, ret_lines, ret_count);
    return error ? tree_fail(tree, error, "read maps", task->pid, 0, -1, 0, "maps") : 0;
}
