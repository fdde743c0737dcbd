// Syscall user dispatch (as wine and other emulators use it): a system call from outside a range becomes SIGSYS while the selector
// says so. One thread is frozen while it does; the other has none.
#include "victim.h"
#include <sys/prctl.h>
#include <ucontext.h>

static volatile char selector;
static volatile int caught, spins, leave;
static u8 *code;

static void handler(int signal, siginfo_t *info, void *context) {
    (void)signal;
    (void)info;
    selector = 0;
    caught++;
    ((ucontext_t *)context)->uc_mcontext.gregs[REG_RAX] = 4242; // what the emulated call answers
}

static long emulated(void) { return ((long (*)(void))(uintptr_t)code)(); }

static void *body(void *argument) {
    (void)argument;
    MUST(prctl(PR_SET_SYSCALL_USER_DISPATCH, PR_SYS_DISPATCH_ON, 0L, 0L, &selector) == 0);
    selector = 1;
    while (!leave) spins++; // no system call in here: it would be caught
    long got = emulated();
    CHECK(got == 4242 && caught == 1, "the call went to the kernel: %ld, caught %d times", got, caught);
    got = emulated(); // the handler let them through again
    CHECK(got == getpid() && caught == 1, "the selector does not count: %ld, caught %d times", got, caught);
    return NULL;
}

int main(void) {
    // mov $39 (getpid), %eax; syscall; ret
    static const u8 text[] = {0xb8, 39, 0, 0, 0, 0x0f, 0x05, 0xc3};
    code = mmap(NULL, PAGE, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    MUST(code != MAP_FAILED);
    memcpy(code, text, sizeof text);
    struct sigaction act = {.sa_sigaction = handler, .sa_flags = SA_SIGINFO};
    MUST(sigaction(SIGSYS, &act, NULL) == 0);
    pthread_t thread = start(body, NULL);
    while (!spins) sleep_ms(1);
    ready();
    wait_go();
    int now = spins;
    while (spins == now) sleep_ms(1);
    CHECK(caught == 0, "a call of defrost's was caught");
    leave = 1;
    CHECK(pthread_join(thread, NULL) == 0, "join");
    CHECK(emulated() == getpid() && caught == 1, "a thread without dispatch has it now");
    ok();
}
