// No victim: it sets everything that a program inherits to something odd and then becomes the program that its arguments name.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/personality.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#define MUST(condition) do { if (!(condition)) { fprintf(stderr, "defrost: odd_launcher: %s: %s\n", #condition, strerror(errno)); exit(1); } } while (0)

static void put(const char *path, const char *text) {
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    MUST(fd >= 0 && write(fd, text, strlen(text)) > 0);
    close(fd);
}

static long prctl5(int option, unsigned long a, unsigned long b) { return syscall(SYS_prctl, option, a, b, 0L, 0L); }

int main(int argc, char **argv) {
    MUST(argc > 1);
    umask(077);
    MUST(chdir("/usr") == 0);
    struct rlimit core = {4096, RLIM_INFINITY}, files;
    MUST(setrlimit(RLIMIT_CORE, &core) == 0);
    MUST(getrlimit(RLIMIT_NOFILE, &files) == 0);
    files.rlim_cur = files.rlim_cur > 900 ? 900 : files.rlim_cur;
    MUST(setrlimit(RLIMIT_NOFILE, &files) == 0);
    signal(SIGHUP, SIG_IGN);
    signal(SIGUSR2, SIG_IGN);
    sigset_t mask;
    sigemptyset(&mask);
    sigaddset(&mask, SIGUSR1);
    sigaddset(&mask, SIGRTMIN + 3);
    MUST(sigprocmask(SIG_BLOCK, &mask, NULL) == 0);
    MUST(prctl5(PR_SET_TIMERSLACK, 123456, 0) == 0);
    MUST(prctl5(PR_SET_CHILD_SUBREAPER, 1, 0) == 0);
    MUST(prctl5(PR_SET_THP_DISABLE, 1, 0) == 0);
    MUST(prctl5(67 /* PR_SET_MEMORY_MERGE */, 1, 0) == 0 || errno == EINVAL || errno == EPERM);
    MUST(prctl5(PR_MCE_KILL, PR_MCE_KILL_SET, PR_MCE_KILL_EARLY) == 0);
    MUST(prctl5(57 /* PR_SET_IO_FLUSHER */, 1, 0) == 0 || errno == EPERM); // without CAP_SYS_RESOURCE
    MUST(prctl5(PR_SET_SECUREBITS, 1 << 2 /* SECBIT_NO_SETUID_FIXUP */, 0) == 0);
    for (unsigned long feature = 0; feature < 2; feature++)
        if (prctl5(PR_GET_SPECULATION_CTRL, feature, 0) & 1) MUST(syscall(SYS_prctl, PR_SET_SPECULATION_CTRL, feature, 4L, 0L, 0L) == 0);
    put("/proc/self/coredump_filter", "0x7f");
    put("/proc/self/oom_score_adj", "234");
    MUST(personality(ADDR_NO_RANDOMIZE | STICKY_TIMEOUTS | WHOLE_SECONDS) != -1);
    MUST(syscall(SYS_ioprio_set, 1, 0, (2 << 13) | 7) == 0);
    unsigned long nodes = 1;
    MUST(syscall(SYS_set_mempolicy, 2 /* bind */, &nodes, 8L) == 0 || errno == ENOSYS);
    // A session keyring with a key in it, and another place for requested keys.
    if (syscall(SYS_keyctl, 1 /* JOIN_SESSION_KEYRING */, "odd") > 0) {
        MUST(syscall(SYS_add_key, "user", "odd", "secret", 6L, -3L) > 0);
        MUST(syscall(SYS_keyctl, 14 /* SET_REQKEY_KEYRING */, 4L) >= 0);
    }
    cpu_set_t first;
    CPU_ZERO(&first);
    CPU_SET(0, &first);
    MUST(sched_setaffinity(0, sizeof first, &first) == 0);
    MUST(setpriority(PRIO_PROCESS, 0, 6) == 0);
    struct { uint32_t size, policy; uint64_t flags; int32_t nice; uint32_t priority; uint64_t runtime, deadline, period; } sched = {
        .size = sizeof sched, .policy = SCHED_BATCH, .nice = 6, .runtime = 9000000};
    MUST(syscall(SYS_sched_setattr, 0, &sched, 0) == 0);
    const char *group = getenv("ODD_CGROUP"); // its cgroup.procs
    if (group) put(group, "0");
    const char *login = getenv("ODD_LOGIN");
    if (login) put("/proc/self/loginuid", login);
    execvp(argv[1], argv + 1);
    MUST(0);
}
