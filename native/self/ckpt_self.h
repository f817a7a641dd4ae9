/* ckpt_self.h: a program that asks for its own checkpoint.
 *
 *     long generation = ckpt_checkpoint_self();
 *
 * It comes back more than once, as fork() does: with the generation's number (> 0) in the process that goes on; with 0 in one that a
 * restore or a rollback has brought back to this point; with a negative errno when there is no checkpoint. All threads and children are in it.
 *
 * Needs `ckpt` in PATH (or its path in CKPT_COMMAND), and the right to be traced by it: root, or yama's ptrace_scope 0. The store is
 * CKPT_STORE or the default. Link with ckpt_self.c; nothing else is needed.
 */
#ifndef CKPT_SELF_H
#define CKPT_SELF_H

#ifdef __cplusplus
extern "C" {
#endif

/* -ENOENT: no ckpt; -ENOTSUP: something that cannot be captured; -EPERM; -EUCLEAN: the store is damaged; -EIO: it failed. What
 * ckpt says goes to standard error. */
long ckpt_checkpoint_self(void);

#ifdef __cplusplus
}
#endif

#endif
