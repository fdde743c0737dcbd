// How long the first touch of a page takes: `cold [MiB]`, 512 unless told. One page of every 64 KiB, in random order; the times in
// nanoseconds are left in the file `latencies`, as 32-bit words in the order of the touches.
#include "victim.h"

#define APART 16UL // pages from one touched page to the next: none comes along with another's chunk

// Half noise, half the same everywhere, the first word from its place alone.
static void fill(u64 *page, u64 number) {
    for (u64 i = 0; i < PAGE / 16; i++) page[i] = mix(number << 16 | i);
    for (u64 i = PAGE / 16; i < PAGE / 8; i++) page[i] = i % 8;
}

int main(int argc, char **argv) {
    u64 pages = (argc > 1 ? strtoull(argv[1], NULL, 10) : 512) * MIB / PAGE;
    u64 touches = pages / APART;
    u8 *region = map_anonymous(pages);
    for (u64 i = 0; i < pages; i++) fill((u64 *)(region + i * PAGE), i);
    int fd = open("latencies", O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    MUST(fd >= 0);

    ready();
    wait_go();

    static uint32_t took[1 << 16], order[1 << 16];
    CHECK(touches <= 1 << 16, "no room for %lu touches", (unsigned long)touches);
    for (u64 i = 0; i < touches; i++) {
        took[i] = 1; // its page is there from now on
        order[i] = (uint32_t)i;
    }
    for (u64 i = touches - 1; i > 0; i--) {
        u64 other = mix(i) % (i + 1);
        uint32_t kept = order[i];
        order[i] = order[other];
        order[other] = kept;
    }
    for (u64 i = 0; i < touches; i++) {
        u64 number = order[i] * APART;
        volatile u64 *word = (u64 *)(region + number * PAGE);
        u64 begun = now_ns(CLOCK_MONOTONIC);
        u64 found = *word;
        took[i] = (uint32_t)(now_ns(CLOCK_MONOTONIC) - begun);
        CHECK(found == mix(number << 16), "page %lu differs", (unsigned long)number);
    }
    MUST(write(fd, took, touches * sizeof took[0]) == (ssize_t)(touches * sizeof took[0]));
    ok();
}
