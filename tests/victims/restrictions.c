// What a program forbade itself stays forbidden: tried, not asked for. The second thread has no time stamp counter.
#include "victim.h"
#include <setjmp.h>
#include <sys/prctl.h>
#include <x86intrin.h>

static int has_mdwe, forced[3];
static volatile int round_of, done_round;
static sigjmp_buf back;

static void on_fault(int signal) { (void)signal; siglongjmp(back, 1); }

static int counter_faults(void) {
    if (sigsetjmp(back, 1)) return 1;
    (void)__rdtsc();
    return 0;
}

static void *blind(void *argument) {
    MUST(prctl(PR_SET_TSC, PR_TSC_SIGSEGV, 0, 0, 0) == 0);
    for (int round = 1; round <= 2; round++) {
        while (__atomic_load_n(&round_of, __ATOMIC_SEQ_CST) < round) usleep(1000);
        CHECK(counter_faults(), "a thread reads the time stamp counter that it had given up");
        __atomic_store_n(&done_round, round, __ATOMIC_SEQ_CST);
    }
    return argument;
}

static void look(int round) {
    void *at = mmap(NULL, PAGE, PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(!has_mdwe || at == MAP_FAILED, "memory may be written and executed");
    u8 *page = map_anonymous(1);
    CHECK(!has_mdwe || mprotect(page, PAGE, PROT_READ | PROT_EXEC) < 0, "memory becomes executable");
    munmap(page, PAGE);
    CHECK(!has_mdwe || prctl(65 /* PR_SET_MDWE */, 0, 0, 0, 0) < 0, "write-xor-execute can be taken back");
    for (int feature = 0; feature < 3; feature++)
        CHECK(!forced[feature] || prctl(PR_SET_SPECULATION_CTRL, feature, 2 /* enable */, 0, 0) < 0, "speculation %d can be enabled again", feature);
    __atomic_store_n(&round_of, round, __ATOMIC_SEQ_CST);
    while (__atomic_load_n(&done_round, __ATOMIC_SEQ_CST) < round) usleep(1000);
}

int main(void) {
    signal(SIGSEGV, on_fault);
    for (int feature = 0; feature < 2; feature++)
        forced[feature] = (prctl(PR_GET_SPECULATION_CTRL, feature, 0, 0, 0) & 1) && prctl(PR_SET_SPECULATION_CTRL, feature, 8 /* for good */, 0, 0) == 0;
    pthread_t thread = start(blind, NULL);
    has_mdwe = prctl(65, 1, 0, 0, 0) == 0;
    MUST(has_mdwe || errno == EINVAL); // before Linux 6.3
    look(1);
    ready();
    wait_go();
    look(2);
    CHECK(!counter_faults(), "the first thread lost its time stamp counter");
    CHECK(pthread_join(thread, NULL) == 0, "join");
    int child = fork(), status;
    if (child == 0) _exit(has_mdwe && mmap(NULL, PAGE, PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) != MAP_FAILED);
    CHECK(waitpid(child, &status, 0) == child && status == 0, "a child may do what the process may not");
    ok();
}
