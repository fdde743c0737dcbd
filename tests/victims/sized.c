// As much memory as told, and the moment at which it runs again: `sized MIB NOISE`. Every page begins with NOISE words that follow from
// its place and are hardly compressible; the others are the same everywhere.
//
// It looks at the clock all the time. Once that has jumped by more than [JUMP] it was frozen meanwhile: it leaves the time at which it
// saw that, in nanoseconds since 1970, as a line of the file `first`. Then it waits for `go`, which says a number N, compares every
// Nth page, scattered, and leaves its verdict as a line of the file `verdicts`. Many that are restored from one snapshot can share both.
#include "victim.h"

// Longer than a machine under load keeps anybody from running; whoever freezes it waits so long before it restores.
#define JUMP_NS 1000000000ULL

// A line of a file, whole.
static void append(const char *name, const char *line) {
    int fd = open(name, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
    if (fd < 0 || write(fd, line, strlen(line)) != (ssize_t)strlen(line) || close(fd) < 0) _exit(99);
}

int main(int argc, char **argv) {
    CHECK(argc == 3, "usage: sized MIB NOISE");
    u64 pages = strtoull(argv[1], NULL, 10) * MIB / PAGE, noise = strtoull(argv[2], NULL, 10);
    u8 *region = map_anonymous(pages);
    for (u64 number = 0; number < pages; number++) {
        u64 *words = (u64 *)(region + number * PAGE);
        for (u64 i = 0; i < PAGE / 8; i++) words[i] = i < noise ? mix(number << 16 | i) : i % 8;
    }

    ready();
    char line[64];
    for (u64 before = now_ns(CLOCK_REALTIME), now;; before = now) {
        now = now_ns(CLOCK_REALTIME);
        if (now - before < JUMP_NS) continue;
        snprintf(line, sizeof line, "%lu\n", (unsigned long)now);
        append("first", line);
        break;
    }
    wait_go();

    u64 every = go_number(), touched = every ? pages / every : 0;
    for (u64 i = 0; i < touched; i++) {
        u64 number = i * 2654435761UL % touched * every; // a prime: all of them, far from each other
        volatile u64 *words = (u64 *)(region + number * PAGE);
        for (u64 w = 0; w < PAGE / 8; w++) {
            if (words[w] == (w < noise ? mix(number << 16 | w) : w % 8)) continue;
            snprintf(line, sizeof line, "WRONG page %lu\n", (unsigned long)number);
            append("verdicts", line);
            _exit(1);
        }
    }
    append("verdicts", touched ? "OK\n" : "WRONG nothing compared\n");
    // Stay: somebody looks at the pager.
    for (;;) sleep(1000);
}
