/* test_freeze CASE [ITERATIONS]: freeze and thaw real victims (freeze_victim.c beside this program) and let them judge. */
#define _GNU_SOURCE
#include "check.h"
#include "internal.h"
#include <dirent.h>
#include <errno.h>
#include <stdatomic.h>
#include <sys/ptrace.h>
#include <time.h>

static char program[4096];

static ckpt_tree *open_tree(pid_t pid) {
    ckpt_tree *tree = NULL;
    CHECK_EQ(ckpt_tree_open(pid, 0, &tree), 0);
    return tree;
}

static void explain(const ckpt_tree *tree, int error) {
    struct ckpt_fault fault;
    ckpt_tree_last_fault(tree, &fault);
    if (error)
        fprintf(stderr, "error %d: %s pid %d tid %d %s\n", error, fault.step, fault.pid, fault.tid, fault.name);
}

static void nap(long us) { nanosleep(&(struct timespec){.tv_sec = us / 1000000, .tv_nsec = us % 1000000 * 1000}, NULL); }

static char state_of(pid_t pid, pid_t tid) {
    char name[64], text[1024] = "";
    snprintf(name, sizeof name, "/proc/%d/task/%d/stat", pid, tid);
    FILE *file = fopen(name, "r");
    if (!file)
        return 0;
    size_t got = fread(text, 1, sizeof text - 1, file);
    fclose(file);
    text[got] = 0;
    char *end = strrchr(text, ')');
    return end ? end[2] : 0;
}

/* Every thread that /proc shows of every task of the tree stands in a trace stop, and is known. */
static void check_frozen(ckpt_tree *tree) {
    for (size_t i = 0; i < tree->task_count; i++) {
        char name[64];
        if (tree->tasks[i].zombie)
            continue;
        snprintf(name, sizeof name, "/proc/%d/task", tree->tasks[i].pid);
        DIR *dir = opendir(name);
        CHECK(dir);
        for (struct dirent *entry; (entry = readdir(dir));) {
            pid_t tid = atoi(entry->d_name);
            if (!tid)
                continue;
            CHECK_EQ(state_of(tree->tasks[i].pid, tid), 't');
            CHECK(tree_thread(tree, tid) && tree_thread(tree, tid)->state == THREAD_STOPPED);
        }
        closedir(dir);
    }
}

static void rounds_of(ckpt_tree *tree, int iterations) {
    for (int i = 0; i < iterations; i++) {
        int error = ckpt_tree_freeze(tree);
        explain(tree, error);
        CHECK_EQ(error, 0);
        if (i % 50 == 0)
            check_frozen(tree);
        CHECK_EQ(ckpt_tree_thaw(tree), 0);
        if (i % 4 == 0)
            nap(500);
    }
}

static void case_mode(const char *mode, int iterations) {
    struct victim victim = victim_start(program, mode);
    ckpt_tree *tree = open_tree(victim.pid);
    rounds_of(tree, iterations);
    ckpt_tree_close(tree);
    victim_verdict(&victim);
}

/* Numbered real-time signals fly all the while; the victim says how many it took, and fails if one is lost or doubled. */
static void case_signals(int iterations) {
    struct victim victim = victim_start(program, "signals");
    ckpt_tree *tree = open_tree(victim.pid);
    int sent = 0;
    for (int i = 0; i < iterations; i++) {
        for (int j = 0; j < 3; j++)
            if (sigqueue(victim.pid, SIGRTMIN + 3, (union sigval){.sival_int = sent + 1}) == 0)
                sent++;
        CHECK_EQ(ckpt_tree_freeze(tree), 0);
        if (sigqueue(victim.pid, SIGRTMIN + 3, (union sigval){.sival_int = sent + 1}) == 0)
            sent++; /* comes while everybody is stopped */
        CHECK_EQ(ckpt_tree_thaw(tree), 0);
        if (i % 8 == 0)
            nap(300);
    }
    ckpt_tree_close(tree);
    nap(200 * 1000);
    char line[256] = "", expected[64];
    kill(victim.pid, SIGTERM);
    CHECK(fgets(line, sizeof line, victim.out));
    snprintf(expected, sizeof expected, "signals %d\n", sent);
    if (strcmp(line, expected))
        fprintf(stderr, "sent %d, victim: %s", sent, line);
    CHECK(!strcmp(line, expected));
    CHECK(sent > iterations);
    CHECK(fgets(line, sizeof line, victim.out) && !strcmp(line, "PASS\n"));
    waitpid(victim.pid, NULL, 0);
    fclose(victim.out);
}

/* A vfork parent cannot be stopped: freeze waits for it, and refuses by name when it may not wait. */
static void case_vfork(int iterations) {
    struct victim victim = victim_start(program, "vfork");
    ckpt_tree *tree = open_tree(victim.pid);
    int refused = 0, frozen = 0;
    for (int i = 0; i < iterations; i++) {
        tree->freeze_retries = i % 2 ? 0 : 100;
        int error = ckpt_tree_freeze(tree);
        struct ckpt_fault fault;
        ckpt_tree_last_fault(tree, &fault);
        if (error) {
            CHECK_EQ(error, -EBUSY);
            CHECK(i % 2 == 1 && !strcmp(fault.step, "interrupt"));
            refused++;
        } else {
            frozen++;
            check_frozen(tree);
            CHECK_EQ(ckpt_tree_thaw(tree), 0);
        }
        nap(20 * 1000);
    }
    CHECK(refused && frozen);
    ckpt_tree_close(tree);
    victim_verdict(&victim);
}

/* SIGSTOPped before: stays stopped after the thaw, and goes on at SIGCONT. */
static void case_group_stop(int iterations) {
    struct victim victim = victim_start(program, "idle");
    ckpt_tree *tree = open_tree(victim.pid);
    for (int i = 0; i < iterations; i++) {
        kill(victim.pid, SIGSTOP);
        while (state_of(victim.pid, victim.pid) != 'T')
            nap(100);
        CHECK_EQ(ckpt_tree_freeze(tree), 0);
        check_frozen(tree);
        CHECK(tree_leader(tree, victim.pid)->group_stopped);
        CHECK_EQ(ckpt_tree_thaw(tree), 0);
        for (int look = 0; look < 100 && state_of(victim.pid, victim.pid) != 'T'; look++)
            nap(100);
        CHECK_EQ(state_of(victim.pid, victim.pid), 'T');
        kill(victim.pid, SIGCONT);
        for (int look = 0; look < 1000 && state_of(victim.pid, victim.pid) != 'S'; look++)
            nap(100);
        CHECK_EQ(state_of(victim.pid, victim.pid), 'S');
    }
    ckpt_tree_close(tree);
    victim_verdict(&victim);
}

/* Killed while frozen: thaw says nothing, a new freeze says that it is gone. */
static void case_killed(int iterations) {
    for (int i = 0; i < iterations; i++) {
        struct victim victim = victim_start(program, "idle");
        ckpt_tree *tree = open_tree(victim.pid);
        CHECK_EQ(ckpt_tree_freeze(tree), 0);
        kill(victim.pid, SIGKILL);
        nap(2000);
        CHECK_EQ(ckpt_tree_thaw(tree), 0);
        nap(2000);
        CHECK_EQ(ckpt_tree_freeze(tree), -ESRCH);
        ckpt_tree_close(tree);
        CHECK_EQ(waitpid(victim.pid, NULL, 0), victim.pid);
        fclose(victim.out);
    }
}

static void expect_open(pid_t pid, int error, const char *step) {
    ckpt_tree *tree = NULL;
    struct ckpt_fault fault;
    CHECK_EQ(ckpt_tree_open(pid, 0, &tree), error);
    ckpt_tree_last_fault(tree, &fault);
    if (strcmp(fault.step, step))
        fprintf(stderr, "step is %s, not %s\n", fault.step, step);
    CHECK(!strcmp(fault.step, step));
    ckpt_tree_close(tree);
}

/* What cannot be frozen is named, and left as it is. */
static void case_refusals(int iterations) {
    pid_t zombie = fork();
    if (!zombie)
        _exit(0);
    while (state_of(zombie, zombie) != 'Z')
        nap(100);
    expect_open(zombie, -ESRCH, "zombie");
    waitpid(zombie, NULL, 0);
    expect_open(zombie, -ESRCH, "open");
    expect_open(2, -EPERM, "kernel thread");

    struct victim victim = victim_start(program, "idle");
    ckpt_tree *stale = NULL;
    CHECK_EQ(ckpt_tree_open(victim.pid, 12345, &stale), -ESRCH);
    ckpt_tree_close(stale);
    int ends[2], back[2];
    char byte = 0, by[16];
    CHECK(pipe(ends) == 0 && pipe(back) == 0);
    pid_t tracer = fork();
    if (!tracer) {
        close(ends[1]);
        ptrace(PTRACE_SEIZE, victim.pid, 0, 0);
        CHECK(write(back[1], "x", 1) == 1);
        CHECK(read(ends[0], &byte, 1) == 0);
        _exit(0);
    }
    close(ends[0]);
    CHECK(read(back[0], &byte, 1) == 1);
    ckpt_tree *tree = open_tree(victim.pid);
    CHECK_EQ(ckpt_tree_freeze(tree), -EPERM);
    struct ckpt_fault fault;
    ckpt_tree_last_fault(tree, &fault);
    snprintf(by, sizeof by, "%d", tracer);
    CHECK(!strcmp(fault.step, "traced") && !strcmp(fault.name, by));
    close(ends[1]);
    waitpid(tracer, NULL, 0);
    CHECK_EQ(ckpt_tree_freeze(tree), 0);
    check_frozen(tree);
    ckpt_tree_close(tree); /* thaws */
    for (int i = 0; i < 2000 && state_of(victim.pid, victim.pid) == 'R'; i++) /* on its way back to its sleep */
        usleep(1000);
    CHECK_EQ(state_of(victim.pid, victim.pid), 'S');
    victim_verdict(&victim);
}

/* ckpt dies with everybody stopped: the kernel lets them go, and nobody notices. early: anywhere in the freeze, where a call of
 * the EINTR family may show EINTR (its rax is not written yet), so a victim without one is the judge. */
static void case_tracer_dies(int iterations, bool early) {
    struct victim victim = victim_start(program, early ? "churn" : "busy");
    for (int i = 0; i < iterations; i++) {
        pid_t tracer = fork();
        if (!tracer) {
            ckpt_tree *tree = open_tree(victim.pid);
            ckpt_tree_freeze(tree);
            raise(SIGKILL);
        }
        if (early) {
            nap(300 * (i % 10));
            kill(tracer, SIGKILL);
        }
        waitpid(tracer, NULL, 0);
    }
    victim_verdict(&victim);
}

int main(int count, char **words) {
    const char *name = count > 1 ? words[1] : "busy";
    int iterations = count > 2 ? atoi(words[2]) : 100;
    snprintf(program, sizeof program, "%.*s/freeze_victim", (int)(strrchr(words[0], '/') - words[0]), words[0]);
    if (!strcmp(name, "busy") || !strcmp(name, "churn"))
        case_mode(name, iterations);
    else if (!strcmp(name, "signals"))
        case_signals(iterations);
    else if (!strcmp(name, "vfork"))
        case_vfork(iterations);
    else if (!strcmp(name, "group-stop"))
        case_group_stop(iterations);
    else if (!strcmp(name, "killed"))
        case_killed(iterations);
    else if (!strcmp(name, "tracer-dies"))
        case_tracer_dies(iterations, false);
    else if (!strcmp(name, "tracer-dies-early"))
        case_tracer_dies(iterations, true);
    else
        case_refusals(iterations);
    puts("PASS");
    return 0;
}
