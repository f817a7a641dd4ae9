/* inject.c: faults from outside. LD_PRELOADed into ckpt, it stands before every function of native/src/sys.h and before
 * ckpt_mark(), counts them, and at a chosen moment kills the process, makes the call fail, or holds it.
 *
 *   CKPT_FAULT           rules, separated by ';':   WHERE [@PHASE] [#N] = WHAT
 *     WHERE   the name of a mark (ckpt_mark("arm") -> "arm"), or of a function of the seam ("sys_ptrace"), or "*" (any
 *             function of the seam). "sys_ptrace:13" means only calls whose first argument is 13 (for ptrace: the request).
 *     @PHASE  only while PHASE is the last mark that was passed
 *     #N      the N-th time that all this holds (default 1)
 *     WHAT    kill (SIGKILL to ourselves) | fail:ERRNO (a number) | sleep:MILLISECONDS | after-kill (do the call, then die)
 *   CKPT_FAULT_COUNTERS  a file of 512 slots (made by the test, zeroed), mapped shared, so that it survives the kill
 *
 * Invariants
 *  1. Without CKPT_FAULT and CKPT_FAULT_COUNTERS everything passes through unchanged.
 *  2. A fault is counted (slot "fired") before it happens: what the file says did happen, happened in that phase.
 *  3. Only the process that does ckpt's work is hit: the one that ran it, or its child by fork, where that passes something before
 *     its parent does (ckpt/cli/front.py); and the keeper of deadlines, at its mark. Every other process that came by fork passes
 *     through, unless it calls inject_again().
 *  4. The real function is found in whichever loaded object exports it: Python loads _native with RTLD_LOCAL, where
 *     RTLD_NEXT does not look. The caller must reach its functions through the PLT (sys.h says so).
 */
#define _GNU_SOURCE
#include "../../native/src/sys.h"
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <link.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum { SLOTS = 512, RULES = 16, NAME = 48 };

struct slot { /* tests/faults/faults.py reads this: struct "48sQQ" */
    char name[NAME]; /* "PHASE/FUNCTION", or "PHASE" for the mark itself, or the rule's text for "fired" */
    _Atomic uint64_t hits;
    _Atomic uint64_t fired;
};

enum what { KILL, AFTER_KILL, FAIL, SLEEP };
struct rule {
    char text[NAME], where[NAME], phase[NAME];
    bool has_first;
    unsigned long first;
    unsigned long at;
    enum what what;
    long number;
    _Atomic uint64_t seen;
};

static struct rule rules[RULES];
static size_t rule_count;
static struct slot *slots;
static pid_t owner;
static bool worked; /* the owner has passed something */
static char phase[NAME] = "start";
static atomic_flag lock = ATOMIC_FLAG_INIT;

static void copy_name(char *to, const char *from, size_t bytes) {
    if (bytes >= NAME)
        bytes = NAME - 1;
    memcpy(to, from, bytes);
    to[bytes] = 0;
}

static void parse_rule(const char *text, size_t bytes) {
    struct rule *rule = &rules[rule_count];
    char copy[256];
    if (rule_count == RULES || bytes == 0 || bytes >= sizeof copy)
        return;
    memcpy(copy, text, bytes);
    copy[bytes] = 0;
    copy_name(rule->text, text, bytes);
    char *what = strchr(copy, '=');
    if (!what) {
        fprintf(stderr, "inject: no '=' in rule %s\n", copy);
        _exit(99);
    }
    *what++ = 0;
    char *at = strchr(copy, '#');
    rule->at = at ? strtoul(at + 1, NULL, 10) : 1;
    if (at)
        *at = 0;
    char *in = strchr(copy, '@');
    if (in) {
        copy_name(rule->phase, in + 1, strlen(in + 1));
        *in = 0;
    }
    char *first = strchr(copy, ':');
    if (first && strncmp(copy, "sys_", 4) == 0) {
        rule->has_first = true;
        rule->first = strtoul(first + 1, NULL, 0);
        *first = 0;
    }
    copy_name(rule->where, copy, strlen(copy));
    char *number = strchr(what, ':');
    rule->number = number ? strtol(number + 1, NULL, 0) : 0;
    if (strncmp(what, "kill", 4) == 0)
        rule->what = KILL;
    else if (strncmp(what, "after-kill", 10) == 0)
        rule->what = AFTER_KILL;
    else if (strncmp(what, "fail:", 5) == 0)
        rule->what = FAIL;
    else if (strncmp(what, "sleep:", 6) == 0)
        rule->what = SLEEP;
    else {
        fprintf(stderr, "inject: unknown action in rule %.*s\n", (int)bytes, text);
        _exit(99);
    }
    rule_count++;
}

/* For a process that came by fork and is to be a ckpt of its own: begins anew with its environment (tests/harness/zygote.py). */
__attribute__((constructor)) void inject_again(void) {
    const char *text = getenv("CKPT_FAULT"), *file = getenv("CKPT_FAULT_COUNTERS");
    owner = getpid();
    rule_count = 0;
    slots = NULL;
    memset(rules, 0, sizeof rules);
    copy_name(phase, "start", 5);
    if (file) {
        int fd = open(file, O_RDWR | O_CLOEXEC);
        if (fd >= 0) {
            void *map = mmap(NULL, SLOTS * sizeof(struct slot), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
            slots = map == MAP_FAILED ? NULL : map;
            close(fd);
        }
    }
    while (text && *text) {
        size_t bytes = strcspn(text, ";");
        parse_rule(text, bytes);
        text += bytes + (text[bytes] == ';');
    }
}

static struct slot *slot_of(const char *name) {
    struct slot *found = NULL;
    if (!slots)
        return NULL;
    while (atomic_flag_test_and_set(&lock))
        ;
    for (size_t i = 0; i < SLOTS && !found; i++) {
        if (!slots[i].name[0])
            copy_name(slots[i].name, name, strlen(name));
        if (strncmp(slots[i].name, name, NAME - 1) == 0)
            found = &slots[i];
    }
    atomic_flag_clear(&lock);
    return found;
}

static void fire_count(const struct rule *rule) {
    struct slot *slot = slot_of(rule->text);
    if (slot)
        atomic_fetch_add(&slot->fired, 1);
    if (slots)
        msync(slots, SLOTS * sizeof(struct slot), MS_ASYNC);
}

/* Counts one passage and returns the rule that it sets off, or NULL. */
static const struct rule *pass(const char *where, unsigned long first) {
    char name[2 * NAME];
    bool keeper = strcmp(where, "kept") == 0;
    bool beside = strcmp(where, "sending") == 0; /* in a process that works for the owner, who is the one to be killed */
    if (!keeper && !beside && getpid() != owner && (worked || getppid() != owner))
        return NULL;
    if (!beside)
        owner = getpid();
    worked = true;
    if (strncmp(where, "sys_", 4) == 0)
        snprintf(name, sizeof name, "%s/%s", phase, where);
    else
        snprintf(name, sizeof name, "%s", where);
    struct slot *slot = slot_of(name);
    if (slot)
        atomic_fetch_add(&slot->hits, 1);
    for (size_t i = 0; i < rule_count; i++) {
        struct rule *rule = &rules[i];
        bool any = strcmp(rule->where, "*") == 0 && strncmp(where, "sys_", 4) == 0;
        if (!any && strcmp(rule->where, where) != 0)
            continue;
        if ((rule->phase[0] && strcmp(rule->phase, phase) != 0) || (rule->has_first && rule->first != first))
            continue;
        if (atomic_fetch_add(&rule->seen, 1) + 1 != rule->at)
            continue;
        fire_count(rule);
        if (rule->what == KILL)
            kill(owner, SIGKILL);
        if (rule->what == SLEEP) {
            struct timespec time = {rule->number / 1000, rule->number % 1000 * 1000000};
            while (nanosleep(&time, &time) && errno == EINTR) /* the clock of a freeze ticks by a signal (native/src/pace.c) */
                ;
        }
        return rule;
    }
    return NULL;
}

struct search {
    const char *name;
    void *ours, *found;
};

static int search_object(struct dl_phdr_info *info, size_t size, void *argument) {
    struct search *search = argument;
    (void)size;
    void *handle = dlopen(info->dlpi_name, RTLD_NOLOAD | RTLD_LAZY | RTLD_LOCAL);
    if (!handle)
        return 0;
    void *found = dlsym(handle, search->name);
    dlclose(handle);
    if (!found || found == search->ours)
        return 0;
    search->found = found;
    return 1;
}

static void *real(const char *name, void *ours) {
    void *found = dlsym(RTLD_NEXT, name);
    if (found && found != ours)
        return found;
    struct search search = {name, ours, NULL};
    dl_iterate_phdr(search_object, &search);
    if (!search.found) {
        fprintf(stderr, "inject: nobody exports %s\n", name);
        _exit(99);
    }
    return search.found;
}

/* One wrapper per function of sys.h, written by seam.py from its text: SEAM(type of the result, name, (parameters), (arguments), first argument). */
#define SEAM(type, name, parameters, arguments, selector)                                                                          \
    type name parameters {                                                                                                         \
        static type(*next_) parameters;                                                                                            \
        if (!next_)                                                                                                                \
            next_ = (type(*) parameters)real(#name, (void *)name);                                                                 \
        const struct rule *rule_ = pass(#name, (unsigned long)(selector));                                                         \
        if (rule_ && rule_->what == FAIL)                                                                                          \
            return (type)-rule_->number;                                                                                           \
        type result_ = next_ arguments;                                                                                            \
        if (rule_ && rule_->what == AFTER_KILL)                                                                                    \
            kill(owner, SIGKILL);                                                                                                  \
        return result_;                                                                                                            \
    }

#include "bin/seam.inc"

int ckpt_mark(const char *name) {
    copy_name(phase, name, strlen(name));
    const struct rule *rule = pass(name, 0);
    if (rule && rule->what == AFTER_KILL)
        kill(owner, SIGKILL);
    return rule && rule->what == FAIL ? (int)-rule->number : 0;
}
