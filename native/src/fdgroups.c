/* fdgroups.c: the multicast groups that a UDP socket is in. No call lists them; but /proc/PID/net/igmp and igmp6 list those that anybody of the
 * network namespace is in, and of each the socket can be asked for its filter (MCAST_MSFILTER), which only a member has.
 *
 * Per membership: i32 family, i32 index of the interface, u32 mode (MCAST_EXCLUDE 0, MCAST_INCLUDE 1), u32 n, group[16], name of the
 * interface[16], u32 its IPv4 address (0: none), u32 0, then the n sources that the filter names, 16 bytes each. An IPv4 address takes 4 of 16.
 * n is cut to GROUP_SOURCES in what follows, not in the number.
 */
#define _GNU_SOURCE
#include "capture.h"
#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { GROUP_SOURCES = 64, LISTS_BYTES = 64 << 10, MSFILTER = 48, SIOCGIFADDR_NR = 0x8915, ADDRESS = 16 };

struct membership {
    int32_t family, index;
    uint32_t mode, sources;
    uint8_t group[ADDRESS];
    char device[ADDRESS];
    uint32_t address, pad;
};

struct filter { /* struct group_filter with room */
    uint32_t index, pad;
    struct sockaddr_storage group;
    uint32_t mode, sources;
    struct sockaddr_storage source[GROUP_SOURCES];
};

static const void *address_of(const struct sockaddr_storage *name) {
    return name->ss_family == AF_INET ? (const void *)&((const struct sockaddr_in *)name)->sin_addr
                                      : (const void *)&((const struct sockaddr_in6 *)name)->sin6_addr;
}

static size_t address_bytes(int family) { return family == AF_INET ? 4 : 16; }

static int answer(struct window *window, const struct open_fd *entry, int dup, struct membership *row) {
    struct filter filter = {.index = (uint32_t)row->index, .group.ss_family = (sa_family_t)row->family, .sources = GROUP_SOURCES};
    memcpy((void *)address_of(&filter.group), row->group, address_bytes(row->family));
    size_t size = sizeof filter;
    if (sys_getsockopt(dup, row->family == AF_INET ? IPPROTO_IP : IPPROTO_IPV6, MSFILTER, &filter, &size))
        return 0; /* not a member */
    struct ifreq device = {0};
    memcpy(device.ifr_name, row->device, sizeof row->device);
    if (!sys_ioctl(dup, SIOCGIFADDR_NR, &device))
        row->address = ((struct sockaddr_in *)(void *)&device.ifr_addr)->sin_addr.s_addr;
    row->mode = filter.mode;
    row->sources = filter.sources;
    struct {
        struct membership row;
        uint8_t source[GROUP_SOURCES][ADDRESS];
    } record = {.row = *row};
    size_t told = filter.sources < GROUP_SOURCES ? filter.sources : GROUP_SOURCES;
    for (size_t i = 0; i < told; i++)
        memcpy(record.source[i], address_of(&filter.source[i]), address_bytes(row->family));
    char *room = (char *)window->groups + window->groups_bytes;
    size_t bytes = sizeof record.row + told * ADDRESS;
    if (window->groups_bytes + bytes > LISTS_BYTES)
        return -ENOSPC;
    memcpy(room, &record, bytes);
    window->groups_bytes += bytes;
    return 0;
}

/* Groups of every host, which each interface is in by itself. */
static bool by_itself(const struct membership *row, unsigned users) {
    static const uint8_t hosts4[] = {224, 0, 0, 1}, hosts6[] = {0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1};
    bool all = row->family == AF_INET ? !memcmp(row->group, hosts4, 4)
                                      : row->group[0] == 0xff && row->group[1] <= 2 && !memcmp(row->group + 2, hosts6 + 2, 14);
    return all && users <= 1;
}

static bool line_of_igmp(const char *line, struct membership *row, unsigned *ret_users) {
    unsigned group;
    if (line[0] != '\t') { /* an interface: its groups follow */
        char *colon;
        row->index = (int32_t)strtol(line, &colon, 10);
        memset(row->device, 0, sizeof row->device);
        sscanf(line, "%*d %15[^ :]", row->device);
        return false;
    }
    if (sscanf(line, " %8X %u", &group, ret_users) != 2)
        return false;
    memcpy(row->group, &group, sizeof group);
    return true;
}

static bool line_of_igmp6(const char *line, struct membership *row, unsigned *ret_users) {
    char digits[33];
    memset(row->device, 0, sizeof row->device);
    if (sscanf(line, "%d %15s %32s %u", &row->index, row->device, digits, ret_users) != 4 || strlen(digits) != 32)
        return false;
    for (size_t i = 0; i < ADDRESS; i++) {
        unsigned byte;
        sscanf(digits + 2 * i, "%2x", &byte);
        row->group[i] = (uint8_t)byte;
    }
    return true;
}

static int ask_each(struct window *window, const struct open_fd *entry, int dup, int family) {
    const char *name = family == AF_INET ? "net/igmp" : "net/igmp6";
    _cleanup_close_ int file = sys_openat(tree_task(window->tree, entry->pid)->dir, name, O_RDONLY);
    _cleanup_free_ char *text = calloc(1, LISTS_BYTES + 1);
    if (file < 0 || !text)
        return file < 0 ? 0 : -ENOMEM; /* without IPv6, say */
    size_t bytes = 0;
    for (ssize_t got = 1; got > 0 && bytes < LISTS_BYTES; bytes += got > 0 ? (size_t)got : 0)
        got = sys_pread(file, text + bytes, LISTS_BYTES - bytes, bytes);
    struct membership row = {.family = family};
    int error = 0;
    char *rest = text;
    for (char *line; !error && (line = strsep(&rest, "\n"));) {
        unsigned users;
        bool group = family == AF_INET ? line_of_igmp(line, &row, &users) : line_of_igmp6(line, &row, &users);
        if (group && !by_itself(&row, users))
            error = answer(window, entry, dup, &row);
    }
    return error;
}

int fd_groups(struct window *window, const struct open_fd *entry, int dup, int domain) {
    if (!window->groups && !(window->groups = malloc(LISTS_BYTES)))
        return -ENOMEM;
    window->groups_bytes = 0;
    int error = ask_each(window, entry, dup, AF_INET);
    if (!error && domain == AF_INET6)
        error = ask_each(window, entry, dup, AF_INET6);
    if (error || !window->groups_bytes)
        return error;
    return sink_record(window->sink, CKPT_R_FD_WORK, entry->pid, 0, entry->fd, CKPT_W_GROUPS, window->groups, window->groups_bytes);
}
