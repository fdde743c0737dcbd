// Alternate signal stacks: `sigaltstack idle` has them set, `sigaltstack inside` is frozen while a handler runs on one,
// `sigaltstack none` has none and a handler that would use one, as every CPython from 3.10 on.
#include "victim.h"

#define BYTES (64 * 1024)

static u8 *stacks[3];
static volatile int handled, leave;
static int threads_ready, inside;

static void handler(int signal) {
    (void)signal;
    stack_t now;
    u64 local[64];
    for (u64 i = 0; i < 64; i++) local[i] = mix(i);
    MUST(sigaltstack(NULL, &now) == 0);
    CHECK(now.ss_flags & SS_ONSTACK, "the handler does not know that it runs on the alternate stack");
    CHECK((u8 *)local >= (u8 *)now.ss_sp && (u8 *)local < (u8 *)now.ss_sp + BYTES, "the handler runs on another stack");
    if (inside && !handled) {
        ready();
        wait_go();
        MUST(sigaltstack(NULL, &now) == 0);
        CHECK(now.ss_flags & SS_ONSTACK, "the handler forgot that it runs on the alternate stack");
        for (u64 i = 0; i < 64; i++) CHECK(local[i] == mix(i), "the handler's locals differ");
    }
    handled++;
}

static void set(int which) {
    stacks[which] = map_pattern(BYTES / PAGE, 100 + (u64)which);
    MUST(sigaltstack(&(stack_t){.ss_sp = stacks[which], .ss_size = BYTES}, NULL) == 0);
}

static volatile int ran;
static void on_any_stack(int signal) { ran += signal == SIGUSR2; }

static void *without(void *argument) {
    while (argument && !__atomic_load_n(&leave, __ATOMIC_SEQ_CST)) sleep_ms(1);
    stack_t now;
    MUST(sigaltstack(NULL, &now) == 0);
    CHECK(now.ss_flags == SS_DISABLE, "a thread without an alternate stack has one at %p, flags %#x", now.ss_sp, (unsigned)now.ss_flags);
    int before = ran;
    MUST(pthread_kill(pthread_self(), SIGUSR2) == 0);
    CHECK(ran == before + 1, "the handler did not run");
    return NULL;
}

static void none(void) {
    struct sigaction act = {.sa_handler = on_any_stack, .sa_flags = SA_ONSTACK};
    MUST(sigaction(SIGUSR2, &act, NULL) == 0);
    pthread_t other = start(without, &act);
    ready();
    wait_go();
    without(NULL);
    leave = 1;
    CHECK(pthread_join(other, NULL) == 0, "join");
    ok();
}

static void still(int which) {
    stack_t now;
    MUST(sigaltstack(NULL, &now) == 0);
    CHECK(now.ss_sp == stacks[which] && now.ss_size == BYTES && !(now.ss_flags & SS_DISABLE), "the alternate stack of thread %d differs", which);
    int before = handled;
    MUST(pthread_kill(pthread_self(), SIGUSR1) == 0);
    CHECK(handled > before, "the handler of thread %d did not run", which);
}

static void *body(void *argument) {
    int which = (int)(intptr_t)argument;
    set(which);
    __atomic_fetch_add(&threads_ready, 1, __ATOMIC_SEQ_CST);
    while (!__atomic_load_n(&leave, __ATOMIC_SEQ_CST)) sleep_ms(1);
    check_pattern(stacks[which], 0, 2, 100 + (u64)which, "unused alternate stack");
    still(which);
    return NULL;
}

int main(int argc, char **argv) {
    inside = argc > 1 && strcmp(argv[1], "inside") == 0;
    if (argc > 1 && strcmp(argv[1], "none") == 0) none();
    struct sigaction act = {.sa_handler = handler, .sa_flags = SA_ONSTACK};
    MUST(sigaction(SIGUSR1, &act, NULL) == 0);
    set(0);
    pthread_t threads[2] = {start(body, (void *)1), start(body, (void *)2)};
    while (__atomic_load_n(&threads_ready, __ATOMIC_SEQ_CST) < 2) sleep_ms(1);
    if (inside) {
        raise(SIGUSR1);
    } else {
        ready();
        wait_go();
    }
    leave = 1;
    for (int i = 0; i < 2; i++) {
        CHECK(pthread_join(threads[i], NULL) == 0, "join");
    }
    still(0);
    ok();
}
