// Protections change while pages are missing; a write to a read-only page is a fault of the program's, as ever.
#include "victim.h"
#include <setjmp.h>

#define PAGES 2048UL

static sigjmp_buf back;
static void *volatile fault_at;

static void handler(int signal, siginfo_t *info, void *context) {
    (void)signal;
    (void)context;
    fault_at = info->si_addr;
    siglongjmp(back, 1);
}

static int faults(volatile u8 *at, int write) {
    fault_at = NULL;
    if (sigsetjmp(back, 1)) return fault_at == (void *)at;
    if (write) *at = 1;
    else (void)*at;
    return 0;
}

int main(void) {
    struct sigaction act = {.sa_sigaction = handler, .sa_flags = SA_SIGINFO};
    MUST(sigaction(SIGSEGV, &act, NULL) == 0);
    u8 *at = map_pattern(PAGES, 1);
    ready();
    wait_go();
    MUST(mprotect(at, 1024 * PAGE, PROT_READ) == 0);
    CHECK(faults(at + 5 * PAGE, 1), "a write to a missing read-only page did not fault");
    check_pattern(at, 0, 512, 1, "made read-only");
    CHECK(faults(at + 5 * PAGE + 17, 1), "a write to a read-only page did not fault");
    MUST(mprotect(at + 512 * PAGE, 256 * PAGE, PROT_NONE) == 0);
    CHECK(faults(at + 600 * PAGE, 0), "a read of a page without access did not fault");
    MUST(mprotect(at, 1024 * PAGE, PROT_READ | PROT_WRITE) == 0);
    check_pattern(at, 0, PAGES, 1, "writable again");
    for (u64 i = 0; i < PAGES; i += 2) fill_page(at + i * PAGE, 2, i);
    for (u64 i = 0; i < PAGES; i++) CHECK(page_is(at + i * PAGE, i % 2 ? 1 : 2, i), "page %lu differs", (unsigned long)i);
    ok();
}
