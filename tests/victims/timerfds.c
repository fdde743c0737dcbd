// Timer descriptors keep clock, ticks that nobody has read, what is left, and the time of day they were set to.
#include "victim.h"
#include <sys/timerfd.h>

#define SECOND 1000000000ULL

static int made(clockid_t clock, int flags, u64 value_ns, u64 interval_ns) {
    int fd = timerfd_create(clock, TFD_CLOEXEC | TFD_NONBLOCK);
    MUST(fd >= 0);
    struct itimerspec t = {{(time_t)(interval_ns / SECOND), (long)(interval_ns % SECOND)}, {(time_t)(value_ns / SECOND), (long)(value_ns % SECOND)}};
    MUST(timerfd_settime(fd, flags, &t, NULL) == 0);
    return fd;
}

static u64 left_ns(int fd) {
    struct itimerspec t;
    MUST(timerfd_gettime(fd, &t) == 0);
    return (u64)t.it_value.tv_sec * SECOND + (u64)t.it_value.tv_nsec;
}

static u64 unread(int fd) {
    u64 ticks;
    return read(fd, &ticks, 8) == 8 ? ticks : 0;
}

// The number behind `key` in fdinfo.
static long info(int fd, const char *key, int base) {
    char path[64], text[1024] = {0};
    snprintf(path, sizeof path, "/proc/self/fdinfo/%d", fd);
    int file = open(path, O_RDONLY | O_CLOEXEC);
    MUST(file >= 0 && read(file, text, sizeof text - 1) > 0);
    close(file);
    char *at = strstr(text, key);
    CHECK(at, "no %s in %s", key, path);
    return strtol(at + strlen(key), NULL, base);
}

int main(void) {
    static const clockid_t clocks[] = {CLOCK_REALTIME, CLOCK_MONOTONIC, CLOCK_BOOTTIME, CLOCK_REALTIME_ALARM, CLOCK_BOOTTIME_ALARM};
    int far[5];
    for (int i = 0; i < 5; i++) far[i] = made(clocks[i], 0, 5000 * SECOND, 7 * SECOND);
    int expired = made(CLOCK_MONOTONIC, 0, 1, 0);
    int often = made(CLOCK_MONOTONIC, 0, SECOND / 100, SECOND / 100);
    int unarmed = made(CLOCK_BOOTTIME, 0, 0, 0);
    u64 real = now_ns(CLOCK_REALTIME);
    int day = made(CLOCK_REALTIME, TFD_TIMER_ABSTIME | TFD_TIMER_CANCEL_ON_SET, real + 5000 * SECOND, 0);
    int past = made(CLOCK_REALTIME, TFD_TIMER_ABSTIME, real + 2 * SECOND, 0);
    u64 begun = now_ns(CLOCK_MONOTONIC);
    sleep_ms(300);
    ready();
    wait_go();
    u64 lived = now_ns(CLOCK_MONOTONIC) - begun, passed = now_ns(CLOCK_REALTIME) - real;
    for (int i = 0; i < 5; i++) {
        CHECK(info(far[i], "clockid: ", 10) == clocks[i], "a timer on clock %d is on clock %ld", clocks[i], info(far[i], "clockid: ", 10));
        u64 left = left_ns(far[i]);
        CHECK(left + lived <= 5001 * SECOND && left + lived + SECOND >= 5000 * SECOND, "clock %d: %ld ms are left after %ld", clocks[i], (long)(left / 1000000), (long)(lived / 1000000));
    }
    CHECK(unread(expired) == 1 && left_ns(expired) == 0, "the expired timer is another");
    u64 ticks = unread(often);
    CHECK(ticks >= 30 && ticks <= lived / (SECOND / 100) + 2, "%ld ticks in %ld ms", (long)ticks, (long)(lived / 1000000));
    CHECK(unread(unarmed) == 0 && left_ns(unarmed) == 0, "the unarmed timer runs");
    CHECK(info(day, "settime flags: ", 8) == (TFD_TIMER_ABSTIME | TFD_TIMER_CANCEL_ON_SET), "flags %lo", info(day, "settime flags: ", 8));
    u64 left = left_ns(day);
    CHECK(left + passed <= 5001 * SECOND && left + passed + SECOND >= 5000 * SECOND, "%ld ms are left after %ld", (long)(left / 1000000), (long)(passed / 1000000));
    // Away over its time: it has expired since.
    if (go_number()) CHECK(unread(past) == 1, "its time of day is past, %ld ms are left", (long)(left_ns(past) / 1000000));
    ok();
}
