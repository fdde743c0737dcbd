// Memory that may be given up while it is missing: each page is right or a SIGBUS, in the process and in a child it forked before,
// and at least one is a SIGBUS; what is nobody's is zeros. `poisoned [MiB]`, 16 unless told.
//
// When the file `warm` is there it touches whatever the check needs but the pages in question, forks, and says `warmed`.
#include "victim.h"
#include <setjmp.h>

static sigjmp_buf back;
static volatile u64 lost;

static void on_bus(int signal) {
    (void)signal;
    lost++;
    siglongjmp(back, 1);
}

static __attribute__((noinline)) void jump(void) {
    if (!sigsetjmp(back, 1)) raise(SIGBUS);
}

static __attribute__((noinline)) void look(u8 *at, u64 first, u64 end) {
    for (volatile u64 i = first; i < end; i++) {
        if (sigsetjmp(back, 1)) continue;
        CHECK(page_is(at + i * PAGE, 1, i), "page %lu differs", (unsigned long)i);
    }
}

int main(int argc, char **argv) {
    u64 pages = (argc > 1 ? strtoull(argv[1], NULL, 10) : 16) * MIB / PAGE;
    u8 *at = map_pattern(pages, 1), *untouched = map_anonymous(256);
    struct sigaction action = {.sa_handler = on_bus};
    MUST(sigaction(SIGBUS, &action, NULL) == 0);
    ready();
    while (access("warm", F_OK) != 0) sleep_ms(2);
    // The first chunks, a jump out of a handler, the untouched memory's first page, and the way of a verdict.
    look(at, 0, 8);
    jump();
    CHECK(lost == 1, "the handler did not run");
    CHECK(page_is_zero(untouched), "untouched memory differs");
    lost = 0;
    pid_t child = fork();
    MUST(child >= 0);
    if (child == 0) publish("child", "CHILD\n");
    else publish("warmed", "WARMED\n");
    wait_go();
    look(at, 0, pages);
    check_zero(untouched, 256, "untouched memory");
    CHECK(lost > 0, "nothing was given up");
    if (child == 0) _exit(0);
    child_must_succeed(child, "its child");
    ok();
}
