// Restartable sequences: threads that are nearly always within a critical section, which may never go on once it was left.
//
// The kernel forgets a section (clears rseq_cs) when the thread returns to user space outside of it, and moves a thread that it
// stopped within to the abort handler. A section that finds itself forgotten was gone on with although it had been left.
#include "victim.h"
#include <sys/rseq.h>

#define THREADS 3

static u64 commits[THREADS], aborts[THREADS], broken[THREADS];
static int leave;

static void section(volatile struct rseq *rs, u64 spins, int which) {
    asm volatile goto(".pushsection __rseq_cs, \"aw\"\n"
                      ".balign 32\n"
                      "3: .long 0, 0\n"
                      ".quad 1f, (2f - 1f), 4f\n"
                      ".popsection\n"
                      "leaq 3b(%%rip), %%rax\n"
                      "movq %%rax, 8(%[rs])\n"
                      "1: movq %[spins], %%rcx\n"
                      "5: decq %%rcx\n"
                      "jnz 5b\n"
                      "cmpq %%rax, 8(%[rs])\n"
                      "jne %l[forgotten]\n"
                      "incq (%[commits])\n"
                      "2:\n"
                      ".pushsection __rseq_failure, \"ax\"\n"
                      ".byte 0x0f, 0xb9, 0x3d\n"
                      ".long 0x53053053\n"
                      "4: jmp %l[aborted]\n"
                      ".popsection\n"
                      :
                      : [rs] "r"(rs), [spins] "r"(spins), [commits] "r"(&commits[which])
                      : "rax", "rcx", "memory", "cc"
                      : aborted, forgotten);
    return;
aborted:
    __atomic_fetch_add(&aborts[which], 1, __ATOMIC_SEQ_CST);
    return;
forgotten:
    __atomic_fetch_add(&broken[which], 1, __ATOMIC_SEQ_CST);
}

static void *body(void *argument) {
    int which = (int)(intptr_t)argument;
    volatile struct rseq *rs = (struct rseq *)((char *)__builtin_thread_pointer() + __rseq_offset);
    while (!__atomic_load_n(&leave, __ATOMIC_SEQ_CST)) section(rs, 300000, which);
    return NULL;
}

int main(void) {
    CHECK(__rseq_size != 0, "this C library registers no restartable sequences");
    pthread_t threads[THREADS];
    for (int i = 0; i < THREADS; i++) threads[i] = start(body, (void *)(intptr_t)i);
    for (int i = 0; i < THREADS; i++) while (!__atomic_load_n(&commits[i], __ATOMIC_SEQ_CST)) sleep_ms(1);
    ready();
    wait_go();
    for (int i = 0; i < THREADS; i++) {
        u64 now = __atomic_load_n(&commits[i], __ATOMIC_SEQ_CST);
        while (__atomic_load_n(&commits[i], __ATOMIC_SEQ_CST) == now) sleep_ms(1);
    }
    __atomic_store_n(&leave, 1, __ATOMIC_SEQ_CST);
    for (int i = 0; i < THREADS; i++) {
        CHECK(pthread_join(threads[i], NULL) == 0, "join");
        CHECK(broken[i] == 0, "thread %d went on %lu times in a section that it had left", i, (unsigned long)broken[i]);
    }
    ok();
}
