/* futexes.c: waits for a word. */
#include "calls.h"

enum { FUTEX2_U32 = 2 };
#ifndef SYS_futex_wait
#define SYS_futex_wait 455
#endif
#ifndef FUTEX_LOCK_PI2
#define FUTEX_LOCK_PI2 13
#endif

static void s_futex(struct test *t) { call(t, SYS_futex, at(&t->word), FUTEX_WAIT, 0, relative(t), 0, 0); }
static void s_private(struct test *t) { call(t, SYS_futex, at(&t->word), FUTEX_WAIT | FUTEX_PRIVATE_FLAG, 0, relative(t), 0, 0); }
static void s_until(struct test *t) { call(t, SYS_futex, at(&t->word), FUTEX_WAIT_BITSET, 0, instant(t, CLOCK_MONOTONIC), 0, 0xffffffff); }
static void s_until_real(struct test *t) {
    call(t, SYS_futex, at(&t->word), FUTEX_WAIT_BITSET | FUTEX_CLOCK_REALTIME, 0, instant(t, CLOCK_REALTIME), 0, 0xffffffff);
}
static void s_until_private(struct test *t) {
    call(t, SYS_futex, at(&t->word), FUTEX_WAIT_BITSET | FUTEX_PRIVATE_FLAG, 0, instant(t, CLOCK_MONOTONIC), 0, 1);
}
static void s_pi(struct test *t) {
    t->word = (uint32_t)holder;
    call(t, SYS_futex, at(&t->word), FUTEX_LOCK_PI, 0, instant(t, CLOCK_REALTIME), 0, 0);
}
static void s_pi_2(struct test *t) {
    t->word = (uint32_t)holder;
    call(t, SYS_futex, at(&t->word), FUTEX_LOCK_PI2, 0, instant(t, CLOCK_MONOTONIC), 0, 0);
}
static void s_requeue(struct test *t) { call(t, SYS_futex, at(&t->word), FUTEX_WAIT_REQUEUE_PI, 0, instant(t, CLOCK_MONOTONIC), at(&t->other), 0); }
static void s_requeue_real(struct test *t) {
    call(t, SYS_futex, at(&t->word), FUTEX_WAIT_REQUEUE_PI | FUTEX_CLOCK_REALTIME, 0, instant(t, CLOCK_REALTIME), at(&t->other), 0);
}
static void waiter(struct test *t) { t->waiter = (struct futex_waitv){.uaddr = (uint64_t)at(&t->word), .flags = FUTEX_32}; }
static void s_waitv(struct test *t) { waiter(t), call(t, SYS_futex_waitv, at(&t->waiter), 1, 0, instant(t, CLOCK_MONOTONIC), CLOCK_MONOTONIC, 0); }
static void s_waitv_real(struct test *t) { waiter(t), call(t, SYS_futex_waitv, at(&t->waiter), 1, 0, instant(t, CLOCK_REALTIME), CLOCK_REALTIME, 0); }
static void s_wait_2(struct test *t) { call(t, SYS_futex_wait, at(&t->word), 0, 0xffffffff, FUTEX2_U32, instant(t, CLOCK_MONOTONIC), CLOCK_MONOTONIC); }

static void s_endless(struct test *t) { call(t, SYS_futex, at(&t->word), FUTEX_WAIT, 0, 0, 0, 0); }
static void s_bits_endless(struct test *t) { call(t, SYS_futex, at(&t->word), FUTEX_WAIT_BITSET, 0, 0, 0, 0xffffffff); }
static void s_waitv_endless(struct test *t) { waiter(t), call(t, SYS_futex_waitv, at(&t->waiter), 1, 0, 0, 0, 0); }
static void s_wait_2_endless(struct test *t) { call(t, SYS_futex_wait, at(&t->word), 0, 0xffffffff, FUTEX2_U32, 0, 0); }
static void w_futex(struct test *t) {
    t->word = 1;
    syscall(SYS_futex, &t->word, FUTEX_WAKE, 1, NULL, NULL, 0);
}
static void s_pi_endless(struct test *t) {
    t->word = (uint32_t)holder;
    call(t, SYS_futex, at(&t->word), FUTEX_LOCK_PI, 0, 0, 0, 0);
}
static void w_pi(struct test *t) { need(syscall(SYS_futex, &t->word, FUTEX_UNLOCK_PI, 0, NULL, NULL, 0) == 0, "FUTEX_UNLOCK_PI"); }
static bool has_lock(struct test *t) { return (t->word & FUTEX_TID_MASK) == (uint32_t)t->tid; }
static void s_requeue_endless(struct test *t) { call(t, SYS_futex, at(&t->word), FUTEX_WAIT_REQUEUE_PI, 0, 0, at(&t->other), 0); }
static void w_requeue(struct test *t) { need(syscall(SYS_futex, &t->word, FUTEX_CMP_REQUEUE_PI, 1, 0L, &t->other, 0) >= 0, "FUTEX_CMP_REQUEUE_PI"); }
static bool has_other(struct test *t) { return (t->other & FUTEX_TID_MASK) == (uint32_t)t->tid; }

const struct test futexes[] = {
    ENDS("futex", FINITE, s_futex, -ETIMEDOUT),
    ENDS("futex/private", FINITE, s_private, -ETIMEDOUT),
    ENDS("futex/instant", INSTANT, s_until, -ETIMEDOUT),
    ENDS("futex/realtime", INSTANT, s_until_real, -ETIMEDOUT),
    ENDS("futex/instant-private", INSTANT, s_until_private, -ETIMEDOUT),
    ENDS("futex/pi", INSTANT, s_pi, -ETIMEDOUT),
    ENDS("futex/pi2", INSTANT, s_pi_2, -ETIMEDOUT),
    ENDS("futex/requeue-pi", INSTANT, s_requeue, -ETIMEDOUT),
    ENDS("futex/requeue-pi-realtime", INSTANT, s_requeue_real, -ETIMEDOUT),
    ENDS("futex_waitv", INSTANT, s_waitv, -ETIMEDOUT),
    ENDS("futex_waitv/realtime", INSTANT, s_waitv_real, -ETIMEDOUT),
    ENDS("futex_wait", INSTANT, s_wait_2, -ETIMEDOUT),
    WOKEN("futex/endless", s_endless, w_futex, 0),
    WOKEN("futex/bitset-endless", s_bits_endless, w_futex, 0),
    GIVES("futex/pi-endless", s_pi_endless, w_pi, 0, has_lock),
    GIVES("futex/requeue-pi-endless", s_requeue_endless, w_requeue, 0, has_other),
    WOKEN("futex_waitv/endless", s_waitv_endless, w_futex, 0),
    WOKEN("futex_wait/endless", s_wait_2_endless, w_futex, 0),
    {0},
};
