/* epoll: one thread in epoll_wait without a time-out, over standard input, an eventfd, a timerfd (200 ms) and a socket
 * pair. It must never see EINTR, a wake-up without an event, or an event that nobody caused.
 */
#include "victim.h"
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/timerfd.h>

static void add(int epoll, int fd, uint64_t data) {
    struct epoll_event event = {.events = EPOLLIN, .data.u64 = data};
    need(epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event) == 0, "epoll_ctl");
}

int main(void) {
    int epoll = epoll_create1(EPOLL_CLOEXEC), event = eventfd(0, 0), timer = timerfd_create(CLOCK_MONOTONIC, 0), pair[2];
    need(socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0, "socketpair");
    struct itimerspec period = {{0, 200000000}, {0, 200000000}};
    timerfd_settime(timer, 0, &period, NULL);
    add(epoll, 0, 0);
    add(epoll, event, 1);
    add(epoll, timer, 2);
    add(epoll, pair[0], 3);
    uint64_t sent = 0, received = 0, ticks = 0, value;
    for (;;) {
        struct epoll_event got = {0};
        int count = epoll_wait(epoll, &got, 1, -1);
        if (count < 0) {
            wrong("epoll_wait: %s", strerror(errno));
            continue;
        }
        if (count == 0)
            wrong("epoll_wait without a time-out returned 0");
        else if (got.data.u64 == 0) {
            char *line = question(); /* the answer comes when the eventfd and the socket have told their part */
            if (strcmp(line, "verify") != 0)
                wrong("unknown question");
            sent++;
            value = sent;
            if (write(event, &value, 8) != 8)
                wrong("write to the eventfd");
        } else if (got.data.u64 == 1) {
            if (read(event, &value, 8) != 8 || value != sent)
                wrong("the eventfd gave %lu, not %lu", value, sent);
            if (write(pair[1], &sent, 8) != 8)
                wrong("write to the socket");
        } else if (got.data.u64 == 2) {
            if (read(timer, &value, 8) != 8 || value == 0)
                wrong("the timerfd woke without a tick");
            ticks += value;
            if (ticks - value < 1 && ticks >= 1)
                ready();
        } else if (got.data.u64 == 3) {
            received++;
            if (read(pair[0], &value, 8) != 8 || value != received)
                wrong("the socket gave %lu, not %lu", value, received);
            verdict();
        } else
            wrong("an event that nobody asked for");
    }
}
