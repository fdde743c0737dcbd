// Ways in which a program's memory loses its contents, moves or stays while it is missing, with and without a userfaultfd event. What
// was dropped reads as zeros, what was not has its contents, in the process and in children. `vanish descriptor` shows the one limit:
// a program that takes apart the userfaultfd it inherited.
#include "victim.h"
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/shm.h>
#include <sys/uio.h>

#define GUARD_INSTALL 102
#define GUARD_REMOVE 103
#define DONTNEED_LOCKED 24
#define COLLAPSE 25
#define DONTUNMAP 4
#define PAGES 512UL
#define BYTES (PAGES * PAGE)

enum { GUARD, GUARD_CHILD, GUARD_MOVED, WIPE, SHM, FREE, LOCKED, PROCESS, UNMAPPED_LEFT, STAY, SECOND, REPLACED, SHORT, FREED_WRITTEN, PROTECT, MAPS };
static u8 *map[MAPS];

static void zeros(int n, u64 first, u64 pages, const char *what) { check_zero(map[n] + first * PAGE, pages, what); }
static void stays(int n, u64 first, u64 pages, const char *what) { check_pattern(map[n] + first * PAGE, first, pages, 100 + n, what); }

// The userfaultfd that this process has at a number out of its way; -1 for none.
static int inherited(void) {
    for (int fd = 3; fd < 65536; fd++) {
        char path[32], link[64];
        snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
        ssize_t got = readlink(path, link, sizeof link - 1);
        if (got > 0 && (link[got] = 0, strstr(link, "[userfaultfd]"))) return fd;
    }
    return -1;
}

// Guards that a child sets and removes, and memory that is wiped in it.
static void child(void) {
    MUST(madvise(map[GUARD_CHILD] + PAGE, 200 * PAGE, GUARD_INSTALL) == 0 && madvise(map[GUARD_CHILD] + PAGE, 200 * PAGE, GUARD_REMOVE) == 0);
    zeros(GUARD_CHILD, 1, 200, "guards that a child set and removed");
    stays(GUARD_CHILD, 201, PAGES - 201, "behind guards of a child");
    zeros(WIPE, 0, PAGES, "memory that is wiped in a child");
    zeros(GUARD, 1, PAGES - 2, "guards that the parent of a child set and removed");
    stays(STAY, 0, PAGES, "memory of a child");
    _exit(0);
}

int main(int argc, char **argv) {
    for (int n = 0; n < MAPS; n++) map[n] = map_pattern(PAGES, 100 + n);
    ready();
    wait_go();
    if (argc > 1 && strcmp(argv[1], "descriptor") == 0) {
        int fd = inherited();
        struct uffdio_range all = {(u64)map[STAY], BYTES};
        MUST(fd >= 0 && ioctl(fd, UFFDIO_UNREGISTER, &all) == 0);
        zeros(STAY, 0, PAGES, "memory that the program itself no longer has watched");
        ok();
    }
    // Everything is done before anything is touched: what is near a page that was touched may be there.
    u8 *at = map[GUARD];
    MUST(madvise(at + PAGE, (PAGES - 2) * PAGE, GUARD_INSTALL) == 0 && madvise(at + PAGE, (PAGES - 2) * PAGE, GUARD_REMOVE) == 0);
    at = map[GUARD_MOVED];
    MUST(madvise(at, 100 * PAGE, GUARD_INSTALL) == 0);
    u8 *place = mmap(NULL, BYTES, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    MUST(mremap(at, BYTES, BYTES, MREMAP_MAYMOVE | MREMAP_FIXED, place) == place && madvise(place, 100 * PAGE, GUARD_REMOVE) == 0);
    map[GUARD_MOVED] = place;
    MUST(madvise(map[WIPE], BYTES, MADV_WIPEONFORK) == 0);
    // Shared memory takes the place of the second half without a word, goes without a word, and the first half grows into its place.
    at = map[SHM];
    int id = shmget(IPC_PRIVATE, BYTES / 2, 0600);
    MUST(id >= 0 && shmat(id, at + BYTES / 2, SHM_REMAP) == at + BYTES / 2);
    MUST(shmctl(id, IPC_RMID, NULL) == 0 && shmdt(at + BYTES / 2) == 0);
    MUST(mremap(at, BYTES / 2, BYTES, 0) == at);
    MUST(madvise(map[FREE], BYTES, MADV_FREE) == 0 && madvise(map[FREED_WRITTEN], BYTES, MADV_FREE) == 0);
    MUST(madvise(map[LOCKED], BYTES, DONTNEED_LOCKED) == 0);
    struct iovec part = {map[PROCESS], BYTES};
    int self = syscall(SYS_pidfd_open, getpid(), 0);
    int dropped = syscall(SYS_process_madvise, self, &part, 1, MADV_DONTNEED, 0) == (long)BYTES; // Linux 6.13
    at = map[UNMAPPED_LEFT];
    u8 *moved = mremap(at, BYTES, BYTES, MREMAP_MAYMOVE | DONTUNMAP, 0);
    MUST(moved != MAP_FAILED);
    at = map[STAY];
    MUST(madvise(at, 64 * PAGE, MADV_PAGEOUT) == 0 && madvise(at + 64 * PAGE, 64 * PAGE, MADV_COLD) == 0);
    (void)madvise(at, BYTES, COLLAPSE); // refused while it is watched
    (void)madvise(at, BYTES, MADV_MERGEABLE); // KSM, where the kernel has it
    MUST(madvise(at + 128 * PAGE, 64 * PAGE, MADV_WILLNEED) == 0 && madvise(at + 192 * PAGE, 8 * PAGE, MADV_POPULATE_READ) == 0);
    MUST(madvise(at + 256 * PAGE, 8 * PAGE, MADV_POPULATE_WRITE) == 0 && mlock(at + 300 * PAGE, 8 * PAGE) == 0);
    int clear = open("/proc/self/clear_refs", O_WRONLY | O_CLOEXEC);
    MUST(clear >= 0 && write(clear, "4", 1) == 1 && write(clear, "1", 1) == 1); // soft-dirty and referenced bits
    // Another userfaultfd, of the program's own: what is watched is refused, where it may have one at all.
    int own = syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
    if (own >= 0) {
        struct uffdio_api api = {.api = UFFD_API};
        struct uffdio_register all = {{(u64)map[SECOND], BYTES}, UFFDIO_REGISTER_MODE_MISSING, 0};
        MUST(ioctl(own, UFFDIO_API, &api) == 0);
        if (ioctl(own, UFFDIO_REGISTER, &all) != 0) MUST(errno == EBUSY);
        else MUST(ioctl(own, UFFDIO_UNREGISTER, &all.range) == 0); // resident by then
        close(own);
    }
    MUST(mmap(map[REPLACED], BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == map[REPLACED]);
    MUST(mremap(map[SHORT], BYTES, BYTES / 2, 0) == map[SHORT] && mremap(map[SHORT], BYTES / 2, BYTES, 0) == map[SHORT]);
    MUST(mprotect(map[PROTECT], BYTES, PROT_NONE) == 0 && mprotect(map[PROTECT] + PAGE, BYTES - PAGE, PROT_READ) == 0);
    MUST(mprotect(map[PROTECT], BYTES, PROT_READ | PROT_WRITE) == 0);
    pid_t forked = fork();
    MUST(forked >= 0);
    if (!forked) child();

    zeros(GUARD, 1, PAGES - 2, "guards that were set and removed");
    stays(GUARD, 0, 1, "before guards");
    stays(GUARD, PAGES - 1, 1, "behind guards");
    zeros(GUARD_MOVED, 0, 100, "guards that were set, moved and removed");
    stays(GUARD_MOVED, 100, PAGES - 100, "behind guards that moved");
    stays(WIPE, 0, PAGES, "memory that is wiped in a child only");
    stays(SHM, 0, PAGES / 2, "before shared memory");
    zeros(SHM, PAGES / 2, PAGES / 2, "where shared memory was");
    for (u64 i = 0; i < PAGES; i++) {
        u8 *page = map[FREE] + i * PAGE;
        CHECK(page_is_zero(page) || page_is(page, 100 + FREE, i), "freed page %lu is neither zero nor as before", (unsigned long)i);
        fill_page(map[FREED_WRITTEN] + i * PAGE, 1, i);
    }
    check_pattern(map[FREED_WRITTEN], 0, PAGES, 1, "freed memory that was written again");
    zeros(LOCKED, 0, PAGES, "MADV_DONTNEED_LOCKED");
    if (dropped) zeros(PROCESS, 0, PAGES, "process_madvise");
    else stays(PROCESS, 0, PAGES, "process_madvise that this kernel refuses");
    zeros(UNMAPPED_LEFT, 0, PAGES, "what MREMAP_DONTUNMAP leaves");
    check_pattern(moved, 0, PAGES, 100 + UNMAPPED_LEFT, "what MREMAP_DONTUNMAP moves");
    stays(STAY, 0, PAGES, "memory that was only advised on");
    stays(SECOND, 0, PAGES, "memory that another userfaultfd asked for");
    zeros(REPLACED, 0, PAGES, "a mapping in the place of another");
    stays(SHORT, 0, PAGES / 2, "memory that was cut and grew again");
    zeros(SHORT, PAGES / 2, PAGES / 2, "where memory was cut off");
    stays(PROTECT, 0, PAGES, "memory that was protected");
    child_must_succeed(forked, "child");
    stays(GUARD_CHILD, 0, PAGES, "memory that only a child guarded");
    ok();
}
