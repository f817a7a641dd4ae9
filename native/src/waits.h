/* waits.h: what waits.c tells stop.c and keeper.c. */
#ifndef CKPT_WAITS_H
#define CKPT_WAITS_H

#include "internal.h"

/* nr, arg, sp and pc of the call that a thread sleeps in; false where it runs. dir: of its process. */
bool wait_shown(int dir, pid_t tid, struct ckpt_wait *ret_wait);
/* The same, and the state, from one text. */
uint64_t switches_and_state(ckpt_tree *tree, const struct thread *thread, char *ret_state);
/* 0 = not shown. Uses tree->text. */
uint64_t voluntary_switches(ckpt_tree *tree, const struct thread *thread);
/* A stopped thread whose finite wait begins anew: somebody has to keep its deadline. */
bool wait_must_be_kept(const struct thread *thread);

#endif
