// Clocks of uptime go on where they stood while it was frozen, and waits until a time on them end.
// Each thread waits for absolute times, one after the other, in a way of its own.
#include "victim.h"
#include <linux/futex.h>
#include <sys/timerfd.h>

#define SECOND 1000000000ULL
#define PERIOD (SECOND / 50)

static volatile int steps[7];
static volatile int stop;

static struct timespec spec(u64 ns) { return (struct timespec){(time_t)(ns / SECOND), (long)(ns % SECOND)}; }
static u64 kernel_ns(clockid_t clock) {
    struct timespec t;
    MUST(syscall(SYS_clock_gettime, clock, &t) == 0);
    return (u64)t.tv_sec * SECOND + (u64)t.tv_nsec;
}

static void sleep_until(clockid_t clock, u64 until) {
    struct timespec t = spec(until);
    while (clock_nanosleep(clock, TIMER_ABSTIME, &t, NULL) == EINTR) {}
}
static void by_sleep(u64 until) { sleep_until(CLOCK_MONOTONIC, until); }
static void by_boottime_sleep(u64 until) { sleep_until(CLOCK_BOOTTIME, until); }
static void by_condition(u64 until) {
    static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
    static pthread_cond_t condition;
    static int made;
    pthread_condattr_t attr;
    if (!made) {
        pthread_condattr_init(&attr);
        pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
        made = pthread_cond_init(&condition, &attr) == 0;
    }
    struct timespec t = spec(until);
    pthread_mutex_lock(&mutex);
    while (pthread_cond_timedwait(&condition, &mutex, &t) != ETIMEDOUT) {}
    pthread_mutex_unlock(&mutex);
}
static void by_futex(u64 until) {
    static int word;
    struct timespec t = spec(until);
    while (syscall(SYS_futex, &word, FUTEX_WAIT_BITSET_PRIVATE, 0, &t, NULL, FUTEX_BITSET_MATCH_ANY) == 0 || errno != ETIMEDOUT) {}
}
static void by_timerfd(clockid_t clock, u64 until) {
    static __thread int fd = -1;
    if (fd < 0) MUST((fd = timerfd_create(clock, TFD_CLOEXEC)) >= 0);
    struct itimerspec t = {{0, 0}, spec(until)};
    u64 ticks = 0;
    MUST(timerfd_settime(fd, TFD_TIMER_ABSTIME, &t, NULL) == 0);
    while (read(fd, &ticks, 8) != 8) MUST(errno == EINTR);
}
static void by_monotonic_timerfd(u64 until) { by_timerfd(CLOCK_MONOTONIC, until); }
static void by_boottime_timerfd(u64 until) { by_timerfd(CLOCK_BOOTTIME, until); }
static void by_timer(u64 until) {
    static timer_t timer;
    static int made;
    if (!made) {
        struct sigevent event = {.sigev_notify = SIGEV_NONE};
        MUST((made = timer_create(CLOCK_MONOTONIC, &event, &timer) == 0));
    }
    struct itimerspec t = {{0, 0}, spec(until)}, left;
    MUST(timer_settime(timer, TIMER_ABSTIME, &t, NULL) == 0);
    do {
        sleep_ms(2);
        MUST(timer_gettime(timer, &left) == 0);
    } while (left.it_value.tv_sec || left.it_value.tv_nsec);
}

static const struct { const char *name; clockid_t clock; void (*wait)(u64); } ways[] = {
    {"clock_nanosleep", CLOCK_MONOTONIC, by_sleep}, {"clock_nanosleep on boot time", CLOCK_BOOTTIME, by_boottime_sleep},
    {"pthread_cond_timedwait", CLOCK_MONOTONIC, by_condition}, {"futex", CLOCK_MONOTONIC, by_futex},
    {"timerfd", CLOCK_MONOTONIC, by_monotonic_timerfd}, {"timerfd on boot time", CLOCK_BOOTTIME, by_boottime_timerfd},
    {"timer", CLOCK_MONOTONIC, by_timer},
};
#define WAYS ((int)(sizeof ways / sizeof *ways))

static void *body(void *argument) {
    int way = (int)(u64)argument;
    for (u64 until = now_ns(ways[way].clock) + PERIOD; !stop; until += PERIOD) {
        ways[way].wait(until);
        u64 now = now_ns(ways[way].clock);
        CHECK(now >= until, "%s was over %ld ns early", ways[way].name, (long)(until - now));
        __atomic_fetch_add(&steps[way], 1, __ATOMIC_SEQ_CST);
    }
    return NULL;
}

int main(void) {
    static const clockid_t clocks[] = {CLOCK_MONOTONIC, CLOCK_BOOTTIME, CLOCK_MONOTONIC_RAW, CLOCK_MONOTONIC_COARSE};
    pthread_t threads[WAYS];
    for (int i = 0; i < WAYS; i++) threads[i] = start(body, (void *)(u64)i);
    for (int i = 0; i < WAYS; i++)
        while (steps[i] < 2) sleep_ms(1);
    ready();
    // What the clocks showed last, before and after; the real-time clock tells how long it was frozen.
    u64 shown[4], real, jump[4] = {0}, away = 0;
    for (;;) {
        for (int i = 0; i < 4; i++) shown[i] = now_ns(clocks[i]);
        real = now_ns(CLOCK_REALTIME);
        int over = access("go", F_OK) == 0;
        sleep_ms(2);
        u64 passed = now_ns(CLOCK_REALTIME) - real;
        if (passed > away) {
            away = passed;
            for (int i = 0; i < 4; i++) {
                u64 now = now_ns(clocks[i]);
                CHECK(now >= shown[i], "clock %d went back by %ld ns", clocks[i], (long)(shown[i] - now));
                jump[i] = now - shown[i];
            }
        }
        if (over) break;
    }
    u64 least = go_number() * SECOND;
    CHECK(away >= least, "it was away for %ld ms only", (long)(away / 1000000));
    for (int i = 0; i < 4 && least; i++) CHECK(jump[i] < SECOND, "clock %d went on by %ld ms while it was away for %ld", clocks[i], (long)(jump[i] / 1000000), (long)(away / 1000000));
    for (int i = 0; i < 4; i++) {
        u64 low = kernel_ns(clocks[i]), now = now_ns(clocks[i]), high = kernel_ns(clocks[i]);
        CHECK(low <= now + 20000000 && now <= high + 20000000, "clock %d of the vDSO differs from the kernel's by %ld ns", clocks[i], (long)(now - low));
    }
    int before[WAYS];
    for (int i = 0; i < WAYS; i++) before[i] = steps[i];
    u64 begun = now_ns(CLOCK_REALTIME);
    for (int i = 0; i < WAYS; i++)
        while (steps[i] < before[i] + 3) {
            CHECK(now_ns(CLOCK_REALTIME) - begun < 20 * SECOND, "%s has come on by %d steps in 20 s", ways[i].name, steps[i] - before[i]);
            sleep_ms(1);
        }
    pid_t child = fork();
    if (!child) _exit(now_ns(CLOCK_MONOTONIC) < shown[0]); // its clocks are ours
    child_must_succeed(child, "its child's clock went back");
    stop = 1;
    for (int i = 0; i < WAYS; i++) pthread_join(threads[i], NULL);
    ok();
}
