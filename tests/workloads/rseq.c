/* rseq: more threads than CPUs count in one counter per CPU, by restartable sequences that are long: a thread is nearly always inside one.
 * Whoever was off its CPU inside must start anew: if it goes on, what others counted meanwhile is lost.
 * Seen: a sequence that was not aborted (the counters' sum is not what the threads have counted), a thread whose struct rseq is
 * not registered any more (cpu_id stays what it was), a program that the kernel ends for a bad sequence.
 */
#include "victim.h"
#include <sched.h>
#include <sys/rseq.h>

enum { THREADS = 6, CPUS = 1024, SPINS = 20000, SIGNATURE = 0x53053053 };

struct counter {
    _Alignas(64) volatile uint64_t value;
};
static struct counter of_cpu[CPUS];
static struct counter counted[THREADS], aborted[THREADS];
static _Atomic bool hold;
static _Atomic int held;

static struct rseq *area(void) { return (struct rseq *)((char *)__builtin_thread_pointer() + __rseq_offset); }

/* true: counted; false: aborted, nothing has happened. */
static bool count(struct rseq *rseq, uint32_t cpu, volatile uint64_t *counter) {
    __asm__ goto(".pushsection __rseq_cs, \"aw\"\n"
                 ".balign 32\n"
                 "3: .long 0, 0\n"
                 "  .quad 1f, 2f - 1f, 4f\n"
                 ".popsection\n"
                 "  leaq 3b(%%rip), %%rax\n"
                 "  movq %%rax, 8(%[rseq])\n"
                 "1: cmpl %[cpu], 4(%[rseq])\n"
                 "  jnz 4f\n"
                 "  movq (%[counter]), %%rdx\n"
                 "  movl %[spins], %%ecx\n"
                 "5: decl %%ecx\n"
                 "  jnz 5b\n"
                 "  incq %%rdx\n"
                 "  movq %%rdx, (%[counter])\n" /* the commit */
                 "2:\n"
                 ".pushsection __rseq_failure, \"ax\"\n"
                 "  .byte 0x0f, 0xb9, 0x3d\n"
                 "  .long %c[signature]\n"
                 "4: jmp %l[abort]\n"
                 ".popsection\n"
                 :
                 : [rseq] "r"(rseq), [cpu] "r"(cpu), [counter] "r"(counter), [spins] "i"(SPINS), [signature] "i"(SIGNATURE)
                 : "memory", "cc", "rax", "rcx", "rdx"
                 : abort);
    return true;
abort:
    return false;
}

static void *counting(void *argument) {
    uintptr_t me = (uintptr_t)argument;
    struct rseq *rseq = area();
    for (;;) {
        if (hold) {
            held++;
            while (hold)
                usleep(1000);
            held--;
        }
        uint32_t cpu = *(volatile uint32_t *)&rseq->cpu_id_start;
        if (cpu >= CPUS)
            wrong("cpu_id_start is %u", cpu);
        else if (count(rseq, cpu, &of_cpu[cpu].value))
            counted[me].value++;
        else
            aborted[me].value++;
        if (!me)
            usleep(5000); /* its rseq_cs still names the sequence that it has behind it */
    }
    return NULL;
}

static void check(void) {
    static uint64_t last;
    uint64_t sum = 0, wanted = 0, deadline = clock_ns() + 10000000000ull;
    hold = true;
    while (held < THREADS && !victim_reason[0]) {
        if (clock_ns() > deadline)
            wrong("a thread stands still: it is aborted again and again, or rseq is gone");
        usleep(1000);
    }
    for (int i = 0; i < CPUS; i++)
        sum += of_cpu[i].value;
    for (int i = 0; i < THREADS; i++)
        wanted += counted[i].value;
    if (sum != wanted)
        wrong("%lu were counted, the counters say %lu: a sequence was not aborted", wanted, sum);
    if (wanted <= last)
        wrong("nothing was counted");
    last = wanted;
    hold = false;
    while (held && !victim_reason[0])
        usleep(1000);
}

int main(void) {
    if (!__rseq_size)
        skip("the C library has registered no rseq here");
    for (uintptr_t i = 0; i < THREADS; i++) {
        pthread_t thread;
        need(pthread_create(&thread, NULL, counting, (void *)i) == 0, "pthread_create");
    }
    ready();
    for (;;) {
        asked(-1);
        usleep(20000);
        check();
        answer();
    }
}
