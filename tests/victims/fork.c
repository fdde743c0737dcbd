// Forks while pages are missing: parent, child and grandchild each see the snapshot, then their own writes only; a child may outlive
// its parent: `fork orphan`.
#include "victim.h"

#define PAGES 2048UL

static u8 *at;

static void whole(const char *who, u64 mine, u64 salt) {
    // Pages from `mine` on, every 16th, are this process's own.
    for (u64 i = 0; i < PAGES; i++)
        CHECK(page_is(at + i * PAGE, i >= mine && (i - mine) % 16 == 0 ? salt : 1, i), "%s: page %lu differs", who, (unsigned long)i);
}

static void write_own(u64 mine, u64 salt) {
    for (u64 i = mine; i < PAGES; i += 16) fill_page(at + i * PAGE, salt, i);
}

int main(int argc, char **argv) {
    int orphan = argc > 1 && strcmp(argv[1], "orphan") == 0;
    at = map_pattern(PAGES, 1);
    ready();
    wait_go();
    if (orphan) {
        pid_t parent = getpid(), child = fork();
        MUST(child >= 0);
        if (child) {
            CHECK(page_is(at + 9 * PAGE, 1, 9), "parent: page 9 differs");
            _exit(0);
        }
        while (getppid() == parent) sleep_ms(1);
        whole("orphan", PAGES, 0);
        ok();
    }
    CHECK(page_is(at + 100 * PAGE, 1, 100), "page 100 differs");
    pid_t child = fork();
    MUST(child >= 0);
    if (!child) {
        write_own(3, 2);
        pid_t grandchild = fork();
        MUST(grandchild >= 0);
        if (!grandchild) {
            whole("grandchild", 3, 2);
            MUST(madvise(at + 512 * PAGE, 512 * PAGE, MADV_DONTNEED) == 0);
            check_zero(at + 512 * PAGE, 512, "dropped by the grandchild");
            _exit(0);
        }
        whole("child", 3, 2);
        child_must_succeed(grandchild, "grandchild");
        whole("child", 3, 2);
        _exit(0);
    }
    write_own(5, 3);
    whole("parent", 5, 3);
    child_must_succeed(child, "child");
    whole("parent", 5, 3);
    // Several at once, which race for the same pages.
    u8 *other = map_anonymous(1);
    (void)other;
    pid_t many[8];
    for (int i = 0; i < 8; i++) {
        MUST((many[i] = fork()) >= 0);
        if (!many[i]) {
            whole("one of many", 5, 3);
            _exit(0);
        }
    }
    for (int i = 0; i < 8; i++) child_must_succeed(many[i], "one of many");
    ok();
}
