// Memory with advice, locks and names: contents and what /proc/self/smaps says of each region stay, and what the advice means holds.
#include "victim.h"
#include <sys/prctl.h>

#ifndef PR_SET_VMA
#define PR_SET_VMA 0x53564d41
#define PR_SET_VMA_ANON_NAME 0
#endif

struct region { const char *flag; int advice; u8 *at; u64 pages; };

static struct region regions[] = {
    {"dc", MADV_DONTFORK, NULL, 16}, {"dd", MADV_DONTDUMP, NULL, 16},    {"wf", MADV_WIPEONFORK, NULL, 16}, {"rr", MADV_RANDOM, NULL, 16},
    {"sr", MADV_SEQUENTIAL, NULL, 16}, {"hg", MADV_HUGEPAGE, NULL, 2048}, {"nh", MADV_NOHUGEPAGE, NULL, 16}, {"mg", MADV_MERGEABLE, NULL, 16},
};
#define REGIONS (sizeof regions / sizeof *regions)

// Whether VmFlags of the mapping at `at` has `flag`; where `name` is given, whether the mapping is called so.
static int smaps_has(const void *at, const char *flag, const char *name) {
    FILE *smaps = fopen("/proc/self/smaps", "re");
    MUST(smaps);
    char line[4096];
    int inside = 0, found = 0;
    while (fgets(line, sizeof line, smaps)) {
        unsigned long start, end;
        char rest[8];
        if (sscanf(line, "%lx-%lx %7s", &start, &end, rest) == 3) {
            inside = start <= (unsigned long)at && (unsigned long)at < end;
            if (inside && name) found = strstr(line, name) != NULL;
        } else if (inside && !name && strncmp(line, "VmFlags:", 8) == 0) {
            char want[8];
            snprintf(want, sizeof want, " %s", flag);
            found = strstr(line, want) != NULL;
        }
    }
    fclose(smaps);
    return found;
}

int main(void) {
    for (u64 i = 0; i < REGIONS; i++) {
        struct region *r = &regions[i];
        map_anonymous(1); // neighbours stay apart
        r->at = map_anonymous(r->pages);
        if (madvise(r->at, r->pages * PAGE, r->advice) < 0) {
            CHECK(r->advice == MADV_MERGEABLE && errno == EINVAL, "madvise %s: %s", r->flag, strerror(errno)); // a kernel without KSM
            r->flag = NULL;
        }
        for (u64 p = 0; p < r->pages; p++) fill_page(r->at + p * PAGE, 40 + i, p);
    }
    u8 *locked = map_pattern(32, 60), *named = map_pattern(16, 61);
    MUST(mlock(locked, 32 * PAGE) == 0);
    int has_name = prctl(PR_SET_VMA, PR_SET_VMA_ANON_NAME, named, 16 * PAGE, "victim name") == 0;
    CHECK(has_name || errno == EINVAL, "name memory: %s", strerror(errno));
    u8 *hidden = map_pattern(64, 62), *noreserve = mmap(NULL, 1UL << 32, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    MUST(noreserve != MAP_FAILED);
    fill_page(noreserve + (1UL << 31), 63, 0);
    MUST(mprotect(hidden, 64 * PAGE, PROT_NONE) == 0);
    u8 *grows = mmap(NULL, 64 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_GROWSDOWN, -1, 0);
    MUST(grows != MAP_FAILED);
    for (u64 p = 0; p < 64; p++) fill_page(grows + p * PAGE, 64, p);

    ready();
    wait_go();

    for (u64 i = 0; i < REGIONS; i++) {
        struct region *r = &regions[i];
        CHECK(!r->flag || smaps_has(r->at, r->flag, NULL), "the region with %s has lost it", r->flag);
        if (r->flag && strcmp(r->flag, "hg") == 0) check_pattern(r->at + 700 * PAGE, 700, 20, 40 + i, "a part of huge pages");
    }
    CHECK(smaps_has(locked, "lo", NULL), "locked memory is no longer locked");
    u8 resident[32];
    MUST(mincore(locked, 32 * PAGE, resident) == 0);
    for (int p = 0; p < 32; p++) CHECK(resident[p] & 1, "page %d of locked memory is not there", p);
    CHECK(!has_name || smaps_has(named, NULL, "[anon:victim name]"), "memory has lost its name");
    CHECK(smaps_has(noreserve, "nr", NULL) && smaps_has(grows, "gd", NULL), "memory without reserve or that grows down has lost it");
    // What the advice means, while pages are missing: a child sees zeros, or nothing at all.
    pid_t child = fork();
    MUST(child >= 0);
    if (!child) {
        check_zero(regions[2].at, 16, "memory wiped on fork");
        unsigned char there;
        CHECK(mincore(regions[0].at, PAGE, &there) < 0 && errno == ENOMEM, "memory kept from forks is in the child");
        _exit(0);
    }
    child_must_succeed(child, "child");
    for (u64 i = 0; i < REGIONS; i++) check_pattern(regions[i].at, 0, regions[i].pages, 40 + i, regions[i].flag ? regions[i].flag : "mergeable");
    check_pattern(locked, 0, 32, 60, "locked memory");
    check_pattern(named, 0, 16, 61, "named memory");
    MUST(mprotect(hidden, 64 * PAGE, PROT_READ | PROT_WRITE) == 0);
    check_pattern(hidden, 0, 64, 62, "memory without access");
    CHECK(page_is(noreserve + (1UL << 31), 63, 0) && page_is_zero(noreserve), "memory without reserve differs");
    check_pattern(grows, 0, 64, 64, "memory that grows down");
    MUST(munlock(locked, 32 * PAGE) == 0);
    ok();
}
