/* operand.c: where one x86-64 instruction may write, from its bytes and the registers before it.
 *
 * It is no disassembler: neither the instruction's length nor what it does is known, and it need not be. Almost every
 * operand in memory is named by ModRM and SIB in the same form, whatever the opcode (one-byte, 0F, 0F38, 0F3A, VEX,
 * EVEX); the rest writes where rdi or rsp points. So the answer is a set of places that holds the truth and a little
 * more: a reader that looks at a page too many loses a microsecond, one that misses a page loses the program's data.
 *
 * Invariants
 *  1. Each place is OPERAND_REACH bytes to both sides of an address: 64-byte operands, pushes, the immediate whose
 *     length moves a rip-relative address by up to 8 bytes, and fast string moves that run ahead of rdi all fit.
 *  2. Around rdi (string moves, MASKMOV) and rsp (push, call) always, whatever the opcode.
 *  3. EVEX scales disp8 by an operand size that only the opcode tells: all seven powers of two are given.
 *  4. What names its destination otherwise is refused: scatters and AMX tile stores (a vector of addresses), MOVDIR64B
 *     and ENQCMD (the register operand is the address), ENTER (far below rsp), XOP, REX2 and APX forms, cut bytes.
 *
 * Source: Intel SDM volume 2, chapter 2 (instruction format), 2.3 (VEX), 2.7 (EVEX).
 */
#include "operand.h"
#include <string.h>

enum { CODE_ONE, CODE_0F, CODE_0F38, CODE_0F3A, CODE_MORE };

struct reader {
    const uint8_t *at, *end;
    const struct user_regs_struct *regs;
    ckpt_addr_t next; /* address of the byte at `at` */
    unsigned rex;     /* bits W R X B as in REX, from whichever prefix */
    unsigned map;     /* CODE_... */
    bool evex, narrow, fs, gs, cut;
};

static uint64_t take(struct reader *reader, size_t bytes) {
    uint64_t value = 0;
    if ((size_t)(reader->end - reader->at) < bytes) {
        reader->cut = true;
        reader->at = reader->end;
        return 0;
    }
    memcpy(&value, reader->at, bytes);
    reader->at += bytes;
    reader->next += bytes;
    return value;
}

static uint64_t reg(const struct reader *reader, unsigned number) {
    const struct user_regs_struct *regs = reader->regs;
    const unsigned long long all[16] = {regs->rax, regs->rcx, regs->rdx, regs->rbx, regs->rsp, regs->rbp, regs->rsi, regs->rdi,
                                        regs->r8,  regs->r9,  regs->r10, regs->r11, regs->r12, regs->r13, regs->r14, regs->r15};
    return all[number & 15];
}

static void put(const struct reader *reader, uint64_t address, uint64_t size, struct operand *out) {
    if (reader->narrow)
        address &= UINT32_MAX;
    address += reader->fs ? reader->regs->fs_base : reader->gs ? reader->regs->gs_base : 0;
    ckpt_addr_t start = address < OPERAND_REACH ? 0 : address - OPERAND_REACH;
    ckpt_addr_t end = address + OPERAND_REACH + size;
    out->at[out->count].start = start;
    out->at[out->count++].end = end < start ? UINT64_MAX : end;
}

/* ---- prefixes ---- */

static bool legacy(struct reader *reader, uint8_t byte) {
    switch (byte) {
    case 0x64: reader->fs = true, reader->gs = false; return true;
    case 0x65: reader->gs = true, reader->fs = false; return true;
    case 0x67: reader->narrow = true; return true;
    case 0x26: case 0x2e: case 0x36: case 0x3e: case 0x66: case 0xf0: case 0xf2: case 0xf3: return true;
    }
    return false;
}

/* VEX (C4, C5) and EVEX (62); R X B stand inverted in their first payload byte. */
static bool vector_prefix(struct reader *reader, uint8_t first) {
    uint64_t payload = take(reader, 1);
    reader->rex = (unsigned)(~payload >> 5) & 7;
    if (first == 0xc5) {
        reader->rex = 0;
        reader->map = CODE_0F;
        return true;
    }
    unsigned map = payload & (first == 0xc4 ? 31 : 7), second = (unsigned)take(reader, 1);
    if (first == 0x62) {
        reader->evex = true;
        take(reader, 1);
        if ((payload & 8) || !(second & 4)) /* APX: registers 16-31 in an address */
            return false;
    }
    reader->map = map == 1 ? CODE_0F : map == 2 ? CODE_0F38 : map == 3 ? CODE_0F3A : CODE_MORE;
    return map && (map <= 3 || (first == 0x62 && (map == 5 || map == 6)));
}

/* Everything up to the opcode, which is returned; false = a form that is not understood. */
static bool opcode(struct reader *reader, uint8_t *ret_opcode) {
    uint8_t byte = (uint8_t)take(reader, 1);
    for (; legacy(reader, byte) || (byte & 0xf0) == 0x40; byte = (uint8_t)take(reader, 1)) {
        if (reader->cut)
            return false;
        reader->rex = (byte & 0xf0) == 0x40 ? byte & 15u : 0; /* counts only right before the opcode */
    }
    if (byte == 0xc4 || byte == 0xc5 || byte == 0x62) {
        if (!vector_prefix(reader, byte))
            return false;
        byte = (uint8_t)take(reader, 1);
    } else if (byte == 0x0f) {
        reader->map = CODE_0F;
        byte = (uint8_t)take(reader, 1);
        if (byte == 0x38 || byte == 0x3a) {
            reader->map = byte == 0x38 ? CODE_0F38 : CODE_0F3A;
            byte = (uint8_t)take(reader, 1);
        }
    } else if (byte == 0xd5 || (byte == 0x8f && reader->at < reader->end && (*reader->at & 0x38))) {
        return false; /* REX2, XOP */
    }
    *ret_opcode = byte;
    return !reader->cut;
}

static bool refused(const struct reader *reader, uint8_t opcode) {
    if (reader->map == CODE_ONE)
        return opcode == 0xc8; /* ENTER */
    if (reader->map != CODE_0F38)
        return false;
    return opcode == 0xf8 || opcode == 0x4b || (reader->evex && opcode >= 0xa0 && opcode <= 0xa3);
}

/* ---- ModRM and SIB ---- */

/* In doubt yes, which at worst names a place too many. */
static bool has_modrm(const struct reader *reader, uint8_t opcode) {
    if (reader->map == CODE_0F)
        return opcode != 0x05 && opcode != 0x0b && opcode != 0x77 && (opcode & 0xf0) != 0x80; /* SYSCALL, UD2, EMMS, jumps */
    if (reader->map != CODE_ONE)
        return true;
    if (opcode < 0x40)
        return (opcode & 7) < 4;
    switch (opcode) {
    case 0x63: case 0x69: case 0x6b: case 0xc0: case 0xc1: case 0xc6: case 0xc7: case 0xf6: case 0xf7: case 0xfe: case 0xff: return true;
    }
    return (opcode & 0xf0) == 0x80 || (opcode >= 0xd0 && opcode <= 0xd3) || (opcode >= 0xd8 && opcode <= 0xdf);
}

static void memory(struct reader *reader, uint8_t modrm, uint64_t size, struct operand *out) {
    unsigned mod = modrm >> 6, rm = modrm & 7, extra = reader->rex & 1 ? 8 : 0;
    uint64_t address = 0;
    bool relative = mod == 0 && rm == 5, no_base = relative;
    if (rm == 4) {
        uint8_t sib = (uint8_t)take(reader, 1);
        unsigned index = (sib >> 3 & 7) | (reader->rex & 2 ? 8 : 0);
        if (index != 4)
            address += reg(reader, index) << (sib >> 6);
        rm = sib & 7;
        no_base = mod == 0 && rm == 5;
    }
    if (!no_base)
        address += reg(reader, rm | extra);
    int64_t shift = 0;
    if (mod == 1)
        shift = (int8_t)take(reader, 1);
    else if (mod == 2 || no_base)
        shift = (int32_t)take(reader, 4);
    if (relative)
        address += reader->next;
    put(reader, address + (uint64_t)shift, size, out);
    for (int scale = 1; reader->evex && mod == 1 && scale <= 6; scale++)
        put(reader, address + ((uint64_t)shift << scale), size, out);
}

bool operand_find(const uint8_t *code, size_t bytes, const struct user_regs_struct *regs, struct operand *ret_operand) {
    struct reader reader = {.at = code, .end = code + (bytes < OPERAND_BYTES ? bytes : OPERAND_BYTES), .regs = regs, .next = regs->rip};
    struct operand out = {0};
    uint8_t op;
    if (!opcode(&reader, &op) || refused(&reader, op))
        return false;
    if (reader.map == CODE_ONE && op >= 0xa0 && op <= 0xa3) { /* MOV with an absolute address */
        put(&reader, take(&reader, reader.narrow ? 4 : 8), 0, &out);
    } else if (has_modrm(&reader, op)) {
        bool area = reader.map == CODE_0F && (op == 0xae || op == 0xc7); /* FXSAVE, XSAVE and their kin */
        uint8_t modrm = (uint8_t)take(&reader, 1);
        if (modrm >> 6 != 3)
            memory(&reader, modrm, area ? OPERAND_AREA : 0, &out);
        else if (reader.map == CODE_0F && op == 0x01 && modrm == 0xfc) /* CLZERO */
            put(&reader, regs->rax, 0, &out);
    }
    put(&reader, regs->rdi, 0, &out); /* MASKMOV: a segment prefix counts; string moves: it is the source's */
    reader.fs = reader.gs = false;
    put(&reader, regs->rdi, 0, &out);
    reader.narrow = false;
    put(&reader, regs->rsp, 0, &out);
    if (reader.cut)
        return false;
    *ret_operand = out;
    return true;
}
