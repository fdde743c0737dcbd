// The three interval timers: one far off keeps what is left of it, ticking ones go on ticking.
#include "victim.h"
#include <sys/time.h>

static volatile int ticks[65];
static void handler(int signal) { ticks[signal]++; }

static void burn_until(int signal, int wanted) {
    u64 begun = now_ns(CLOCK_MONOTONIC);
    int before = ticks[signal];
    while (ticks[signal] < before + wanted)
        CHECK(now_ns(CLOCK_MONOTONIC) - begun < 20000000000ULL, "signal %d ticked %d times in 20 s", signal, ticks[signal] - before);
}

int main(int argc, char **argv) {
    int far = argc > 1 && strcmp(argv[1], "far") == 0;
    struct sigaction act = {.sa_handler = handler, .sa_flags = SA_RESTART};
    sigaction(SIGALRM, &act, NULL);
    sigaction(SIGVTALRM, &act, NULL);
    sigaction(SIGPROF, &act, NULL);
    struct itimerval real = {{0, 5000}, {0, 5000}}, virtual = {{0, 10000}, {0, 10000}}, prof = {{0, 20000}, {0, 20000}}, now;
    if (far) real = (struct itimerval){{7, 500000}, {3000, 0}};
    MUST(setitimer(ITIMER_REAL, &real, NULL) == 0);
    MUST(setitimer(ITIMER_VIRTUAL, &virtual, NULL) == 0);
    MUST(setitimer(ITIMER_PROF, &prof, NULL) == 0);
    u64 set_at = now_ns(CLOCK_MONOTONIC);
    ready();
    wait_go();
    MUST(getitimer(ITIMER_REAL, &now) == 0);
    CHECK(now.it_interval.tv_sec == real.it_interval.tv_sec && now.it_interval.tv_usec == real.it_interval.tv_usec, "the real timer's interval is %ld.%06ld", now.it_interval.tv_sec, now.it_interval.tv_usec);
    if (far) {
        // What is left shrinks by time spent running or frozen, whichever is counted: never more than both, never less than none.
        long passed = (long)((now_ns(CLOCK_MONOTONIC) - set_at) / 1000000000) + 2;
        CHECK(now.it_value.tv_sec <= 3000 && now.it_value.tv_sec >= 3000 - passed, "%ld s of 3000 are left", now.it_value.tv_sec);
        CHECK(ticks[SIGALRM] == 0, "the far timer ticked");
    } else {
        burn_until(SIGALRM, 5);
    }
    MUST(getitimer(ITIMER_VIRTUAL, &now) == 0);
    CHECK(now.it_interval.tv_usec == 10000, "the virtual timer's interval is %ld us", now.it_interval.tv_usec);
    burn_until(SIGVTALRM, 3);
    MUST(getitimer(ITIMER_PROF, &now) == 0);
    CHECK(now.it_interval.tv_usec == 20000, "the profiling timer's interval is %ld us", now.it_interval.tv_usec);
    burn_until(SIGPROF, 3);
    ok();
}
