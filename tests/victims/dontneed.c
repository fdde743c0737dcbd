// MADV_DONTNEED on missing pages and on pages that came: zero from then on, and never the snapshot's again.
#include "victim.h"

#define PAGES 4096UL

static u8 *at;
static int stop;

static void *reader(void *argument) {
    (void)argument;
    // Pages nobody drops, read while others are dropped.
    for (u64 n = 0; !__atomic_load_n(&stop, __ATOMIC_SEQ_CST); n++) {
        u64 i = 2048 + mix(n) % 2048;
        CHECK(page_is(at + i * PAGE, 1, i), "page %lu differs while others are dropped", (unsigned long)i);
    }
    return NULL;
}

int main(void) {
    at = map_pattern(PAGES, 1);
    u8 *freed = map_pattern(256, 2);
    ready();
    wait_go();
    pthread_t thread = start(reader, NULL);
    MUST(madvise(at + 100 * PAGE, 300 * PAGE, MADV_DONTNEED) == 0);
    check_zero(at + 100 * PAGE, 300, "dropped before it came");
    check_pattern(at + 400 * PAGE, 400, 200, 1, "neighbours");
    MUST(madvise(at + 400 * PAGE, 200 * PAGE, MADV_DONTNEED) == 0);
    check_zero(at + 400 * PAGE, 200, "dropped after it came");
    for (u64 i = 600; i < 2048; i += 3) {
        MUST(madvise(at + i * PAGE, PAGE, MADV_DONTNEED) == 0);
        if (i % 2) fill_page(at + i * PAGE, 3, i);
    }
    sleep_ms(50); // whatever was on its way has come
    for (u64 i = 600; i < 2048; i++) {
        int dropped = i % 3 == 0;
        CHECK(!dropped ? page_is(at + i * PAGE, 1, i) : i % 2 ? page_is(at + i * PAGE, 3, i) : page_is_zero(at + i * PAGE), "page %lu differs among dropped ones", (unsigned long)i);
    }
    check_pattern(at, 0, 100, 1, "first pages");
    MUST(madvise(freed, 256 * PAGE, MADV_FREE) == 0);
    for (u64 i = 0; i < 256; i++) CHECK(page_is(freed + i * PAGE, 2, i) || page_is_zero(freed + i * PAGE), "page %lu given up is neither zero nor itself", (unsigned long)i);
    __atomic_store_n(&stop, 1, __ATOMIC_SEQ_CST);
    CHECK(pthread_join(thread, NULL) == 0, "join");
    ok();
}
