/* sys.c: see sys.h. */
#define _GNU_SOURCE
#include "sys.h"
#include "kernel.h"
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <sys/vfs.h>
#include <sys/syscall.h>
#include <string.h>
#include <sys/wait.h>

static long result(long value) { return value < 0 ? -errno : value; }

long sys_ptrace(int request, pid_t tid, uintptr_t addr, uintptr_t data) { return result(syscall(SYS_ptrace, request, tid, addr, data)); }

int sys_wait(pid_t tid, int *ret_status, int options) {
    long got;
    do
        got = result(waitpid(tid, ret_status, options | __WALL));
    while (got == -EINTR);
    return (int)got;
}

int sys_wait_once(pid_t tid, int *ret_status) {
    int got = (int)result(waitpid(tid, ret_status, __WALL));
    return got == -EINTR ? 0 : got;
}

ssize_t sys_vm_readv(pid_t pid, const struct iovec *local, size_t locals, const struct iovec *remote, size_t remotes) {
    return result(process_vm_readv(pid, local, locals, remote, remotes, 0));
}

ssize_t sys_vm_writev(pid_t pid, const struct iovec *local, size_t locals, const struct iovec *remote, size_t remotes) {
    return result(process_vm_writev(pid, local, locals, remote, remotes, 0));
}

int sys_ioctl(int fd, unsigned long request, void *argument) { return (int)result(ioctl(fd, request, argument)); }
int sys_openat(int dir, const char *path, int flags) { return (int)result(openat(dir, path, flags | O_CLOEXEC)); }
ssize_t sys_pread(int fd, void *buffer, size_t bytes, uint64_t offset) { return result(pread(fd, buffer, bytes, (off_t)offset)); }
ssize_t sys_pwrite(int fd, const void *buffer, size_t bytes, uint64_t offset) { return result(pwrite(fd, buffer, bytes, (off_t)offset)); }
int sys_pidfd_open(pid_t pid, unsigned flags) { return (int)result(syscall(SYS_pidfd_open, pid, flags)); }
int sys_pidfd_getfd(int pidfd, int fd) { return (int)result(syscall(SYS_pidfd_getfd, pidfd, fd, 0)); }
int sys_pidfd_signal(int pidfd, int signal) { return (int)result(syscall(SYS_pidfd_send_signal, pidfd, signal, NULL, 0)); }
int sys_kcmp(pid_t a, pid_t b, int type, uintptr_t x, uintptr_t y) { return (int)result(syscall(SYS_kcmp, a, b, type, x, y)); }

ssize_t sys_read(int fd, void *buffer, size_t bytes) { return result(read(fd, buffer, bytes)); }
int sys_statat(int dir, const char *path, struct stat *ret_stat, int flags) { return (int)result(fstatat(dir, path, ret_stat, flags)); }
ssize_t sys_readlinkat(int dir, const char *path, char *buffer, size_t bytes) { return result(readlinkat(dir, path, buffer, bytes)); }
ssize_t sys_getdents(int fd, void *buffer, size_t bytes) { return result(syscall(SYS_getdents64, fd, buffer, bytes)); }
int sys_robust_list(pid_t tid, uint64_t *ret_head, uint64_t *ret_bytes) {
    return (int)result(syscall(SYS_get_robust_list, tid, ret_head, ret_bytes));
}
int sys_prlimit(pid_t pid, int resource, struct rlimit *ret_limit) {
    return (int)result(syscall(SYS_prlimit64, pid, resource, NULL, ret_limit));
}

int sys_fcntl(int fd, int command, long argument) { return (int)result(fcntl(fd, command, argument)); }
int sys_poll(struct pollfd *fds, size_t count, int timeout_ms) { return (int)result(poll(fds, count, timeout_ms)); }
ssize_t sys_tee(int from, int to, size_t bytes, unsigned flags) { return result(tee(from, to, bytes, flags)); }
int sys_timerfd_get(int fd, struct itimerspec *ret_value) { return (int)result(timerfd_gettime(fd, ret_value)); }

int sys_getsockopt(int fd, int level, int name, void *ret_value, size_t *size) {
    socklen_t length = (socklen_t)*size;
    int error = (int)result(getsockopt(fd, level, name, ret_value, &length));
    *size = length;
    return error;
}

int sys_setsockopt(int fd, int level, int name, const void *value, size_t size) {
    return (int)result(setsockopt(fd, level, name, value, (socklen_t)size));
}

int sys_sockname(int fd, int peer, void *ret_address, size_t room) {
    socklen_t length = (socklen_t)room;
    int error = (int)result(peer ? getpeername(fd, ret_address, &length) : getsockname(fd, ret_address, &length));
    return error ? error : (int)(length < room ? length : room);
}

ssize_t sys_recvmsg(int fd, struct msghdr *message, int flags) { return result(recvmsg(fd, message, flags)); }
int sys_socket(int domain, int type, int protocol) { return (int)result(socket(domain, type, protocol)); }

ssize_t sys_diag(int fd, const void *ask, size_t ask_bytes, void *reply, size_t room) {
    ssize_t sent = result(send(fd, ask, ask_bytes, 0));
    return sent < 0 ? sent : result(recv(fd, reply, room, 0));
}

int64_t sys_lseek(int fd, int64_t offset, int whence) { return result(lseek(fd, offset, whence)); }
int sys_statfs(int fd, struct statfs *ret_stat) { return (int)result(fstatfs(fd, ret_stat)); }

int sys_mq_getattr(int fd, int64_t ret_attributes[4]) {
    int64_t all[8]; /* struct mq_attr: four are reserved */
    int error = (int)result(syscall(SYS_mq_getsetattr, fd, NULL, all));
    if (!error)
        memcpy(ret_attributes, all, 4 * sizeof *all);
    return error;
}

void close_fd(int *fd) {
    if (*fd >= 0)
        close(*fd);
}

void free_ptr(void *pointer_to_pointer) { free(*(void **)pointer_to_pointer); }
