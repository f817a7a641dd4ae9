/* init.c: a pid namespace with a newborn in it: where a tree has its own numbers while the original lives, and where verify restores.
 *
 *   ckpt --clone3(NEWPID | ...)--> init (number 1) --clone3(set_tid)--> newborn
 *
 * The newborn is a child of init's, not ours: it has a parent that outlives us, which waits for it and passes its end on. Init is
 * a fork of ckpt that only makes system calls: it prepares the other namespaces, makes the newborn, then keeps house.
 *
 * Invariants
 *  1. Until it is told to go on (one byte), the end of its maker ends init (end of file), and with it the whole namespace.
 *  2. Afterwards it waits for whoever is left, and exits as the newborn did when nobody is.
 *  3. Whatever failed is told as an errno through the pipe whose end of file means "the newborn is ready".
 */
#define _GNU_SOURCE
#include "internal.h"
#include <errno.h>
#include <fcntl.h>
#include <linux/sched.h>
#include <net/if.h>
#include <netinet/in.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

struct house {
    uint64_t namespaces;
    pid_t child; /* the newborn's number inside */
    int ready, keep; /* write end, read end */
    struct newborn_keep fds;
    const char *clocks; /* of the newborn (clock.c); NULL: ours */
};

static int put_text(const char *path, const char *text) {
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    if (fd < 0)
        return -errno;
    int error = write(fd, text, strlen(text)) < 0 ? -errno : 0;
    close(fd);
    return error;
}

/* Sockets that listen anywhere can be bound: no address of the host's is there. */
static int set_up_net(void) {
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return -errno;
    struct ifreq lo = {.ifr_name = "lo", .ifr_flags = IFF_UP | IFF_RUNNING};
    int error = ioctl(fd, SIOCSIFFLAGS, &lo) ? -errno : 0;
    close(fd);
    if (!error)
        error = put_text("/proc/sys/net/ipv4/ip_nonlocal_bind", "1");
    put_text("/proc/sys/net/ipv6/ip_nonlocal_bind", "1"); /* there may be no IPv6 */
    return error;
}

static int set_up(const struct house *house) {
    if (house->namespaces & CLONE_NEWNS) {
        if (mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL))
            return -errno;
        if (mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL))
            return -errno;
    }
    return house->namespaces & CLONE_NEWNET ? set_up_net() : 0;
}

static int beget(const struct house *house) {
    pid_t child = house->child;
    if (house->clocks)
        clocks_for_children(house->clocks); /* where it cannot be had the caller sees that */
    uint64_t number = (uint64_t)child;
    struct clone_args args = {.exit_signal = SIGCHLD, .set_tid = child ? (uintptr_t)&number : 0, .set_tid_size = child ? 1 : 0};
    long born = syscall(SYS_clone3, &args, sizeof args);
    if (born == 0)
        newborn_live(1, 1, &house->fds);
    return born < 0 ? -errno : (int)born;
}

/* Waits for everybody; the status of the newborn in the end, 128 + signal when one ended it. */
__attribute__((noreturn)) static void keep_house(pid_t child) {
    int status, last = 0;
    for (pid_t gone; (gone = waitpid(-1, &status, __WALL)) > 0 || errno == EINTR;)
        if (gone == child)
            last = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
    _exit(last);
}

__attribute__((noreturn)) static void be_init(const struct house *house) {
    prctl(PR_SET_NAME, "ckpt-init");
    int error = set_up(house), child = error ? error : beget(house);
    if (child < 0) {
        if (write(house->ready, &child, sizeof child) < 0)
            _exit(2);
        _exit(1);
    }
    int keep = dup2(house->keep, 0);
    close_range(1, ~0U, 0);
    char go;
    while (keep == 0) {
        ssize_t got = read(keep, &go, 1);
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            _exit(1);
        break;
    }
    close(0);
    keep_house(child);
}

static pid_t only_child(pid_t init) {
    char name[NAME_ROOM], text[32], task[NAME_ROOM];
    _cleanup_close_ int dir = sys_openat(AT_FDCWD, proc_name(name, "/proc/", (uint64_t)init, ""), O_PATH | O_DIRECTORY);
    ssize_t got = dir < 0 ? dir : proc_read(dir, proc_name(task, "task/", (uint64_t)init, "/children"), text, sizeof text - 1);
    if (got <= 0)
        return got ? (pid_t)got : -ESRCH;
    text[got] = 0;
    return (pid_t)strtol(text, NULL, 10);
}

static int wait_ready(int fd) {
    int error = 0;
    for (;;) {
        ssize_t got = read(fd, &error, sizeof error);
        if (got >= 0 || errno != EINTR)
            return got == sizeof error ? error : got < 0 ? -errno : 0;
    }
}

static long clone_init(struct house *house) {
    struct clone_args args = {.flags = house->namespaces | CLONE_NEWPID, .exit_signal = SIGCHLD};
    sigset_t all, before;
    struct lean lean;
    lean_begin(&lean);
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    long init = syscall(SYS_clone3, &args, sizeof args);
    int error = errno;
    if (init == 0)
        be_init(house);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    lean_end(&lean);
    return init < 0 ? -error : init;
}

int ckpt_newborn_apart(uint64_t namespaces, int32_t pid, const int32_t *fds, size_t fd_count, const struct ckpt_clocks *offsets, int32_t *ret_init,
                       int32_t *ret_pid, int32_t *ret_keep) {
    int ready[2], keep[2];
    int32_t kept[NEWBORN_KEEP];
    char clocks[CLOCKS_ROOM];
    if (fd_count > NEWBORN_KEEP)
        return -E2BIG;
    memcpy(kept, fds, fd_count * sizeof *fds);
    if (pipe2(ready, O_CLOEXEC))
        return -errno;
    if (pipe2(keep, O_CLOEXEC)) {
        int error = -errno;
        close(ready[0]), close(ready[1]);
        return error;
    }
    if (offsets)
        clocks_text(offsets, clocks);
    struct house house = {.namespaces = namespaces, .child = pid, .ready = ready[1], .keep = keep[0], .fds = {kept, fd_count},
                          .clocks = offsets ? clocks : NULL};
    long init = clone_init(&house);
    close(ready[1]), close(keep[0]);
    int error = init < 0 ? (int)init : wait_ready(ready[0]);
    close(ready[0]);
    pid_t born = error ? error : only_child((pid_t)init);
    if (born < 0) {
        close(keep[1]);
        if (init > 0)
            waitpid((pid_t)init, NULL, __WALL);
        return born;
    }
    *ret_init = (int32_t)init, *ret_pid = born, *ret_keep = keep[1];
    return 0;
}

int ckpt_enter(int32_t namespace_fd) { return setns(namespace_fd, 0) ? -errno : 0; }
