/* check.h: the least that a native test needs: a check that says what failed, and victims that answer. */
#ifndef CHECK_H
#define CHECK_H

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <unistd.h>

#define CHECK(condition)                                                                                                                   \
    do {                                                                                                                                   \
        if (!(condition)) {                                                                                                                \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition);                                                                \
            exit(1);                                                                                                                       \
        }                                                                                                                                  \
    } while (0)

#define CHECK_EQ(a, b)                                                                                                                     \
    do {                                                                                                                                   \
        long long left_ = (long long)(a), right_ = (long long)(b);                                                                         \
        if (left_ != right_) {                                                                                                             \
            fprintf(stderr, "%s:%d: %s is %lld, not %lld (%s)\n", __FILE__, __LINE__, #a, left_, right_, #b);                              \
            exit(1);                                                                                                                       \
        }                                                                                                                                  \
    } while (0)

struct victim {
    pid_t pid;
    FILE *out;
};

/* Starts PROGRAM MODE beside this test and waits for its READY. */
static inline struct victim victim_start(const char *program, const char *mode) {
    int ends[2];
    CHECK(pipe(ends) == 0);
    pid_t pid = fork();
    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL); /* a test that fails leaves nobody behind */
        setpgid(0, 0);
        dup2(ends[1], 1);
        close(ends[0]);
        close(ends[1]);
        execl(program, program, mode, NULL);
        _exit(127);
    }
    setpgid(pid, pid);
    close(ends[1]);
    struct victim victim = {.pid = pid, .out = fdopen(ends[0], "r")};
    char line[256];
    CHECK(fgets(line, sizeof line, victim.out) && !strcmp(line, "READY\n"));
    return victim;
}

/* Asks for the verdict (SIGTERM); the victim checks itself, says PASS and ends with 0. */
static inline void victim_verdict(struct victim *victim) {
    char line[256] = "";
    int status;
    kill(victim->pid, SIGTERM);
    while (fgets(line, sizeof line, victim->out) && strcmp(line, "PASS\n"))
        fprintf(stderr, "victim: %s", line);
    CHECK(!strcmp(line, "PASS\n"));
    CHECK_EQ(waitpid(victim->pid, &status, 0), victim->pid);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    fclose(victim->out);
}

static inline void victim_end(struct victim *victim) {
    kill(-victim->pid, SIGKILL);
    waitpid(victim->pid, NULL, 0);
    fclose(victim->out);
}

#endif
