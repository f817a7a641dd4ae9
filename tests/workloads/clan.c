/* clan: a tree with everything that binds processes: grandchildren, sessions and groups of their own, a group and a session whose
 * leaders have died, dead children that nobody has collected, a stopped child, and one that forks and collects all the time. Messages go
 * round a ring of pipes through all of them; every member checks at each message that its parent, session and group are what
 * they were, and that its memory is its own.
 *
 * "verify": PASS or FAIL. "change": the clan is broken up (members end, are collected, others come) and answers CHANGED; from then
 * on "verify" checks what has become of it. A rollback to before brings the clan back, ring and all.
 */
#include "ring.h"
#include <sys/prctl.h>

enum { ELDER, SON, LONER, MEMBER, HEIR, FORKER, STAGES, WINDOW = 12, BALLAST = 24 };
struct message {
    uint64_t sequence, hash;
};

static int ring[STAGES + 1][2];
static pid_t self, parent, session, group;
static unsigned char *ballast;

static void know_myself(void) {
    self = getpid(), parent = getppid(), session = getsid(0), group = getpgrp();
}

static void check_myself(uint64_t count) {
    if (getpid() != self || getppid() != parent || getsid(0) != session || getpgrp() != group)
        wrong("task %d: parent %d session %d group %d, it was %d %d %d", self, getppid(), getsid(0), getpgrp(), parent, session, group);
    if (!page_is(ballast + count % BALLAST * PAGE, (uint64_t)self, count / BALLAST))
        wrong("task %d: page %lu is not its own", self, count % BALLAST);
    fill_page(ballast + count % BALLAST * PAGE, (uint64_t)self, count / BALLAST + 1);
}

/* A child that lives for an instant, collected at once. */
static void fork_one(uint64_t count) {
    int code = (int)(count % 100), status;
    pid_t pid = fork();
    if (pid == 0)
        _exit(code);
    if (pid < 0 || waitpid(pid, &status, 0) != pid || !WIFEXITED(status) || WEXITSTATUS(status) != code)
        wrong("task %d: its child %d of count %lu was not collected: %s", self, pid, count, strerror(errno));
}

__attribute__((noreturn)) static void stage(int me) {
    know_myself();
    for (uint64_t page = 0; page < BALLAST; page++)
        fill_page(ballast + page * PAGE, (uint64_t)self, 0);
    close(0);
    for (int i = 0; i <= STAGES; i++) {
        if (i != me)
            close(ring[i][0]);
        if (i != me + 1)
            close(ring[i][1]);
    }
    struct message message;
    for (uint64_t count = 0;; count++) {
        get_bytes(ring[me][0], &message, sizeof message);
        check_myself(count);
        if (me == FORKER)
            fork_one(count);
        if (message.sequence != count)
            wrong("task %d: message %lu came as number %lu", self, message.sequence, count);
        message.hash = victim_reason[0] ? 0xBAD : mix(message.hash, count * STAGES + (uint64_t)me);
        if (count % 8 == (uint64_t)me)
            usleep(500);
        put_bytes(ring[me + 1][1], &message, sizeof message);
    }
}

/* Ends with its parent. */
__attribute__((noreturn)) static void wait_for_ever(void) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    for (;;)
        pause();
}

static pid_t born(void) {
    pid_t pid = fork();
    need(pid >= 0, "fork");
    return pid;
}

/* The child has set up what others wait for: it says so. */
static int told[2];
static void tell(void) { need(write(told[1], "", 1) == 1, "tell"); }
static void hear(void) {
    char byte;
    need(read(told[0], &byte, 1) == 1, "hear");
}

static pid_t elder, member, heir, forker, stopped, exited, killed, newcomer, founder;
static bool changed;

static void elder_lives(void) { /* a session of its own; a son in it; another one in a group of his own */
    int upward = told[1];
    setsid();
    need(pipe(told) == 0, "pipe");
    if (born() == 0)
        stage(SON);
    if (born() == 0) {
        setpgid(0, 0);
        tell();
        stage(LONER);
    }
    hear();
    told[1] = upward;
    tell();
    stage(ELDER);
}

static pid_t led_for_a_moment(bool new_session, int me) { /* whoever led dies and is collected; the member lives on, as the root's */
    int status;
    pid_t leader = born();
    if (leader == 0) {
        need((new_session ? setsid() : setpgid(0, 0)) >= 0, "lead");
        pid_t pid = born();
        if (pid == 0) {
            while (getppid() != parent)
                usleep(100);
            tell();
            stage(me);
        }
        need(write(told[1], &pid, sizeof pid) == sizeof pid, "tell");
        _exit(0);
    }
    pid_t pid;
    need(read(told[0], &pid, sizeof pid) == sizeof pid, "hear");
    need(waitpid(leader, &status, 0) == leader, "waitpid");
    hear();
    return pid;
}

static void found_clan(void) {
    need(pipe(told) == 0, "pipe");
    prctl(PR_SET_CHILD_SUBREAPER, 1);
    parent = getpid();
    elder = born();
    if (elder == 0)
        elder_lives();
    hear();
    member = led_for_a_moment(false, MEMBER);
    heir = led_for_a_moment(true, HEIR);
    forker = born();
    if (forker == 0)
        stage(FORKER);
    stopped = born();
    if (stopped == 0) {
        raise(SIGSTOP);
        _exit(3);
    }
    need(waitpid(stopped, NULL, WUNTRACED) == stopped, "waitpid");
    exited = born();
    if (exited == 0)
        _exit(7);
    killed = born();
    if (killed == 0) {
        setpgid(0, 0);
        raise(SIGTERM);
    }
    know_myself();
}

static char state_of(pid_t pid) {
    char name[64], text[512], state = '?';
    snprintf(name, sizeof name, "/proc/%d/stat", pid);
    FILE *file = fopen(name, "r");
    if (file && fgets(text, sizeof text, file))
        state = strrchr(text, ')')[2];
    if (file)
        fclose(file);
    return state;
}

static void dead_with(pid_t pid, int code, int value) {
    siginfo_t info = {0};
    if (waitid(P_PID, (id_t)pid, &info, WEXITED | WNOHANG | WNOWAIT) || info.si_pid != pid || info.si_code != code || info.si_status != value)
        wrong("dead child %d: pid %d, code %d, status %d", pid, info.si_pid, info.si_code, info.si_status);
}

static void collect(pid_t pid) {
    int status;
    if (waitpid(pid, &status, 0) != pid)
        wrong("waitpid %d: %s", pid, strerror(errno));
}

static void check_clan(void) {
    if (changed) {
        if (getsid(founder) != founder || getpgid(newcomer) != newcomer || waitpid(-1, NULL, WNOHANG) != 0)
            wrong("the newcomers are not what they were");
        return;
    }
    dead_with(exited, CLD_EXITED, 7);
    dead_with(killed, CLD_KILLED, SIGTERM);
    if (state_of(stopped) != 'T')
        wrong("the stopped child %d is in state %c", stopped, state_of(stopped));
    if (getsid(elder) != elder || getsid(heir) == getsid(0) || getpgid(member) == getpgrp() || getsid(member) != getsid(0))
        wrong("sessions: elder %d heir %d member's group %d", getsid(elder), getsid(heir), getpgid(member));
}

static void change(void) {
    int status;
    check_clan();
    collect(exited);
    collect(killed);
    kill(stopped, SIGCONT);
    if (waitpid(stopped, &status, 0) != stopped || !WIFEXITED(status) || WEXITSTATUS(status) != 3)
        wrong("the stopped child %d did not go on", stopped);
    pid_t gone[] = {elder, member, heir};
    for (int i = 0; i < 3; i++) {
        kill(gone[i], SIGKILL);
        collect(gone[i]);
    }
    close(ring[0][1]);
    close(ring[STAGES][0]);
    while (waitpid(-1, &status, 0) > 0) /* the elder's sons are ours now, and end with the ring */
        ;
    newcomer = born();
    if (newcomer == 0) {
        setpgid(0, 0);
        tell();
        wait_for_ever();
    }
    hear();
    founder = born();
    if (founder == 0) {
        setsid();
        if (born() == 0)
            wait_for_ever();
        tell();
        wait_for_ever();
    }
    hear();
    changed = true;
}

static void serve(void) {
    char *asked_for = question();
    if (strcmp(asked_for, "change") == 0) {
        change();
        say(victim_reason[0] ? "FAIL %s" : "CHANGED", victim_reason);
        return;
    }
    if (strcmp(asked_for, "verify") != 0)
        wrong("unknown question");
    check_clan();
    verdict();
}

int main(void) {
    need(setpgid(0, 0) == 0 || getpgrp() == getpid(), "setpgid");
    ballast = mmap(NULL, BALLAST * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    need(ballast != MAP_FAILED, "mmap");
    for (int i = 0; i <= STAGES; i++)
        need(pipe(ring[i]) == 0, "pipe");
    found_clan();
    close(ring[0][0]);
    close(ring[STAGES][1]);
    for (int i = 1; i < STAGES; i++) {
        close(ring[i][0]);
        close(ring[i][1]);
    }
    uint64_t sent = 0, due = 0;
    for (uint64_t received = 0; !changed; received++) {
        struct message message;
        for (; sent < received + WINDOW; sent++) {
            message = (struct message){sent, sent};
            put_bytes(ring[0][1], &message, sizeof message);
        }
        get_bytes(ring[STAGES][0], &message, sizeof message);
        uint64_t hash = received;
        for (uint64_t i = 0; i < STAGES; i++)
            hash = mix(hash, received * STAGES + i);
        if (message.sequence != received || message.hash != hash)
            wrong("message %lu came back as %lu, its hash is %s", received, message.sequence, message.hash == hash ? "right" : "wrong");
        if (received == 50)
            ready();
        if (!due && received > 50 && asked(0))
            due = received + 2 * WINDOW; /* what is on the way now must have come round */
        if (due && received >= due) {
            due = 0;
            serve();
        }
    }
    for (;;)
        serve();
}
