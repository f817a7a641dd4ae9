/* register.c: the userfaultfd side of tracking; each call acts on the target through our duplicate of its descriptor.
 *
 * Facts of the kernel that this rests on (fs/userfaultfd.c, mm/userfaultfd.c)
 *  1. Registering a range again that is registered already with the same descriptor changes nothing in it.
 *  2. A mapping that belongs to another userfaultfd gives EBUSY; one that cannot be tracked (vdso, io_uring) EINVAL.
 *  3. A mapping that mremap() has moved is no longer registered, but its pages may keep their protection (seen on 6.18):
 *     registered alone, they would count as unwritten since a generation that never saw them there. Hence uffd_reset().
 *  4. Unregistering drops the write-protection of the whole range; so does closing the last descriptor.
 *  5. UFFDIO_WRITEPROTECT without the WP mode removes a write-protect marker (an entry without a page) altogether.
 */
#include "scan.h"
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int uffd_register(int uffd, ckpt_addr_t start, ckpt_addr_t end) {
    struct uffdio_register reg = {.range = {start, end - start}, .mode = UFFDIO_REGISTER_MODE_WP};
    return uffd < 0 ? -EBADF : sys_ioctl(uffd, UFFDIO_REGISTER, &reg);
}

int uffd_unprotect(int uffd, ckpt_addr_t start, ckpt_addr_t end) {
    struct uffdio_writeprotect wp = {.range = {start, end - start}, .mode = 0};
    int error;
    do
        error = uffd < 0 ? -EBADF : sys_ioctl(uffd, UFFDIO_WRITEPROTECT, &wp);
    while (error == -EAGAIN); /* its mappings are changing; only while it runs */
    return error;
}

/* Registered first: that fails if the range is another's, whose protection must not be dropped (old kernels would). */
int uffd_reset(int uffd, ckpt_addr_t start, ckpt_addr_t end) {
    struct uffdio_range range = {start, end - start};
    int error = uffd_register(uffd, start, end);
    if (!error)
        error = sys_ioctl(uffd, UFFDIO_UNREGISTER, &range);
    return error ? error : uffd_register(uffd, start, end);
}

bool uffd_others(const struct task *task, int ours) {
    static const char wanted[] = "anon_inode:[userfaultfd]";
    int dir = sys_openat(task->dir, "fd", O_RDONLY | O_DIRECTORY);
    DIR *names = dir < 0 ? NULL : fdopendir(dir);
    bool found = false;
    if (!names) {
        close_fd(&dir);
        return true; /* not known: careful */
    }
    for (struct dirent *entry; !found && (entry = readdir(names));) {
        char text[sizeof wanted];
        if (entry->d_name[0] == '.' || atoi(entry->d_name) == ours)
            continue;
        ssize_t bytes = readlinkat(dir, entry->d_name, text, sizeof text);
        found = bytes == sizeof wanted - 1 && !memcmp(text, wanted, sizeof wanted - 1);
    }
    closedir(names);
    return found;
}
