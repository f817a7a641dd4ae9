/* sleeps.c: sleeps, waits for readiness, waits for signals. */
#include "calls.h"

/* ---- sleeps: what remains (the last argument) is told only to who has been interrupted ---- */

static long rest(struct test *t) { /* watched together with the time before it */
    t->rest = (struct timespec){11, 22};
    watch(t, &t->time, sizeof t->time + sizeof t->rest);
    return at(&t->rest);
}
static void s_nanosleep(struct test *t) { call(t, SYS_nanosleep, relative(t), 0, 0, 0, 0, 0); }
static void sleep_by(struct test *t, clockid_t clock) { call(t, SYS_clock_nanosleep, clock, 0, relative(t), 0, 0, 0); }
static void sleep_until(struct test *t, clockid_t clock) { call(t, SYS_clock_nanosleep, clock, TIMER_ABSTIME, instant(t, clock), 0, 0, 0); }
static void s_sleep(struct test *t) { sleep_by(t, CLOCK_MONOTONIC); }
static void s_sleep_real(struct test *t) { sleep_by(t, CLOCK_REALTIME); }
static void s_sleep_boot(struct test *t) { sleep_by(t, CLOCK_BOOTTIME); }
static void s_until(struct test *t) { sleep_until(t, CLOCK_MONOTONIC); }
static void s_until_rest(struct test *t) {
    long time = instant(t, CLOCK_MONOTONIC);
    call(t, SYS_clock_nanosleep, CLOCK_MONOTONIC, TIMER_ABSTIME, time, rest(t), 0, 0);
}
static void s_until_real(struct test *t) { sleep_until(t, CLOCK_REALTIME); }
static void s_until_boot(struct test *t) { sleep_until(t, CLOCK_BOOTTIME); }
static void s_until_tai(struct test *t) { sleep_until(t, CLOCK_TAI); }

/* ---- readiness ---- */

static void poll_one(struct test *t) {
    t->poll = (struct pollfd){readable(t), POLLIN, 0};
    watch(t, &t->poll, sizeof t->poll);
}
static void poll_woken(struct test *t) { poll_one(t), watch(t, NULL, 0); }
static void s_poll(struct test *t) { poll_one(t), call(t, SYS_poll, at(&t->poll), 1, limit_ms, 0, 0, 0); }
static void s_poll_none(struct test *t) { call(t, SYS_poll, 0, 0, limit_ms, 0, 0, 0); }
static void s_ppoll(struct test *t) { relative(t), poll_one(t), call(t, SYS_ppoll, at(&t->poll), 1, at(&t->time), 0, 8, 0); }
static void s_ppoll_mask(struct test *t) {
    relative(t), poll_one(t), sigfillset(&t->signals);
    call(t, SYS_ppoll, at(&t->poll), 1, at(&t->time), at(&t->signals), 8, 0);
}
static void s_ppoll_fixed(struct test *t) { /* what remains cannot be written back */
    struct timespec *page = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    relative(t), *page = t->time, mprotect(page, PAGE, PROT_READ);
    poll_one(t), call(t, SYS_ppoll, at(&t->poll), 1, at(page), 0, 8, 0);
}
static void s_select(struct test *t) {
    t->timeval = (struct timeval){limit_ms / 1000, limit_ms % 1000 * 1000};
    FD_ZERO(&t->set);
    call(t, SYS_select, 0, at(&t->set), 0, 0, at(&t->timeval), 0);
}
static void s_pselect(struct test *t) { relative(t), watch(t, NULL, 0), call(t, SYS_pselect6, 0, 0, 0, 0, at(&t->time), 0); }
static int pool(struct test *t) {
    struct epoll_event event = {.events = EPOLLIN};
    int fd = epoll_create1(0);
    need(epoll_ctl(fd, EPOLL_CTL_ADD, readable(t), &event) == 0, "epoll_ctl");
    return fd;
}
static void s_epoll(struct test *t) { call(t, SYS_epoll_wait, pool(t), at(&t->event), 1, limit_ms, 0, 0); }
static void s_epoll_p(struct test *t) { sigemptyset(&t->signals), call(t, SYS_epoll_pwait, pool(t), at(&t->event), 1, limit_ms, at(&t->signals), 8); }
static void s_epoll_2(struct test *t) { call(t, SYS_epoll_pwait2, pool(t), at(&t->event), 1, relative(t), 0, 8); }

static void s_epoll_endless(struct test *t) { call(t, SYS_epoll_wait, pool(t), at(&t->event), 1, -1, 0, 0); }
static void s_epoll_p_endless(struct test *t) {
    sigfillset(&t->signals);
    call(t, SYS_epoll_pwait, pool(t), at(&t->event), 1, -1, at(&t->signals), 8);
}
static void s_epoll_2_endless(struct test *t) { call(t, SYS_epoll_pwait2, pool(t), at(&t->event), 1, 0, 0, 8); }
static void s_poll_endless(struct test *t) { poll_woken(t), call(t, SYS_poll, at(&t->poll), 1, -1, 0, 0, 0); }
static void s_ppoll_endless(struct test *t) { poll_woken(t), call(t, SYS_ppoll, at(&t->poll), 1, 0, 0, 8, 0); }
static bool polled(struct test *t) { return t->poll.revents == POLLIN; }
static void s_select_endless(struct test *t) {
    int fd = readable(t);
    FD_ZERO(&t->set);
    FD_SET(fd, &t->set);
    call(t, SYS_select, fd + 1, at(&t->set), 0, 0, 0, 0);
}
static void s_pselect_endless(struct test *t) {
    s_select_endless(t), sigfillset(&t->signals);
    t->mask.set = (uint64_t)at(&t->signals), t->mask.size = 8;
    call(t, SYS_pselect6, t->fd[0] + 1, at(&t->set), 0, 0, 0, at(&t->mask));
}
static bool selected(struct test *t) { return FD_ISSET(t->fd[0], &t->set); }

/* ---- signals ---- */

static void await(struct test *t, int number) {
    sigemptyset(&t->signals);
    sigaddset(&t->signals, number);
}
static void s_sigtimed(struct test *t) { await(t, SIGRTMIN + 4), call(t, SYS_rt_sigtimedwait, at(&t->signals), 0, relative(t), 8, 0, 0); }
static void s_sigtimed_info(struct test *t) {
    long time = relative(t);
    await(t, SIGRTMIN + 4), watch(t, &t->info, sizeof t->info);
    call(t, SYS_rt_sigtimedwait, at(&t->signals), at(&t->info), time, 8, 0, 0);
}
static void s_sigwait(struct test *t) { await(t, SIGRTMIN + 5), call(t, SYS_rt_sigtimedwait, at(&t->signals), at(&t->info), 0, 8, 0, 0); }
static void w_sigwait(struct test *t) { pthread_kill(t->thread, SIGRTMIN + 5); }
static bool sent_by_us(struct test *t) { return t->info.si_signo == SIGRTMIN + 5 && t->info.si_code == SI_TKILL; }
static void s_pause(struct test *t) { call(t, SYS_pause, 0, 0, 0, 0, 0, 0); }
static void s_sigsuspend(struct test *t) { sigemptyset(&t->signals), call(t, SYS_rt_sigsuspend, at(&t->signals), 8, 0, 0, 0, 0); }
static void w_handled(struct test *t) { pthread_kill(t->thread, SIGUSR2); }

const struct test sleeps[] = {
    ENDS("nanosleep", FINITE, s_nanosleep, 0),
    ENDS("clock_nanosleep", FINITE, s_sleep, 0),
    ENDS("clock_nanosleep/realtime", FINITE, s_sleep_real, 0),
    ENDS("clock_nanosleep/boottime", FINITE, s_sleep_boot, 0),
    ENDS("clock_nanosleep/instant", INSTANT, s_until, 0),
    ENDS("clock_nanosleep/instant-rest", INSTANT, s_until_rest, 0),
    ENDS("clock_nanosleep/instant-realtime", INSTANT, s_until_real, 0),
    ENDS("clock_nanosleep/instant-boottime", INSTANT, s_until_boot, 0),
    ENDS("clock_nanosleep/instant-tai", INSTANT, s_until_tai, 0),
    ENDS("poll", FINITE, s_poll, 0),
    ENDS("poll/none", FINITE, s_poll_none, 0),
    ENDS("ppoll", FINITE, s_ppoll, 0),
    ENDS("ppoll/mask", FINITE, s_ppoll_mask, 0),
    ENDS("ppoll/fixed", FINITE, s_ppoll_fixed, 0),
    ENDS("select", FINITE, s_select, 0),
    ENDS("pselect6", FINITE, s_pselect, 0),
    ENDS("epoll_wait", FINITE, s_epoll, 0),
    ENDS("epoll_pwait", FINITE, s_epoll_p, 0),
    ENDS("epoll_pwait2", FINITE, s_epoll_2, 0),
    ENDS("rt_sigtimedwait", FINITE, s_sigtimed, -EAGAIN),
    ENDS("rt_sigtimedwait/info", FINITE, s_sigtimed_info, -EAGAIN),
    WOKEN("epoll_wait/endless", s_epoll_endless, writes, 1),
    WOKEN("epoll_pwait/endless", s_epoll_p_endless, writes, 1),
    WOKEN("epoll_pwait2/endless", s_epoll_2_endless, writes, 1),
    GIVES("poll/endless", s_poll_endless, writes, 1, polled),
    GIVES("ppoll/endless", s_ppoll_endless, writes, 1, polled),
    GIVES("select/endless", s_select_endless, writes, 1, selected),
    GIVES("pselect6/endless", s_pselect_endless, writes, 1, selected),
    GIVES("rt_sigtimedwait/endless", s_sigwait, w_sigwait, ANY, sent_by_us),
    WOKEN("pause", s_pause, w_handled, -EINTR),
    WOKEN("rt_sigsuspend", s_sigsuspend, w_handled, -EINTR),
    {0},
};
