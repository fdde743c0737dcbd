// One thing that a checkpoint must refuse by name: `refused KIND`. Whoever is refused runs on: what it holds still works afterwards.
//
// A process at the other end of a pipe or socket is an orphan, so that it is no child of ours; it ends when its end is closed.
#include "victim.h"
#include <arpa/inet.h>
#include <linux/aio_abi.h>
#include <linux/bpf.h>
#include <linux/filter.h>
#include <linux/io_uring.h>
#include <linux/seccomp.h>
#include <linux/userfaultfd.h>
#include <netinet/in.h>
#include <poll.h>
#include <sched.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/fanotify.h>
#include <sys/inotify.h>
#include <sys/ioctl.h>
#include <sys/ipc.h>
#include <sys/prctl.h>
#include <sys/shm.h>
#include <sys/socket.h>

static int fds[4];
static u8 *memory;
static aio_context_t ring;
static pid_t child;

static void passes(int from, int to) {
    char got[8] = {0};
    MUST(write(from, "through", 7) == 7);
    MUST(poll(&(struct pollfd){.fd = to, .events = POLLIN}, 1, 10000) == 1);
    MUST(read(to, got, 7) == 7 && memcmp(got, "through", 7) == 0);
}

// Somebody who is no child of ours holds `theirs` and answers each byte on it, until we are gone.
static void held_by_an_orphan(int theirs, int answers) {
    pid_t middle = fork();
    MUST(middle >= 0);
    if (!middle) {
        if (fork()) _exit(0);
        for (int fd = 3; fd < 64; fd++)
            if (fd != theirs) close(fd);
        char bytes[64];
        for (ssize_t n; (n = read(theirs, bytes, sizeof bytes)) > 0;)
            if (answers && write(theirs, bytes, (size_t)n) < 0) break;
        _exit(0);
    }
    child_must_succeed(middle, "the middle process");
    close(theirs);
}

static void pty_before(void) {
    MUST((fds[0] = posix_openpt(O_RDWR | O_NOCTTY)) >= 0 && grantpt(fds[0]) == 0 && unlockpt(fds[0]) == 0);
    MUST((fds[1] = open(ptsname(fds[0]), O_RDWR | O_NOCTTY)) >= 0);
}
static void pty_after(void) {
    char got[16];
    MUST(write(fds[1], "through", 7) == 7 && read(fds[0], got, sizeof got) == 7 && memcmp(got, "through", 7) == 0);
}

static void io_uring_before(void) {
    struct io_uring_params params = {0};
    MUST((fds[0] = (int)syscall(SYS_io_uring_setup, 4, &params)) >= 0);
}
static void inotify_before(void) { MUST((fds[0] = inotify_init1(IN_NONBLOCK)) >= 0 && inotify_add_watch(fds[0], ".", IN_CREATE) >= 0); }
static void pidfd_before(void) { MUST((fds[0] = (int)syscall(SYS_pidfd_open, getppid(), 0)) >= 0); }
static void pidfd_after(void) { MUST(syscall(SYS_pidfd_send_signal, fds[0], 0, NULL, 0) == 0); }

static void tcp_before(void) {
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof at;
    MUST((fds[0] = socket(AF_INET, SOCK_STREAM, 0)) >= 0 && bind(fds[0], (struct sockaddr *)&at, sizeof at) == 0 && listen(fds[0], 1) == 0);
    MUST(getsockname(fds[0], (struct sockaddr *)&at, &length) == 0);
    MUST((fds[1] = socket(AF_INET, SOCK_STREAM, 0)) >= 0 && connect(fds[1], (struct sockaddr *)&at, sizeof at) == 0);
    MUST((fds[2] = accept(fds[0], NULL, NULL)) >= 0);
}
static void tcp_after(void) { passes(fds[1], fds[2]); }
static void raw_before(void) { MUST((fds[0] = socket(AF_INET, SOCK_RAW, IPPROTO_ICMP)) >= 0); }
static void netlink_before(void) { MUST((fds[0] = socket(AF_NETLINK, SOCK_RAW, 0)) >= 0); }

static void unix_before(void) {
    MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, fds) == 0);
    held_by_an_orphan(fds[1], 1);
}
static void unix_after(void) { passes(fds[0], fds[0]); }

static void pipe_before(void) {
    MUST(pipe(fds) == 0);
    held_by_an_orphan(fds[0], 0);
}
static void pipe_after(void) { MUST(write(fds[1], "through", 7) == 7); }

static void fifo_before(void) {
    MUST(mkfifo("fifo", 0600) == 0 && (fds[1] = open("fifo", O_RDONLY | O_NONBLOCK)) >= 0 && (fds[0] = open("fifo", O_WRONLY)) >= 0 && fcntl(fds[1], F_SETFL, 0) == 0);
    held_by_an_orphan(fds[1], 0);
}
static void fifo_after(void) { MUST(write(fds[0], "through", 7) == 7); }
static void shared_pipe_before(void) {
    MUST(pipe(fds) == 0);
    held_by_an_orphan(dup(fds[0]), 0);
}
static void shared_pipe_after(void) { MUST(write(fds[1], "through", 7) == 7); }

static void fanotify_before(void) {
    MUST((fds[0] = fanotify_init(FAN_CLASS_CONTENT, O_RDONLY)) >= 0 && mkdir("decided", 0700) == 0);
    MUST(fanotify_mark(fds[0], FAN_MARK_ADD, FAN_OPEN_PERM, AT_FDCWD, "decided") == 0);
}
static void mounting_before(void) { MUST((fds[0] = (int)syscall(SYS_fsopen, "tmpfs", 0)) >= 0); }
static void bpf_before(void) {
    union bpf_attr map = {.map_type = BPF_MAP_TYPE_ARRAY, .key_size = 4, .value_size = 4, .max_entries = 1};
    MUST((fds[0] = (int)syscall(SYS_bpf, BPF_MAP_CREATE, &map, sizeof map)) >= 0);
}
static void queue_before(void) {
    char name[32];
    snprintf(name, sizeof name, "victim-%d", getpid());
    MUST((fds[0] = (int)syscall(SYS_mq_open, name, O_RDWR | O_CREAT, 0600, NULL)) >= 0 && syscall(SYS_mq_unlink, name) == 0);
}
static void watched_before(void) {
    MUST((fds[0] = epoll_create1(0)) >= 0 && (fds[1] = eventfd(0, 0)) >= 0);
    struct epoll_event event = {.events = EPOLLIN};
    MUST(epoll_ctl(fds[0], EPOLL_CTL_ADD, fds[1], &event) == 0);
    held_by_an_orphan(fds[1], 0);
}
static void other_proc_before(void) { MUST((fds[0] = open("/proc/1/stat", O_RDONLY)) >= 0); }
static void other_proc_after(void) {
    char byte;
    MUST(pread(fds[0], &byte, 1, 0) == 1 && byte == '1');
}
static void other_namespace_before(void) {
    char path[64];
    int ready_now[2];
    MUST(pipe(ready_now) == 0 && (child = fork()) >= 0);
    if (!child) {
        MUST(unshare(CLONE_NEWUTS) == 0 && write(ready_now[1], "x", 1) == 1);
        for (;;) pause();
    }
    MUST(read(ready_now[0], path, 1) == 1 && close(ready_now[0]) == 0 && close(ready_now[1]) == 0);
    snprintf(path, sizeof path, "/proc/%d/ns/uts", child);
    MUST((fds[0] = open(path, O_RDONLY)) >= 0 && kill(child, SIGKILL) == 0 && waitpid(child, NULL, 0) == child);
}
static void owner_before(void) { MUST(pipe(fds) == 0 && fcntl(fds[0], F_SETOWN, getppid()) == 0); }
static void owner_after(void) { CHECK(fcntl(fds[0], F_GETOWN) == getppid(), "the owner differs"); }
static void notify_before(void) { MUST((fds[0] = open(".", O_RDONLY)) >= 0 && fcntl(fds[0], F_NOTIFY, DN_CREATE | DN_MULTISHOT) == 0 && signal(SIGIO, SIG_IGN) != SIG_ERR); }
static void mixed_before(void) {
    MUST(pipe2(fds, O_DIRECT) == 0 && write(fds[1], "packet", 6) == 6);
    MUST(fcntl(fds[1], F_SETFL, 0) == 0 && write(fds[1], "stream", 6) == 6);
}
static void mixed_after(void) {
    char got[16];
    MUST(read(fds[0], got, 2) == 2 && read(fds[0], got, 2) == 2 && memcmp(got, "st", 2) == 0);
}
static void device_before(void) { MUST((fds[0] = open("/dev/kmsg", O_RDONLY | O_NONBLOCK)) >= 0); }

static void child_before(void) {
    MUST((child = fork()) >= 0);
    if (!child) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        for (;;) pause();
    }
}
static void child_after(void) {
    MUST(kill(child, SIGTERM) == 0 && waitpid(child, NULL, 0) == child);
}

static void seccomp_before(void) {
    struct sock_filter allow = BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
    struct sock_fprog filter = {.len = 1, .filter = &allow};
    MUST(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 && prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter) == 0);
}
static void seccomp_after(void) { CHECK(prctl(PR_GET_SECCOMP) == 2, "the filter is gone"); }

// Without a reservation such a mapping needs no huge page as long as nobody touches it.
static void huge_before(void) {
    u8 *both = mmap(NULL, 4 * MIB, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_HUGETLB | MAP_NORESERVE, -1, 0);
    MUST(both != MAP_FAILED && munmap(both, 2 * MIB) == 0);
}
static void huge_file_before(void) {
    int fd = (int)syscall(SYS_memfd_create, "huge", 4 /* MFD_HUGETLB */);
    MUST(fd >= 0 && ftruncate(fd, 2 * MIB) == 0);
    memory = mmap(NULL, 2 * MIB, PROT_READ, MAP_PRIVATE | MAP_NORESERVE, fd, 0);
    MUST(memory != MAP_FAILED && close(fd) == 0);
}
static void secret_before(void) {
    int fd = (int)syscall(447 /* memfd_secret */, 0);
    MUST(fd >= 0 && ftruncate(fd, PAGE) == 0);
    memory = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    MUST(memory != MAP_FAILED && close(fd) == 0);
    memory[0] = 7;
}
static void secret_after(void) { CHECK(memory[0] == 7, "secret memory differs"); }
static void sysv_before(void) {
    int id = shmget(IPC_PRIVATE, 4 * PAGE, IPC_CREAT | 0600);
    MUST(id >= 0 && (memory = shmat(id, NULL, 0)) != (void *)-1 && shmctl(id, IPC_RMID, NULL) == 0);
    memory[0] = 7;
}
static void sysv_after(void) { CHECK(memory[0] == 7, "shared memory differs"); }
static void aio_before(void) { MUST(syscall(SYS_io_setup, 4, &ring) == 0); }
static void aio_after(void) { MUST(syscall(SYS_io_destroy, ring) == 0); }

static void uffd_before(void) {
    struct uffdio_api api = {.api = UFFD_API};
    MUST((fds[0] = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK)) >= 0 && ioctl(fds[0], UFFDIO_API, &api) == 0);
    memory = map_anonymous(4);
    struct uffdio_register all = {.range = {(u64)memory, 4 * PAGE}, .mode = UFFDIO_REGISTER_MODE_MISSING};
    MUST(ioctl(fds[0], UFFDIO_REGISTER, &all) == 0);
}
static void uffd_after(void) {
    struct uffdio_zeropage zero = {.range = {(u64)memory, PAGE}};
    MUST(ioctl(fds[0], UFFDIO_ZEROPAGE, &zero) == 0 && memory[0] == 0);
}

// One that watches nothing.
static void idle_uffd_before(void) {
    struct uffdio_api api = {.api = UFFD_API};
    MUST((fds[0] = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK)) >= 0 && ioctl(fds[0], UFFDIO_API, &api) == 0);
}

static void nothing(void) {}

static const struct { const char *name; void (*before)(void), (*after)(void); } kinds[] = {
    {"pty", pty_before, pty_after}, {"io_uring", io_uring_before, nothing}, {"inotify", inotify_before, nothing},
    {"pidfd", pidfd_before, pidfd_after}, {"tcp", tcp_before, tcp_after},
    {"raw", raw_before, nothing}, {"netlink", netlink_before, nothing}, {"unix", unix_before, unix_after},
    {"pipe", pipe_before, pipe_after}, {"fifo", fifo_before, fifo_after},
    {"device", device_before, nothing}, {"child", child_before, child_after},
    {"seccomp", seccomp_before, seccomp_after}, {"huge", huge_before, nothing}, {"huge-file", huge_file_before, nothing},
    {"secret", secret_before, secret_after}, {"sysv", sysv_before, sysv_after},
    {"aio", aio_before, aio_after}, {"uffd", uffd_before, uffd_after}, {"nothing", nothing, nothing},
    {"shared_pipe", shared_pipe_before, shared_pipe_after}, {"fanotify", fanotify_before, nothing}, {"mounting", mounting_before, nothing},
    {"bpf", bpf_before, nothing}, {"queue", queue_before, nothing}, {"watched", watched_before, nothing},
    {"other_proc", other_proc_before, other_proc_after}, {"other_namespace", other_namespace_before, nothing},
    {"owner", owner_before, owner_after}, {"notify", notify_before, nothing}, {"mixed", mixed_before, mixed_after},
    {"idle_uffd", idle_uffd_before, nothing},
};

int main(int argc, char **argv) {
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        if (argc < 2 || strcmp(argv[1], kinds[i].name) != 0) continue;
        u8 *pattern = map_pattern(64, 5);
        kinds[i].before();
        ready();
        wait_go();
        check_pattern(pattern, 0, 64, 5, "memory");
        kinds[i].after();
        ok();
    }
    wrong("no such kind");
}
