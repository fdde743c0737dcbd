// More than 2 GiB at once, little of it ever written, while pages are missing: dropped, unmapped, moved, and seen by a child.
#include "victim.h"

#define PAGES (3UL << 18)
#define EVERY 2048UL
#define PART (5UL << 17) // 2.5 GiB

static void check(u8 *at, u64 from, u64 to, u64 salt, const char *what) {
    for (u64 i = from; i < to; i += EVERY) {
        CHECK(page_is(at + i * PAGE, salt, i), "%s: page %lu differs", what, (unsigned long)i);
        CHECK(page_is_zero(at + (i + 1) * PAGE), "%s: behind page %lu are no zeros", what, (unsigned long)i);
    }
}

static u8 *vast(u64 salt) {
    u8 *at = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    MUST(at != MAP_FAILED);
    MUST(madvise(at, PAGES * PAGE, MADV_NOHUGEPAGE) == 0);
    for (u64 i = 0; i < PAGES; i += EVERY) fill_page(at + i * PAGE, salt, i);
    return at;
}

int main(void) {
    u8 *dropped = vast(1), *gone = vast(2), *moved = vast(3);
    ready();
    wait_go();
    pid_t child = fork();
    MUST(child >= 0);
    if (child == 0) {
        MUST(munmap(dropped, PAGES * PAGE) == 0);
        check(gone, 0, PAGES, 2, "the child's");
        MUST(madvise(moved, PART * PAGE, MADV_DONTNEED) == 0);
        for (u64 i = 0; i < PART; i += EVERY) CHECK(page_is_zero(moved + i * PAGE), "the child's: dropped page %lu", (unsigned long)i);
        check(moved, PART, PAGES, 3, "the child's, not dropped");
        _exit(0);
    }
    MUST(madvise(dropped, PART * PAGE, MADV_DONTNEED) == 0);
    MUST(munmap(gone, PART * PAGE) == 0);
    u8 *to = mmap(NULL, PAGES * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    MUST(to != MAP_FAILED);
    MUST(mremap(moved, PAGES * PAGE, PAGES * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, to) == to);
    for (u64 i = 0; i < PART; i += EVERY) CHECK(page_is_zero(dropped + i * PAGE), "dropped page %lu is no zeros", (unsigned long)i);
    check(dropped, PART, PAGES, 1, "not dropped");
    check(gone, PART, PAGES, 2, "not unmapped");
    check(to, 0, PAGES, 3, "moved");
    int status = 0;
    MUST(waitpid(child, &status, 0) == child);
    if (access("verdict", F_OK) == 0) _exit(1); // the child's
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0, "the child ended with %#x", status);
    publish("verdict", "OK\n");
    // Stay: a pager must come to its end by itself, not with ours.
    sleep(1000);
}
