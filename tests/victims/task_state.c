// Everything a task can ask about itself: each thread accounts for its own state, line by line, before and after.
//
// `task_state plain` sets nothing, `task_state odd` sets everything to something that no fresh task has.
#include "victim.h"
#include <linux/membarrier.h>
#include <sched.h>
#include <sys/personality.h>
#include <sys/prctl.h>
#include <sys/resource.h>

#define THREADS 3
#define BYTES 16384

struct sched_attr_1 {
    uint32_t size, policy;
    u64 flags;
    int32_t nice;
    uint32_t priority;
    u64 runtime, deadline, period;
    uint32_t util_min, util_max;
};

struct account {
    char text[BYTES];
    size_t at;
};

static struct account before[THREADS], after[THREADS];
static pthread_barrier_t accounted, checked;
static u8 *bound;

__attribute__((format(printf, 2, 3))) static void say(struct account *a, const char *form, ...) {
    va_list list;
    va_start(list, form);
    a->at += (size_t)vsnprintf(a->text + a->at, BYTES - a->at, form, list);
    va_end(list);
    MUST(a->at < BYTES - 1);
}

static void say_file(struct account *a, const char *path) {
    char text[4096] = {0};
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? -1 : read(fd, text, sizeof text - 1);
    if (fd >= 0) close(fd);
    for (char *c = text; *c; c++) if (*c == '\n') *c = ';';
    say(a, "%s: %s\n", path, n < 0 ? "none" : text);
}

static void put_file(const char *path, const char *text) {
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    CHECK(fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text), "write %s to %s: %s", text, path, strerror(errno));
    close(fd);
}

static long prctl5(int option, unsigned long a, unsigned long b) { return syscall(SYS_prctl, option, a, b, 0L, 0L); }

static void account_for_thread(struct account *a) {
    char name[17] = {0};
    prctl5(PR_GET_NAME, (unsigned long)name, 0);
    say(a, "name: %s\n", name);
    stack_t stack;
    MUST(sigaltstack(NULL, &stack) == 0);
    say(a, "alternate stack: %p %#x %zu\n", stack.ss_sp, (unsigned)stack.ss_flags, stack.ss_size);
    void *head;
    size_t length;
    MUST(syscall(SYS_get_robust_list, 0, &head, &length) == 0);
    say(a, "robust list: %p %zu\n", head, length);
    void *address = NULL;
    prctl5(40 /* PR_GET_TID_ADDRESS */, (unsigned long)&address, 0);
    say(a, "tid address: %p\n", address);
    sigset_t mask;
    pthread_sigmask(SIG_SETMASK, NULL, &mask);
    say(a, "signal mask: %lx\n", *(unsigned long *)&mask);
    int number = 0;
    prctl5(PR_GET_PDEATHSIG, (unsigned long)&number, 0);
    say(a, "parent-death signal: %d\n", number);
    long slack = prctl5(PR_GET_TIMERSLACK, 0, 0);
    prctl5(PR_SET_TIMERSLACK, 0, 0);
    say(a, "timer slack: %ld, by default %ld\n", slack, prctl5(PR_GET_TIMERSLACK, 0, 0));
    prctl5(PR_SET_TIMERSLACK, (unsigned long)slack, 0);
    struct sched_attr_1 sched = {0};
    MUST(syscall(SYS_sched_getattr, 0, &sched, sizeof sched, 0) == 0);
    say(a, "scheduling: policy %u flags %lx nice %d priority %u slice %lu clamps %u %u\n", sched.policy, (unsigned long)sched.flags, sched.nice, sched.priority,
        (unsigned long)sched.runtime, sched.util_min, sched.util_max);
    say(a, "nice: %d\n", getpriority(PRIO_PROCESS, 0));
    cpu_set_t cpus;
    MUST(sched_getaffinity(0, sizeof cpus, &cpus) == 0);
    say(a, "CPUs: %lx\n", *(unsigned long *)&cpus);
    say(a, "I/O priority: %ld\n", syscall(SYS_ioprio_get, 1, 0));
    int mode = -1;
    unsigned long nodes[16] = {0};
    syscall(SYS_get_mempolicy, &mode, nodes, 1024L, 0L, 0L);
    say(a, "memory policy: %x %lx\n", (unsigned)mode, nodes[0]);
    say(a, "personality: %x\n", (unsigned)personality(0xffffffff));
    say(a, "machine checks: %ld\n", prctl5(PR_MCE_KILL_GET, 0, 0));
    say(a, "I/O flusher: %ld\n", prctl5(58 /* PR_GET_IO_FLUSHER */, 0, 0));
    for (unsigned long feature = 0; feature < 3; feature++) say(a, "speculation %lu: %ld\n", feature, prctl5(PR_GET_SPECULATION_CTRL, feature, 0));
    prctl5(PR_GET_TSC, (unsigned long)&number, 0);
    say(a, "time stamp counter: %d\n", number);
    say(a, "CPUID: %ld\n", syscall(SYS_arch_prctl, 0x1011 /* ARCH_GET_CPUID */, 0));
    say(a, "securebits: %lx\n", prctl5(PR_GET_SECUREBITS, 0, 0));
    say(a, "no_new_privs: %ld\n", prctl5(PR_GET_NO_NEW_PRIVS, 0, 0));
    say(a, "keyrings: thread %ld, process %ld, requested keys to %ld\n", syscall(SYS_keyctl, 0, -1L, 0), syscall(SYS_keyctl, 0, -2L, 0), syscall(SYS_keyctl, 14, -1L));
    unsigned int keys[64];
    say(a, "keys of the session: %d\n", syscall(SYS_keyctl, 11 /* READ */, -3L, keys, sizeof keys) > 4);
    char cwd[4096];
    MUST(getcwd(cwd, sizeof cwd));
    static pthread_mutex_t one_at_a_time = PTHREAD_MUTEX_INITIALIZER; // asking sets it, for threads that share it too
    pthread_mutex_lock(&one_at_a_time);
    mode_t now = umask(0);
    umask(now);
    pthread_mutex_unlock(&one_at_a_time);
    say(a, "directory: %s, umask %o\n", cwd, now);
    say_file(a, "/proc/thread-self/cgroup");
    say_file(a, "/proc/thread-self/loginuid");
}

static void account_for_process(struct account *a) {
    for (int signal = 1; signal <= 64; signal++) {
        struct { void *handler; u64 flags; void *restorer; u64 mask; } action = {0};
        syscall(SYS_rt_sigaction, signal, NULL, &action, 8L);
        if (action.handler || action.flags) say(a, "action %d: %p %lx %lx\n", signal, action.handler, (unsigned long)action.flags, (unsigned long)action.mask);
    }
    for (int i = 0; i < RLIM_NLIMITS; i++) {
        struct rlimit limit;
        getrlimit(i, &limit);
        if (i == RLIMIT_CORE) limit.rlim_cur = 0; // another while memory is missing, as the filter of dumps is: tests/tests/side_doors.rs
        say(a, "limit %d: %lx %lx\n", i, (unsigned long)limit.rlim_cur, (unsigned long)limit.rlim_max);
    }
    int subreaper = 0;
    prctl5(PR_GET_CHILD_SUBREAPER, (unsigned long)&subreaper, 0);
    say(a, "dumpable %ld, subreaper %d, huge pages off %ld, KSM %ld, MDWE %ld\n", prctl5(PR_GET_DUMPABLE, 0, 0), subreaper, prctl5(PR_GET_THP_DISABLE, 0, 0),
        prctl5(68 /* PR_GET_MEMORY_MERGE */, 0, 0), prctl5(66 /* PR_GET_MDWE */, 0, 0));
    say_file(a, "/proc/self/oom_score_adj");
    say(a, "membarrier: %lx\n", syscall(SYS_membarrier, 1 << 9 /* GET_REGISTRATIONS */, 0, 0));
    u8 *page = map_anonymous(1), there = 9;
    MUST(mincore(page, PAGE, &there) == 0);
    munmap(page, PAGE);
    say(a, "future memory is there at once: %d\n", there & 1);
    int mode = -1;
    unsigned long nodes[16] = {0};
    syscall(SYS_get_mempolicy, &mode, nodes, 1024L, bound, 2L /* MPOL_F_ADDR */);
    say(a, "memory policy of a mapping: %x %lx\n", (unsigned)mode, nodes[0]);
    // "/autogroup-N nice V": the number is the kernel's.
    char text[64] = "nice none";
    int fd = open("/proc/self/autogroup", O_RDONLY | O_CLOEXEC);
    if (fd >= 0 && read(fd, text, sizeof text - 1) < 0) text[0] = 0;
    close(fd);
    say(a, "autogroup %s\n", strstr(text, "nice"));
}

static void odd_thread(int which) {
    static u8 *stacks[THREADS];
    stacks[which] = map_anonymous(16);
    sigaltstack(&(stack_t){.ss_sp = stacks[which], .ss_size = 16 * PAGE}, NULL);
    prctl5(PR_SET_TIMERSLACK, (unsigned long)(70000 + which), 0);
    sigset_t mask;
    sigemptyset(&mask);
    sigaddset(&mask, SIGUSR1 + which);
    pthread_sigmask(SIG_SETMASK, &mask, NULL);
    struct sched_attr_1 sched = {.size = sizeof sched, .policy = which == 1 ? SCHED_FIFO : which == 2 ? SCHED_BATCH : SCHED_OTHER, .flags = which == 2, .nice = 3 + which,
                                 .priority = which == 1 ? 5 : 0, .runtime = which == 1 ? 0 : 7000000};
    MUST(setpriority(PRIO_PROCESS, 0, 3 + which) == 0);
    MUST(syscall(SYS_sched_setattr, 0, &sched, 0) == 0);
    MUST(syscall(SYS_ioprio_set, 1, 0, (2 << 13) | (4 + which)) == 0);
    unsigned long nodes = 1;
    syscall(SYS_set_mempolicy, which ? 2 /* bind */ : 3 /* interleave */, &nodes, 8L);
    personality(ADDR_NO_RANDOMIZE | (which ? STICKY_TIMEOUTS : 0));
    MUST(prctl5(PR_MCE_KILL, PR_MCE_KILL_SET, which ? PR_MCE_KILL_LATE : PR_MCE_KILL_EARLY) == 0);
    MUST(prctl5(57 /* PR_SET_IO_FLUSHER */, 1, 0) == 0 || errno == EPERM); // without CAP_SYS_RESOURCE
    for (unsigned long feature = 0; feature < 3; feature++)
        if (prctl5(PR_GET_SPECULATION_CTRL, feature, 0) & 1) MUST(syscall(SYS_prctl, PR_SET_SPECULATION_CTRL, feature, which == 1 ? 8L : 4L, 0L, 0L) == 0);
    if (which == 2) MUST(prctl5(PR_SET_TSC, PR_TSC_SIGSEGV, 0) == 0);
    MUST(syscall(SYS_keyctl, 14, 4L /* user keyring */) >= 0 || errno == ENOSYS);
    if (which == 1) prctl5(PR_SET_PDEATHSIG, SIGURG, 0);
    if (which == 1) MUST(unshare(CLONE_FS) == 0 && chdir("/usr/share") == 0 && (umask(07), 1));
}

static void odd_process(void) {
    struct rlimit files = {300, 400};
    MUST(setrlimit(RLIMIT_NOFILE, &files) == 0);
    signal(SIGHUP, SIG_IGN);
    prctl5(PR_SET_CHILD_SUBREAPER, 1, 0);
    syscall(SYS_prctl, PR_SET_THP_DISABLE, 1L, 0L, 0L, 0L);
    if (syscall(SYS_prctl, PR_SET_THP_DISABLE, 1L, 2L /* PR_THP_DISABLE_EXCEPT_ADVISED */, 0L, 0L) != 0) MUST(errno == EINVAL);
    MUST(prctl5(67 /* PR_SET_MEMORY_MERGE */, 1, 0) == 0 || errno == EINVAL || errno == EPERM);
    put_file("/proc/self/coredump_filter", "0x7f");
    put_file("/proc/self/oom_score_adj", "321");
    put_file("/proc/self/autogroup", "4");
    MUST(syscall(SYS_membarrier, MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED, 0, 0) == 0);
    MUST(syscall(SYS_membarrier, MEMBARRIER_CMD_REGISTER_GLOBAL_EXPEDITED, 0, 0) == 0);
    unsigned long nodes = 1;
    syscall(SYS_mbind, bound, 4 * PAGE, 2L /* bind */, &nodes, 8L, 0L);
    MUST(mlockall(MCL_FUTURE) == 0);
    MUST(prctl5(65 /* PR_SET_MDWE */, 1, 0) == 0 || errno == EINVAL);
}

static void same(const char *a, const char *b, int which) {
    while (*a && *b) {
        size_t la = strcspn(a, "\n"), lb = strcspn(b, "\n");
        CHECK(la == lb && memcmp(a, b, la) == 0, "thread %d: \"%.*s\" became \"%.*s\"", which, (int)la, a, (int)lb, b);
        a += la + (a[la] == '\n');
        b += lb + (b[lb] == '\n');
    }
    CHECK(!*a && !*b, "thread %d: lines came or went: \"%.120s\"", which, *a ? a : b);
}

static int odd;

static void *body(void *argument) {
    int which = (int)(intptr_t)argument;
    if (odd) odd_thread(which);
    account_for_thread(&before[which]);
    pthread_barrier_wait(&accounted);
    pthread_barrier_wait(&checked);
    account_for_thread(&after[which]);
    pthread_barrier_wait(&accounted);
    return NULL;
}

int main(int argc, char **argv) {
    odd = argc > 1 && strcmp(argv[1], "odd") == 0;
    MUST(pthread_barrier_init(&accounted, NULL, THREADS) == 0 && pthread_barrier_init(&checked, NULL, THREADS) == 0);
    bound = map_pattern(4, 3);
    pthread_t threads[THREADS];
    for (int i = 1; i < THREADS; i++) threads[i] = start(body, (void *)(intptr_t)i);
    if (odd) {
        odd_thread(0);
        odd_process();
    }
    account_for_thread(&before[0]);
    account_for_process(&before[0]);
    pthread_barrier_wait(&accounted);
    ready();
    wait_go();
    pthread_barrier_wait(&checked);
    account_for_thread(&after[0]);
    account_for_process(&after[0]);
    pthread_barrier_wait(&accounted);
    for (int i = 0; i < THREADS; i++) same(before[i].text, after[i].text, i);
    for (int i = 1; i < THREADS; i++) CHECK(pthread_join(threads[i], NULL) == 0, "join");
    check_pattern(bound, 0, 4, 3, "a mapping with a policy");
    ok();
}
