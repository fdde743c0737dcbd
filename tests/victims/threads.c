// Threads, each blocked in one place: `threads futex|nanosleep|epoll|pipe|spin|all`. Each must go on right where it was.
#include "victim.h"
#include <linux/futex.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>

#define EACH 3
#define MOST (EACH * 5)

struct task {
    void (*body)(struct task *);
    const char *name;
    u64 number;
    pid_t tid;
    pthread_t thread;
    int done;
};

static __thread u64 own[512];
static struct task tasks[MOST];
static int count, started, stop;
static uint32_t word;
static int pipe_ends[2], event, watcher;

static long futex(uint32_t *at, int op, uint32_t value) { return syscall(SYS_futex, at, op, value, NULL, NULL, 0); }

static void in_futex(struct task *task) {
    (void)task;
    while (__atomic_load_n(&word, __ATOMIC_SEQ_CST) == 0)
        CHECK(futex(&word, FUTEX_WAIT_PRIVATE, 0) == 0 || errno == EINTR || errno == EAGAIN, "futex wait: %s", strerror(errno));
}

static void in_nanosleep(struct task *task) {
    // To a point in time: cut short or not, it must not be over before; that point lies after any freeze of a few seconds begins.
    u64 until = now_ns(CLOCK_MONOTONIC) + (task->number + 1) * 300000000ULL;
    struct timespec t = {(time_t)(until / 1000000000), (long)(until % 1000000000)};
    int failed;
    while ((failed = clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL)) == EINTR) {}
    CHECK(failed == 0, "clock_nanosleep: %s", strerror(failed));
    CHECK(now_ns(CLOCK_MONOTONIC) >= until, "woke before its time");
    // For a while, over and over: what is left may only shrink.
    struct timespec want = {600, 0}, left;
    while (!__atomic_load_n(&stop, __ATOMIC_SEQ_CST)) {
        struct timespec nap = {0, 200000000};
        if (nanosleep(&nap, &left) < 0) {
            CHECK(errno == EINTR, "nanosleep: %s", strerror(errno));
            CHECK(left.tv_sec == 0 && left.tv_nsec <= nap.tv_nsec, "nanosleep left %ld.%09ld s of 0.2 s", left.tv_sec, left.tv_nsec);
        }
    }
    (void)want;
}

static void in_epoll(struct task *task) {
    struct epoll_event got = {0};
    int n;
    while ((n = epoll_wait(watcher, &got, 1, -1)) < 0 && errno == EINTR) {}
    CHECK(n == 1 && got.data.u64 == 0x1234567890abcdefULL && (got.events & EPOLLIN), "epoll_wait of thread %lu: %d events, data %lx", (unsigned long)task->number, n, (unsigned long)got.data.u64);
}

static void in_pipe(struct task *task) {
    (void)task;
    char byte = 0;
    ssize_t n;
    while ((n = read(pipe_ends[0], &byte, 1)) < 0 && errno == EINTR) {}
    CHECK(n == 1 && byte == 'x', "read from the pipe gave %zd", n);
}

// x' = A x + C, n times, in log n steps: tells whether a loop lost or repeated a step.
#define A 6364136223846793005ULL
#define C 1442695040888963407ULL
static u64 jump(u64 x, u64 n) {
    u64 a = A, c = C;
    for (; n; n >>= 1) {
        if (n & 1) x = a * x + c;
        c = (a + 1) * c;
        a *= a;
    }
    return x;
}

static void spinning(struct task *task) {
    u64 x = task->number, n = 0;
    double sum = 0;
    while (!__atomic_load_n(&stop, __ATOMIC_RELAXED)) {
        x = A * x + C;
        sum += 0.5;
        n++;
    }
    CHECK(x == jump(task->number, n), "a loop's state differs after %lu steps", (unsigned long)n);
    CHECK(sum == (double)n * 0.5, "a loop's sum differs after %lu steps", (unsigned long)n);
}

static void *thread(void *argument) {
    struct task *task = argument;
    task->tid = (pid_t)syscall(SYS_gettid);
    for (u64 i = 0; i < 512; i++) own[i] = mix(task->number << 32 | i);
    char name[16], now[16];
    snprintf(name, sizeof name, "%s-%lu", task->name, (unsigned long)task->number);
    pthread_setname_np(pthread_self(), name);
    u64 local[256];
    for (u64 i = 0; i < 256; i++) local[i] = mix(task->number * 77 + i);
    __atomic_fetch_add(&started, 1, __ATOMIC_SEQ_CST);
    task->body(task);
    CHECK(task->tid == (pid_t)syscall(SYS_gettid), "thread %s has another tid", name);
    for (u64 i = 0; i < 512; i++) CHECK(own[i] == mix(task->number << 32 | i), "thread-local word %lu of %s differs", (unsigned long)i, name);
    for (u64 i = 0; i < 256; i++) CHECK(local[i] == mix(task->number * 77 + i), "stack word %lu of %s differs", (unsigned long)i, name);
    pthread_getname_np(pthread_self(), now, sizeof now);
    CHECK(strcmp(name, now) == 0, "thread %s is now called %s", name, now);
    __atomic_store_n(&task->done, 1, __ATOMIC_SEQ_CST);
    return task;
}

static void add(const char *which, const char *name, void (*body)(struct task *)) {
    if (strcmp(which, name) != 0 && strcmp(which, "all") != 0) return;
    for (int i = 0; i < EACH; i++) {
        struct task *task = &tasks[count];
        *task = (struct task){.body = body, .name = name, .number = (u64)count};
        count++;
        task->thread = start(thread, task);
    }
}

int main(int argc, char **argv) {
    const char *which = argc > 1 ? argv[1] : "all";
    MUST(pipe2(pipe_ends, O_CLOEXEC) == 0);
    MUST((event = eventfd(0, EFD_CLOEXEC)) >= 0);
    MUST((watcher = epoll_create1(EPOLL_CLOEXEC)) >= 0);
    struct epoll_event interest = {.events = EPOLLIN, .data.u64 = 0x1234567890abcdefULL};
    MUST(epoll_ctl(watcher, EPOLL_CTL_ADD, event, &interest) == 0);
    add(which, "futex", in_futex);
    add(which, "nanosleep", in_nanosleep);
    add(which, "epoll", in_epoll);
    add(which, "pipe", in_pipe);
    add(which, "spin", spinning);
    CHECK(count > 0, "no such kind of thread: %s", which);
    while (__atomic_load_n(&started, __ATOMIC_SEQ_CST) < count) sleep_ms(1);
    sleep_ms(20); // to where they block
    ready();
    wait_go();
    for (int i = 0; i < count; i++)
        CHECK(tasks[i].body == in_nanosleep || !__atomic_load_n(&tasks[i].done, __ATOMIC_SEQ_CST), "thread %d ended by itself", i);
    __atomic_store_n(&word, 1, __ATOMIC_SEQ_CST);
    futex(&word, FUTEX_WAKE_PRIVATE, 1 << 20);
    MUST(write(event, &(u64){1}, 8) == 8);
    for (int i = 0; i < count; i++)
        if (tasks[i].body == in_pipe) MUST(write(pipe_ends[1], "x", 1) == 1);
    __atomic_store_n(&stop, 1, __ATOMIC_SEQ_CST);
    for (int i = 0; i < count; i++) {
        void *result = NULL;
        CHECK(pthread_join(tasks[i].thread, &result) == 0 && result == &tasks[i], "join of thread %d", i);
    }
    // New ones can be started.
    pthread_t late = start(thread, &(struct task){.body = in_futex, .name = "late", .number = 99});
    CHECK(pthread_join(late, NULL) == 0, "join of a new thread");
    ok();
}
