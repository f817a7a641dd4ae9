/* sockets: this process talks with itself over every kind of socket, with several messages on the way in either direction at any
 * time: TCP and unix sockets through listeners with names, pairs of all types, datagrams, UDP, and questions to the kernel by
 * netlink. Every message follows from its channel and its number: one that is lost, doubled, torn or out of order shows at once. A
 * new connection through each listener now and then proves that it still listens; one waits to be accepted most of the time.
 *
 *   sockets FOLDER      the names in the file system are made there
 */
#include "victim.h"
#include <arpa/inet.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <netinet/tcp.h>
#include <stddef.h>
#include <sys/socket.h>
#include <sys/un.h>

enum { WORDS = 16, WINDOW = 6, MOST = 16, LISTENERS = 3 };
struct direction {
    const char *name;
    int from, to;
    uint64_t sent, received;
};
static struct direction directions[2 * MOST];
static size_t direction_count;
static struct {
    struct sockaddr_storage name;
    socklen_t size;
    int fd, type, waiting; /* waiting: has connected, is not accepted yet; -1 = nobody */
} listeners[LISTENERS];
static const char *folder;
static uint64_t seed = 7, opened;

static void channel(const char *name, int one, int other) {
    directions[direction_count++] = (struct direction){name, one, other, 0, 0};
    directions[direction_count++] = (struct direction){name, other, one, 0, 0};
}

static void message(uint64_t *words, size_t which, uint64_t number) {
    for (size_t i = 0; i < WORDS; i++)
        words[i] = mix(which * 1000 + number * 1000003, i);
}

static void put(size_t which) {
    struct direction *way = &directions[which];
    uint64_t words[WORDS];
    message(words, which, way->sent);
    if (send(way->from, words, sizeof words, MSG_NOSIGNAL) != sizeof words)
        wrong("%s: message %lu was not sent: %s", way->name, way->sent, strerror(errno));
    way->sent++;
}

static void get(size_t which) {
    struct direction *way = &directions[which];
    uint64_t words[WORDS], due[WORDS];
    size_t have = 0;
    while (have < sizeof words) {
        ssize_t got = recv(way->to, (char *)words + have, sizeof words - have, 0);
        if (got <= 0) {
            wrong("%s: nothing in place of message %lu: %s", way->name, way->received, got ? strerror(errno) : "end");
            return;
        }
        have += (size_t)got;
    }
    message(due, which, way->received);
    if (memcmp(words, due, sizeof words) != 0)
        wrong("%s: message %lu is another one", way->name, way->received);
    way->received++;
}

/* A port that the kernel gives to nobody by itself (ip_local_port_range): an ephemeral one may be another's when a dead one is restored. */
static void bind_port(int fd, struct sockaddr_in *name) {
    enum { FIRST = 20000, PORTS = 12000 };
    static unsigned next;
    for (int tries = 0; tries < PORTS; tries++) {
        *name = (struct sockaddr_in){.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
        name->sin_port = htons((uint16_t)(FIRST + ((unsigned)getpid() * 31 + next++) % PORTS));
        if (bind(fd, (struct sockaddr *)name, sizeof *name) == 0)
            return;
    }
    need(false, "bind: no port is free");
}

static struct sockaddr_un named(const char *name, socklen_t *size) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    if (name[0] == '@')
        *size = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 +
                            (size_t)snprintf(address.sun_path + 1, sizeof address.sun_path - 1, "%s%s", folder, name + 1));
    else
        *size = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 +
                            (size_t)snprintf(address.sun_path, sizeof address.sun_path, "%s/%s", folder, name));
    return address;
}

static int bound(int type, const char *name) {
    socklen_t size;
    struct sockaddr_un address = named(name, &size);
    int fd = socket(AF_UNIX, type, 0);
    need(fd >= 0 && bind(fd, (struct sockaddr *)&address, size) == 0, "bind");
    return fd;
}

static void to(int fd, const char *name) {
    socklen_t size;
    struct sockaddr_un address = named(name, &size);
    need(connect(fd, (struct sockaddr *)&address, size) == 0, "connect");
}

static void listens(size_t which, int fd, int type) {
    listeners[which].fd = fd;
    listeners[which].type = type;
    listeners[which].waiting = -1;
    listeners[which].size = sizeof listeners[which].name;
    need(listen(fd, 5) == 0 && getsockname(fd, (struct sockaddr *)&listeners[which].name, &listeners[which].size) == 0, "listen");
}

static int dial(size_t which) {
    int fd = socket(listeners[which].name.ss_family, listeners[which].type, 0);
    struct sockaddr_in own;
    if (listeners[which].name.ss_family == AF_INET)
        bind_port(fd, &own);
    if (fd < 0 || connect(fd, (struct sockaddr *)&listeners[which].name, listeners[which].size) != 0)
        wrong("listener %zu: connect: %s", which, strerror(errno));
    return fd;
}

/* Who waited is accepted, greeted and let go; the next one waits. */
static void renew(size_t which) {
    if (listeners[which].waiting >= 0) {
        int served = accept(listeners[which].fd, NULL, NULL);
        uint64_t out = mix(which, opened++), in = 0;
        if (served < 0 || send(served, &out, sizeof out, MSG_NOSIGNAL) != sizeof out ||
            recv(listeners[which].waiting, &in, sizeof in, 0) != sizeof in || in != out)
            wrong("listener %zu: a new connection does not work: %s", which, strerror(errno));
        close(served);
        close(listeners[which].waiting);
    }
    listeners[which].waiting = dial(which);
}

static void pairs(void) {
    static const int types[] = {SOCK_STREAM, SOCK_DGRAM, SOCK_SEQPACKET};
    static const char *names[] = {"pair (stream)", "pair (datagram)", "pair (seqpacket)"};
    for (size_t i = 0; i < 3; i++) {
        int ends[2];
        need(socketpair(AF_UNIX, types[i], 0, ends) == 0, "socketpair");
        channel(names[i], ends[0], ends[1]);
    }
}

static void datagrams(void) {
    int server = bound(SOCK_DGRAM, "server"), client = bound(SOCK_DGRAM, "@client"), nameless = socket(AF_UNIX, SOCK_DGRAM, 0);
    to(server, "@client");
    to(client, "server");
    channel("unix datagrams by name", server, client);
    int drain = bound(SOCK_DGRAM, "drain");
    to(nameless, "drain");
    directions[direction_count++] = (struct direction){"unix datagrams without a name", nameless, drain, 0, 0};
}

static void udp(void) {
    int ends[2];
    struct sockaddr_in names[2];
    for (int i = 0; i < 2; i++) {
        socklen_t size = sizeof names[i];
        ends[i] = socket(AF_INET, SOCK_DGRAM, 0);
        bind_port(ends[i], &names[i]);
        need(getsockname(ends[i], (struct sockaddr *)&names[i], &size) == 0, "getsockname");
    }
    for (int i = 0; i < 2; i++)
        need(connect(ends[i], (struct sockaddr *)&names[1 - i], sizeof names[i]) == 0, "connect");
    channel("udp", ends[0], ends[1]);
}

static int netlink(void) {
    struct sockaddr_nl name = {.nl_family = AF_NETLINK, .nl_groups = 0};
    int fd = socket(AF_NETLINK, SOCK_RAW, NETLINK_ROUTE);
    need(fd >= 0 && bind(fd, (struct sockaddr *)&name, sizeof name) == 0, "netlink");
    return fd;
}

static void ask_kernel(int fd, uint32_t number) {
    struct {
        struct nlmsghdr head;
        struct ifinfomsg body;
    } ask = {.head = {.nlmsg_len = sizeof ask, .nlmsg_type = RTM_GETLINK, .nlmsg_flags = NLM_F_REQUEST, .nlmsg_seq = number},
             .body = {.ifi_index = 1}};
    char reply[8192];
    if (send(fd, &ask, sizeof ask, 0) != sizeof ask || recv(fd, reply, sizeof reply, 0) < (ssize_t)sizeof(struct nlmsghdr) ||
        ((struct nlmsghdr *)reply)->nlmsg_seq != number)
        wrong("netlink: question %u got another answer: %s", number, strerror(errno));
}

static void connections(void) {
    struct sockaddr_in chosen;
    int one = 1, server = socket(AF_INET, SOCK_STREAM, 0);
    need(setsockopt(server, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one) == 0, "SO_REUSEADDR");
    bind_port(server, &chosen);
    listens(0, server, SOCK_STREAM);
    listens(1, bound(SOCK_STREAM, "listener"), SOCK_STREAM);
    listens(2, bound(SOCK_SEQPACKET, "@listener"), SOCK_SEQPACKET);
    static const char *names[] = {"tcp", "unix stream by name", "seqpacket by name"};
    for (size_t i = 0; i < LISTENERS; i++) {
        int client = dial(i), served = accept(listeners[i].fd, NULL, NULL);
        need(client >= 0 && served >= 0, "accept");
        if (i == 0)
            need(setsockopt(client, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one) == 0 &&
                     setsockopt(served, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one) == 0, "TCP_NODELAY");
        channel(names[i], client, served);
    }
}

int main(int count, char **words) {
    need(count == 2, "usage: sockets FOLDER");
    folder = words[1];
    connections();
    pairs();
    datagrams();
    udp();
    int kernel = netlink();
    uint64_t turn = 0, due = 0;
    for (;; turn++) {
        for (size_t i = 0; i < direction_count; i++) {
            struct direction *way = &directions[i];
            uint64_t goal = draw(&seed) % WINDOW;
            while (way->sent - way->received < goal + 1)
                put(i);
            while (way->sent - way->received > goal)
                get(i);
        }
        if (turn % 16 == 0)
            renew(turn / 16 % LISTENERS);
        if (turn % 8 == 0)
            ask_kernel(kernel, (uint32_t)turn);
        if (turn == 100)
            ready();
        usleep(500);
        if (!due && turn > 100 && asked(0))
            due = turn + 60;
        if (due && turn >= due) {
            due = 0;
            answer();
        }
    }
}
