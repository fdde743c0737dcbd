// Guards that the C library sets below the stack of a thread: they are there, hold after the thread's stack was used, and a thread that is
// started afterwards has one too.
#include "victim.h"
#include <setjmp.h>

static sigjmp_buf back;

static void handler(int signal) {
    (void)signal;
    siglongjmp(back, 1);
}

static int is_guard(volatile u8 *at) {
    if (sigsetjmp(back, 1)) return 1;
    (void)*at;
    return 0;
}

// The lowest address of the stack of a thread, behind the guard.
static u8 *lowest(pthread_t thread) {
    pthread_attr_t attributes;
    void *at;
    size_t size;
    MUST(pthread_getattr_np(thread, &attributes) == 0 && pthread_attr_getstack(&attributes, &at, &size) == 0);
    pthread_attr_destroy(&attributes);
    return at;
}

static void *wait_for_go(void *unused) {
    wait_go();
    return unused;
}

static void *use_the_stack(void *unused) {
    volatile u8 much[256 * 1024];
    for (size_t i = 0; i < sizeof much; i += PAGE) much[i] = (u8)i;
    CHECK(much[PAGE * 3] == 0, "the stack differs");
    return unused;
}

int main(void) {
    struct sigaction act = {.sa_handler = handler, .sa_flags = SA_NODEFER};
    MUST(sigaction(SIGSEGV, &act, NULL) == 0);
    pthread_t threads[4];
    u8 *stacks[4];
    for (int i = 0; i < 4; i++) {
        threads[i] = start(wait_for_go, NULL);
        stacks[i] = lowest(threads[i]);
        CHECK(is_guard(stacks[i] - 1), "no guard below stack %d before", i);
    }
    ready();
    wait_go();
    for (int i = 0; i < 4; i++) CHECK(is_guard(stacks[i] - 1) && !is_guard(stacks[i]), "no guard below stack %d", i);
    for (int i = 0; i < 4; i++) MUST(pthread_join(threads[i], NULL) == 0);
    // Stacks are used again.
    for (int i = 0; i < 8; i++) {
        pthread_t thread = start(use_the_stack, NULL);
        MUST(pthread_join(thread, NULL) == 0);
    }
    for (int i = 0; i < 4; i++) CHECK(is_guard(stacks[i] - 1), "no guard below stack %d after it was used", i);
    ok();
}
