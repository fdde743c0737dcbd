// Threads that know what they have: `busy COUNT NAP_US`. Each works for a moment, checks itself and naps, over and over: with known
// values in all general and vector registers, flags and the red zone; on memory with a checksum; in system calls that wait; with a
// signal mask of its own. Whatever stops and starts them may change nothing. The verdict waits for each to have made progress.
#include "victim.h"
#include <linux/futex.h>

static int count, nap_us;
static u64 *rounds;
__thread u64 spins __attribute__((tls_model("local-exec")));

static void nap(void) {
    struct timespec t = {0, nap_us * 1000L};
    nanosleep(&t, NULL);
}

struct state { u64 general[14]; u8 vector[16][16] __attribute__((aligned(16))); u64 red[8]; u64 flags; };

// All registers but the stack pointer hold values of `want` while the loop runs; `is` is what they hold after it. rbp and rbx too.
__attribute__((naked, noinline)) static void hold(const struct state *want, struct state *is) {
    (void)want, (void)is;
    __asm__ volatile(
        "push %rbp\n push %rbx\n push %r12\n push %r13\n push %r14\n push %r15\n push %rsi\n"
        "mov 240+112(%rdi), %rax\n mov %rax, -8(%rsp)\n mov 248+112(%rdi), %rax\n mov %rax, -64(%rsp)\n mov 256+112(%rdi), %rax\n mov %rax, -128(%rsp)\n"
        "movdqu 112(%rdi), %xmm0\n movdqu 128(%rdi), %xmm1\n movdqu 144(%rdi), %xmm2\n movdqu 160(%rdi), %xmm3\n"
        "movdqu 176(%rdi), %xmm4\n movdqu 192(%rdi), %xmm5\n movdqu 208(%rdi), %xmm6\n movdqu 224(%rdi), %xmm7\n"
        "mov 0(%rdi), %rax\n mov 8(%rdi), %rbx\n mov 16(%rdi), %rcx\n mov 24(%rdi), %rdx\n mov 32(%rdi), %rsi\n mov 48(%rdi), %rbp\n"
        "mov 56(%rdi), %r8\n mov 64(%rdi), %r9\n mov 72(%rdi), %r10\n mov 80(%rdi), %r11\n mov 88(%rdi), %r12\n mov 96(%rdi), %r13\n"
        "mov 104(%rdi), %r14\n mov 240(%rdi), %r15\n mov 40(%rdi), %rdi\n"
        "std\n stc\n"
        "1: pause\n decq %fs:spins@tpoff\n jnz 1b\n"
        // rsi was pushed last: it is where the results go. Flags stay as the last dec left them until they are taken.
        "xchg %rax, (%rsp)\n"
        "mov %rbx, 8(%rax)\n mov %rcx, 16(%rax)\n mov %rdx, 24(%rax)\n mov %rsi, 32(%rax)\n mov %rdi, 40(%rax)\n mov %rbp, 48(%rax)\n"
        "mov %r8, 56(%rax)\n mov %r9, 64(%rax)\n mov %r10, 72(%rax)\n mov %r11, 80(%rax)\n mov %r12, 88(%rax)\n mov %r13, 96(%rax)\n"
        "mov %r14, 104(%rax)\n mov %r15, 240(%rax)\n mov (%rsp), %rbx\n mov %rbx, 0(%rax)\n"
        "mov -64(%rsp), %rbx\n mov %rbx, 248+112(%rax)\n mov -128(%rsp), %rbx\n mov %rbx, 256+112(%rax)\n mov -8(%rsp), %rbx\n mov %rbx, 240+112(%rax)\n"
        "pushfq\n pop %rbx\n mov %rbx, 432(%rax)\n cld\n"
        "movdqu %xmm0, 112(%rax)\n movdqu %xmm1, 128(%rax)\n movdqu %xmm2, 144(%rax)\n movdqu %xmm3, 160(%rax)\n"
        "movdqu %xmm4, 176(%rax)\n movdqu %xmm5, 192(%rax)\n movdqu %xmm6, 208(%rax)\n movdqu %xmm7, 224(%rax)\n"
        "pop %rsi\n pop %r15\n pop %r14\n pop %r13\n pop %r12\n pop %rbx\n pop %rbp\n ret\n");
}

static void in_registers(u64 number) {
    struct state want, is;
    memset(&is, 0, sizeof is);
    for (u64 at = 0; at < sizeof want / 8; at++) ((u64 *)&want)[at] = mix(number << 32 | at | rounds[number] << 16);
    spins = 3000;
    hold(&want, &is);
    for (int r = 0; r < 14; r++) CHECK(want.general[r] == is.general[r], "thread %lu: general register %d is %lx instead of %lx", number, r, is.general[r], want.general[r]);
    CHECK(memcmp(want.vector, is.vector, 8 * 16) == 0, "thread %lu: a vector register differs", number);
    CHECK(((u64 *)&want)[30] == ((u64 *)&is)[30], "thread %lu: r15 differs", number);
    for (int at = 44; at <= 46; at++) CHECK(((u64 *)&want)[at] == ((u64 *)&is)[at], "thread %lu: word %d of the red zone differs", number, at);
    CHECK((is.flags & 0xcd5) == 0x445, "thread %lu: the flags are %lx", number, is.flags); // direction, zero, parity and carry, nothing else
}

static void in_memory(u64 number) {
    static __thread u64 words[2048], sum;
    for (int n = 0; n < 4000; n++) {
        u64 at = mix(number ^ (u64)n ^ rounds[number]) % 2048, value = mix(at + sum);
        sum += value - words[at];
        words[at] = value;
    }
    u64 now = 0;
    for (int at = 0; at < 2048; at++) now += words[at];
    CHECK(now == sum, "thread %lu: its memory sums up to %lx instead of %lx", number, now, sum);
}

static void in_calls(u64 number) {
    static __thread int ends[2];
    if (!ends[1]) MUST(pipe(ends) == 0);
    u64 sent = mix(number + rounds[number]), got = 0;
    MUST(write(ends[1], &sent, sizeof sent) == sizeof sent);
    MUST(read(ends[0], &got, sizeof got) == sizeof got);
    CHECK(sent == got, "thread %lu: a pipe gave %lx instead of %lx", number, got, sent);
    uint32_t word = 1;
    struct timespec t = {0, 2000000};
    long woken = syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, 1, &t, NULL, 0);
    CHECK(woken < 0 && (errno == ETIMEDOUT || errno == EINTR), "thread %lu: a futex wait ended with %ld (%s)", number, woken, strerror(errno));
}

static void with_mask(u64 number) {
    static __thread sigset_t own;
    static __thread int set;
    sigset_t now;
    if (!set) {
        sigemptyset(&own);
        for (int signal = 34; signal < 64; signal++)
            if (mix(number * 64 + (u64)signal) & 1) sigaddset(&own, signal);
        sigaddset(&own, SIGUSR1);
        MUST(pthread_sigmask(SIG_SETMASK, &own, NULL) == 0);
        set = 1;
    }
    struct timespec t = {0, 1000000};
    sigset_t usr1;
    sigemptyset(&usr1);
    sigaddset(&usr1, SIGUSR1);
    CHECK(sigtimedwait(&usr1, NULL, &t) < 0, "thread %lu: a signal came", number);
    MUST(pthread_sigmask(SIG_BLOCK, NULL, &now) == 0);
    for (int signal = 1; signal < 64; signal++)
        CHECK(sigismember(&own, signal) == sigismember(&now, signal), "thread %lu: signal %d is %sblocked", number, signal, sigismember(&now, signal) ? "" : "not ");
}

static void *work(void *argument) {
    static void (*const kinds[])(u64) = {in_registers, in_memory, in_calls, with_mask};
    u64 number = (u64)argument;
    for (;;) {
        kinds[number % 4](number);
        __atomic_add_fetch(&rounds[number], 1, __ATOMIC_SEQ_CST);
        if (nap_us) nap();
    }
    return NULL;
}

int main(int argc, char **argv) {
    MUST(argc == 3);
    count = atoi(argv[1]), nap_us = atoi(argv[2]);
    rounds = calloc((size_t)count, sizeof *rounds);
    pthread_attr_t small;
    MUST(pthread_attr_init(&small) == 0 && pthread_attr_setstacksize(&small, 256 << 10) == 0);
    for (int number = 0; number < count; number++) {
        pthread_t thread;
        MUST(pthread_create(&thread, &small, work, (void *)(u64)number) == 0);
    }
    for (int number = 0; number < count; number++)
        while (__atomic_load_n(&rounds[number], __ATOMIC_SEQ_CST) == 0) sleep_ms(1);
    ready();
    wait_go();
    u64 *before = malloc((size_t)count * sizeof *before);
    for (int number = 0; number < count; number++) before[number] = __atomic_load_n(&rounds[number], __ATOMIC_SEQ_CST);
    for (int number = 0; number < count; number++)
        while (__atomic_load_n(&rounds[number], __ATOMIC_SEQ_CST) < before[number] + 2) sleep_ms(1);
    ok();
}
