// POSIX timers keep id, clock, signal, value, target thread, interval and what is left.
#include "victim.h"
#include <time.h>

#ifndef sigev_notify_thread_id
#define sigev_notify_thread_id _sigev_un._tid
#endif

static volatile int main_ticks, thread_ticks, bad;
static pid_t thread_tid;
static timer_t far_timer, ticking, threaded, silent, realtime, unarmed;

static void handler(int signal, siginfo_t *info, void *context) {
    (void)context;
    if (info->si_code != SI_TIMER) bad = 1;
    if (signal == SIGUSR1) {
        if (info->si_value.sival_int != 4711) bad = 2;
        main_ticks++;
    }
    if (signal == SIGUSR2) {
        if (info->si_value.sival_int != 815 || (pid_t)syscall(SYS_gettid) != thread_tid) bad = 3;
        thread_ticks++;
    }
}

static void *body(void *argument) {
    (void)argument;
    thread_tid = (pid_t)syscall(SYS_gettid);
    struct sigevent event = {.sigev_notify = SIGEV_THREAD_ID, .sigev_signo = SIGUSR2, .sigev_value.sival_int = 815};
    event.sigev_notify_thread_id = thread_tid;
    MUST(timer_create(CLOCK_MONOTONIC, &event, &threaded) == 0);
    struct itimerspec spec = {{0, 7000000}, {0, 7000000}};
    MUST(timer_settime(threaded, 0, &spec, NULL) == 0);
    __atomic_store_n(&thread_tid, thread_tid, __ATOMIC_SEQ_CST);
    for (;;) sleep_ms(50);
    return NULL;
}

static void make(timer_t *timer, clockid_t clock, struct sigevent event, long value_s, long interval_s) {
    MUST(timer_create(clock, &event, timer) == 0);
    struct itimerspec spec = {{interval_s, 0}, {value_s, 0}};
    if (value_s) MUST(timer_settime(*timer, 0, &spec, NULL) == 0);
}

static void left(timer_t timer, long value_s, long interval_s, u64 since, const char *what) {
    struct itimerspec now;
    MUST(timer_gettime(timer, &now) == 0);
    long passed = (long)((now_ns(CLOCK_MONOTONIC) - since) / 1000000000) + 2;
    CHECK(now.it_interval.tv_sec == interval_s, "the %s timer's interval is %ld s", what, now.it_interval.tv_sec);
    CHECK(now.it_value.tv_sec <= value_s && now.it_value.tv_sec >= value_s - passed, "the %s timer has %ld s of %ld left", what, now.it_value.tv_sec, value_s);
}

int main(void) {
    struct sigaction act = {.sa_sigaction = handler, .sa_flags = SA_SIGINFO | SA_RESTART};
    sigaction(SIGUSR1, &act, NULL);
    sigaction(SIGUSR2, &act, NULL);
    timer_t gone;
    struct sigevent none = {.sigev_notify = SIGEV_NONE};
    struct sigevent signal = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGUSR1, .sigev_value.sival_int = 4711};
    u64 since = now_ns(CLOCK_MONOTONIC);
    make(&gone, CLOCK_MONOTONIC, none, 5, 0);
    make(&far_timer, CLOCK_MONOTONIC, signal, 5000, 60);
    make(&silent, CLOCK_BOOTTIME, none, 900, 0);
    MUST(timer_delete(gone) == 0); // ids now begin with a gap
    make(&realtime, CLOCK_REALTIME, none, 700, 30);
    make(&unarmed, CLOCK_MONOTONIC, signal, 0, 0);
    MUST(timer_create(CLOCK_MONOTONIC, &signal, &ticking) == 0);
    MUST(timer_settime(ticking, 0, &(struct itimerspec){{0, 5000000}, {0, 5000000}}, NULL) == 0);
    start(body, NULL);
    while (!__atomic_load_n(&thread_tid, __ATOMIC_SEQ_CST)) sleep_ms(1);
    while (!thread_ticks) sleep_ms(1);
    ready();
    wait_go();
    left(far_timer, 5000, 60, since, "far");
    left(silent, 900, 0, since, "silent");
    left(realtime, 700, 30, since, "realtime");
    struct itimerspec now;
    MUST(timer_gettime(unarmed, &now) == 0);
    CHECK(!now.it_value.tv_sec && !now.it_value.tv_nsec, "the unarmed timer runs");
    int main_before = main_ticks, thread_before = thread_ticks;
    u64 begun = now_ns(CLOCK_MONOTONIC);
    while (main_ticks < main_before + 5 || thread_ticks < thread_before + 5) {
        CHECK(now_ns(CLOCK_MONOTONIC) - begun < 20000000000ULL, "ticks in 20 s: %d and %d", main_ticks - main_before, thread_ticks - thread_before);
        sleep_ms(1);
    }
    CHECK(!bad, "a tick came with the wrong %s", bad == 1 ? "code" : bad == 2 ? "value" : "thread or value");
    timer_t another;
    MUST(timer_create(CLOCK_MONOTONIC, &none, &another) == 0);
    CHECK(another != far_timer && another != silent && another != ticking, "a new timer got an old one's id");
    ok();
}
