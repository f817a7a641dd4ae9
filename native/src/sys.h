/* sys.h: the one seam to the kernel. Every system call that acts on a target goes through here, so that errors have
 * one convention (0 or a result, or a negative errno) and faults can be injected from outside.
 *
 * The functions have default visibility and are called through the PLT on purpose: a test interposes them by
 * LD_PRELOAD (tests/faults) to fail or to kill at the n-th call. Product code holds no "if (testing)".
 */
#ifndef CKPT_SYS_H
#define CKPT_SYS_H

#include <stddef.h>
#include <stdint.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

struct pollfd;
struct itimerspec;
struct msghdr;
struct statfs;

#define CKPT_SEAM __attribute__((visibility("default"), noinline))

long sys_ptrace(int request, pid_t tid, uintptr_t addr, uintptr_t data) CKPT_SEAM;
int sys_wait(pid_t tid, int *ret_status, int options) CKPT_SEAM; /* waitpid with __WALL; returns tid, 0 or -errno */
int sys_wait_once(pid_t tid, int *ret_status) CKPT_SEAM; /* the same, blocking; 0 when a signal came first */
ssize_t sys_vm_readv(pid_t pid, const struct iovec *local, size_t locals, const struct iovec *remote, size_t remotes) CKPT_SEAM;
ssize_t sys_vm_writev(pid_t pid, const struct iovec *local, size_t locals, const struct iovec *remote, size_t remotes) CKPT_SEAM;
int sys_ioctl(int fd, unsigned long request, void *argument) CKPT_SEAM;
int sys_openat(int dir, const char *path, int flags) CKPT_SEAM;
ssize_t sys_read(int fd, void *buffer, size_t bytes) CKPT_SEAM;
ssize_t sys_pread(int fd, void *buffer, size_t bytes, uint64_t offset) CKPT_SEAM;
ssize_t sys_pwrite(int fd, const void *buffer, size_t bytes, uint64_t offset) CKPT_SEAM;
int sys_pidfd_open(pid_t pid, unsigned flags) CKPT_SEAM;
int sys_pidfd_getfd(int pidfd, int fd) CKPT_SEAM;
int sys_pidfd_signal(int pidfd, int signal) CKPT_SEAM;
int sys_kcmp(pid_t a, pid_t b, int type, uintptr_t x, uintptr_t y) CKPT_SEAM;
int sys_statat(int dir, const char *path, struct stat *ret_stat, int flags) CKPT_SEAM;
ssize_t sys_readlinkat(int dir, const char *path, char *buffer, size_t bytes) CKPT_SEAM;
ssize_t sys_getdents(int fd, void *buffer, size_t bytes) CKPT_SEAM;
int sys_robust_list(pid_t tid, uint64_t *ret_head, uint64_t *ret_bytes) CKPT_SEAM;
int sys_prlimit(pid_t pid, int resource, struct rlimit *ret_limit) CKPT_SEAM; /* reads only */
/* On a duplicate of the target's descriptor; each returns as above. */
int sys_fcntl(int fd, int command, long argument) CKPT_SEAM;
int sys_poll(struct pollfd *fds, size_t count, int timeout_ms) CKPT_SEAM;
ssize_t sys_tee(int from, int to, size_t bytes, unsigned flags) CKPT_SEAM;
int sys_timerfd_get(int fd, struct itimerspec *ret_value) CKPT_SEAM;
int sys_getsockopt(int fd, int level, int name, void *ret_value, size_t *size) CKPT_SEAM; /* size: room in, bytes out */
int sys_setsockopt(int fd, int level, int name, const void *value, size_t size) CKPT_SEAM;
int sys_sockname(int fd, int peer, void *ret_address, size_t room) CKPT_SEAM; /* bytes of the address */
ssize_t sys_recvmsg(int fd, struct msghdr *message, int flags) CKPT_SEAM;
int sys_socket(int domain, int type, int protocol) CKPT_SEAM;
ssize_t sys_diag(int fd, const void *ask, size_t ask_bytes, void *reply, size_t room) CKPT_SEAM; /* one request, one answer */
int64_t sys_lseek(int fd, int64_t offset, int whence) CKPT_SEAM;
int sys_mq_getattr(int fd, int64_t ret_attributes[4]) CKPT_SEAM;
int sys_statfs(int fd, struct statfs *ret_stat) CKPT_SEAM;

/* Cleanup attributes: early returns stay safe; success never falls into an error label. */
void close_fd(int *fd);
void free_ptr(void *pointer_to_pointer);
#define _cleanup_close_ __attribute__((cleanup(close_fd)))
#define _cleanup_free_ __attribute__((cleanup(free_ptr)))
/* Takes the value out, so that the cleanup finds nothing: return take_fd(&fd); */
static inline int take_fd(int *fd) { int value = *fd; *fd = -1; return value; }
static inline void *take_ptr_(void **p) { void *value = *p; *p = NULL; return value; }
#define take_ptr(p) ((__typeof__(*(p)))take_ptr_((void **)(p)))

#endif
