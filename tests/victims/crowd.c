// Sixty-four threads, each with settings of its own: name, signal mask, CPUs, policy, niceness, timer slack, parent-death signal,
// alternate stack, thread-local memory; and the process's: oom score, dumpable flag, subreaper, huge pages off.
#include "victim.h"
#include <sched.h>
#include <sys/prctl.h>
#include <sys/resource.h>

#define THREADS 64

struct settings {
    char name[16];
    sigset_t mask;
    cpu_set_t cpus;
    int policy, nice, death, reset;
    struct sched_param param;
    unsigned long slack;
    stack_t stack;
    pid_t tid;
};

static __thread u64 own[128];
static int started, stop;
static cpu_set_t all;

static struct settings take(void) {
    struct settings s;
    memset(&s, 0, sizeof s);
    prctl(PR_GET_NAME, s.name);
    pthread_sigmask(SIG_SETMASK, NULL, &s.mask);
    sched_getaffinity(0, sizeof s.cpus, &s.cpus);
    s.policy = sched_getscheduler(0);
    sched_getparam(0, &s.param);
    s.nice = getpriority(PRIO_PROCESS, 0);
    s.slack = (unsigned long)prctl(PR_GET_TIMERSLACK);
    prctl(PR_GET_PDEATHSIG, &s.death);
    sigaltstack(NULL, &s.stack);
    s.tid = (pid_t)syscall(SYS_gettid);
    return s;
}

static void *body(void *argument) {
    u64 n = (u64)argument;
    char name[16];
    snprintf(name, sizeof name, "crowd (%lu) x", (unsigned long)n); // brackets and spaces as stat's own
    prctl(PR_SET_NAME, name);
    sigset_t mask;
    sigemptyset(&mask);
    sigaddset(&mask, 1 + (int)(n % 30));
    sigaddset(&mask, 34 + (int)(n % 30));
    pthread_sigmask(SIG_SETMASK, &mask, NULL);
    static const int policies[] = {SCHED_OTHER, SCHED_BATCH, SCHED_IDLE};
    MUST(sched_setscheduler(0, policies[n % 3], &(struct sched_param){0}) == 0);
    if (n % 3 != 2) MUST(setpriority(PRIO_PROCESS, 0, (int)(n % 10)) == 0);
    prctl(PR_SET_TIMERSLACK, 10000 + n * 1000);
    cpu_set_t one;
    CPU_ZERO(&one);
    int cpus = CPU_COUNT(&all), wanted = (int)n % cpus;
    for (int cpu = 0; cpu < CPU_SETSIZE; cpu++)
        if (CPU_ISSET(cpu, &all) && wanted-- == 0) CPU_SET(cpu, &one);
    if (n % 2) MUST(sched_setaffinity(0, sizeof one, &one) == 0);
    if (n % 4 == 0) MUST(sigaltstack(&(stack_t){.ss_sp = map_anonymous(16), .ss_size = 16 * PAGE}, NULL) == 0);
    for (u64 i = 0; i < 128; i++) own[i] = mix(n << 32 | i);
    struct settings before = take();
    __atomic_fetch_add(&started, 1, __ATOMIC_SEQ_CST);
    while (!__atomic_load_n(&stop, __ATOMIC_SEQ_CST)) sleep_ms(5);
    struct settings after = take();
    CHECK(strcmp(before.name, after.name) == 0, "thread %lu is called %s", (unsigned long)n, after.name);
    CHECK(before.tid == after.tid, "thread %lu has another tid", (unsigned long)n);
    CHECK(memcmp(&before.mask, &after.mask, 8) == 0, "the mask of thread %lu differs", (unsigned long)n);
    CHECK(CPU_EQUAL(&before.cpus, &after.cpus), "the CPUs of thread %lu differ", (unsigned long)n);
    CHECK(before.policy == after.policy && before.param.sched_priority == after.param.sched_priority, "the policy of thread %lu is %d instead of %d", (unsigned long)n, after.policy, before.policy);
    CHECK(before.nice == after.nice, "the niceness of thread %lu is %d instead of %d", (unsigned long)n, after.nice, before.nice);
    CHECK(before.slack == after.slack, "the timer slack of thread %lu is %lu instead of %lu", (unsigned long)n, after.slack, before.slack);
    CHECK(before.death == after.death, "the parent-death signal of thread %lu is %d instead of %d", (unsigned long)n, after.death, before.death);
    CHECK(before.stack.ss_sp == after.stack.ss_sp && before.stack.ss_flags == after.stack.ss_flags, "the alternate stack of thread %lu differs", (unsigned long)n);
    for (u64 i = 0; i < 128; i++) CHECK(own[i] == mix(n << 32 | i), "thread-local word %lu of thread %lu differs", (unsigned long)i, (unsigned long)n);
    return argument;
}

static int oom_score(const char *set) {
    char text[16] = {0};
    int fd = open("/proc/self/oom_score_adj", set ? O_WRONLY : O_RDONLY);
    MUST(fd >= 0 && (set ? write(fd, set, strlen(set)) : read(fd, text, sizeof text - 1)) > 0);
    close(fd);
    return atoi(text);
}

int main(void) {
    MUST(sched_getaffinity(0, sizeof all, &all) == 0);
    oom_score("345");
    prctl(PR_SET_DUMPABLE, 0);
    prctl(PR_SET_CHILD_SUBREAPER, 1);
    prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0);
    pthread_t threads[THREADS];
    for (u64 i = 0; i < THREADS; i++) threads[i] = start(body, (void *)i);
    while (__atomic_load_n(&started, __ATOMIC_SEQ_CST) < THREADS) sleep_ms(1);
    ready();
    wait_go();
    __atomic_store_n(&stop, 1, __ATOMIC_SEQ_CST);
    int subreaper = 0;
    prctl(PR_GET_CHILD_SUBREAPER, &subreaper);
    CHECK(prctl(PR_GET_DUMPABLE) == 0 && subreaper == 1 && prctl(PR_GET_THP_DISABLE, 0, 0, 0, 0) == 1, "dumpable, subreaper or huge page flag differs");
    prctl(PR_SET_DUMPABLE, 1); // or the file would be root's alone
    CHECK(oom_score(NULL) == 345, "the oom score is %d", oom_score(NULL));
    prctl(PR_SET_DUMPABLE, 0);
    for (u64 i = 0; i < THREADS; i++) {
        void *result;
        CHECK(pthread_join(threads[i], &result) == 0 && result == (void *)i, "join of thread %lu", (unsigned long)i);
    }
    ok();
}
