/* sleeper: one thread in nanosleep, argv[1] milliseconds at a time (default 10), relative and absolute by turns.
 * Seen: an EINTR, a sleep that is too short. "late" answers with the largest overshoot in microseconds since it was last
 * asked. What nanosleep leaves in its second argument is not looked at: the kernel fills it at every interruption, those
 * that it restarts by itself included.
 */
#include "victim.h"

int main(int argc, char **argv) {
    uint64_t length = (argc > 1 ? strtoul(argv[1], NULL, 10) : 10) * 1000000u, late = 0;
    for (uint64_t turn = 0;; turn++) {
        uint64_t begin = clock_ns(), end = begin + length;
        struct timespec time = {(time_t)(length / 1000000000u), (long)(length % 1000000000u)}, left;
        struct timespec then = {(time_t)(end / 1000000000u), (long)(end % 1000000000u)};
        int error = turn % 2 ? clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &then, NULL) : nanosleep(&time, &left) ? errno : 0;
        uint64_t now = clock_ns();
        if (error)
            wrong("a sleep of %lu ns ended with %s", length, strerror(error));
        if (now < end)
            wrong("slept %lu ns of %lu", now - begin, length);
        else if (now - end > late)
            late = now - end;
        if (turn == 2)
            ready();
        if (!asked(0))
            continue;
        if (strcmp(question(), "late") == 0) {
            say("%lu", late / 1000);
            late = 0;
        } else
            verdict();
    }
}
