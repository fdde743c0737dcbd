// Kinds of mappings, each made, frozen and looked at again: `mappings KIND`. Every line of /proc/self/smaps that says what a mapping is,
// and every VmFlags, must be as before.
#include "victim.h"

#define MAP_DROPPABLE_ 0x08
#define SYS_mseal_ 462

static u8 *memory, *other;
static int fd, counted;

// What smaps says of the mapping at `at`: its head and its flags; `um`, `uw` and `gu` aside, which tell of who brings memory
// back, and `ac`, which the kernel sets anew once memory may be written.
static void describe(const void *at, char *out, size_t size) {
    FILE *smaps = fopen("/proc/self/smaps", "re");
    MUST(smaps);
    static char line[8192];
    int inside = 0;
    out[0] = 0;
    while (fgets(line, sizeof line, smaps)) {
        unsigned long start, end;
        char rest[8];
        if (sscanf(line, "%lx-%lx %7s", &start, &end, rest) == 3) {
            inside = start <= (unsigned long)at && (unsigned long)at < end;
            if (inside) {
                // Inodes of shared anonymous memory are the kernel's to give.
                char *inode = strstr(line, "/dev/zero") || strstr(line, "/anon_hugepage") ? strchr(line, ':') : NULL;
                snprintf(out, size, "%.*s ", inode ? (int)(inode - line) - 3 : (int)strcspn(line, "\n"), line);
            }
        } else if (inside && (strncmp(line, "VmFlags:", 8) == 0 || strncmp(line, "KernelPageSize:", 15) == 0)) {
            for (char *word = strtok(line + 8, " \n"); word; word = strtok(NULL, " \n"))
                if (strcmp(word, "um") != 0 && strcmp(word, "uw") != 0 && strcmp(word, "gu") != 0 && (counted || strcmp(word, "ac") != 0)) {
                    size_t length = strlen(out);
                    snprintf(out + length, size - length, "%s ", word);
                }
        }
    }
    fclose(smaps);
}

static void file_of(const char *name, int flags) {
    int made = open(name, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    static u8 page[PAGE];
    MUST(made >= 0);
    for (u64 i = 0; i < 8; i++) {
        fill_page(page, 2, i);
        MUST(pwrite(made, page, PAGE, i * PAGE) == (ssize_t)PAGE);
    }
    close(made);
    MUST((fd = open(name, flags | O_CLOEXEC)) >= 0);
}

// A read-only shared mapping of a file that is open for writing may be made writable; one of a file open for reading may not.
static void shared_file_before(int flags) {
    file_of("mapped", flags);
    memory = mmap(NULL, 8 * PAGE, PROT_READ, MAP_SHARED, fd, 0);
    MUST(memory != MAP_FAILED);
}
static void writable_before(void) { shared_file_before(O_RDWR); }
static void writable_after(void) {
    check_pattern(memory, 0, 8, 2, "file");
    MUST(mprotect(memory, 8 * PAGE, PROT_READ | PROT_WRITE) == 0);
    fill_page(memory + PAGE, 3, 1);
    static u8 page[PAGE];
    MUST(pread(fd, page, PAGE, PAGE) == (ssize_t)PAGE);
    CHECK(page_is(page, 3, 1), "a write to the shared mapping did not reach the file");
    fill_page(memory + PAGE, 2, 1);
    MUST(mprotect(memory, 8 * PAGE, PROT_READ) == 0);
}
static void readable_before(void) { shared_file_before(O_RDONLY); }
static void readable_after(void) {
    check_pattern(memory, 0, 8, 2, "file");
    CHECK(mprotect(memory, 8 * PAGE, PROT_READ | PROT_WRITE) < 0 && errno == EACCES, "a file open for reading became writable");
}

static void droppable_before(void) {
    memory = mmap(NULL, 16 * PAGE, PROT_READ | PROT_WRITE, MAP_DROPPABLE_ | MAP_ANONYMOUS, -1, 0);
    MUST(memory != MAP_FAILED);
    for (u64 i = 0; i < 16; i++) fill_page(memory + i * PAGE, 3, i);
    other = map_pattern(16, 4);
}
static void droppable_after(void) {
    check_pattern(other, 0, 16, 4, "memory beside it");
    check_zero(memory, 16, "droppable memory");
}

static void sealed_before(void) {
    memory = map_pattern(16, 5);
    MUST(mprotect(memory, 16 * PAGE, PROT_READ) == 0 && syscall(SYS_mseal_, memory, 16 * PAGE, 0) == 0);
    other = map_pattern(1024, 6);
    MUST(syscall(SYS_mseal_, other, 1024 * PAGE, 0) == 0);
}
static void sealed_after(void) {
    CHECK(mprotect(memory, PAGE, PROT_READ | PROT_WRITE) < 0 && errno == EPERM, "sealed memory can be changed");
    CHECK(munmap(other + 7 * PAGE, PAGE) < 0 && errno == EPERM, "sealed memory can be unmapped");
    check_pattern(memory, 0, 16, 5, "sealed memory");
    check_pattern(other, 0, 1024, 6, "sealed writable memory");
}

static void locked_before(void) {
    memory = map_anonymous(64);
    MUST(syscall(SYS_mlock2, memory, 64 * PAGE, 1) == 0);
    for (u64 i = 0; i < 64; i += 2) fill_page(memory + i * PAGE, 7, i);
    other = mmap(NULL, 16 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    MUST(other != MAP_FAILED && mlock(other, 16 * PAGE) == 0);
    for (u64 i = 0; i < 16; i++) fill_page(other + i * PAGE, 8, i);
}
static void locked_after(void) {
    u8 there[64];
    MUST(mincore(memory, 64 * PAGE, there) == 0);
    for (u64 i = 0; i < 64; i++) CHECK((there[i] & 1) == (i % 2 == 0), "page %lu of memory that is locked as it comes", (unsigned long)i);
    for (u64 i = 0; i < 64; i++) CHECK(i % 2 ? page_is_zero(memory + i * PAGE) : page_is(memory + i * PAGE, 7, i), "page %lu differs", (unsigned long)i);
    check_pattern(other, 0, 16, 8, "locked shared memory");
}

#define HUGE (2 * MIB)
static void huge_before_as(int sharing) {
    memory = mmap(NULL, 3 * HUGE, PROT_READ | PROT_WRITE, sharing | MAP_ANONYMOUS | MAP_HUGETLB | (21 << MAP_HUGE_SHIFT), -1, 0);
    MUST(memory != MAP_FAILED);
    for (u64 i = 0; i < 512; i++) fill_page(memory + i * PAGE, 9, i);
    fill_page(memory + 2 * HUGE + 77 * PAGE, 10, 0);
    MUST(mprotect(memory, HUGE, PROT_READ) == 0);
}
static void huge_before(void) { huge_before_as(MAP_PRIVATE); }
static void huge_shared_before(void) { huge_before_as(MAP_SHARED); }
static void huge_after(void) {
    check_pattern(memory, 0, 512, 9, "huge page");
    check_zero(memory + HUGE, 512, "a huge page that nobody touched");
    CHECK(page_is(memory + 2 * HUGE + 77 * PAGE, 10, 0) && page_is_zero(memory + 2 * HUGE), "the last huge page differs");
    fill_page(memory + HUGE, 11, 0);
    pid_t child = fork();
    MUST(child >= 0);
    if (!child) {
        check_pattern(memory, 0, 512, 9, "huge page in the child");
        _exit(0);
    }
    child_must_succeed(child, "child");
    MUST(madvise(memory + HUGE, HUGE, MADV_REMOVE) == 0 || madvise(memory + HUGE, HUGE, MADV_DONTNEED) == 0);
}

// Reservations as of address sanitizers, Go and Java: they cost nothing where nothing is in them.
#define RESERVED (16UL << 40)
static void reserved_before(void) {
    int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    memory = mmap(NULL, RESERVED, PROT_READ | PROT_WRITE, flags, -1, 0);
    other = mmap(NULL, RESERVED, PROT_NONE, flags, -1, 0);
    MUST(memory != MAP_FAILED && other != MAP_FAILED);
    for (u64 i = 0; i < 16; i++) fill_page(memory + i * (RESERVED / 16), 12, i);
    MUST(mprotect(other + (RESERVED / 2), 4 * PAGE, PROT_READ | PROT_WRITE) == 0);
    fill_page(other + RESERVED / 2, 13, 0);
}
static void reserved_after(void) {
    for (u64 i = 0; i < 16; i++) CHECK(page_is(memory + i * (RESERVED / 16), 12, i), "page %lu of a reservation differs", (unsigned long)i);
    CHECK(page_is_zero(memory + RESERVED / 3 / PAGE * PAGE), "a page of a reservation that nobody touched is not zero");
    CHECK(page_is(other + RESERVED / 2, 13, 0) && page_is_zero(other + RESERVED / 2 + PAGE), "a page of a reservation without access differs");
}

// A policy of its own, as the kernel tells it.
#define MPOL_BIND_ 2
#define MPOL_F_ADDR_ 2
static void policy_of(const void *at, int *mode, unsigned long *nodes) {
    memset(nodes, 0, 128);
    MUST(syscall(SYS_get_mempolicy, mode, nodes, 1024UL, at, MPOL_F_ADDR_) == 0);
}
static void numa_before(void) {
    memory = map_pattern(64, 14);
    other = map_pattern(64, 15);
    unsigned long node = 1;
    MUST(syscall(SYS_mbind, memory, 32 * PAGE, MPOL_BIND_, &node, 8UL, 0) == 0);
}
static void numa_after(void) {
    int mode;
    unsigned long nodes[16];
    policy_of(memory, &mode, nodes);
    CHECK(mode == MPOL_BIND_ && nodes[0] == 1, "the policy is %d with nodes %lx", mode, nodes[0]);
    policy_of(memory + 32 * PAGE, &mode, nodes);
    CHECK(mode == 0, "memory behind it has policy %d", mode);
    policy_of(other, &mode, nodes);
    CHECK(mode == 0, "memory without a policy has policy %d", mode);
    check_pattern(memory, 0, 64, 14, "memory with a policy");
    check_pattern(other, 0, 64, 15, "memory without");
}

// Read-only relocations: pages of a private file mapping that were written and may not be any more, beside others.
static void relocations_before(void) {
    counted = 1;
    file_of("linked", O_RDONLY);
    memory = mmap(NULL, 8 * PAGE, PROT_READ, MAP_PRIVATE, fd, 0);
    MUST(memory != MAP_FAILED && mprotect(memory + 4 * PAGE, 4 * PAGE, PROT_READ | PROT_WRITE) == 0);
    other = memory + 4 * PAGE;
    fill_page(other, 3, 0);
    MUST(mprotect(other, 4 * PAGE, PROT_READ) == 0);
}
static void relocations_after(void) {
    for (u64 i = 0; i < 8; i++) CHECK(i == 4 ? page_is(memory + i * PAGE, 3, 0) : page_is(memory + i * PAGE, 2, i), "page %lu differs", (unsigned long)i);
}

// Names that smaps does not show as they are.
static void odd_before(const char *name) {
    file_of(name, O_RDWR);
    memory = mmap(NULL, 8 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
    MUST(memory != MAP_FAILED);
    fill_page(memory + PAGE, 3, 1);
    close(fd);
}
static void newline_before(void) { odd_before("one\ntwo"); }
static void backslash_before(void) { odd_before("one\\012two"); }
static void marked_before(void) { odd_before("one (deleted)"); }
static void odd_after(void) {
    for (u64 i = 0; i < 8; i++) CHECK(page_is(memory + i * PAGE, i == 1 ? 3 : 2, i), "page %lu differs", (unsigned long)i);
}

static const struct { const char *name; void (*before)(void), (*after)(void); } kinds[] = {
    {"writable", writable_before, writable_after}, {"readable", readable_before, readable_after},
    {"droppable", droppable_before, droppable_after}, {"sealed", sealed_before, sealed_after},
    {"locked", locked_before, locked_after}, {"huge", huge_before, huge_after}, {"huge-shared", huge_shared_before, huge_after},
    {"relocations", relocations_before, relocations_after}, {"numa", numa_before, numa_after}, {"reserved", reserved_before, reserved_after}, {"newline", newline_before, odd_after},
    {"backslash", backslash_before, odd_after}, {"marked", marked_before, odd_after},
};

int main(int argc, char **argv) {
    static char before[2][2048], after[2][2048];
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        if (argc < 2 || strcmp(argv[1], kinds[i].name) != 0) continue;
        kinds[i].before();
        u8 *places[] = {memory, other};
        for (int p = 0; p < 2; p++) describe(places[p], before[p], sizeof before[p]);
        ready();
        wait_go();
        for (int p = 0; p < 2; p++) {
            describe(places[p], after[p], sizeof after[p]);
            CHECK(strcmp(before[p], after[p]) == 0, "before: %s; after: %s", before[p], after[p]);
        }
        kinds[i].after();
        ok();
    }
    wrong("no such kind");
}
