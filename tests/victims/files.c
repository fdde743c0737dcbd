// Files without a name, memory files and files that change between checkpoint and restore: `files KIND`.
//
// The verdict goes to the folder that the victim was started in, also where its working directory is gone.
#include "victim.h"
#include <sys/xattr.h>

#define PAGES 16UL

static int folder;
static int fds[8];
static u8 *maps[4];
static struct stat before;
static char link_before[4096];

static void link_of(int fd, char *out) {
    char path[64];
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(path, out, 4095);
    MUST(length > 0);
    out[length] = 0;
}

static int reopened(int fd, int flags) {
    char path[64];
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    int again = open(path, flags | O_CLOEXEC);
    MUST(again >= 0);
    return again;
}

static void write_pattern(int fd, u64 first, u64 pages, u64 salt) {
    u8 page[PAGE];
    for (u64 i = 0; i < pages; i++) {
        fill_page(page, salt, first + i);
        MUST(pwrite(fd, page, PAGE, (off_t)((first + i) * PAGE)) == (ssize_t)PAGE);
    }
}

static void file_is_pattern(int fd, u64 first, u64 pages, u64 salt, const char *what) {
    u8 page[PAGE];
    for (u64 i = 0; i < pages; i++) {
        MUST(pread(fd, page, PAGE, (off_t)((first + i) * PAGE)) == (ssize_t)PAGE);
        CHECK(page_is(page, salt, first + i), "%s: page %lu differs", what, (unsigned long)(first + i));
    }
}

static void *map(int fd, int prot, int flags) {
    void *at = mmap(NULL, PAGES * PAGE, prot, flags, fd, 0);
    MUST(at != MAP_FAILED);
    return at;
}

static void same_inode(int a, int b) {
    struct stat first, second;
    MUST(fstat(a, &first) == 0 && fstat(b, &second) == 0);
    CHECK(first.st_ino == second.st_ino && first.st_dev == second.st_dev, "descriptors %d and %d lead to different files", a, b);
}

// Mode, owner, times, size, links and name are as they were.
static void stat_is_as_before(int fd) {
    struct stat now;
    char link_now[4096];
    MUST(fstat(fd, &now) == 0);
    link_of(fd, link_now);
    CHECK(now.st_mode == before.st_mode, "the mode is %o instead of %o", now.st_mode, before.st_mode);
    CHECK(now.st_uid == before.st_uid && now.st_gid == before.st_gid, "the owner is %u:%u", now.st_uid, now.st_gid);
    CHECK(now.st_size == before.st_size, "the size is %ld instead of %ld", (long)now.st_size, (long)before.st_size);
    CHECK(now.st_nlink == before.st_nlink, "the links are %lu instead of %lu", (unsigned long)now.st_nlink, (unsigned long)before.st_nlink);
    CHECK(now.st_mtim.tv_sec == before.st_mtim.tv_sec && now.st_mtim.tv_nsec == before.st_mtim.tv_nsec, "the modification time differs");
    CHECK(now.st_blocks <= before.st_blocks + 64, "it takes %ld blocks instead of %ld", (long)now.st_blocks, (long)before.st_blocks);
    CHECK(strcmp(link_now, link_before) == 0, "its link is %s instead of %s", link_now, link_before);
}

static void remember(int fd) {
    MUST(fstat(fd, &before) == 0);
    link_of(fd, link_before);
}

// Sparse, of an odd size, with all that an inode can have; open four ways and mapped two.
static void deleted_before(void) {
    MUST((fds[0] = open("gone", O_RDWR | O_CREAT | O_EXCL, 0640)) >= 0);
    write_pattern(fds[0], 0, PAGES, 1);
    write_pattern(fds[0], 5000, 1, 1);
    MUST(ftruncate(fds[0], 6000 * PAGE + 123) == 0);
    MUST(fchown(fds[0], 33, 34) == 0 && fchmod(fds[0], 02640) == 0);
    MUST(fsetxattr(fds[0], "user.victim", "kept", 4, 0) == 0);
    fds[1] = reopened(fds[0], O_RDONLY);
    fds[2] = reopened(fds[0], O_WRONLY | O_APPEND | O_NONBLOCK);
    MUST((fds[3] = dup(fds[0])) >= 0);
    MUST(lseek(fds[0], 77, SEEK_SET) == 77 && lseek(fds[1], 99, SEEK_SET) == 99);
    maps[0] = map(fds[0], PROT_READ | PROT_WRITE, MAP_SHARED);
    maps[1] = map(fds[0], PROT_READ | PROT_WRITE, MAP_PRIVATE);
    maps[2] = map(fds[1], PROT_READ, MAP_SHARED);
    fill_page(maps[1] + 3 * PAGE, 2, 3);
    MUST(unlink("gone") == 0);
    struct timespec times[2] = {{1000000000, 1}, {1100000000, 123456789}};
    MUST(futimens(fds[0], times) == 0);
    remember(fds[0]);
}

static void deleted_after(void) {
    stat_is_as_before(fds[0]);
    for (int i = 1; i < 4; i++) same_inode(fds[0], fds[i]);
    char value[8] = {0};
    MUST(fgetxattr(fds[0], "user.victim", value, sizeof value) == 4 && memcmp(value, "kept", 4) == 0);
    MUST(lseek(fds[0], 0, SEEK_CUR) == 77 && lseek(fds[3], 0, SEEK_CUR) == 77 && lseek(fds[1], 0, SEEK_CUR) == 99);
    MUST((fcntl(fds[0], F_GETFL) & O_ACCMODE) == O_RDWR && (fcntl(fds[1], F_GETFL) & O_ACCMODE) == O_RDONLY);
    MUST((fcntl(fds[2], F_GETFL) & (O_ACCMODE | O_APPEND | O_NONBLOCK)) == (O_WRONLY | O_APPEND | O_NONBLOCK));
    file_is_pattern(fds[1], 0, PAGES, 1, "the deleted file");
    file_is_pattern(fds[1], 5000, 1, 1, "the deleted file behind its hole");
    for (u64 i = 0; i < PAGES; i++) CHECK(page_is(maps[1] + i * PAGE, i == 3 ? 2 : 1, i), "the private mapping: page %lu", (unsigned long)i);
    check_pattern(maps[2], 0, PAGES, 1, "the mapping to read");
    fill_page(maps[0] + PAGE, 4, 1);
    file_is_pattern(fds[1], 1, 1, 4, "what was written through the mapping");
    CHECK(page_is(maps[2] + PAGE, 4, 1), "another mapping does not show it");
    MUST(write(fds[2], "end", 3) == 3);
    struct stat now;
    MUST(fstat(fds[1], &now) == 0 && now.st_size == before.st_size + 3);
    MUST(access("gone", F_OK) < 0 && errno == ENOENT);
}

static void tmpfile_before(void) {
    MUST((fds[0] = open(".", O_TMPFILE | O_RDWR, 0600)) >= 0);
    write_pattern(fds[0], 0, PAGES, 7);
    remember(fds[0]);
}
static void tmpfile_after(void) {
    char link_now[4096];
    struct stat now;
    link_of(fds[0], link_now);
    CHECK(strstr(link_now, "/#") && strstr(link_now, " (deleted)"), "its link is %s", link_now);
    MUST(fstat(fds[0], &now) == 0 && now.st_nlink == 0 && now.st_mode == before.st_mode && now.st_size == before.st_size);
    file_is_pattern(fds[0], 0, PAGES, 7, "the file that never had a name");
    snprintf(link_now, sizeof link_now, "/proc/self/fd/%d", fds[0]);
    unlink("published");
    MUST(linkat(AT_FDCWD, link_now, AT_FDCWD, "published", AT_SYMLINK_FOLLOW) == 0);
}

// Its other name is in the same folder.
static void linked_before(void) {
    MUST((fds[0] = open("first", O_RDWR | O_CREAT | O_EXCL, 0600)) >= 0);
    write_pattern(fds[0], 0, PAGES, 8);
    MUST(link("first", "second") == 0 && unlink("first") == 0);
}
static void linked_after(void) {
    int second = open("second", O_RDONLY);
    MUST(second >= 0);
    same_inode(fds[0], second);
    file_is_pattern(second, 0, PAGES, 8, "the file with another name");
}

// The only other name is elsewhere: what it writes would be lost.
static void moved_link_before(void) {
    MUST((fds[0] = open("first", O_RDWR | O_CREAT | O_EXCL, 0600)) >= 0);
    MUST(mkdir("other", 0700) == 0 && link("first", "other/second") == 0 && unlink("first") == 0);
}

// A deleted file, while another one took its name: two files, as they were.
static void replaced_before(void) {
    MUST((fds[0] = open("name", O_RDWR | O_CREAT | O_EXCL, 0600)) >= 0);
    write_pattern(fds[0], 0, PAGES, 9);
    maps[0] = map(fds[0], PROT_READ | PROT_EXEC, MAP_PRIVATE);
    MUST((fds[1] = open("new", O_RDWR | O_CREAT | O_EXCL, 0600)) >= 0);
    write_pattern(fds[1], 0, PAGES, 10);
    MUST(rename("new", "name") == 0);
}
static void replaced_after(void) {
    file_is_pattern(fds[0], 0, PAGES, 9, "the file that was replaced");
    check_pattern(maps[0], 0, PAGES, 9, "its mapping");
    file_is_pattern(fds[1], 0, PAGES, 10, "the file in its place");
    int named = open("name", O_RDONLY);
    MUST(named >= 0);
    same_inode(fds[1], named);
}

// Names that look like something else.
static const char *const odd[] = {"real (deleted)", "two\nlines", "\\012", " (deleted)"};
static void names_before(void) {
    for (int i = 0; i < 4; i++) {
        MUST((fds[i] = open(odd[i], O_RDWR | O_CREAT | O_EXCL, 0600)) >= 0);
        write_pattern(fds[i], 0, PAGES, 20 + (u64)i);
        maps[i] = map(fds[i], PROT_READ, i % 2 ? MAP_SHARED : MAP_PRIVATE);
    }
}
static void names_after(void) {
    for (int i = 0; i < 4; i++) {
        int named = open(odd[i], O_RDONLY);
        MUST(named >= 0);
        same_inode(fds[i], named);
        check_pattern(maps[i], 0, PAGES, 20 + (u64)i, odd[i]);
    }
}
static void not_utf8_before(void) { MUST((fds[0] = open("caf\xe9", O_RDWR | O_CREAT | O_EXCL, 0600)) >= 0); }

static void directory_before(void) {
    MUST(mkdir("gone", 0750) == 0 && mkdir("gone/below", 0700) == 0 && chdir("gone/below") == 0);
    MUST((fds[0] = open("..", O_RDONLY | O_DIRECTORY)) >= 0);
    MUST((fds[1] = open(".", O_RDONLY | O_DIRECTORY)) >= 0);
    MUST(rmdir("../below") == 0 && unlinkat(folder, "gone", AT_REMOVEDIR) == 0);
    remember(fds[0]);
    struct timespec times[2] = {{1000000000, 1}, {1100000000, 123456789}};
    MUST(futimens(fds[0], times) == 0 && fstat(fds[0], &before) == 0);
}
static void directory_after(void) {
    char path[4096], cwd[4096];
    stat_is_as_before(fds[0]);
    link_of(fds[1], path);
    ssize_t length = readlink("/proc/self/cwd", cwd, sizeof cwd - 1);
    MUST(length > 0);
    cwd[length] = 0;
    CHECK(strcmp(path, cwd) == 0, "the working directory is %s instead of %s", cwd, path);
    CHECK(strstr(cwd, "/gone/below (deleted)"), "the working directory is %s", cwd);
    struct stat here, there;
    MUST(stat(".", &here) == 0 && fstat(fds[1], &there) == 0 && here.st_ino == there.st_ino);
    MUST(open("new", O_WRONLY | O_CREAT, 0600) < 0 && errno == ENOENT);
    MUST(faccessat(folder, "gone", F_OK, 0) < 0 && errno == ENOENT);
}

#ifndef F_SEAL_EXEC
#define F_SEAL_EXEC 0x20
#endif
#ifndef MFD_NOEXEC_SEAL
#define MFD_NOEXEC_SEAL 8U
#endif

static const struct { const char *name; unsigned flags; int seals, prot, how; mode_t mode; } memfds[] = {
    {"plain", 0, 0, PROT_READ | PROT_WRITE, MAP_SHARED, 0777},
    {"sealed", MFD_ALLOW_SEALING, F_SEAL_WRITE | F_SEAL_SHRINK | F_SEAL_GROW, PROT_READ, MAP_SHARED, 0400},
    {"future", MFD_ALLOW_SEALING, F_SEAL_FUTURE_WRITE | F_SEAL_SEAL, PROT_READ | PROT_WRITE, MAP_SHARED, 0600},
    {"two\nlines (deleted)", MFD_NOEXEC_SEAL, 0, PROT_READ | PROT_WRITE, MAP_PRIVATE, 0644},
};
static int seals_before[4];

static void memfds_before(void) {
    for (int i = 0; i < 4; i++) {
        MUST((fds[i] = memfd_create(memfds[i].name, memfds[i].flags | MFD_CLOEXEC)) >= 0);
        write_pattern(fds[i], 0, PAGES, 30 + (u64)i);
        maps[i] = map(fds[i], i == 1 ? PROT_READ | PROT_WRITE : memfds[i].prot, memfds[i].how);
        if (i == 1) { // no writable mapping may be there when it is sealed
            MUST(munmap(maps[1], PAGES * PAGE) == 0);
            maps[1] = map(reopened(fds[1], O_RDONLY), PROT_READ, MAP_SHARED);
        }
        MUST(fchmod(fds[i], memfds[i].mode) == 0);
        if (memfds[i].seals) MUST(fcntl(fds[i], F_ADD_SEALS, memfds[i].seals) == 0);
        seals_before[i] = fcntl(fds[i], F_GET_SEALS);
    }
    fill_page(maps[3] + PAGE, 40, 1);
}
static void memfds_after(void) {
    for (int i = 0; i < 4; i++) {
        char expected[300], link_now[4096];
        struct stat now;
        snprintf(expected, sizeof expected, "/memfd:%s (deleted)", memfds[i].name);
        link_of(fds[i], link_now);
        CHECK(strcmp(link_now, expected) == 0, "memfd %d is %s", i, link_now);
        int seals = fcntl(fds[i], F_GET_SEALS);
        CHECK(seals == seals_before[i], "memfd %d has seals %#x instead of %#x", i, seals, seals_before[i]);
        MUST(fstat(fds[i], &now) == 0);
        CHECK((now.st_mode & 07777) == memfds[i].mode, "memfd %d has mode %o", i, now.st_mode);
        file_is_pattern(fds[i], 0, PAGES, 30 + (u64)i, memfds[i].name);
        for (u64 page = 0; page < PAGES; page++)
            CHECK(page_is(maps[i] + page * PAGE, i == 3 && page == 1 ? 40 : 30 + (u64)i, page), "mapping %d, page %lu", i, (unsigned long)page);
    }
    for (int i = 0; i <= 2; i += 2) {
        fill_page(maps[i], 50, 0);
        file_is_pattern(fds[i], 0, 1, 50, "what was written through the mapping");
    }
    MUST(pwrite(fds[1], "x", 1, 0) < 0 && errno == EPERM);
    MUST(mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fds[2], 0) == MAP_FAILED && errno == EPERM);
}

// POSIX shared memory, whose name the test removes between checkpoint and restore or not.
static char shm[64];
static void shm_before(void) {
    snprintf(shm, sizeof shm, "/dev/shm/defrost-victim-%d", getpid());
    MUST((fds[0] = open(shm, O_RDWR | O_CREAT | O_EXCL, 0600)) >= 0);
    MUST(ftruncate(fds[0], 100000) == 0 && fchmod(fds[0], 0660) == 0);
    maps[0] = map(fds[0], PROT_READ | PROT_WRITE, MAP_SHARED);
    for (u64 i = 0; i < PAGES; i++) fill_page(maps[0] + i * PAGE, 60, i);
    remember(fds[0]);
}
static void shm_after(void) {
    struct stat now, named;
    MUST(fstat(fds[0], &now) == 0 && stat(shm, &named) == 0 && now.st_ino == named.st_ino);
    CHECK((now.st_mode & 07777) == 0660 && now.st_size == 100000, "it has mode %o and %ld bytes", now.st_mode, (long)now.st_size);
    check_pattern(maps[0], 0, PAGES, 60, "the shared memory");
    fill_page(maps[0], 61, 0);
    file_is_pattern(fds[0], 0, 1, 61, "what was written through the mapping");
    MUST(unlink(shm) == 0);
}

// A log that is appended to, a log that is read, and a file that is edited.
static void logs_before(void) {
    MUST((fds[0] = open("appended", O_WRONLY | O_CREAT | O_APPEND, 0600)) >= 0 && write(fds[0], "one\n", 4) == 4);
    MUST((fds[1] = open("tailed", O_RDWR | O_CREAT, 0600)) >= 0 && write(fds[1], "one\n", 4) == 4 && close(fds[1]) == 0);
    MUST((fds[1] = open("tailed", O_RDONLY)) >= 0 && lseek(fds[1], 4, SEEK_SET) == 4);
}
static void logs_after(void) {
    char got[16] = {0};
    MUST(write(fds[0], "last\n", 5) == 5);
    MUST(read(fds[1], got, sizeof got) >= 4 && memcmp(got, "two\n", 4) == 0);
}
static void edited_before(void) {
    MUST((fds[0] = open("edited", O_RDWR | O_CREAT, 0600)) >= 0 && write(fds[0], "one\n", 4) == 4);
}
static void edited_after(void) {
    struct stat now;
    MUST(fstat(fds[0], &now) == 0 && lseek(fds[0], 0, SEEK_CUR) == 4);
}

// Memory that leads elsewhere: another process has it too.
static void held_elsewhere(void) {
    pid_t middle = fork();
    MUST(middle >= 0);
    if (!middle) {
        if (fork()) _exit(0);
        publish("other", "");
        for (pid_t parent = getppid(); faccessat(folder, "verdict", F_OK, 0) < 0 && parent;) sleep_ms(10);
        _exit(0);
    }
    child_must_succeed(middle, "the middle process");
    while (access("other", F_OK) != 0) sleep_ms(2);
}
static void shared_memfd_before(void) {
    MUST((fds[0] = memfd_create("between us", 0)) >= 0);
    held_elsewhere();
}
static void shared_deleted_before(void) {
    deleted_before();
    held_elsewhere();
}
static void huge_memfd_before(void) { MUST((fds[0] = memfd_create("huge", MFD_HUGETLB)) >= 0); }
static void large_before(void) {
    MUST((fds[0] = open("large", O_RDWR | O_CREAT | O_EXCL, 0600)) >= 0 && unlink("large") == 0);
    write_pattern(fds[0], 0, 300, 1);
}
static void large_after(void) { file_is_pattern(fds[0], 0, 300, 1, "the large file"); }
static void secret_before(void) {
    MUST((fds[0] = (int)syscall(447, 0)) >= 0 && ftruncate(fds[0], PAGE) == 0); // memfd_secret
}
static void nothing(void) {}

// An executable that is gone: the victim runs a copy of itself, which deletes itself.
static void exe_before(void) {
    ssize_t length = readlink("/proc/self/exe", link_before, sizeof link_before - 1);
    MUST(length > 0);
    if (!strstr(link_before, "/copy")) {
        int copy = open("copy", O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0700), self = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
        char bytes[65536];
        MUST(copy >= 0 && self >= 0);
        for (ssize_t n; (n = read(self, bytes, sizeof bytes)) > 0;) MUST(write(copy, bytes, (size_t)n) == n);
        MUST(close(copy) == 0);
        execl("./copy", "files", "exe", NULL);
        wrong("run the copy: %s", strerror(errno));
    }
    MUST(unlink("copy") == 0);
    MUST((length = readlink("/proc/self/exe", link_before, sizeof link_before - 1)) > 0);
    link_before[length] = 0;
    MUST(stat("/proc/self/exe", &before) == 0);
}
static void exe_after(void) {
    char link_now[4096];
    struct stat now;
    ssize_t length = readlink("/proc/self/exe", link_now, sizeof link_now - 1);
    MUST(length > 0);
    link_now[length] = 0;
    CHECK(strcmp(link_now, link_before) == 0, "the executable is %s instead of %s", link_now, link_before);
    MUST(stat("/proc/self/exe", &now) == 0 && now.st_size == before.st_size && now.st_mode == before.st_mode);
    pid_t child = fork();
    MUST(child >= 0);
    if (!child) {
        execl("/proc/self/exe", "files", "nothing at all", NULL);
        _exit(1);
    }
    child_must_succeed(child, "the deleted executable, run again");
}

static void root_before(void) {
    MUST(mkdir("root", 0755) == 0 && mkdir("root/inside", 0755) == 0);
    MUST((fds[0] = open("root/inside/file", O_RDWR | O_CREAT, 0600)) >= 0 && write(fds[0], "one\n", 4) == 4);
    MUST(chroot("root") == 0 && chdir("/inside") == 0);
}
static void root_after(void) {
    char cwd[64];
    MUST(getcwd(cwd, sizeof cwd) && strcmp(cwd, "/inside") == 0);
    MUST(access("/inside/file", F_OK) == 0 && access("/proc", F_OK) < 0);
    int named = open("file", O_RDONLY);
    MUST(named >= 0);
    same_inode(fds[0], named);
}

static const struct { const char *name; void (*before)(void), (*after)(void); } kinds[] = {
    {"deleted", deleted_before, deleted_after}, {"tmpfile", tmpfile_before, tmpfile_after},
    {"linked", linked_before, linked_after}, {"moved link", moved_link_before, nothing},
    {"replaced", replaced_before, replaced_after}, {"names", names_before, names_after},
    {"not utf-8", not_utf8_before, nothing}, {"directory", directory_before, directory_after},
    {"memfds", memfds_before, memfds_after}, {"shm", shm_before, shm_after},
    {"logs", logs_before, logs_after}, {"edited", edited_before, edited_after},
    {"shared memfd", shared_memfd_before, nothing}, {"shared deleted", shared_deleted_before, nothing},
    {"huge memfd", huge_memfd_before, nothing}, {"large", large_before, large_after},
    {"secret", secret_before, nothing}, {"exe", exe_before, exe_after}, {"root", root_before, root_after},
};

int main(int argc, char **argv) {
    if (argc > 1 && strcmp(argv[1], "nothing at all") == 0) return 0;
    // Out of the way: the kinds' own descriptors begin with 3.
    int here = open(".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    MUST(here >= 0 && (folder = fcntl(here, F_DUPFD_CLOEXEC, 100)) >= 0 && close(here) == 0);
    for (size_t i = 0; argc > 1 && i < sizeof kinds / sizeof *kinds; i++) {
        if (strcmp(argv[1], kinds[i].name)) continue;
        kinds[i].before();
        here = open(".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        if (here >= 0) MUST(fchdir(folder) == 0);
        ready();
        if (here >= 0) MUST(fchdir(here) == 0);
        while (faccessat(folder, "go", F_OK, 0) != 0) sleep_ms(2);
        kinds[i].after();
        MUST(fchdir(folder) == 0);
        ok();
    }
    wrong("no such kind");
}
