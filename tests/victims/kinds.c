// Descriptors that are neither regular files nor sockets, one sort at a time: `kinds SORT`, each two functions, before and after.
//
// What fdinfo tells of every descriptor is kept and compared, but for the numbers that the kernel gives away.
#include "victim.h"
#include <dirent.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/fanotify.h>
#include <sys/file.h>
#include <sys/inotify.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/sysmacros.h>
#include <sys/timerfd.h>
#include <sys/un.h>

#define SOME 24
static int fds[SOME];
static char told[SOME][4096];
static char here[200];

static ssize_t file_text(const char *path, char *to, size_t room) {
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? -1 : read(fd, to, room - 1);
    if (fd >= 0) close(fd);
    to[n < 0 ? 0 : n] = 0;
    return n;
}

static int line_order(const void *a, const void *b) { return strcmp(*(char *const *)a, *(char *const *)b); }

// fdinfo and link of a descriptor, without what a new one has of its own; lines in an order.
static void tell(int fd, char *to, size_t room) {
    char path[64], text[4096], link[256] = {0}, *lines[200];
    snprintf(path, sizeof path, "/proc/self/fdinfo/%d", fd);
    MUST(file_text(path, text, sizeof text) > 0);
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    MUST(readlink(path, link, sizeof link - 1) > 0);
    if (strncmp(link, "pipe:", 5) == 0) link[5] = 0;
    int count = 0;
    for (char *line = strtok(text, "\n"); line; line = strtok(NULL, "\n")) {
        char *cut = strstr(line, "pos:0 ino:");
        if (strncmp(line, "tfd:", 4) == 0 && cut) *cut = 0;
        if (strncmp(line, "lock:", 5) == 0) line = strchr(line + 6, ':');
        if (strncmp(line, "mnt_id:", 7) == 0 || strncmp(line, "ino:", 4) == 0 || strncmp(line, "eventfd-id:", 11) == 0) continue;
        if (strncmp(line, "it_value:", 9) == 0 && !strstr(line, "(0, 0)")) continue;
        if (count < 200) lines[count++] = line;
    }
    qsort(lines, (size_t)count, sizeof *lines, line_order);
    size_t at = (size_t)snprintf(to, room, "%s\n", link);
    for (int i = 0; i < count && at < room; i++) at += (size_t)snprintf(to + at, room - at, "%s\n", lines[i]);
}

static void have(int fd, const char *bytes) {
    char got[256] = {0};
    ssize_t want = (ssize_t)strlen(bytes), n = read(fd, got, sizeof got - 1);
    CHECK(n == want && memcmp(got, bytes, (size_t)want) == 0, "fd %d gave \"%s\" (%zd bytes) instead of \"%s\"", fd, got, n, bytes);
}

static int events_of(int fd) {
    struct pollfd p = {.fd = fd, .events = POLLIN | POLLOUT};
    MUST(poll(&p, 1, 0) >= 0);
    return p.revents;
}

static void watch(int epoll, int fd, uint32_t events, u64 data) {
    struct epoll_event event = {.events = events, .data.u64 = data};
    MUST(epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event) == 0);
}

// Whom `epoll` tells of, as a set of bits by their data.
static unsigned told_of(int epoll) {
    struct epoll_event got[16];
    int n = epoll_wait(epoll, got, 16, 0);
    MUST(n >= 0);
    unsigned set = 0;
    for (int i = 0; i < n; i++) set |= 1U << got[i].data.u64;
    return set;
}
static void tells(int epoll, unsigned want, const char *when) {
    unsigned set = told_of(epoll);
    CHECK(set == want, "%s epoll tells of %#x instead of %#x", when, set, want);
}

// --- epoll: a watched description whose number is gone, and the number's new owner
static void gone_before(int reuse) {
    MUST((fds[0] = epoll_create1(0)) >= 0 && pipe(fds + 1) == 0);
    watch(fds[0], fds[1], EPOLLIN, 7);
    MUST((fds[3] = fcntl(fds[1], F_DUPFD, 40)) >= 40);
    MUST(close(fds[1]) == 0);
    if (reuse == 1) {
        int null = open("/dev/null", O_RDONLY);
        MUST(null >= 0 && (null == fds[1] || (dup2(null, fds[1]) == fds[1] && close(null) == 0)));
    } else if (reuse == 2) {
        int other[2];
        MUST(pipe(other) == 0);
        if (other[0] != fds[1]) MUST(dup2(other[0], fds[1]) == fds[1] && close(other[0]) == 0);
        fds[4] = other[1];
    } else {
        fds[1] = 0;
    }
}
static void epollgone_before(void) { gone_before(0); }
static void epollnull_before(void) { gone_before(1); }
static void epollpipe_before(void) { gone_before(2); }
static void epollgone_after(void) {
    tells(fds[0], 0, "before anything is written");
    if (fds[4]) MUST(write(fds[4], "x", 1) == 1);
    tells(fds[0], 0, "after a write to the number's new owner");
    MUST(write(fds[2], "x", 1) == 1);
    tells(fds[0], 1 << 7, "after a write to what is watched");
    have(fds[3], "x");
    tells(fds[0], 0, "after a read");
}

// --- epoll: one number watched twice, and numbers far above all that are open
static void epolltwice_before(void) {
    MUST((fds[0] = epoll_create1(0)) >= 0 && pipe(fds + 1) == 0 && pipe(fds + 3) == 0);
    MUST(dup2(fds[1], 700) == 700);
    watch(fds[0], 700, EPOLLIN, 1);
    MUST(dup2(fds[3], 700) == 700);
    watch(fds[0], 700, EPOLLIN | EPOLLET, 2);
    MUST(close(700) == 0);
    watch(fds[0], fds[3], EPOLLIN, 3);
    MUST((fds[5] = eventfd(0, EFD_NONBLOCK)) >= 0 && dup2(fds[5], 701) == 701);
    watch(fds[0], 701, EPOLLIN, 4);
    MUST(close(701) == 0);
}
static void epolltwice_after(void) {
    tells(fds[0], 0, "at first");
    MUST(write(fds[2], "x", 1) == 1);
    tells(fds[0], 1 << 1, "after the first pipe");
    MUST(write(fds[4], "x", 1) == 1);
    tells(fds[0], 1 << 1 | 1 << 2 | 1 << 3, "after the second pipe");
    tells(fds[0], 1 << 1 | 1 << 3, "once the edge is over");
    MUST(eventfd_write(fds[5], 1) == 0);
    tells(fds[0], 1 << 1 | 1 << 3 | 1 << 4, "after the counter");
}

// --- epoll: one-shot interests that have fired tell of nothing until they are armed again
static void epollfired_before(void) {
    MUST((fds[0] = epoll_create1(0)) >= 0 && pipe(fds + 1) == 0 && (fds[3] = eventfd(1, 0)) >= 0);
    watch(fds[0], fds[1], EPOLLIN | EPOLLONESHOT, 1);
    watch(fds[0], fds[3], EPOLLIN | EPOLLONESHOT | EPOLLET, 2);
    MUST(write(fds[2], "x", 1) == 1);
    tells(fds[0], 1 << 1 | 1 << 2, "while they are armed");
    have(fds[1], "x");
    MUST((fds[4] = eventfd(0, 0)) >= 0);
    watch(fds[0], fds[4], EPOLLIN | EPOLLONESHOT, 3);
    // Watched by another one as well, whose edge must not be used up.
    MUST((fds[5] = epoll_create1(0)) >= 0);
    watch(fds[5], fds[1], EPOLLIN | EPOLLEXCLUSIVE, 5);
}
static void epollfired_after(void) {
    tells(fds[0], 0, "once they have fired");
    tells(fds[5], 0, "the other");
    MUST(write(fds[2], "x", 1) == 1 && eventfd_write(fds[3], 1) == 0);
    tells(fds[0], 0, "after writes to what has fired");
    tells(fds[5], 1 << 5, "the other");
    MUST(close(fds[2]) == 0);
    have(fds[1], "x");
    tells(fds[0], 0, "after a hang-up");
    struct epoll_event again = {.events = EPOLLIN | EPOLLONESHOT, .data.u64 = 6};
    MUST(epoll_ctl(fds[0], EPOLL_CTL_MOD, fds[1], &again) == 0 && eventfd_write(fds[4], 1) == 0);
    tells(fds[0], 1 << 3 | 1 << 6, "after one was armed again");
    tells(fds[0], 0, "at last");
}

// --- epolls that watch epolls, made before and after what they watch
static void epollnested_before(void) {
    MUST((fds[0] = epoll_create1(0)) >= 0 && (fds[1] = epoll_create1(0)) >= 0 && (fds[2] = eventfd(0, 0)) >= 0);
    watch(fds[0], fds[1], EPOLLIN, 1);
    watch(fds[1], fds[2], EPOLLIN, 2);
    MUST((fds[3] = epoll_create1(0)) >= 0);
    watch(fds[3], fds[0], EPOLLIN | EPOLLET, 3);
    MUST((fds[4] = fcntl(fds[0], F_DUPFD, 50)) >= 50 && close(fds[0]) == 0);
    fds[0] = 0;
    unsigned char params[8] = {64, 0, 0, 0, 8, 0, 0, 0}; // EPIOCSPARAMS: 64 us, 8 packets
    MUST(ioctl(fds[1], _IOC(_IOC_WRITE, 0x8a, 1, 8), params) == 0);
}
static void epollnested_after(void) {
    unsigned char params[8] = {0};
    MUST(ioctl(fds[1], _IOC(_IOC_READ, 0x8a, 2, 8), params) == 0);
    CHECK(params[0] == 64 && params[4] == 8, "the epoll polls for %d us, %d packets", params[0], params[4]);
    tells(fds[3], 0, "at first");
    MUST(eventfd_write(fds[2], 1) == 0);
    tells(fds[3], 1 << 3, "the outermost");
    tells(fds[4], 1 << 1, "the middle");
    tells(fds[1], 1 << 2, "the innermost");
}

// --- several descriptions of one pipe, each with flags of its own
static int through_proc(int fd, int flags) {
    char path[64];
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    int opened = open(path, flags);
    MUST(opened >= 0);
    return opened;
}
static void pipes_before(void) {
    MUST(pipe2(fds, O_CLOEXEC) == 0 && fcntl(fds[1], F_SETPIPE_SZ, 1 << 18) > 0);
    fds[2] = through_proc(fds[0], O_RDONLY | O_NONBLOCK);
    fds[3] = through_proc(fds[1], O_WRONLY | O_NONBLOCK);
    fds[4] = through_proc(fds[0], O_RDWR | O_NONBLOCK | O_CLOEXEC);
    MUST((fds[5] = dup(fds[2])) >= 0);
    MUST(write(fds[1], "waiting", 7) == 7);
    MUST(fchown(fds[0], 33, 34) == 0 && fchmod(fds[0], 0620) == 0);
    int alone[2];
    MUST(pipe(alone) == 0);
    fds[6] = through_proc(alone[0], O_RDWR);
    MUST(write(alone[1], "alone", 5) == 5 && close(alone[0]) == 0 && close(alone[1]) == 0);
}
static void pipes_after(void) {
    struct stat stat;
    MUST(fstat(fds[2], &stat) == 0);
    CHECK(stat.st_uid == 33 && stat.st_gid == 34 && (stat.st_mode & 07777) == 0620, "the pipe is %d:%d %o", stat.st_uid, stat.st_gid, stat.st_mode);
    CHECK(fcntl(fds[0], F_GETPIPE_SZ) == 1 << 18, "the pipe holds %d bytes", fcntl(fds[0], F_GETPIPE_SZ));
    have(fds[5], "waiting");
    char byte;
    CHECK(read(fds[2], &byte, 1) < 0 && errno == EAGAIN, "the pipe has more");
    MUST(fcntl(fds[2], F_SETFL, 0) == 0);
    CHECK((fcntl(fds[5], F_GETFL) & (O_ACCMODE | O_NONBLOCK)) == O_RDONLY && fcntl(fds[4], F_GETFL) & O_NONBLOCK, "flags are shared with others, or not with a duplicate");
    MUST(write(fds[3], "more", 4) == 4);
    have(fds[4], "more");
    MUST(close(fds[1]) == 0 && close(fds[3]) == 0);
    CHECK(!(events_of(fds[0]) & POLLHUP), "a pipe that one reads and writes has hung up");
    MUST(close(fds[4]) == 0);
    CHECK(events_of(fds[0]) & POLLHUP, "a pipe without a writer has not hung up");
    have(fds[6], "alone");
    MUST(write(fds[6], "again", 5) == 5);
    have(fds[6], "again");
}

// --- pipes of packets
static void packets_before(void) {
    MUST(pipe2(fds, O_DIRECT | O_NONBLOCK) == 0);
    MUST(write(fds[1], "one", 3) == 3 && write(fds[1], "second", 6) == 6 && write(fds[1], "3", 1) == 1);
    MUST(pipe2(fds + 2, O_DIRECT) == 0); // one packet alone
    MUST(write(fds[3], "single", 6) == 6);
    MUST(pipe2(fds + 4, O_DIRECT) == 0 && fcntl(fds[5], F_SETFL, 0) == 0); // packets no more
    MUST(write(fds[5], "a stream", 8) == 8);
}
static void packets_after(void) {
    have(fds[0], "one");
    char got[8];
    MUST(read(fds[0], got, 2) == 2 && memcmp(got, "se", 2) == 0);
    have(fds[0], "3");
    CHECK(read(fds[0], got, 1) < 0 && errno == EAGAIN, "the pipe has more");
    MUST(write(fds[1], "ab", 2) == 2 && write(fds[1], "cd", 2) == 2);
    have(fds[0], "ab");
    have(fds[0], "cd");
    MUST(read(fds[2], got, 1) == 1);
    MUST(write(fds[3], "next", 4) == 4);
    have(fds[2], "next");
    MUST(read(fds[4], got, 1) == 1);
    have(fds[4], " stream");
}

// --- pipes whose other end nobody has
static void halfpipes_before(void) {
    MUST(pipe(fds) == 0 && write(fds[1], "last words", 10) == 10 && close(fds[1]) == 0);
    fds[1] = 0;
    MUST(pipe(fds + 2) == 0 && close(fds[2]) == 0);
    fds[2] = 0;
    int both[2];
    MUST(pipe(both) == 0);
    fds[4] = both[0];
    fds[5] = through_proc(both[0], O_RDONLY | O_NONBLOCK);
    MUST(close(both[1]) == 0);
}
static void halfpipes_after(void) {
    CHECK(events_of(fds[0]) == (POLLIN | POLLHUP), "the pipe has events %#x", events_of(fds[0]));
    have(fds[0], "last words");
    have(fds[0], "");
    CHECK(write(fds[3], "x", 1) < 0 && errno == EPIPE, "somebody reads");
    have(fds[4], "");
    have(fds[5], "");
}

// --- named pipes
static void fifo_before(void) {
    umask(0);
    unlink("fifo");
    unlink("quiet fifo");
    MUST(mkfifo("fifo", 0642) == 0 && chown("fifo", 33, 34) == 0);
    MUST((fds[0] = open("fifo", O_RDWR | O_CLOEXEC)) >= 0 && (fds[1] = open("fifo", O_RDONLY | O_NONBLOCK)) >= 0);
    MUST((fds[2] = open("fifo", O_WRONLY)) >= 0);
    MUST(write(fds[2], "named", 5) == 5 && close(fds[0]) == 0);
    fds[0] = 0;
    MUST(mkfifo("quiet fifo", 0600) == 0);
    MUST((fds[3] = open("quiet fifo", O_RDONLY | O_NONBLOCK)) >= 0); // nobody ever wrote
    unlink("left");
    MUST(mkfifo("left", 0600) == 0 && (fds[4] = open("left", O_RDONLY | O_NONBLOCK)) >= 0);
    MUST((fds[5] = open("left", O_WRONLY)) >= 0 && close(fds[5]) == 0);
    fds[5] = 0;
    umask(022);
}
static void fifo_after(void) {
    struct stat stat, there;
    MUST(fstat(fds[1], &stat) == 0 && lstat("fifo", &there) == 0 && stat.st_ino == there.st_ino);
    CHECK(stat.st_uid == 33 && stat.st_gid == 34 && (stat.st_mode & 07777) == 0642, "the named pipe is %d:%d %o", stat.st_uid, stat.st_gid, stat.st_mode);
    have(fds[1], "named");
    MUST(write(fds[2], "more", 4) == 4);
    have(fds[1], "more");
    CHECK(events_of(fds[3]) == 0, "a named pipe that nobody wrote to has events %#x", events_of(fds[3]));
    CHECK(events_of(fds[4]) == POLLHUP, "a named pipe that was left has events %#x", events_of(fds[4]));
    int writer = open("quiet fifo", O_WRONLY | O_NONBLOCK | O_CLOEXEC);
    MUST(writer >= 0 && write(writer, "hello", 5) == 5 && close(writer) == 0);
    have(fds[3], "hello");
    MUST(close(fds[2]) == 0);
    CHECK(events_of(fds[1]) == POLLHUP, "without a writer it has events %#x", events_of(fds[1]));
}

// --- files that the kernel makes up
static pid_t thread_tid;
static void *sleeps(void *unused) {
    (void)unused;
    __atomic_store_n(&thread_tid, (pid_t)syscall(SYS_gettid), __ATOMIC_SEQ_CST);
    for (;;) pause();
    return NULL;
}
static void ends(int number) {
    (void)number;
    syscall(SYS_exit, 0);
}
static void kernel_before(void) {
    signal(SIGUSR1, ends);
    start(sleeps, NULL);
    while (!__atomic_load_n(&thread_tid, __ATOMIC_SEQ_CST)) sleep_ms(1);
    char path[80];
    snprintf(path, sizeof path, "/proc/self/task/%d/stat", thread_tid);
    const char *paths[] = {"/proc/self/stat", "/proc/stat", "/proc/meminfo", path, "/proc/self/status", "/proc/self/mountinfo",
        "/proc/self/fd", "/sys/kernel/mm/transparent_hugepage/enabled", "/proc/sys/kernel/hostname", "/proc/self/maps", "/proc/net/dev", "/sys/devices"};
    for (int i = 0; i < 12; i++) MUST((fds[i] = open(paths[i], O_RDONLY | (i % 2 ? O_CLOEXEC : 0))) >= 0);
    MUST((fds[12] = open("/proc/self/mem", O_RDWR)) >= 0 && (fds[13] = open("/proc/self/oom_score_adj", O_RDWR)) >= 0);
    MUST((fds[14] = open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC)) >= 0 && (fds[15] = open("/proc/self/ns/mnt", O_RDONLY)) >= 0);
    MUST((fds[16] = open("/proc/self", O_PATH | O_DIRECTORY)) >= 0);
    char some[10];
    MUST(read(fds[4], some, 10) == 10);
    MUST((fds[17] = epoll_create1(0)) >= 0);
    watch(fds[17], fds[5], EPOLLPRI, 5);
    MUST((fds[18] = (int)syscall(SYS_pidfd_open, thread_tid, O_EXCL)) >= 0 && dup2(fds[18], 90) == 90); // PIDFD_THREAD
    watch(fds[17], fds[18], EPOLLIN, 18);
    watch(fds[17], 90, EPOLLIN, 19); // by a number that is another's now
    MUST(dup2(fds[1], 90) == 90);
}
static void kernel_after(void) {
    char text[4096];
    for (int i = 0; i < 4; i++) {
        ssize_t n = pread(fds[i], text, sizeof text - 1, 0);
        CHECK(n > 0, "file %d gives nothing: %s", i, strerror(errno));
        text[n] = 0;
        if (i == 0 || i == 3) CHECK(atoi(text) == (i ? thread_tid : getpid()), "file %d begins with %.20s", i, text);
    }
    CHECK(lseek(fds[4], 0, SEEK_CUR) == 10, "status is at another position");
    MUST(pread(fds[5], text, 20, 0) > 0 && pread(fds[7], text, 20, 0) > 0 && pread(fds[8], text, 20, 0) > 0 && pread(fds[9], text, 20, 0) > 0);
    MUST(pread(fds[10], text, 20, 0) > 0);
    snprintf(text, sizeof text, "%d", fds[4]);
    CHECK(faccessat(fds[6], text, F_OK, AT_SYMLINK_NOFOLLOW) == 0, "/proc/self/fd is another's");
    static volatile int mine = 1234;
    int seen = 0;
    CHECK(pread(fds[12], &seen, sizeof seen, (off_t)&mine) == sizeof seen && seen == 1234, "/proc/self/mem is another's");
    CHECK(pwrite(fds[13], "7", 1, 0) == 1, "oom_score_adj cannot be written");
    MUST(file_text("/proc/self/oom_score_adj", text, sizeof text) > 0);
    CHECK(atoi(text) == 7, "oom_score_adj of another was set");
    struct stat a, b;
    MUST(fstat(fds[14], &a) == 0 && stat("/proc/self/ns/net", &b) == 0 && a.st_ino == b.st_ino);
    int fd = openat(fds[16], "stat", O_RDONLY | O_CLOEXEC);
    MUST(fd >= 0 && read(fd, text, 20) > 0 && close(fd) == 0);
    CHECK(atoi(text) == getpid(), "/proc/self is another's");
    tells(fds[17], 0, "while the thread runs");
    MUST(syscall(SYS_tgkill, getpid(), thread_tid, SIGUSR1) == 0);
    for (int i = 0; i < 200 && told_of(fds[17]) != (1 << 18 | 1 << 19); i++) sleep_ms(10);
    tells(fds[17], 1 << 18 | 1 << 19, "once it has ended");
}

// --- inotify: watches under their numbers, some of which are gone
static void event_is(int fd, int wd, uint32_t mask, const char *name) {
    char room[512] __attribute__((aligned(8)));
    ssize_t n = read(fd, room, sizeof room);
    struct inotify_event *event = (void *)room;
    CHECK(n > 0, "no event came: %s", strerror(errno));
    CHECK(event->wd == wd && event->mask == mask && (!name || strcmp(event->name, name) == 0), "event %#x of watch %d came instead of %#x of %d", event->mask, event->wd, mask, wd);
}
static void inotify_before(void) {
    MUST(mkdir("watched", 0700) == 0 || errno == EEXIST);
    publish("tailed", "one\n");
    unlink("link");
    MUST(symlink("tailed", "link") == 0);
    MUST((fds[0] = inotify_init1(IN_NONBLOCK | IN_CLOEXEC)) >= 0);
    MUST(inotify_add_watch(fds[0], "/proc/self/fd", IN_OPEN) == 1 && inotify_add_watch(fds[0], ".", IN_ATTRIB) == 2);
    MUST(inotify_rm_watch(fds[0], 2) == 0 && inotify_add_watch(fds[0], "watched", IN_CREATE | IN_DELETE) == 3);
    MUST(inotify_add_watch(fds[0], "tailed", IN_MODIFY | IN_ONESHOT) == 4 && inotify_add_watch(fds[0], "link", IN_ATTRIB | IN_DONT_FOLLOW) == 5);
    MUST(inotify_rm_watch(fds[0], 1) == 0);
    char events[512];
    while (read(fds[0], events, sizeof events) > 0) {}
    MUST((fds[1] = epoll_create1(0)) >= 0);
    watch(fds[1], fds[0], EPOLLIN, 1);
}
static void inotify_after(void) {
    tells(fds[1], 0, "at first");
    publish("watched/new", "");
    char partial[512];
    tells(fds[1], 1 << 1, "after a file was made");
    event_is(fds[0], 3, IN_CREATE, "new.partial");
    while (read(fds[0], partial, sizeof partial) > 0) {}
    int fd = open("tailed", O_WRONLY | O_APPEND | O_CLOEXEC);
    MUST(fd >= 0 && write(fd, "two\n", 4) == 4);
    event_is(fds[0], 4, IN_MODIFY, NULL);
    MUST(write(fd, "three\n", 6) == 6 && close(fd) == 0);
    CHECK(read(fds[0], partial, sizeof partial) < 0 && inotify_rm_watch(fds[0], 4) < 0, "a one-shot watch is there after its event");
    MUST(lchown("link", 0, 0) == 0);
    event_is(fds[0], 5, IN_ATTRIB, NULL);
    CHECK(inotify_rm_watch(fds[0], 3) == 0, "watch 3 is gone");
}

// --- fanotify: a file, a mount, a file system
static void fanotify_before(void) {
    publish("tailed", "one\n");
    MUST(mkdir("watched", 0700) == 0 || errno == EEXIST);
    MUST((fds[0] = fanotify_init(FAN_CLOEXEC | FAN_NONBLOCK, O_RDONLY | O_CLOEXEC)) >= 0);
    MUST(fanotify_mark(fds[0], FAN_MARK_ADD, FAN_MODIFY | FAN_EVENT_ON_CHILD, AT_FDCWD, "tailed") == 0);
    MUST(fanotify_mark(fds[0], FAN_MARK_ADD | FAN_MARK_IGNORED_MASK | FAN_MARK_IGNORED_SURV_MODIFY, FAN_CLOSE_WRITE, AT_FDCWD, "tailed") == 0);
    MUST((fds[1] = fanotify_init(FAN_REPORT_FID | FAN_NONBLOCK, 0)) >= 0);
    MUST(fanotify_mark(fds[1], FAN_MARK_ADD, FAN_CREATE | FAN_ONDIR, AT_FDCWD, "watched") == 0);
    MUST((fds[2] = fanotify_init(FAN_NONBLOCK | FAN_CLASS_CONTENT, O_RDWR)) >= 0);
    MUST(fanotify_mark(fds[2], FAN_MARK_ADD | FAN_MARK_MOUNT, FAN_MODIFY, AT_FDCWD, "/dev/shm") == 0);
    MUST(fanotify_mark(fds[2], FAN_MARK_ADD | FAN_MARK_FILESYSTEM, FAN_CLOSE_WRITE, AT_FDCWD, "/dev/shm") == 0);
}
static void fanotify_after(void) {
    struct fanotify_event_metadata event[8];
    int fd = open("tailed", O_WRONLY | O_APPEND | O_CLOEXEC);
    MUST(fd >= 0 && write(fd, "two\n", 4) == 4 && close(fd) == 0);
    ssize_t n = read(fds[0], event, sizeof event);
    CHECK(n == sizeof *event && event->mask == FAN_MODIFY, "%zd bytes of events, mask %#llx", n, n > 0 ? event->mask : 0);
    close(event->fd);
    publish("watched/new", "");
    n = read(fds[1], event, sizeof event);
    CHECK(n > 0 && event->mask == FAN_CREATE, "%zd bytes of events of a directory", n);
}

// --- a standard stream from outside that was not read to its end, and is watched
static void stdin_before(void) {
    MUST((fds[0] = epoll_create1(0)) >= 0);
    watch(fds[0], 0, EPOLLIN, 1);
}
static void stdin_after(void) {
    tells(fds[0], 1 << 1, "while something waits");
    have(0, "not read");
    have(0, "");
}

// --- pidfds to itself and a thread of its own, mere paths
static void paths_before(void) {
    start(sleeps, NULL);
    while (!__atomic_load_n(&thread_tid, __ATOMIC_SEQ_CST)) sleep_ms(1);
    MUST((fds[0] = (int)syscall(SYS_pidfd_open, getpid(), 0)) >= 0);
    MUST((fds[1] = (int)syscall(SYS_pidfd_open, getpid(), O_NONBLOCK)) >= 0);
    MUST((fds[2] = (int)syscall(SYS_pidfd_open, thread_tid, O_EXCL)) >= 0); // PIDFD_THREAD
    publish("named", "text");
    unlink("link");
    unlink("fifo");
    MUST(symlink("named", "link") == 0 && mkfifo("fifo", 0600) == 0);
    MUST((fds[3] = open(".", O_PATH | O_DIRECTORY | O_CLOEXEC)) >= 0 && (fds[4] = open("named", O_PATH)) >= 0);
    MUST((fds[5] = open("link", O_PATH | O_NOFOLLOW)) >= 0 && (fds[6] = open("fifo", O_PATH)) >= 0);
    MUST((fds[7] = dup(fds[4])) >= 0 && (fds[8] = open("/dev/null", O_PATH)) >= 0);
    struct sockaddr_un at = {.sun_family = AF_UNIX, .sun_path = "sock"};
    unlink("sock");
    int bound = socket(AF_UNIX, SOCK_DGRAM, 0);
    MUST(bound >= 0 && bind(bound, (struct sockaddr *)&at, sizeof at) == 0 && close(bound) == 0);
    MUST((fds[9] = open("sock", O_PATH)) >= 0);
}
static void paths_after(void) {
    MUST(syscall(SYS_pidfd_send_signal, fds[0], 0, NULL, 0) == 0 && syscall(SYS_pidfd_send_signal, fds[2], 0, NULL, 0) == 0);
    CHECK(fcntl(fds[1], F_GETFL) & O_NONBLOCK, "the pidfd blocks");
    char text[16] = {0};
    int fd = openat(fds[3], "named", O_RDONLY | O_CLOEXEC);
    MUST(fd >= 0 && close(fd) == 0);
    MUST(readlinkat(fds[5], "", text, sizeof text) == 5);
    struct stat stat;
    MUST(fstat(fds[6], &stat) == 0 && S_ISFIFO(stat.st_mode) && fstat(fds[9], &stat) == 0 && S_ISSOCK(stat.st_mode));
    CHECK(read(fds[4], text, 1) < 0 && errno == EBADF, "a mere path can be read");
}

// --- locks and leases
static struct flock lock_of(short type, off_t from, off_t length) { return (struct flock){.l_type = type, .l_whence = SEEK_SET, .l_start = from, .l_len = length}; }
static void locks_before(void) {
    for (int i = 0; i < 4; i++) {
        char name[] = {'l', 'o', 'c', 'k', (char)('0' + i), 0};
        publish(name, "0123456789");
        MUST((fds[i] = open(name, O_RDWR | O_CLOEXEC)) >= 0);
    }
    struct flock a = lock_of(F_WRLCK, 3, 4), b = lock_of(F_RDLCK, 100, 0), c = lock_of(F_WRLCK, 0, 8);
    MUST(fcntl(fds[0], F_SETLK, &a) == 0 && fcntl(fds[0], F_SETLK, &b) == 0);
    MUST(flock(fds[1], LOCK_EX) == 0);
    MUST(fcntl(fds[2], F_OFD_SETLK, &c) == 0 && (fds[4] = dup(fds[2])) >= 0);
    MUST(fcntl(fds[3], F_SETLEASE, F_WRLCK) == 0 && fcntl(fds[3], F_SETSIG, SIGRTMIN + 3) == 0);
    MUST((fds[5] = open("lock1", O_RDONLY)) >= 0); // another description, without a lock
}
static void locks_after(void) {
    pid_t child = fork();
    MUST(child >= 0);
    if (!child) {
        int fd[3];
        for (int i = 0; i < 3; i++) MUST((fd[i] = open((const char *[]){"lock0", "lock1", "lock2"}[i], O_RDWR)) >= 0);
        struct flock at = lock_of(F_WRLCK, 0, 5), from = lock_of(F_WRLCK, 5000, 1), before = lock_of(F_WRLCK, 0, 3), ofd = lock_of(F_WRLCK, 7, 1);
        MUST(fcntl(fd[0], F_GETLK, &at) == 0 && fcntl(fd[0], F_GETLK, &from) == 0 && fcntl(fd[0], F_GETLK, &before) == 0);
        CHECK(at.l_type == F_WRLCK && at.l_start == 3 && at.l_len == 4 && at.l_pid == getppid(), "the POSIX lock is of type %d from %ld of %d", at.l_type, (long)at.l_start, at.l_pid);
        CHECK(from.l_type == F_RDLCK && from.l_start == 100 && from.l_len == 0, "the lock to the end is %d from %ld", from.l_type, (long)from.l_start);
        CHECK(before.l_type == F_UNLCK, "more is locked than was");
        CHECK(flock(fd[1], LOCK_SH | LOCK_NB) < 0 && errno == EWOULDBLOCK, "the flock is lost");
        CHECK(fcntl(fd[2], F_OFD_SETLK, &ofd) < 0 && errno == EAGAIN, "the OFD lock is lost");
        _exit(0);
    }
    child_must_succeed(child, "who looks at the locks");
    CHECK(fcntl(fds[3], F_GETLEASE) == F_WRLCK, "the lease is lost");
    CHECK(fcntl(fds[3], F_GETSIG) == SIGRTMIN + 3, "the lease's signal is %d", fcntl(fds[3], F_GETSIG));
    MUST(close(fds[2]) == 0);
    struct flock ofd = lock_of(F_WRLCK, 7, 1);
    int other = open("lock2", O_RDWR | O_CLOEXEC);
    CHECK(other >= 0 && fcntl(other, F_OFD_SETLK, &ofd) < 0, "the OFD lock ended with one of two descriptors");
    MUST(close(fds[4]) == 0 && fcntl(other, F_OFD_SETLK, &ofd) == 0);
}

// --- who gets signals, and which
static volatile sig_atomic_t signalled, signal_fd;
static void on_signal(int number, siginfo_t *info, void *unused) {
    (void)unused;
    signalled = number;
    signal_fd = info->si_fd;
}
static void owners_before(void) {
    struct sigaction action = {.sa_sigaction = on_signal, .sa_flags = SA_SIGINFO};
    MUST(sigaction(SIGRTMIN + 2, &action, NULL) == 0 && sigaction(SIGIO, &action, NULL) == 0);
    MUST(pipe(fds) == 0 && fcntl(fds[0], F_SETOWN, getpid()) == 0 && fcntl(fds[0], F_SETSIG, SIGRTMIN + 2) == 0);
    MUST(fcntl(fds[0], F_SETFL, O_ASYNC | O_NONBLOCK) == 0);
    struct f_owner_ex me = {F_OWNER_TID, getpid()};
    MUST(pipe(fds + 2) == 0 && fcntl(fds[2], F_SETOWN_EX, &me) == 0 && fcntl(fds[2], F_SETFL, O_ASYNC) == 0);
    MUST((fds[4] = inotify_init1(0)) >= 0 && fcntl(fds[4], F_SETOWN, getpid()) == 0);
}
static void owners_after(void) {
    struct f_owner_ex owner = {0};
    MUST(fcntl(fds[2], F_GETOWN_EX, &owner) == 0 && owner.type == F_OWNER_TID && owner.pid == getpid());
    CHECK(fcntl(fds[0], F_GETOWN) == getpid() && fcntl(fds[4], F_GETOWN) == getpid(), "the owner is lost");
    CHECK(!signalled, "signal %d came from nowhere", signalled);
    MUST(write(fds[1], "x", 1) == 1);
    CHECK(signalled == SIGRTMIN + 2 && signal_fd == fds[0], "signal %d of fd %d came", signalled, signal_fd);
    MUST(write(fds[3], "x", 1) == 1);
    CHECK(signalled == SIGIO, "signal %d came instead of SIGIO", signalled);
}

// --- timers that fdinfo tells more of
static void timers_before(void) {
    struct timespec now;
    MUST(clock_gettime(CLOCK_REALTIME, &now) == 0);
    struct itimerspec later = {{0, 0}, {now.tv_sec + 5000, 0}};
    MUST((fds[0] = timerfd_create(CLOCK_REALTIME, TFD_NONBLOCK)) >= 0);
    MUST(timerfd_settime(fds[0], TFD_TIMER_ABSTIME | TFD_TIMER_CANCEL_ON_SET, &later, NULL) == 0);
    MUST((fds[1] = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK)) >= 0);
    MUST(timerfd_settime(fds[1], 0, &(struct itimerspec){{0, 1000000}, {0, 1000000}}, NULL) == 0);
    sleep_ms(8);
    MUST(timerfd_settime(fds[1], 0, &(struct itimerspec){{0, 0}, {0, 1}}, NULL) == 0);
    sleep_ms(2);
    MUST((fds[2] = timerfd_create(CLOCK_BOOTTIME_ALARM, TFD_NONBLOCK)) >= 0);
    MUST(timerfd_settime(fds[2], 0, &(struct itimerspec){{60, 0}, {3000, 0}}, NULL) == 0);
}
static void timers_after(void) {
    struct itimerspec left;
    MUST(timerfd_gettime(fds[0], &left) == 0);
    CHECK(left.it_value.tv_sec > 4000 && left.it_value.tv_sec < 5000, "%ld s are left", left.it_value.tv_sec);
    u64 ticks = 0;
    MUST(read(fds[1], &ticks, 8) == 8);
    CHECK(ticks == 1, "%lu ticks were kept", (unsigned long)ticks);
    MUST(timerfd_gettime(fds[2], &left) == 0 && left.it_interval.tv_sec == 60 && left.it_value.tv_sec > 2000);
}

// --- flags, positions in directories, numbers
static void flags_before(void) {
    publish("text", "0123456789");
    int flags[] = {O_RDWR | O_NOATIME, O_RDWR | O_SYNC, O_RDWR | O_DSYNC | O_APPEND, O_RDONLY | O_NOFOLLOW, O_RDONLY | O_DIRECT};
    for (int i = 0; i < 5; i++) MUST((fds[i] = open("text", flags[i])) >= 0);
    u64 hint = 3; // RWH_WRITE_LIFE_MEDIUM
    MUST(fcntl(fds[0], 1036, &hint) == 0);
    MUST(mkdir("many", 0700) == 0 || errno == EEXIST);
    for (int i = 0; i < 600; i++) {
        char name[32];
        snprintf(name, sizeof name, "many/file%d", i);
        publish(name, "");
    }
    char part[8192];
    MUST((fds[5] = open("many", O_RDONLY | O_DIRECTORY)) >= 0 && syscall(SYS_getdents64, fds[5], part, sizeof part) > 0);
    struct rlimit most = {1 << 20, 1 << 20};
    if (setrlimit(RLIMIT_NOFILE, &most) < 0) MUST(getrlimit(RLIMIT_NOFILE, &most) == 0);
    most.rlim_cur = most.rlim_max;
    MUST(setrlimit(RLIMIT_NOFILE, &most) == 0);
    MUST((fds[6] = fcntl(fds[0], F_DUPFD, (int)most.rlim_max - 1)) == (int)most.rlim_max - 1); // the highest that there may be
    MUST((fds[7] = open("/dev/zero", O_RDWR)) >= 0);
}
static void flags_after(void) {
    u64 hint = 0;
    MUST(fcntl(fds[0], 1035, &hint) == 0);
    CHECK(hint == 3, "the write hint is %lu", (unsigned long)hint);
    char part[8192];
    int left = 0;
    for (long n; (n = syscall(SYS_getdents64, fds[5], part, sizeof part)) > 0;)
        for (long at = 0; at < n; at += *(unsigned short *)(part + at + 16)) left++;
    lseek(fds[5], 0, SEEK_SET);
    long n = syscall(SYS_getdents64, fds[5], part, sizeof part);
    int first = 0;
    for (long at = 0; at < n; at += *(unsigned short *)(part + at + 16)) first++;
    CHECK(first + left == 602, "%d and %d entries are not those of the directory", first, left);
    MUST(lseek(fds[6], 5, SEEK_SET) == 5);
    CHECK(lseek(fds[0], 0, SEEK_CUR) == 5, "the highest number shares no position");
}

static const struct { const char *name; void (*before)(void), (*after)(void); } sorts[] = {
    {"epollgone", epollgone_before, epollgone_after}, {"epollnull", epollnull_before, epollgone_after}, {"epollpipe", epollpipe_before, epollgone_after},
    {"epolltwice", epolltwice_before, epolltwice_after}, {"epollfired", epollfired_before, epollfired_after}, {"epollnested", epollnested_before, epollnested_after},
    {"pipes", pipes_before, pipes_after}, {"packets", packets_before, packets_after}, {"halfpipes", halfpipes_before, halfpipes_after},
    {"fifo", fifo_before, fifo_after}, {"kernel", kernel_before, kernel_after}, {"inotify", inotify_before, inotify_after},
    {"paths", paths_before, paths_after}, {"locks", locks_before, locks_after}, {"owners", owners_before, owners_after},
    {"stdin", stdin_before, stdin_after}, {"fanotify", fanotify_before, fanotify_after}, {"timers", timers_before, timers_after}, {"flags", flags_before, flags_after},
};

int main(int argc, char **argv) {
    signal(SIGPIPE, SIG_IGN);
    MUST(getcwd(here, sizeof here));
    for (size_t i = 0; i < sizeof sorts / sizeof *sorts; i++) {
        if (argc < 2 || strcmp(argv[1], sorts[i].name) != 0) continue;
        sorts[i].before();
        for (int k = 0; k < SOME; k++)
            if (fds[k] > 2) tell(fds[k], told[k], sizeof told[k]);
        ready();
        wait_go();
        for (int k = 0; k < SOME; k++) {
            static char now[4096];
            if (fds[k] <= 2) continue;
            tell(fds[k], now, sizeof now);
            char *a = told[k], *b = now;
            while (*a && *a == *b) a++, b++;
            while (a > told[k] && a[-1] != '\n') a--, b--;
            CHECK(!*a && !*b, "fd %d (%.*s): \"%.*s\" has become \"%.*s\"", fds[k], (int)strcspn(now, "\n"), now, (int)strcspn(a, "\n"), a, (int)strcspn(b, "\n"), b);
        }
        sorts[i].after();
        ok();
    }
    wrong("no such sort of descriptor");
}
