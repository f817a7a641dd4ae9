/* queues.c: System V semaphores and messages, POSIX messages, children. They outlive us where we do not remove them: clean(). */
#include "calls.h"
#include <sys/ipc.h>
#include <sys/msg.h>

static int semaphores = -1, messages_in = -1, messages_out = -1;
static mqd_t queue_in = -1, queue_out = -1;
enum { FINITE_SEM, ENDLESS_SEM, ZERO_SEM, NULL_SEM, SEMS };

static const char *queue_name(const char *which) {
    static char name[64];
    snprintf(name, sizeof name, "/ckpt-calls-%s-%d", which, (int)holder);
    return name;
}

static void need_semaphores(void) {
    if (semaphores < 0)
        semaphores = semget(IPC_PRIVATE, SEMS, 0600);
    need(semaphores >= 0, "semget");
}

static void need_messages(void) {
    struct msqid_ds about;
    if (messages_in < 0) {
        messages_in = msgget(IPC_PRIVATE, 0600), messages_out = msgget(IPC_PRIVATE, 0600);
        need(messages_in >= 0 && msgctl(messages_out, IPC_STAT, &about) == 0, "msgget");
        about.msg_qbytes = 8;
        need(msgctl(messages_out, IPC_SET, &about) == 0 && msgsnd(messages_out, &(struct { long type; char text[8]; }){1, "full"}, 8, 0) == 0, "msgsnd");
    }
}

static void need_queues(void) {
    struct mq_attr about = {.mq_maxmsg = 1, .mq_msgsize = 8};
    if (queue_in < 0) {
        queue_in = mq_open(queue_name("in"), O_RDWR | O_CREAT, 0600, &about), queue_out = mq_open(queue_name("out"), O_RDWR | O_CREAT, 0600, &about);
        need(queue_in >= 0 && queue_out >= 0 && mq_send(queue_out, "full", 4, 0) == 0, "mq_open");
    }
}

void clean(void) {
    semctl(semaphores, 0, IPC_RMID);
    msgctl(messages_in, IPC_RMID, NULL), msgctl(messages_out, IPC_RMID, NULL);
    mq_unlink(queue_name("in")), mq_unlink(queue_name("out"));
}

/* ---- semaphores ---- */

static void operate(struct test *t, long nr, unsigned short which, short by, long time) {
    need_semaphores();
    t->sem = (struct sembuf){which, by, 0};
    if (!time)
        watch(t, &t->sem, sizeof t->sem);
    call(t, nr, semaphores, at(&t->sem), 1, time, 0, 0);
}
static void s_semtimed(struct test *t) { operate(t, SYS_semtimedop, FINITE_SEM, -1, relative(t)); }
static void s_semtimed_endless(struct test *t) { operate(t, SYS_semtimedop, NULL_SEM, -1, 0); }
static void w_semtimed(struct test *t) { (void)t, need(semop(semaphores, &(struct sembuf){NULL_SEM, 1, 0}, 1) == 0, "semop"); }
static void s_semop(struct test *t) { operate(t, SYS_semop, ENDLESS_SEM, -1, 0); }
static void w_semop(struct test *t) { (void)t, need(semop(semaphores, &(struct sembuf){ENDLESS_SEM, 1, 0}, 1) == 0, "semop"); }
static void s_semzero(struct test *t) {
    operate(t, SYS_semop, ZERO_SEM, 0, 0);
    need(semctl(semaphores, ZERO_SEM, SETVAL, 1) == 0, "semctl");
}
static void w_semzero(struct test *t) { (void)t, need(semop(semaphores, &(struct sembuf){ZERO_SEM, -1, 0}, 1) == 0, "semop"); }

/* ---- messages ---- */

static void s_msgrcv(struct test *t) { need_messages(), call(t, SYS_msgrcv, messages_in, at(&t->note), sizeof t->note.text, 1, 0, 0); }
static void w_msgrcv(struct test *t) { (void)t, need(msgsnd(messages_in, &(struct { long type; char text[8]; }){1, "1234567"}, 8, 0) == 0, "msgsnd"); }
static bool got_note(struct test *t) { return !memcmp(t->note.text, "1234567", 8); }
static void s_msgsnd(struct test *t) { need_messages(), t->note.type = 1, call(t, SYS_msgsnd, messages_out, at(&t->note), sizeof t->note.text, 0, 0, 0); }
static void w_msgsnd(struct test *t) { need(msgrcv(messages_out, t->bytes_in, 8, 1, 0) == 8, "msgrcv"); }

static void s_mq_in(struct test *t) { need_queues(), call(t, SYS_mq_timedreceive, queue_in, at(t->bytes_in), 8, 0, instant(t, CLOCK_REALTIME), 0); }
static void s_mq_out(struct test *t) { need_queues(), call(t, SYS_mq_timedsend, queue_out, at(t->bytes_in), 8, 0, instant(t, CLOCK_REALTIME), 0); }
static void s_mq_in_endless(struct test *t) { need_queues(), call(t, SYS_mq_timedreceive, queue_in, at(t->bytes_in), 8, 0, 0, 0); }
static void w_mq_in(struct test *t) { (void)t, need(mq_send(queue_in, "12345678", 8, 0) == 0, "mq_send"); }
static void s_mq_out_endless(struct test *t) { need_queues(), call(t, SYS_mq_timedsend, queue_out, at(t->bytes_in), 8, 0, 0, 0); }
static void w_mq_out(struct test *t) { need(mq_receive(queue_out, t->bytes_in + 100, 8, NULL) >= 0, "mq_receive"); }

/* ---- children ---- */

static long child(struct test *t) { /* ends with 7 when it is told */
    need(pipe(t->fd) == 0, "pipe");
    t->child = fork();
    if (!t->child) {
        char byte;
        close(t->fd[1]);
        _exit(read(t->fd[0], &byte, 1) == 1 ? 7 : 8);
    }
    need(t->child > 0, "fork");
    return t->child;
}
static void s_wait4(struct test *t) { call(t, SYS_wait4, child(t), at(&t->status), 0, 0, 0, 0); }
static bool collected(struct test *t) { return WIFEXITED(t->status) && WEXITSTATUS(t->status) == 7 && t->result == t->child; }
static void s_waitid(struct test *t) { call(t, SYS_waitid, P_PID, child(t), at(&t->info), WEXITED, 0, 0); }
static void s_waitid_fd(struct test *t) { child(t), call(t, SYS_waitid, P_PIDFD, syscall(SYS_pidfd_open, t->child, 0), at(&t->info), WEXITED, 0, 0); }
static bool told(struct test *t) { return t->info.si_code == CLD_EXITED && t->info.si_status == 7 && t->info.si_pid == t->child; }
static void w_child(struct test *t) { need(write(t->fd[1], "x", 1) == 1, "write"); }

const struct test queues[] = {
    ENDS("semtimedop", FINITE, s_semtimed, -EAGAIN),
    WOKEN("semtimedop/endless", s_semtimed_endless, w_semtimed, 0),
    WOKEN("semop", s_semop, w_semop, 0),
    WOKEN("semop/zero", s_semzero, w_semzero, 0),
    GIVES("msgrcv", s_msgrcv, w_msgrcv, 8, got_note),
    WOKEN("msgsnd", s_msgsnd, w_msgsnd, 0),
    ENDS("mq_timedreceive", INSTANT, s_mq_in, -ETIMEDOUT),
    ENDS("mq_timedsend", INSTANT, s_mq_out, -ETIMEDOUT),
    GIVES("mq_timedreceive/endless", s_mq_in_endless, w_mq_in, 8, got_eight),
    WOKEN("mq_timedsend/endless", s_mq_out_endless, w_mq_out, 0),
    GIVES("wait4", s_wait4, w_child, ANY, collected),
    GIVES("waitid", s_waitid, w_child, 0, told),
    GIVES("waitid/pidfd", s_waitid_fd, w_child, 0, told),
    {0},
};
