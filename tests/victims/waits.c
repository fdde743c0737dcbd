// Threads blocked in timed waits, each of which a freeze may cut short: `waits KIND`. A wait goes on, or ends early with EINTR as any
// signal makes it; it is never over before its time, and never loses what it waits for.
#include "victim.h"
#include <linux/futex.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/prctl.h>
#include <sys/select.h>

#define LONG_S 3600

static int event, watcher, stop, ends[2], locked;
static uint32_t word;
static pid_t tids[8];
static int started, woken;

// Each returns 1 once it has got what it waits for, 0 if it has to wait again.
static int in_epoll(void) {
    struct epoll_event got;
    int n = epoll_wait(watcher, &got, 1, LONG_S * 1000);
    CHECK(n == 1 || (n < 0 && errno == EINTR), "epoll_wait: %d, %s", n, strerror(errno));
    return n == 1;
}
static int in_poll(void) {
    struct pollfd fd = {.fd = event, .events = POLLIN};
    int n = poll(&fd, 1, LONG_S * 1000);
    CHECK(n == 1 || (n < 0 && errno == EINTR), "poll: %d, %s", n, strerror(errno));
    return n == 1;
}
static int in_select(void) {
    fd_set set;
    FD_ZERO(&set);
    FD_SET(event, &set);
    int n = select(event + 1, &set, NULL, NULL, &(struct timeval){LONG_S, 0});
    CHECK(n == 1 || (n < 0 && errno == EINTR), "select: %d, %s", n, strerror(errno));
    return n == 1;
}
static int in_futex(void) {
    if (__atomic_load_n(&word, __ATOMIC_SEQ_CST)) return 1;
    long result = syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, 0, &(struct timespec){LONG_S, 0}, NULL, 0);
    CHECK(result == 0 || errno == EINTR || errno == EAGAIN, "futex: %ld, %s", result, strerror(errno));
    return __atomic_load_n(&word, __ATOMIC_SEQ_CST) != 0;
}
static int in_condition(void) {
    static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
    static pthread_cond_t condition = PTHREAD_COND_INITIALIZER;
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_nsec += 20000000;
    if (until.tv_nsec >= 1000000000) until.tv_sec++, until.tv_nsec -= 1000000000;
    pthread_mutex_lock(&mutex);
    int result = pthread_cond_timedwait(&condition, &mutex, &until);
    pthread_mutex_unlock(&mutex);
    CHECK(result == ETIMEDOUT || result == 0, "pthread_cond_timedwait: %s", strerror(result));
    return __atomic_load_n(&stop, __ATOMIC_SEQ_CST);
}
static int in_sigtimedwait(void) {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR2);
    siginfo_t info;
    int signal = sigtimedwait(&set, &info, &(struct timespec){LONG_S, 0});
    CHECK(signal == SIGUSR2 || (signal < 0 && errno == EINTR), "sigtimedwait: %d, %s", signal, strerror(errno));
    return signal == SIGUSR2;
}
static void woke(int signal) {
    (void)signal;
    __atomic_fetch_add(&woken, 1, __ATOMIC_SEQ_CST);
}
static int in_sigsuspend(void) {
    sigset_t set;
    sigfillset(&set);
    sigdelset(&set, SIGUSR1);
    int before = __atomic_load_n(&woken, __ATOMIC_SEQ_CST);
    CHECK(sigsuspend(&set) < 0 && errno == EINTR, "sigsuspend: %s", strerror(errno));
    return __atomic_load_n(&woken, __ATOMIC_SEQ_CST) > before || __atomic_load_n(&stop, __ATOMIC_SEQ_CST);
}
static int in_nanosleep(void) {
    struct timespec left = {0, 0};
    u64 begun = now_ns(CLOCK_MONOTONIC);
    int result = nanosleep(&(struct timespec){0, 300000000}, &left);
    u64 slept = now_ns(CLOCK_MONOTONIC) - begun;
    CHECK(result == 0 || errno == EINTR, "nanosleep: %s", strerror(errno));
    CHECK(result < 0 || slept >= 300000000, "nanosleep was over after %lu ns of 300 ms", (unsigned long)slept);
    return __atomic_load_n(&stop, __ATOMIC_SEQ_CST);
}
static int in_absolute(void) {
    u64 until = now_ns(CLOCK_MONOTONIC) + 300000000;
    int result = clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &(struct timespec){(time_t)(until / 1000000000), (long)(until % 1000000000)}, NULL);
    CHECK(result == 0 || result == EINTR, "clock_nanosleep: %s", strerror(result));
    CHECK(result != 0 || now_ns(CLOCK_MONOTONIC) >= until, "clock_nanosleep was over before its time");
    return __atomic_load_n(&stop, __ATOMIC_SEQ_CST);
}
static int in_read(void) {
    u64 value;
    ssize_t n = read(ends[0], &value, 1);
    CHECK(n == 1 || (n < 0 && errno == EINTR), "read: %zd, %s", n, strerror(errno));
    return n == 1;
}
static int in_flock(void) {
    int result = flock(locked, LOCK_EX);
    CHECK(result == 0 || errno == EINTR, "flock: %s", strerror(errno));
    return result == 0;
}

static const struct { const char *name; int (*wait)(void); } kinds[] = {
    {"epoll", in_epoll}, {"poll", in_poll}, {"select", in_select}, {"futex", in_futex}, {"condition", in_condition},
    {"sigtimedwait", in_sigtimedwait}, {"sigsuspend", in_sigsuspend}, {"nanosleep", in_nanosleep}, {"absolute", in_absolute},
    {"read", in_read}, {"flock", in_flock},
};

static int (*waiting)(void);

static void *body(void *argument) {
    u64 number = (u64)argument;
    tids[number] = (pid_t)syscall(SYS_gettid);
    __atomic_fetch_add(&started, 1, __ATOMIC_SEQ_CST);
    while (!waiting()) {}
    return argument;
}

// Holds the lock, as an orphan, until `go` is there: the holder is no part of what is frozen.
static void hold_elsewhere(void) {
    pid_t middle = fork();
    MUST(middle >= 0);
    if (!middle) {
        if (fork()) _exit(0);
        setsid(); // or it would keep the victim's number in use
        close(ends[0]), close(ends[1]); // a pipe that leads to another process is refused
        int own = open("locked", O_RDWR | O_CREAT, 0600);
        if (own < 0 || flock(own, LOCK_EX) < 0) _exit(1);
        publish("held", "held\n");
        // Given up after a minute.
        for (int i = 0; i < 30000 && access("go", F_OK) != 0; i++) sleep_ms(2);
        _exit(0);
    }
    child_must_succeed(middle, "the middle process");
    while (access("held", F_OK) != 0) sleep_ms(1);
}

int main(int argc, char **argv) {
    signal(SIGUSR1, woke);
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    sigaddset(&set, SIGUSR2);
    MUST(sigprocmask(SIG_BLOCK, &set, NULL) == 0);
    MUST((event = eventfd(0, EFD_CLOEXEC)) >= 0 && (watcher = epoll_create1(EPOLL_CLOEXEC)) >= 0 && pipe2(ends, O_CLOEXEC) == 0);
    MUST(epoll_ctl(watcher, EPOLL_CTL_ADD, event, &(struct epoll_event){.events = EPOLLIN}) == 0);
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++)
        if (argc > 1 && strcmp(argv[1], kinds[i].name) == 0) waiting = kinds[i].wait;
    CHECK(waiting, "no such kind of wait");
    int threads_wanted = 4;
    if (waiting == in_flock) {
        threads_wanted = 1; // one description, one owner
        hold_elsewhere();
        MUST((locked = open("locked", O_RDWR | O_CREAT | O_CLOEXEC, 0600)) >= 0);
    }
    pthread_t threads[4];
    for (int i = 0; i < threads_wanted; i++) threads[i] = start(body, (void *)(u64)i);
    while (__atomic_load_n(&started, __ATOMIC_SEQ_CST) < threads_wanted) sleep_ms(1);
    sleep_ms(30); // to where they block
    ready();
    wait_go();
    __atomic_store_n(&stop, 1, __ATOMIC_SEQ_CST);
    __atomic_store_n(&word, 1, __ATOMIC_SEQ_CST);
    syscall(SYS_futex, &word, FUTEX_WAKE_PRIVATE, 1 << 20);
    MUST(write(event, &(u64){1}, 8) == 8);
    for (int i = 0; i < threads_wanted; i++) {
        MUST(waiting != in_read || write(ends[1], "x", 1) == 1);
        if (waiting == in_sigtimedwait) MUST(syscall(SYS_tgkill, getpid(), tids[i], SIGUSR2) == 0);
        if (waiting == in_sigsuspend) MUST(syscall(SYS_tgkill, getpid(), tids[i], SIGUSR1) == 0);
    }
    for (int i = 0; i < threads_wanted; i++) {
        void *result;
        CHECK(pthread_join(threads[i], &result) == 0 && result == (void *)(u64)i, "join of thread %d", i);
    }
    ok();
}
