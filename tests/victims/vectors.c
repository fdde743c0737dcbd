// Vector registers full of known values while the process is frozen: SSE always, AVX and AVX-512 where the CPU has them; also x87
// and MXCSR. Each thread spins in assembly without touching them, then stores them.
#include "victim.h"

static volatile int go_on;
static int spinning;

struct registers { _Alignas(64) u8 bytes[32][64]; };

static void fill(struct registers *registers, u64 salt) {
    for (u64 r = 0; r < 32; r++)
        for (u64 b = 0; b < 64; b++) registers->bytes[r][b] = (u8)mix(salt << 32 | r << 8 | b);
}

static void compare(const struct registers *want, const struct registers *is, int registers, int bytes, const char *kind) {
    for (int r = 0; r < registers; r++)
        CHECK(memcmp(want->bytes[r], is->bytes[r], (size_t)bytes) == 0, "%s%d differs", kind, r);
}

#define EACH8(M, base) M(base, 0) M(base, 1) M(base, 2) M(base, 3) M(base, 4) M(base, 5) M(base, 6) M(base, 7)
#define LOAD(op, reg, n) op " " #n "*64(%0), %%" reg #n "\n"
#define STORE(op, reg, n) op " %%" reg #n ", " #n "*64(%1)\n"
#define SIXTEEN(M, op, reg) M(op, reg, 0) M(op, reg, 1) M(op, reg, 2) M(op, reg, 3) M(op, reg, 4) M(op, reg, 5) M(op, reg, 6) M(op, reg, 7) \
    M(op, reg, 8) M(op, reg, 9) M(op, reg, 10) M(op, reg, 11) M(op, reg, 12) M(op, reg, 13) M(op, reg, 14) M(op, reg, 15)
#define SECOND_SIXTEEN(M, op, reg) M(op, reg, 16) M(op, reg, 17) M(op, reg, 18) M(op, reg, 19) M(op, reg, 20) M(op, reg, 21) M(op, reg, 22) M(op, reg, 23) \
    M(op, reg, 24) M(op, reg, 25) M(op, reg, 26) M(op, reg, 27) M(op, reg, 28) M(op, reg, 29) M(op, reg, 30) M(op, reg, 31)
#define SPIN "lock incl (%2)\n1: pause\n cmpl $0, (%3)\n je 1b\n"
#define LOW "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11", "xmm12", "xmm13", "xmm14", "xmm15", "memory", "cc"
#define HOLD(load, store) __asm__ volatile(load SPIN store : : "r"(want), "r"(is), "r"(&spinning), "r"(&go_on) : LOW)

static void hold_sse(const struct registers *want, struct registers *is) { HOLD(SIXTEEN(LOAD, "movdqu", "xmm"), SIXTEEN(STORE, "movdqu", "xmm")); }

static void hold_avx(const struct registers *want, struct registers *is) {
    HOLD(SIXTEEN(LOAD, "vmovdqu", "ymm"), SIXTEEN(STORE, "vmovdqu", "ymm") "vzeroupper\n");
}

static void hold_avx512(const struct registers *want, struct registers *is) {
    HOLD(SIXTEEN(LOAD, "vmovdqu64", "zmm") SECOND_SIXTEEN(LOAD, "vmovdqu64", "zmm"),
         SIXTEEN(STORE, "vmovdqu64", "zmm") SECOND_SIXTEEN(STORE, "vmovdqu64", "zmm") "vzeroupper\n");
}

static void *sse(void *salt) {
    struct registers want, is;
    fill(&want, (u64)salt);
    uint32_t mxcsr = 0x1fc0 | 0x6000, now; // denormals are zero, round towards zero
    uint16_t control = 0x0f7f, control_now;
    double pi = 0;
    __asm__ volatile("ldmxcsr %0\n fldcw %1\n fldpi" : : "m"(mxcsr), "m"(control));
    hold_sse(&want, &is);
    __asm__ volatile("stmxcsr %0\n fstcw %1\n fstpl %2" : "=m"(now), "=m"(control_now), "=m"(pi));
    CHECK((now & ~0x3fu) == (mxcsr & ~0x3fu), "mxcsr is %#x instead of %#x", now, mxcsr);
    CHECK(control_now == control, "the x87 control word is %#x instead of %#x", control_now, control);
    CHECK(pi > 3.14159265358 && pi < 3.14159265360, "x87 lost its stack: %.12f", pi);
    compare(&want, &is, 16, 16, "xmm");
    return NULL;
}

static void *avx(void *salt) {
    struct registers want, is;
    fill(&want, (u64)salt);
    hold_avx(&want, &is);
    compare(&want, &is, 16, 32, "ymm");
    return NULL;
}

static void *avx512(void *salt) {
    struct registers want, is;
    fill(&want, (u64)salt);
    hold_avx512(&want, &is);
    compare(&want, &is, 32, 64, "zmm");
    return NULL;
}

int main(void) {
    void *(*bodies[3])(void *) = {sse, avx, avx512};
    int has[3] = {1, __builtin_cpu_supports("avx"), __builtin_cpu_supports("avx512f")};
    pthread_t threads[6];
    int count = 0;
    for (int kind = 0; kind < 3; kind++)
        for (u64 copy = 0; has[kind] && copy < 2; copy++) threads[count++] = start(bodies[kind], (void *)(u64)(kind * 10 + copy + 1));
    while (__atomic_load_n(&spinning, __ATOMIC_SEQ_CST) < count) sleep_ms(1);
    ready();
    wait_go();
    go_on = 1;
    for (int i = 0; i < count; i++) CHECK(pthread_join(threads[i], NULL) == 0, "join");
    ok();
}
