/* test_operand.c: does operand.c name the place that an instruction writes?
 *
 * The judge is the processor: each instruction below is run against memory that may not be written, in varied registers;
 * the address of the fault (si_addr), found in the handler together with the registers, must lie in a place that
 * operand_find() gives for the bytes at rip, and the next bytes after them may be anything. Encodings that this processor
 * may not have are given as bytes with the address that the manual says.
 */
#define _GNU_SOURCE
#include "check.h"
#include "operand.h"
#include <setjmp.h>
#include <stdint.h>
#include <sys/mman.h>
#include <ucontext.h>

static sigjmp_buf back;
static unsigned faults;
static const char *doing;
static char *area; /* 64 MiB, PROT_READ */
static size_t places;

static bool inside(const struct operand *operand, uint64_t addr) {
    for (size_t i = 0; i < operand->count; i++)
        if (addr >= operand->at[i].start && addr < operand->at[i].end)
            return true;
    return false;
}

static void on_fault(int signal, siginfo_t *info, void *context) {
    const greg_t *g = ((ucontext_t *)context)->uc_mcontext.gregs;
    struct user_regs_struct regs = {
        .r8 = (uint64_t)g[REG_R8], .r9 = (uint64_t)g[REG_R9], .r10 = (uint64_t)g[REG_R10], .r11 = (uint64_t)g[REG_R11],
        .r12 = (uint64_t)g[REG_R12], .r13 = (uint64_t)g[REG_R13], .r14 = (uint64_t)g[REG_R14], .r15 = (uint64_t)g[REG_R15],
        .rax = (uint64_t)g[REG_RAX], .rbx = (uint64_t)g[REG_RBX], .rcx = (uint64_t)g[REG_RCX], .rdx = (uint64_t)g[REG_RDX],
        .rsi = (uint64_t)g[REG_RSI], .rdi = (uint64_t)g[REG_RDI], .rbp = (uint64_t)g[REG_RBP], .rsp = (uint64_t)g[REG_RSP],
        .rip = (uint64_t)g[REG_RIP]};
    struct operand operand;
    if (!operand_find((const uint8_t *)(uintptr_t)regs.rip, OPERAND_BYTES, &regs, &operand)) {
        fprintf(stderr, "not understood: %s\n", doing);
        exit(1);
    }
    if (!inside(&operand, (uint64_t)(uintptr_t)info->si_addr)) {
        fprintf(stderr, "%s: writes %p, which is in none of %zu places\n", doing, info->si_addr, operand.count);
        exit(1);
    }
    faults++;
    places += operand.count;
    siglongjmp(back, 1);
}

/* Runs one instruction with rax = rbx = r12 = r13 = r15 = a place in the area, and rcx, r9 = a small index. */
#define RUN(text)                                                                                                                          \
    do {                                                                                                                                   \
        doing = text;                                                                                                                      \
        char *to = area + (32 << 20) + k * 4576;                                                                                           \
        unsigned before = faults;                                                                                                          \
        if (!sigsetjmp(back, 1))                                                                                                           \
            __asm__ volatile("mov %0, %%rbx\n mov %0, %%rax\n mov %0, %%r12\n mov %0, %%r13\n mov %0, %%r15\n mov %0, %%rdi\n mov %0, %%rsi\n" \
                             "mov %1, %%rcx\n mov %1, %%r9\n mov $7, %%edx\n mov $7, %%r8d\n" text                                        \
                             :: "r"(to), "r"(index)                                                                                        \
                             : "rax", "rbx", "rcx", "rdx", "rsi", "rdi", "r8", "r9", "r12", "r13", "r15", "memory", "cc", "xmm0", "xmm1");  \
        CHECK_EQ(faults, before + 1);                                                                                                      \
    } while (0)

static void by_processor(size_t k, uint64_t index) {
    RUN("movb $1, (%%rbx)");
    RUN("movq $1, 4(%%rbx)");
    RUN("movl %%edx, 0x12345(%%rax)");
    RUN("movw %%dx, -3000(%%r12)");
    RUN("movb %%dl, (%%r13)");
    RUN("movq %%r8, (%%rbx,%%rcx,8)");
    RUN("movq %%r8, 0x40(%%r12,%%r9,4)");
    RUN("movq %%r8, -0x10000(%%r13,%%rcx,2)");
    RUN("addl $0x11223344, 100(%%r15)");
    RUN("lock cmpxchgq %%r8, (%%rbx,%%r9)");
    RUN("lock xaddl %%edx, 8(%%rbx)");
    RUN("xchgb %%dl, (%%r15)");
    RUN("incq (%%rbx)");
    RUN("negb 1(%%r12)");
    RUN("shll $3, (%%rbx)");
    RUN("shlq %%cl, (%%r13)");
    RUN("btsq %%r8, (%%rbx)");
    RUN("lock btsl $5, (%%rbx)");
    RUN("sete (%%rbx,%%rcx)");
    RUN("stosb");
    RUN("rep stosq");
    RUN("rep movsb");
    RUN("movsl");
    RUN("pushq $5\n lea 8(%%rsp), %%rsp\n popq (%%rbx)");
    RUN("movups %%xmm0, (%%rbx)");
    RUN("movdqu %%xmm1, 0x7f(%%r12,%%rcx,8)");
    RUN("movntdq %%xmm0, (%%r15)");
    RUN("movnti %%r8, 16(%%rbx)");
    RUN("movq %%xmm0, (%%r13)");
    RUN("movss %%xmm0, (%%rbx,%%r9,4)");
    RUN("stmxcsr (%%rbx)");
    RUN("fxsave (%%rbx)");
    RUN("fstpl (%%rbx)");
    RUN("fnstenv (%%r12)");
    RUN("pextrd $2, %%xmm0, (%%rbx)");
    RUN("movbe %%edx, (%%rbx)");
    RUN("cmpxchg16b (%%r15)");
    RUN("movabs %%al, 0x600000001000");
    RUN("movabs %%rax, 0x600000002008");
    RUN("movb $1, %%cs:(%%rbx)");
    RUN("lea -0x1000(%%rbx), %%rbx\n movl $9, 0x1000(%%ebx)");
    RUN("pcmpeqb %%xmm0, %%xmm0\n maskmovdqu %%xmm0, %%xmm1");
    if (__builtin_cpu_supports("avx2")) {
        RUN("vmovdqu %%ymm0, 0x20(%%r12,%%rcx,4)");
        RUN("vmovups %%xmm0, (%%rbx)");
        RUN("vmovntps %%ymm0, (%%r15)");
        RUN("vpcmpeqd %%ymm0, %%ymm0, %%ymm0\n vpmaskmovd %%ymm1, %%ymm0, (%%r13)");
        RUN("vextracti128 $1, %%ymm0, (%%rbx)");
        RUN("vpextrb $1, %%xmm0, 3(%%r9,%%rbx)");
    }
    if (__builtin_cpu_supports("avx512f")) {
        RUN("vmovdqu64 %%zmm0, 0x40(%%rbx)");
        RUN("vmovdqu64 %%zmm0, -0x1f80(%%r12)");
        RUN("vmovdqu32 %%zmm16, 0x100000(%%r13,%%rcx,8)");
        RUN("vmovups %%zmm31, (%%r15,%%r9,8)");
        RUN("vpmovqb %%zmm0, 0x78(%%rbx)");
        RUN("vcompresspd %%zmm0, 0x38(%%rbx)");
        RUN("vextracti32x4 $1, %%zmm0, -0x7f0(%%rbx)");
    }
}

/* rip-relative with every immediate, push and call on a stack that may not be written: by bytes and the manual's word. */
struct given {
    const char *name;
    uint8_t code[OPERAND_BYTES];
    uint64_t writes; /* 0 = must not be understood */
};

enum { RIP = 0x401000, RSP = 0x7ffe00001000, RDI = 0x500000, RAX = 0x600000, FS = 0x7f0000000000, R11 = 0x900000 };
static const struct given GIVEN[] = {
    {"mov byte [rip+0x1000], 1", {0xc6, 0x05, 0, 0x10, 0, 0, 1}, RIP + 7 + 0x1000},
    {"mov dword [rip-0x800], imm32", {0xc7, 0x05, 0, 0xf8, 0xff, 0xff, 1, 2, 3, 4}, RIP + 10 - 0x800},
    {"inc qword [rip+0x2345]", {0x48, 0xff, 0x05, 0x45, 0x23, 0, 0}, RIP + 7 + 0x2345},
    {"mov fs:[0x28], rax", {0x64, 0x48, 0x89, 0x04, 0x25, 0x28, 0, 0, 0}, (uint64_t)FS + 0x28},
    {"mov [0x7654320], eax", {0x89, 0x04, 0x25, 0x20, 0x43, 0x65, 0x07}, 0x7654320},
    {"push rbx", {0x53}, (uint64_t)RSP - 8},
    {"call rel32", {0xe8, 1, 2, 3, 4}, (uint64_t)RSP - 8},
    {"call [rax]", {0xff, 0x10}, (uint64_t)RSP - 8},
    {"fs rep stosb", {0x64, 0xf3, 0xaa}, RDI},
    {"clzero", {0x0f, 0x01, 0xfc}, RAX},
    {"xsave [rax+0x40], at its end", {0x0f, 0xae, 0x60, 0x40}, RAX + 0x40 + 11000},
    {"xsavec [rdi]", {0x0f, 0xc7, 0x27}, RDI + 10000},
    {"vmovdqu64 [rax+0x40*0x7f], zmm0", {0x62, 0xf1, 0xfe, 0x48, 0x7f, 0x40, 0x7f}, RAX + 0x40 * 0x7f},
    {"vmovaps [r11], ymm (three bytes)", {0xc4, 0xc1, 0x7c, 0x29, 0x03}, R11},
    {"vmovaps [rax], ymm (two bytes)", {0xc5, 0xfc, 0x29, 0x00}, RAX},
    {"rex, then a legacy prefix: the rex is void", {0x41, 0x66, 0x89, 0x00}, RAX},
    {"vpscatterdd", {0x62, 0xf2, 0x7d, 0x49, 0xa0, 0x04, 0x88}, 0},
    {"tilestored", {0xc4, 0xe2, 0x7a, 0x4b, 0x04, 0x08}, 0},
    {"movdir64b", {0x66, 0x0f, 0x38, 0xf8, 0x00}, 0},
    {"enter", {0xc8, 0, 0x10, 0}, 0},
    {"xop", {0x8f, 0xe8, 0x78, 0x00, 0x00}, 0},
    {"rex2", {0xd5, 0x10, 0x89, 0x00}, 0},
    {"evex map 4", {0x62, 0xf4, 0x7c, 0x18, 0xff, 0x00}, 0},
};

static void by_manual(void) {
    for (size_t i = 0; i < sizeof GIVEN / sizeof *GIVEN; i++) {
        struct user_regs_struct regs = {.rip = RIP, .rsp = RSP, .rdi = RDI, .rax = RAX, .fs_base = FS, .r11 = R11, .r8 = 0x1000000};
        struct operand operand;
        bool understood = operand_find(GIVEN[i].code, OPERAND_BYTES, &regs, &operand);
        doing = GIVEN[i].name;
        if (understood != !!GIVEN[i].writes || (understood && !inside(&operand, GIVEN[i].writes))) {
            fprintf(stderr, "%s: %s\n", doing, understood ? "wrong place" : "not understood");
            exit(1);
        }
    }
    struct user_regs_struct regs = {.rip = RIP};
    struct operand operand;
    const uint8_t cut[] = {0x48, 0xc7, 0x84, 0x24, 0, 0};
    CHECK(!operand_find(cut, sizeof cut, &regs, &operand));
    CHECK(!operand_find(cut, 0, &regs, &operand));
}

/* Whatever bytes come: no read behind the end (the sanitizers judge), no more places than there is room for. */
static void by_chance(void) {
    uint64_t seed = 88172645463325252u;
    for (int i = 0; i < 2000000; i++) {
        seed ^= seed << 13, seed ^= seed >> 7, seed ^= seed << 17;
        uint64_t two[2] = {seed, seed * 0x9e3779b97f4a7c15u};
        size_t bytes = seed >> 60;
        uint8_t *code = (uint8_t *)two;
        static const uint8_t heads[] = {0x62, 0xc4, 0xc5, 0x0f, 0x48, 0x67, 0x8f, 0xff};
        code[0] = i & 1 ? heads[i >> 1 & 7] : code[0];
        struct user_regs_struct regs = {.rip = seed, .rsp = ~seed, .rdi = UINT64_MAX, .rax = 3};
        struct operand operand = {0};
        uint8_t *exact = malloc(bytes + 1);
        memcpy(exact + 1, code, bytes);
        bool understood = operand_find(exact + 1, bytes, &regs, &operand);
        free(exact);
        CHECK(!understood || (operand.count >= 2 && operand.count <= OPERAND_PLACES));
        for (size_t k = 0; understood && k < operand.count; k++)
            CHECK(operand.at[k].start < operand.at[k].end);
    }
}

int main(void) {
    struct sigaction action = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO | SA_NODEFER};
    sigaction(SIGSEGV, &action, NULL);
    area = mmap(NULL, 64 << 20, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_32BIT, -1, 0); /* for 32-bit addresses */
    CHECK(area != MAP_FAILED);
    CHECK(mmap((void *)0x600000000000, 1 << 20, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) != MAP_FAILED);
    by_manual();
    by_chance();
    for (size_t k = 1; k <= 200; k++)
        by_processor(k, k * 4);
    CHECK(places / faults < 6);
    printf("%u faults, PASS\n", faults);
    return 0;
}
