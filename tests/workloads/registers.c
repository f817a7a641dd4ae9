/* registers: 15 general registers, 32 zmm (or 16 ymm), k0-k7, 7 x87 values, MXCSR, the x87 control word and gs base are
 * live in a loop that adds one to every lane of everything; the sums are compared with a count in memory after every
 * 200,000 rounds. A register that is lost, stale or mixed up between freezes shows at once.
 */
#include "victim.h"
#include <asm/prctl.h>
#include <cpuid.h>

struct state {
    uint64_t rounds;     /* 0: in */
    uint64_t gpr[14];    /* 8: rax rbx rdx rsi rdi rbp r8-r15 */
    double x87[7];       /* 120 */
    uint64_t mask[8];    /* 176 */
    uint32_t mxcsr, fcw; /* 240 */
    uint64_t pad;        /* 248 */
    uint64_t vector[32][8] __attribute__((aligned(64))); /* 256 */
};

void spin512(struct state *state);
void spin256(struct state *state);

/* The body is one text with two ways to hold vectors. rcx counts the rounds; the state's address waits on the stack. */
#define EACH32(M) M(0) M(1) M(2) M(3) M(4) M(5) M(6) M(7) M(8) M(9) M(10) M(11) M(12) M(13) M(14) M(15) M(16) M(17) M(18) M(19) M(20) \
    M(21) M(22) M(23) M(24) M(25) M(26) M(27) M(28) M(29) M(30)
#define EACH15(M) M(0) M(1) M(2) M(3) M(4) M(5) M(6) M(7) M(8) M(9) M(10) M(11) M(12) M(13) M(14)
#define EACH7(M) M(0) M(1) M(2) M(3) M(4) M(5) M(6)
#define LOADZ(n) "vmovdqa64 256+64*" #n "(%rdi), %zmm" #n "\n"
#define SAVEZ(n) "vmovdqa64 %zmm" #n ", 256+64*" #n "(%rdi)\n"
#define ADDZ(n) "vpaddq %zmm31, %zmm" #n ", %zmm" #n "\n"
#define LOADY(n) "vmovdqa 256+64*" #n "(%rdi), %ymm" #n "\n"
#define SAVEY(n) "vmovdqa %ymm" #n ", 256+64*" #n "(%rdi)\n"
#define ADDY(n) "vpaddq %ymm15, %ymm" #n ", %ymm" #n "\n"
#define LOADK(n) "kmovq 176+8*" #n "(%rdi), %k" #n "\n"
#define SAVEK(n) "kmovq %k" #n ", 176+8*" #n "(%rdi)\n"
#define ADDK(n) "kaddq %k7, %k" #n ", %k" #n "\n"
#define ENTER "push %rbx\npush %rbp\npush %r12\npush %r13\npush %r14\npush %r15\npush %rdi\n"
#define LOADX \
    "fldl 120+48(%rdi)\nfldl 120+40(%rdi)\nfldl 120+32(%rdi)\nfldl 120+24(%rdi)\nfldl 120+16(%rdi)\nfldl 120+8(%rdi)\nfldl 120(%rdi)\nfld1\n"
#define ADDX \
    "fadd %st, %st(1)\nfadd %st, %st(2)\nfadd %st, %st(3)\nfadd %st, %st(4)\nfadd %st, %st(5)\nfadd %st, %st(6)\nfadd %st, %st(7)\n"
#define SAVEX \
    "fstp %st(0)\nfstpl 120(%rdi)\nfstpl 120+8(%rdi)\nfstpl 120+16(%rdi)\nfstpl 120+24(%rdi)\nfstpl 120+32(%rdi)\nfstpl 120+40(%rdi)\nfstpl 120+48(%rdi)\n"
#define LOADG \
    "mov (%rdi), %rcx\nmov 8(%rdi), %rax\nmov 16(%rdi), %rbx\nmov 24(%rdi), %rdx\nmov 32(%rdi), %rsi\nmov 48(%rdi), %rbp\n"         \
    "mov 56(%rdi), %r8\nmov 64(%rdi), %r9\nmov 72(%rdi), %r10\nmov 80(%rdi), %r11\nmov 88(%rdi), %r12\nmov 96(%rdi), %r13\n"       \
    "mov 104(%rdi), %r14\nmov 112(%rdi), %r15\nmov 40(%rdi), %rdi\n"
#define ADDG \
    "inc %rax\ninc %rbx\ninc %rdx\ninc %rsi\ninc %rdi\ninc %rbp\ninc %r8\ninc %r9\ninc %r10\ninc %r11\ninc %r12\ninc %r13\n"       \
    "inc %r14\ninc %r15\ndec %rcx\njnz 1b\n"
#define SAVEG \
    "xchg %rdi, (%rsp)\nmov %rcx, (%rdi)\nmov %rax, 8(%rdi)\nmov %rbx, 16(%rdi)\nmov %rdx, 24(%rdi)\nmov %rsi, 32(%rdi)\n"         \
    "mov %rbp, 48(%rdi)\nmov %r8, 56(%rdi)\nmov %r9, 64(%rdi)\nmov %r10, 72(%rdi)\nmov %r11, 80(%rdi)\nmov %r12, 88(%rdi)\n"       \
    "mov %r13, 96(%rdi)\nmov %r14, 104(%rdi)\nmov %r15, 112(%rdi)\npop %rax\nmov %rax, 40(%rdi)\nstmxcsr 240(%rdi)\n"              \
    "fnstcw 244(%rdi)\n"
#define LEAVE "vzeroupper\npop %r15\npop %r14\npop %r13\npop %r12\npop %rbp\npop %rbx\nret\n"

__asm__(".text\n.globl spin512\nspin512:\n" ENTER LOADX EACH32(LOADZ) LOADZ(31) EACH7(LOADK) LOADK(7) LOADG "1:\n" EACH32(ADDZ)
            EACH7(ADDK) ADDX ADDG SAVEG EACH32(SAVEZ) EACH7(SAVEK) SAVEX LEAVE);
__asm__(".globl spin256\nspin256:\n" ENTER LOADX EACH15(LOADY) LOADY(15) LOADG "1:\n" EACH15(ADDY) ADDX ADDG SAVEG EACH15(SAVEY)
            SAVEX LEAVE);

static struct state state;
static uint64_t total, gs_word;

static void check(int vectors, int lanes, bool masks) {
    for (int i = 0; i < 14; i++)
        if (state.gpr[i] != mix(1, (uint64_t)i) + total)
            wrong("general register %d after %lu rounds", i, total);
    for (int i = 0; i < 7; i++)
        if (state.x87[i] != (double)((uint64_t)i * 1000 + total))
            wrong("x87 register %d after %lu rounds", i, total);
    for (int i = 0; masks && i < 7; i++)
        if (state.mask[i] != mix(3, (uint64_t)i) + total)
            wrong("k%d after %lu rounds", i, total);
    for (int i = 0; i < vectors; i++)
        for (int lane = 0; lane < lanes; lane++)
            if (state.vector[i][lane] != mix((uint64_t)i, (uint64_t)lane) + total)
                wrong("vector register %d lane %d after %lu rounds", i, lane, total);
    uint64_t by_gs;
    __asm__ volatile("mov %%gs:0, %0" : "=r"(by_gs));
    if (by_gs != gs_word)
        wrong("gs base");
    if ((state.mxcsr & 0xFFC0) != 0x7F80 || state.fcw != 0x0F7F)
        wrong("mxcsr %x, x87 control %x", state.mxcsr, state.fcw);
}

int main(void) {
    bool wide = __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512f");
    if (!wide && !__builtin_cpu_supports("avx2"))
        skip("no AVX2 here");
    int vectors = wide ? 31 : 15, lanes = wide ? 8 : 4;
    uint32_t mxcsr = 0x7F80;
    uint16_t fcw = 0x0F7F; /* round towards zero in both, so that the default would show */
    __asm__ volatile("ldmxcsr %0\nfldcw %1" : : "m"(mxcsr), "m"(fcw));
    gs_word = mix(7, 7);
    need(syscall(SYS_arch_prctl, ARCH_SET_GS, &gs_word) == 0, "ARCH_SET_GS");
    for (int i = 0; i < 32; i++)
        for (int lane = 0; lane < 8; lane++)
            state.vector[i][lane] = i == vectors ? 1 : mix((uint64_t)i, (uint64_t)lane);
    for (int i = 0; i < 14; i++)
        state.gpr[i] = mix(1, (uint64_t)i);
    for (int i = 0; i < 7; i++)
        state.x87[i] = i * 1000;
    for (int i = 0; i < 8; i++)
        state.mask[i] = i == 7 ? 1 : mix(3, (uint64_t)i);
    for (uint64_t turn = 0;; turn++) {
        state.rounds = 200000;
        (wide ? spin512 : spin256)(&state);
        total += 200000;
        check(vectors, lanes, wide);
        if (turn == 0)
            ready();
        if (asked(0))
            answer();
    }
}
