// How long the first touch of a page takes: `cold [MiB [watched]]`, 512 unless told. One page of every 64 KiB, in random order; the times
// in nanoseconds are left in the file `latencies`, as 32-bit words in the order of the touches, in `wall` the nanoseconds of all of them
// together, in `region` where the memory is. `go` may say more, as numbers: touches (0: all), microseconds between two of them, threads
// that share them, and whether each thread keeps to a processor of its own. `watched` memory is empty, and its owner leaves it to whoever
// takes the userfaultfd that `region` names.
#include "victim.h"
#include <linux/userfaultfd.h>
#include <sched.h>
#include <sys/ioctl.h>

#define APART 16UL // pages from one touched page to the next: none comes along with another's chunk
#define MOST_THREADS 8

static u8 *region;
static uint32_t took[1 << 16], order[1 << 16];
static unsigned touches, gap_us, threads = 1, pinned;
static pthread_barrier_t line;
static u64 ended_ns[MOST_THREADS];

// Half noise, half the same everywhere, the first word from its place alone.
static void fill(u64 *page, u64 number) {
    for (u64 i = 0; i < PAGE / 16; i++) page[i] = mix(number << 16 | i);
    for (u64 i = PAGE / 16; i < PAGE / 8; i++) page[i] = i % 8;
}

static int watch(u64 pages) {
    int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC);
    MUST(fd >= 0);
    struct uffdio_api api = {.api = UFFD_API};
    MUST(ioctl(fd, UFFDIO_API, &api) == 0);
    struct uffdio_register range = {{(u64)region, pages * PAGE}, UFFDIO_REGISTER_MODE_MISSING, 0};
    MUST(ioctl(fd, UFFDIO_REGISTER, &range) == 0);
    return fd;
}

static void *touch(void *argument) {
    u64 thread = (u64)argument;
    if (pinned) {
        cpu_set_t one;
        CPU_ZERO(&one);
        CPU_SET(thread, &one);
        MUST(sched_setaffinity(0, sizeof one, &one) == 0);
    }
    pthread_barrier_wait(&line);
    struct timespec gap = {gap_us / 1000000, gap_us % 1000000 * 1000L};
    for (u64 i = thread; i < touches; i += threads) {
        if (gap_us) nanosleep(&gap, NULL); // cut short is as well
        u64 number = order[i] * APART;
        volatile u64 *word = (u64 *)(region + number * PAGE);
        u64 begun = now_ns(CLOCK_MONOTONIC);
        u64 found = *word;
        took[i] = (uint32_t)(now_ns(CLOCK_MONOTONIC) - begun);
        CHECK(found == mix(number << 16), "page %lu differs", (unsigned long)number);
    }
    ended_ns[thread] = now_ns(CLOCK_MONOTONIC);
    return NULL;
}

int main(int argc, char **argv) {
    u64 pages = (argc > 1 ? strtoull(argv[1], NULL, 10) : 512) * MIB / PAGE;
    u64 places = pages / APART;
    region = map_anonymous(pages);
    int uffd = -1;
    if (argc > 2) uffd = watch(pages);
    else for (u64 i = 0; i < pages; i++) fill((u64 *)(region + i * PAGE), i);
    char text[64];
    snprintf(text, sizeof text, "%lu %d\n", (unsigned long)region, uffd);
    publish("region", text);
    int fd = open("latencies", O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    MUST(fd >= 0);

    ready();
    wait_go();

    int go = open("go", O_RDONLY | O_CLOEXEC);
    MUST(go >= 0);
    memset(text, 0, sizeof text);
    MUST(read(go, text, sizeof text - 1) >= 0);
    close(go);
    sscanf(text, "%u %u %u %u", &touches, &gap_us, &threads, &pinned);
    if (touches == 0 || touches > places) touches = places;
    CHECK(places <= 1 << 16 && threads >= 1 && threads <= MOST_THREADS, "no room for %lu touches by %u threads", (unsigned long)places, threads);
    for (u64 i = 0; i < places; i++) {
        took[i] = 1; // its page is there from now on
        order[i] = (uint32_t)i;
    }
    for (u64 i = places - 1; i > 0; i--) {
        u64 other = mix(i) % (i + 1);
        uint32_t kept = order[i];
        order[i] = order[other];
        order[other] = kept;
    }
    MUST(pthread_barrier_init(&line, NULL, threads) == 0);
    pthread_t started[MOST_THREADS];
    u64 begun = now_ns(CLOCK_MONOTONIC), ended = begun;
    for (u64 i = 1; i < threads; i++) started[i] = start(touch, (void *)i);
    touch((void *)0);
    for (u64 i = 1; i < threads; i++) MUST(pthread_join(started[i], NULL) == 0);
    for (u64 i = 0; i < threads; i++) ended = ended_ns[i] > ended ? ended_ns[i] : ended;
    MUST(write(fd, took, touches * sizeof took[0]) == (ssize_t)(touches * sizeof took[0]));
    MUST(ftruncate(fd, touches * sizeof took[0]) == 0); // an earlier restore may have left more
    snprintf(text, sizeof text, "%lu\n", (unsigned long)(ended - begun));
    publish("wall", text);
    ok();
}
