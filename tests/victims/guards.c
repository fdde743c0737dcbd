// Guards (MADV_GUARD_INSTALL) in private, file and shared memory: a touch of one is a SIGSEGV, also while pages are missing and in a
// forked child; what lies around them is whole. So are guards that are set while pages are missing. `guards private`: only those in
// private memory.
#include "victim.h"
#include <setjmp.h>

#define MADV_GUARD_INSTALL_ 102
#define MADV_GUARD_REMOVE_ 103
#define PAGES 2048UL

static sigjmp_buf back;
static volatile int caught;

static void handler(int signal) {
    caught = signal;
    siglongjmp(back, 1);
}

// The signal that a touch ends in; 0 for none.
static int touch(volatile u8 *at, int write) {
    caught = 0;
    if (sigsetjmp(back, 1) == 0) {
        if (write) *at = 1;
        else (void)*at;
    }
    return caught;
}

// Pages that become guards while they are missing.
static int is_late(u64 page) { return page >= 1000 && page < 1003; }
static int is_guard(u64 page) { return page % 16 == 3 || (page >= 600 && page < 640); }

static u8 *at, *file, *shared, *untouched, *kept;
static int late, everything;

static void guarded(u8 *memory, u64 page, const char *what, const char *who) {
    int read = touch(memory + page * PAGE, 0), write = touch(memory + page * PAGE + 77, 1);
    CHECK(read == SIGSEGV && write == SIGSEGV, "%s: guard %lu of %s: signals %d and %d", who, (unsigned long)page, what, read, write);
}

static void whole(const char *who, int backwards) {
    for (u64 n = 0; n < PAGES; n++) {
        u64 i = backwards ? PAGES - 1 - n : n;
        if (is_guard(i) || (late && is_late(i))) guarded(at, i, "private memory", who);
        else CHECK(page_is(at + i * PAGE, 1, i), "%s: page %lu differs", who, (unsigned long)i);
    }
    for (u64 i = 0; everything && i < 16; i++) {
        if (i == 5) {
            guarded(file, i, "a private file mapping", who);
            guarded(shared, i, "shared memory", who);
        } else {
            CHECK(page_is(file + i * PAGE, i == 6 ? 3 : 2, i), "%s: page %lu of the file differs", who, (unsigned long)i);
            CHECK(page_is(shared + i * PAGE, 4, i), "%s: page %lu of shared memory differs", who, (unsigned long)i);
        }
    }
    for (u64 i = 0; i < 64; i++) guarded(untouched, i, "memory that is nothing else", who);
}

int main(int argc, char **argv) {
    everything = argc < 2 || strcmp(argv[1], "private") != 0;
    struct sigaction act = {.sa_handler = handler, .sa_flags = SA_NODEFER};
    MUST(sigaction(SIGSEGV, &act, NULL) == 0 && sigaction(SIGBUS, &act, NULL) == 0);
    at = map_pattern(PAGES, 1);
    for (u64 i = 0; i < PAGES; i++)
        if (is_guard(i)) MUST(madvise(at + i * PAGE, PAGE, MADV_GUARD_INSTALL_) == 0);
    int fd = open("guarded-file", O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    MUST(fd >= 0);
    static u8 page[PAGE];
    for (u64 i = 0; i < 16; i++) {
        fill_page(page, 2, i);
        MUST(pwrite(fd, page, PAGE, i * PAGE) == (ssize_t)PAGE);
    }
    file = mmap(NULL, 16 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
    shared = mmap(NULL, 16 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    untouched = map_anonymous(64);
    MUST(file != MAP_FAILED && shared != MAP_FAILED);
    fill_page(file + 6 * PAGE, 3, 6);
    for (u64 i = 0; i < 16; i++) fill_page(shared + i * PAGE, 4, i);
    if (everything) MUST(madvise(file + 5 * PAGE, PAGE, MADV_GUARD_INSTALL_) == 0 && madvise(shared + 5 * PAGE, PAGE, MADV_GUARD_INSTALL_) == 0);
    MUST(madvise(untouched, 64 * PAGE, MADV_GUARD_INSTALL_) == 0);
    // Locked memory that has a guard: the kernel allows one order only.
    kept = map_pattern(16, 5);
    if (everything) MUST(madvise(kept + 7 * PAGE, PAGE, MADV_GUARD_INSTALL_) == 0 && syscall(SYS_mlock2, kept, 16 * PAGE, 1) == 0);
    whole("before", 0);
    ready();
    wait_go();
    guarded(at, 3, "private memory", "first");
    guarded(at, 620, "private memory", "first");
    guarded(untouched, 9, "memory that is nothing else", "first");
    pid_t child = fork();
    MUST(child >= 0);
    if (!child) {
        whole("child", 1);
        _exit(0);
    }
    child_must_succeed(child, "child");
    late = 1;
    MUST(madvise(at + 1000 * PAGE, 3 * PAGE, MADV_GUARD_INSTALL_) == 0);
    whole("parent", 0);
    for (u64 i = 0; everything && i < 16; i++) {
        if (i == 7) guarded(kept, i, "locked memory", "parent");
        else CHECK(page_is(kept + i * PAGE, 5, i), "locked page %lu differs", (unsigned long)i);
    }
    // Gone, a guard leaves what any new page is: zeros, or the file's and the memory's own contents.
    MUST(madvise(at + 3 * PAGE, PAGE, MADV_GUARD_REMOVE_) == 0 && page_is_zero(at + 3 * PAGE));
    if (!everything) ok();
    MUST(madvise(file + 5 * PAGE, PAGE, MADV_GUARD_REMOVE_) == 0 && page_is(file + 5 * PAGE, 2, 5));
    MUST(madvise(shared + 5 * PAGE, PAGE, MADV_GUARD_REMOVE_) == 0 && page_is(shared + 5 * PAGE, 4, 5));
    ok();
}
