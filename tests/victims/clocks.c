// The vDSO's clocks answer after the restore, agree with the kernel's and never go back.
#include "victim.h"
#include <sched.h>
#include <sys/auxv.h>
#include <sys/time.h>

static u64 kernel_ns(clockid_t clock) {
    struct timespec t;
    MUST(syscall(SYS_clock_gettime, clock, &t) == 0);
    return (u64)t.tv_sec * 1000000000ULL + (u64)t.tv_nsec;
}

int main(void) {
    clockid_t clocks[] = {CLOCK_REALTIME, CLOCK_MONOTONIC, CLOCK_MONOTONIC_RAW, CLOCK_REALTIME_COARSE, CLOCK_MONOTONIC_COARSE, CLOCK_BOOTTIME, CLOCK_TAI};
    u64 before[7];
    for (int i = 0; i < 7; i++) before[i] = now_ns(clocks[i]);
    unsigned long vdso = getauxval(AT_SYSINFO_EHDR);
    ready();
    wait_go();
    CHECK(getauxval(AT_SYSINFO_EHDR) == vdso && memcmp((void *)vdso, "\177ELF", 4) == 0, "the vDSO is not where it was");
    for (int round = 0; round < 1000; round++)
        for (int i = 0; i < 7; i++) {
            u64 low = kernel_ns(clocks[i]), now = now_ns(clocks[i]), high = kernel_ns(clocks[i]);
            CHECK(now >= before[i], "clock %d went back", clocks[i]);
            CHECK(low <= now + 20000000 && now <= high + 20000000, "clock %d differs from the kernel's by %ld ns", clocks[i], (long)(now - low));
            before[i] = now;
        }
    struct timeval day;
    MUST(gettimeofday(&day, NULL) == 0);
    CHECK(day.tv_sec - time(NULL) <= 1 && time(NULL) - day.tv_sec <= 1, "gettimeofday and time differ");
    unsigned cpu = ~0u, node;
    CHECK(getcpu(&cpu, &node) == 0 && cpu < 4096, "getcpu says %u", cpu);
    ok();
}
