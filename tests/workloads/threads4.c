/* threads4: four threads pass a turn by mutex and condition variable; each counts in thread-local storage, and runs a
 * signal handler on its alternate stack every 64th turn. Seen: a lost wake-up (nothing moves), wrong TLS (fs base), a
 * lost or doubled signal, a lost alternate stack, a turn done twice.
 */
#include "victim.h"

enum { THREADS = 4 };
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t moved[THREADS];
static int turn;
static uint64_t total, chain = 1, model_chain = 1, model_total;
static __thread uint64_t my_turns, my_signals, my_canary;
static __thread void *my_stack;
static uint64_t turns[THREADS], signals[THREADS];

static void handler(int signal) {
    char here;
    (void)signal;
    my_signals++;
    if (&here < (char *)my_stack || &here >= (char *)my_stack + SIGSTKSZ * 2)
        wrong("the handler is not on the alternate stack");
}

static void one_turn(int me, pid_t tid) {
    my_turns++;
    if (my_turns % 64 == 0) {
        raise(SIGUSR2);
        stack_t now;
        sigaltstack(NULL, &now);
        if (now.ss_sp != my_stack || now.ss_flags != 0)
            wrong("thread %d: the alternate stack is another one", me);
    }
    turns[me] = my_turns;
    signals[me] = my_signals;
    if (my_signals != my_turns / 64)
        wrong("thread %d: %lu signals in %lu turns", me, my_signals, my_turns);
    if (my_canary != mix((uint64_t)me, (uint64_t)pthread_self()))
        wrong("thread %d: thread-local storage changed", me);
    if (gettid() != tid)
        wrong("thread %d: tid %d became %d", me, tid, gettid());
    total++;
    chain = mix(chain, (uint64_t)me);
    if (my_turns % 16 == 0)
        usleep(500);
}

static void *run(void *argument) {
    int me = (int)(intptr_t)argument;
    pid_t tid = gettid();
    my_canary = mix((uint64_t)me, (uint64_t)pthread_self());
    my_stack = malloc(SIGSTKSZ * 2);
    stack_t stack = {.ss_sp = my_stack, .ss_size = SIGSTKSZ * 2};
    need(sigaltstack(&stack, NULL) == 0, "sigaltstack");
    for (;;) {
        pthread_mutex_lock(&mutex);
        while (turn != me)
            pthread_cond_wait(&moved[me], &mutex);
        one_turn(me, tid);
        turn = (me + 1) % THREADS;
        pthread_cond_signal(&moved[turn]);
        pthread_mutex_unlock(&mutex);
    }
    return NULL;
}

static uint64_t look(void) {
    pthread_mutex_lock(&mutex);
    uint64_t sum = 0;
    for (int i = 0; i < THREADS; i++) {
        sum += turns[i];
        if (turns[i] > turns[0] || turns[i] + 1 < turns[0])
            wrong("thread %d had %lu turns, thread 0 %lu", i, turns[i], turns[0]);
    }
    for (; model_total < total; model_total++)
        model_chain = mix(model_chain, model_total % THREADS);
    if (sum != total || model_chain != chain)
        wrong("%lu turns in all, the threads count %lu (chain %s)", total, sum, model_chain == chain ? "right" : "wrong");
    uint64_t seen = total;
    pthread_mutex_unlock(&mutex);
    return seen;
}

int main(void) {
    struct sigaction action = {.sa_handler = handler, .sa_flags = SA_ONSTACK | SA_RESTART};
    sigaction(SIGUSR2, &action, NULL);
    pthread_t thread;
    for (int i = 0; i < THREADS; i++)
        pthread_cond_init(&moved[i], NULL);
    for (intptr_t i = 0; i < THREADS; i++)
        need(pthread_create(&thread, NULL, run, (void *)i) == 0, "pthread_create");
    while (look() < 256)
        usleep(1000);
    ready();
    for (;;) {
        char *line = question();
        uint64_t before = look(), deadline = clock_ns() + 5000000000u;
        while (look() < before + 8)
            if (clock_ns() > deadline) {
                wrong("nothing moves: a wake-up was lost");
                break;
            } else
                usleep(1000);
        if (strcmp(line, "verify") != 0)
            wrong("unknown question");
        verdict();
    }
}
