/* clocks: who looks at CLOCK_MONOTONIC and CLOCK_BOOTTIME all the time, by the vdso and by the kernel, in two processes, and waits by them in
 * every way.
 *
 *   "begin MS"  each of the waits begins, for MS milliseconds        -> "BEGUN"
 *   "report"    when all have ended: name and milliseconds, by CLOCK_MONOTONIC, of each -> "name=ms name=ms ..."
 *   "gaps"      the largest step of CLOCK_MONOTONIC and of CLOCK_BOOTTIME that either process has seen since it was last asked, ms -> "12 13"
 *   "age"       how long ago this process began, by /proc/self/stat and CLOCK_BOOTTIME, ms -> "812"
 *
 * Seen: a clock that goes back, a vdso that says something else than the kernel, an EINTR, a wait that ends too early.
 */
#include "victim.h"
#include <linux/futex.h>
#include <poll.h>
#include <stdatomic.h>
#include <sys/timerfd.h>

enum { LOOK_NS = 2000000, EARLY_NS = 1500000, CLOCKS = 2, TEXT = 200, POLLED = 900, FAR_BYTES = 1 << 20 };
static const clockid_t clocks[CLOCKS] = {CLOCK_MONOTONIC, CLOCK_BOOTTIME};
static const char *const clock_names[CLOCKS] = {"CLOCK_MONOTONIC", "CLOCK_BOOTTIME"};

/* ---- what the clocks show ---- */

static struct seen { /* of one process; shared by both */
    _Atomic uint64_t gap[CLOCKS];
    char wrong[TEXT];
} *seen;

static uint64_t in_ns(const struct timespec *time) { return (uint64_t)time->tv_sec * 1000000000u + (uint64_t)time->tv_nsec; }
static struct timespec as_time(uint64_t ns) { return (struct timespec){(time_t)(ns / 1000000000u), (long)(ns % 1000000000u)}; }

static uint64_t by_vdso(clockid_t clock) {
    struct timespec now;
    clock_gettime(clock, &now);
    return in_ns(&now);
}

static uint64_t by_kernel(clockid_t clock) {
    struct timespec now;
    syscall(SYS_clock_gettime, clock, &now);
    return in_ns(&now);
}

static void look(struct seen *mine, uint64_t last[CLOCKS]) {
    for (int i = 0; i < CLOCKS; i++) {
        uint64_t before = by_vdso(clocks[i]), kernel = by_kernel(clocks[i]), after = by_vdso(clocks[i]);
        if (before > kernel || kernel > after)
            snprintf(mine->wrong, TEXT, "%s: %lu by the vdso, %lu by the kernel, %lu by the vdso", clock_names[i], before, kernel, after);
        if (before < last[i])
            snprintf(mine->wrong, TEXT, "%s went back from %lu to %lu", clock_names[i], last[i], before);
        if (before - last[i] > mine->gap[i])
            mine->gap[i] = before - last[i];
        if (after - before > mine->gap[i])
            mine->gap[i] = after - before;
        last[i] = after;
    }
}

static void *watch(void *argument) {
    struct timespec pause = as_time(LOOK_NS);
    uint64_t last[CLOCKS];
    for (int i = 0; i < CLOCKS; i++)
        last[i] = by_vdso(clocks[i]);
    for (;;) {
        look(argument, last);
        nanosleep(&pause, NULL);
    }
    return NULL;
}

/* ---- waits ---- */

static uint64_t limit;
static pthread_cond_t never;
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static uint32_t word;

static int until(clockid_t clock, struct timespec *time) {
    *time = as_time(by_vdso(clock) + limit);
    return TIMER_ABSTIME;
}

static int sleep_for(void) {
    struct timespec time = as_time(limit);
    return clock_nanosleep(CLOCK_MONOTONIC, 0, &time, NULL);
}

static int sleep_until(void) {
    struct timespec time;
    int flags = until(CLOCK_MONOTONIC, &time);
    return clock_nanosleep(CLOCK_MONOTONIC, flags, &time, NULL);
}

static int sleep_until_boot(void) {
    struct timespec time;
    int flags = until(CLOCK_BOOTTIME, &time);
    return clock_nanosleep(CLOCK_BOOTTIME, flags, &time, NULL);
}

static int polled(void) { return poll(NULL, 0, (int)(limit / 1000000)) ? errno : 0; }

static int condition(void) {
    struct timespec time;
    int error = 0;
    until(CLOCK_MONOTONIC, &time);
    pthread_mutex_lock(&mutex);
    while (!error)
        error = pthread_cond_timedwait(&never, &mutex, &time);
    pthread_mutex_unlock(&mutex);
    return error == ETIMEDOUT ? 0 : error;
}

static int futex(void) {
    struct timespec time;
    until(CLOCK_MONOTONIC, &time);
    return syscall(SYS_futex, &word, FUTEX_WAIT_BITSET, 0, &time, NULL, ~0u) < 0 && errno == ETIMEDOUT ? 0 : errno;
}

/* What these hand to the kernel lies far from every stack, each in a page that nobody else touches: a lazy restore has not brought it. */
static struct far {
    struct timespec time __attribute__((aligned(PAGE)));
    struct timespec rest __attribute__((aligned(PAGE)));
    uint32_t word __attribute__((aligned(PAGE)));
    struct pollfd polled[POLLED] __attribute__((aligned(PAGE)));
    char more[FAR_BYTES] __attribute__((aligned(PAGE)));
} *far;

static int far_sleep(void) {
    far[0].time = as_time(limit);
    return nanosleep(&far[0].time, &far[0].rest) < 0 ? errno : 0;
}

static int far_futex(void) {
    far[1].time = as_time(limit);
    far[1].word = 7;
    return syscall(SYS_futex, &far[1].word, FUTEX_WAIT, 7, &far[1].time, NULL, 0) < 0 && errno == ETIMEDOUT ? 0 : errno;
}

static int silent[2];
static int far_poll(void) {
    for (int i = 0; i < POLLED; i++)
        far[2].polled[i] = (struct pollfd){.fd = i % 100 ? -1 : silent[0], .events = POLLIN, .revents = -1};
    int found = poll(far[2].polled, POLLED, (int)(limit / 1000000));
    for (int i = 0; i < POLLED; i++)
        if (far[2].polled[i].revents || far[2].polled[i].events != POLLIN)
            return EFAULT;
    return found < 0 ? errno : found ? EEXIST : 0;
}

static int timer_read(clockid_t clock, bool absolute) {
    struct itimerspec spec = {.it_value = as_time(limit)};
    uint64_t ticks;
    int fd = timerfd_create(clock, TFD_CLOEXEC), flags = absolute ? until(clock, &spec.it_value) : 0;
    int error = timerfd_settime(fd, flags ? TFD_TIMER_ABSTIME : 0, &spec, NULL) || read(fd, &ticks, sizeof ticks) != sizeof ticks ? errno : 0;
    close(fd);
    return error;
}

static int timerfd_for(void) { return timer_read(CLOCK_MONOTONIC, false); }
static int timerfd_until(void) { return timer_read(CLOCK_MONOTONIC, true); }
static int timerfd_until_boot(void) { return timer_read(CLOCK_BOOTTIME, true); }

static int posix_timer(int signal, bool absolute) {
    struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = signal};
    struct itimerspec spec = {.it_value = as_time(limit)};
    timer_t timer;
    sigset_t set;
    int got, flags = absolute ? until(CLOCK_MONOTONIC, &spec.it_value) : 0;
    sigemptyset(&set);
    sigaddset(&set, signal);
    if (timer_create(CLOCK_MONOTONIC, &event, &timer) || timer_settime(timer, flags, &spec, NULL))
        return errno;
    int error = sigwait(&set, &got);
    timer_delete(timer);
    return error;
}

static int timer_for(void) { return posix_timer(SIGRTMIN + 4, false); }
static int timer_until(void) { return posix_timer(SIGRTMIN + 5, true); }

static struct wait {
    const char *name;
    int (*run)(void);
    uint64_t took;
    _Atomic bool over;
} waits[] = {
    {.name = "nanosleep", .run = sleep_for},
    {.name = "nanosleep/instant", .run = sleep_until},
    {.name = "nanosleep/boot", .run = sleep_until_boot},
    {.name = "poll", .run = polled},
    {.name = "nanosleep/far", .run = far_sleep},
    {.name = "futex/far", .run = far_futex},
    {.name = "poll/far", .run = far_poll},
    {.name = "condition", .run = condition},
    {.name = "futex/instant", .run = futex},
    {.name = "timerfd", .run = timerfd_for},
    {.name = "timerfd/instant", .run = timerfd_until},
    {.name = "timerfd/boot", .run = timerfd_until_boot},
    {.name = "timer", .run = timer_for},
    {.name = "timer/instant", .run = timer_until},
};
enum { WAITS = sizeof waits / sizeof *waits };

static void *wait_once(void *argument) {
    struct wait *wait = argument;
    uint64_t begun = by_vdso(CLOCK_MONOTONIC);
    int error = wait->run();
    wait->took = by_vdso(CLOCK_MONOTONIC) - begun;
    if (error)
        wrong("%s: %s", wait->name, strerror(error));
    else if (wait->took + EARLY_NS < limit)
        wrong("%s: over after %lu us of %lu", wait->name, wait->took / 1000, limit / 1000);
    wait->over = true;
    return NULL;
}

static void begin(const char *ms) {
    limit = strtoull(ms, NULL, 10) * 1000000;
    for (int i = 0; i < WAITS; i++) {
        pthread_t thread;
        waits[i].over = false;
        need(pthread_create(&thread, NULL, wait_once, &waits[i]) == 0, "pthread_create");
        pthread_detach(thread);
    }
    say("BEGUN");
}

static void report(void) {
    char line[512];
    size_t used = 0;
    for (int i = 0; i < WAITS; i++) {
        while (!waits[i].over)
            usleep(1000);
        used += (size_t)snprintf(line + used, sizeof line - used, "%s%s=%lu", i ? " " : "", waits[i].name, waits[i].took / 1000000);
    }
    say("%s", line);
}

/* ---- */

static void gaps(void) {
    uint64_t largest[CLOCKS] = {0};
    for (int process = 0; process < 2; process++)
        for (int i = 0; i < CLOCKS; i++) {
            uint64_t gap = atomic_exchange(&seen[process].gap[i], 0);
            largest[i] = gap > largest[i] ? gap : largest[i];
        }
    say("%lu %lu", largest[0] / 1000000, largest[1] / 1000000);
}

static void age(void) {
    char text[1024];
    int fd = open("/proc/self/stat", O_RDONLY);
    ssize_t bytes = read(fd, text, sizeof text - 1);
    close(fd);
    text[bytes > 0 ? bytes : 0] = 0;
    char *at = strrchr(text, ')');
    for (int field = 2; at && field < 22; field++)
        at = strchr(at + 1, ' ');
    uint64_t began = at ? strtoull(at, NULL, 10) * 10 : 0, now = by_vdso(CLOCK_BOOTTIME) / 1000000;
    say("%ld", (long)(now - began));
}

int main(void) {
    pthread_t thread;
    pthread_condattr_t monotonic;
    sigset_t set;
    int ends[2];
    sigemptyset(&set);
    sigaddset(&set, SIGRTMIN + 4);
    sigaddset(&set, SIGRTMIN + 5);
    sigprocmask(SIG_BLOCK, &set, NULL);
    seen = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    far = mmap(NULL, 3 * sizeof *far, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    need(seen != MAP_FAILED && far != MAP_FAILED && pipe2(ends, O_CLOEXEC) == 0 && pipe(silent) == 0, "mmap, pipe");
    memset(far, 1, 3 * sizeof *far);
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&never, &monotonic);
    if (fork() == 0) { /* ends with its parent */
        close(ends[1]);
        need(pthread_create(&thread, NULL, watch, &seen[1]) == 0, "pthread_create");
        while (read(ends[0], &set, 1) < 0 && errno == EINTR)
            ;
        _exit(0);
    }
    close(ends[0]);
    need(pthread_create(&thread, NULL, watch, &seen[0]) == 0, "pthread_create");
    ready();
    for (;;) {
        const char *what = question();
        if (strncmp(what, "begin ", 6) == 0)
            begin(what + 6);
        else if (strcmp(what, "report") == 0)
            report();
        else if (strcmp(what, "gaps") == 0)
            gaps();
        else if (strcmp(what, "age") == 0)
            age();
        else {
            for (int process = 0; process < 2; process++)
                if (seen[process].wrong[0])
                    wrong("%s", seen[process].wrong);
            verdict();
        }
    }
}
