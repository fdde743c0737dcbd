// Memory in huge pages: `huge MIB`. Two threads write and compare all of it the whole time, scattered, each its own pages, and one of
// them says now and then how long a round through them took.
#include "victim.h"

#define HUGE (2 * MIB)
#define THREADS 2
#define EVERY 8

static u8 *region;
static u64 pages;
static int stop;

static u64 fixed(u64 number, u64 word) { return mix(number << 16 | word); }

static void *writer(void *arg) {
    u64 own = (u64)arg, mine = pages / THREADS;
    for (u64 round = 0; !__atomic_load_n(&stop, __ATOMIC_SEQ_CST); round++) {
        u64 begun = now_ns(CLOCK_MONOTONIC);
        for (u64 i = 0; i < mine; i++) {
            // A prime: all of them, far from each other.
            u64 number = i * 2654435761UL % mine * THREADS + own, word = 1 + round % 511;
            volatile u64 *words = (u64 *)(region + number * PAGE);
            CHECK(words[0] == round, "page %lu was written %lu times, not %lu", number, words[0], round);
            CHECK(words[word] == fixed(number, word), "page %lu, word %lu", number, word);
            words[0] = round + 1;
        }
        if (own == 0 && round % EVERY == 0) dprintf(1, "round %lu us\n", (now_ns(CLOCK_MONOTONIC) - begun) / 1000);
    }
    return NULL;
}

int main(int argc, char **argv) {
    CHECK(argc == 2, "usage: huge MIB");
    u64 bytes = strtoull(argv[1], NULL, 10) * MIB;
    pages = bytes / PAGE;
    u8 *map = mmap(NULL, bytes + HUGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    MUST(map != MAP_FAILED);
    region = (u8 *)(((u64)map + HUGE - 1) / HUGE * HUGE);
    MUST(madvise(region, bytes, MADV_HUGEPAGE) == 0);
    for (u64 number = 0; number < pages; number++)
        for (u64 word = 1; word < PAGE / 8; word++) ((u64 *)(region + number * PAGE))[word] = fixed(number, word);

    pthread_t threads[THREADS];
    for (u64 i = 0; i < THREADS; i++) MUST((errno = pthread_create(&threads[i], NULL, writer, (void *)i)) == 0);
    ready();
    wait_go();
    __atomic_store_n(&stop, 1, __ATOMIC_SEQ_CST);
    for (u64 i = 0; i < THREADS; i++) MUST((errno = pthread_join(threads[i], NULL)) == 0);
    for (u64 number = 0; number < pages; number++)
        for (u64 word = 1; word < PAGE / 8; word++)
            CHECK(((u64 *)(region + number * PAGE))[word] == fixed(number, word), "page %lu, word %lu", number, word);
    ok();
}
