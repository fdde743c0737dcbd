// Shared anonymous memory that nobody else has, and a shared mapping of a file.
#include "victim.h"

int main(void) {
    u8 *at = mmap(NULL, 1024 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    MUST(at != MAP_FAILED);
    for (u64 i = 0; i < 1024; i += 2) fill_page(at + i * PAGE, 1, i);
    int fd = open("shared-file", O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    MUST(fd >= 0 && ftruncate(fd, 64 * PAGE) == 0);
    u8 *file = mmap(NULL, 64 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    MUST(file != MAP_FAILED);
    for (u64 i = 0; i < 64; i++) fill_page(file + i * PAGE, 2, i);
    ready();
    wait_go();
    for (u64 i = 0; i < 1024; i++) CHECK(i % 2 ? page_is_zero(at + i * PAGE) : page_is(at + i * PAGE, 1, i), "shared page %lu differs", (unsigned long)i);
    check_pattern(file, 0, 64, 2, "shared file");
    pid_t child = fork();
    MUST(child >= 0);
    if (!child) {
        fill_page(at + PAGE, 3, 1);
        fill_page(file, 3, 0);
        _exit(0);
    }
    child_must_succeed(child, "child");
    CHECK(page_is(at + PAGE, 3, 1), "the child's write to shared memory is not seen");
    static u8 page[PAGE];
    MUST(pread(fd, page, PAGE, 0) == (ssize_t)PAGE);
    CHECK(page_is(page, 3, 0), "a write to the shared mapping did not reach the file");
    fill_page(file, 2, 0); // as it was, for the next restore of the same snapshot
    ok();
}
