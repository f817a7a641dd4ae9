/* ckpt_self.c: see ckpt_self.h.
 *
 * The caller waits in read() of an eventfd. ckpt is not its child, or it would be of the tree: a process in between, which ends at
 * once, leaves it to init. A supervisor of ours runs ckpt, reads the generation's number and writes it into the eventfd, so the wait ends also
 * when ckpt is killed. In the generation the thread stands in that read, with 0 as its result (`ckpt snapshot --self`): 0 bytes are
 * read by nobody else.
 */
#define _GNU_SOURCE
#include "ckpt_self.h"
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

enum { ANSWER = 3, OUTPUT_BYTES = 65536 };
#define FAILED (UINT64_C(1) << 62) /* with an errno in the low bits */

static void put_number(char *text, long number) { snprintf(text, 24, "%ld", number); }

__attribute__((noreturn)) static void run_ckpt(long pid, long tid, int out) {
    char pid_text[24], tid_text[24];
    const char *command = getenv("CKPT_COMMAND");
    command = command && *command ? command : "ckpt";
    put_number(pid_text, pid);
    put_number(tid_text, tid);
    dup2(out, 1);
    close_range(3, ~0U, 0);
    execlp(command, command, "snapshot", pid_text, "--self", tid_text, "--json", (char *)NULL);
    _exit(127);
}

static int error_of(int status) {
    if (!WIFEXITED(status))
        return EIO;
    switch (WEXITSTATUS(status)) {
    case 2: return EINVAL;
    case 3: return ENOTSUP;
    case 4: return EPERM;
    case 5: return EUCLEAN;
    case 6: return ESRCH;
    case 127: return ENOENT;
    default: return EIO;
    }
}

/* {"generation": 12, ...} */
static uint64_t generation_in(const char *text) {
    static const char key[] = "\"generation\":";
    const char *at = strstr(text, key);
    return at ? strtoull(at + sizeof key - 1, NULL, 10) : 0;
}

static uint64_t supervise(long pid, long tid) {
    static char text[OUTPUT_BYTES];
    size_t used = 0;
    int ends[2], status = 0;
    if (pipe(ends))
        return FAILED | (uint64_t)errno;
    pid_t child = fork();
    if (child < 0)
        return FAILED | (uint64_t)errno;
    if (child == 0)
        run_ckpt(pid, tid, ends[1]);
    close(ends[1]);
    for (ssize_t got; used < sizeof text - 1; used += (size_t)got) {
        got = read(ends[0], text + used, sizeof text - 1 - used);
        if (got < 0 && errno == EINTR)
            got = 0;
        else if (got <= 0)
            break;
    }
    while (waitpid(child, &status, 0) < 0 && errno == EINTR)
        ;
    uint64_t generation = generation_in(text);
    return status == 0 && generation ? generation : FAILED | (uint64_t)error_of(status);
}

/* Not of the tree: whoever waits for the ends of the program's descriptors must not wait for us. */
__attribute__((noreturn)) static void stand_beside(long pid, long tid, int answer) {
    if (fork() != 0)
        _exit(0);
    setsid();
    dup2(answer, ANSWER);
    close_range(ANSWER + 1, ~0U, 0);
    int nowhere = open("/dev/null", O_RDWR);
    dup2(nowhere, 0);
    dup2(nowhere, 1);
    close(nowhere);
    fcntl(ANSWER, F_SETFD, FD_CLOEXEC);
    uint64_t result = supervise(pid, tid);
    _exit(write(ANSWER, &result, sizeof result) != sizeof result);
}

long ckpt_checkpoint_self(void) {
    uint64_t result;
    int answer = eventfd(0, EFD_CLOEXEC);
    if (answer < 0)
        return -errno;
    long pid = getpid(), tid = syscall(SYS_gettid);
    pid_t between = fork();
    if (between == 0)
        stand_beside(pid, tid, answer);
    long got = between < 0 ? -errno : 0;
    while (between > 0 && waitpid(between, NULL, 0) < 0 && errno == EINTR)
        ;
    if (between > 0)
        do
            got = read(answer, &result, sizeof result);
        while (got < 0 && errno == EINTR);
    int error = errno;
    close(answer);
    if (between < 0)
        return got;
    if (got < 0)
        return -error;
    if (got == 0)
        return 0; /* brought back to here */
    return result & FAILED ? -(long)(result & ~FAILED) : (long)result;
}
