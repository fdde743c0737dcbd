// Shared anonymous memory that nobody else has, parts of it mapped twice or protected, and a shared mapping of a file.
#include "victim.h"

int main(void) {
    u8 *at = mmap(NULL, 1024 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    MUST(at != MAP_FAILED);
    for (u64 i = 0; i < 1024; i += 2) fill_page(at + i * PAGE, 1, i);
    // Pages 100 to 199 once more, at another place; pages 300 to 309 may only be read, 310 to 319 not even that; 320 to 399 are gone.
    u8 *again = mremap(at + 100 * PAGE, 0, 100 * PAGE, MREMAP_MAYMOVE);
    MUST(again != MAP_FAILED && again != at + 100 * PAGE);
    MUST(mprotect(at + 300 * PAGE, 10 * PAGE, PROT_READ) == 0 && mprotect(at + 310 * PAGE, 10 * PAGE, PROT_NONE) == 0);
    MUST(munmap(at + 320 * PAGE, 80 * PAGE) == 0);
    // Memory that another process filled and this one never touched.
    u8 *given = mmap(NULL, 64 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    MUST(given != MAP_FAILED);
    pid_t giver = fork();
    MUST(giver >= 0);
    if (!giver) {
        for (u64 i = 0; i < 64; i++) fill_page(given + i * PAGE, 4, i);
        _exit(0);
    }
    child_must_succeed(giver, "giver");
    int fd = open("shared-file", O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    MUST(fd >= 0 && ftruncate(fd, 64 * PAGE) == 0);
    u8 *file = mmap(NULL, 64 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    MUST(file != MAP_FAILED);
    for (u64 i = 0; i < 64; i++) fill_page(file + i * PAGE, 2, i);
    ready();
    wait_go();
    MUST(mprotect(at + 310 * PAGE, 10 * PAGE, PROT_READ) == 0);
    for (u64 i = 0; i < 1024; i++) {
        if (i >= 320 && i < 400) continue;
        CHECK(i % 2 ? page_is_zero(at + i * PAGE) : page_is(at + i * PAGE, 1, i), "shared page %lu differs", (unsigned long)i);
    }
    check_pattern(given, 0, 64, 4, "memory another process filled");
    fill_page(again + 7 * PAGE, 5, 0);
    CHECK(page_is(at + 107 * PAGE, 5, 0), "two mappings of one piece are two pieces now");
    check_pattern(file, 0, 64, 2, "shared file");
    pid_t child = fork();
    MUST(child >= 0);
    if (!child) {
        fill_page(at + PAGE, 3, 1);
        fill_page(file, 3, 0);
        *(volatile u8 *)(at + 300 * PAGE) = 0; // must end it
        _exit(0);
    }
    int status;
    MUST(waitpid(child, &status, 0) == child);
    CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGSEGV, "a write to read-only shared memory ended with status %#x", status);
    CHECK(page_is(at + PAGE, 3, 1), "the child's write to shared memory is not seen");
    static u8 page[PAGE];
    MUST(pread(fd, page, PAGE, 0) == (ssize_t)PAGE);
    CHECK(page_is(page, 3, 0), "a write to the shared mapping did not reach the file");
    fill_page(file, 2, 0); // as it was, for the next restore of the same snapshot
    ok();
}
