// Restartable sequences stay registered: the kernel keeps telling each thread its CPU.
#include "victim.h"
#include <sched.h>
#include <sys/rseq.h>

static volatile int leave;
static int started;

static void still(const char *who) {
    if (__rseq_size == 0) return; // this C library registers none
    volatile struct rseq *rseq = (struct rseq *)((char *)__builtin_thread_pointer() + __rseq_offset);
    cpu_set_t before, one;
    MUST(sched_getaffinity(0, sizeof before, &before) == 0);
    for (int cpu = 0; cpu < CPU_SETSIZE; cpu++) {
        if (!CPU_ISSET(cpu, &before)) continue;
        CPU_ZERO(&one);
        CPU_SET(cpu, &one);
        MUST(sched_setaffinity(0, sizeof one, &one) == 0);
        CHECK((int)rseq->cpu_id == cpu, "%s runs on CPU %d, its rseq says %d", who, cpu, (int)rseq->cpu_id);
    }
    MUST(sched_setaffinity(0, sizeof before, &before) == 0);
}

static void *body(void *argument) {
    (void)argument;
    __atomic_fetch_add(&started, 1, __ATOMIC_SEQ_CST);
    while (!leave) sleep_ms(1);
    still("a thread");
    return NULL;
}

int main(void) {
    pthread_t threads[2] = {start(body, NULL), start(body, NULL)};
    while (__atomic_load_n(&started, __ATOMIC_SEQ_CST) < 2) sleep_ms(1);
    ready();
    wait_go();
    still("main");
    leave = 1;
    for (int i = 0; i < 2; i++) CHECK(pthread_join(threads[i], NULL) == 0, "join");
    ok();
}
