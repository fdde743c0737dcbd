// Compares its memory once, in a scattered order and slowly: `compare MIB`. It says `begun` first, so that what saying something needs
// is there: whoever loses memory after that is found out by its bytes, not by a crash.
#include "victim.h"

int main(int argc, char **argv) {
    u64 pages = (argc > 1 ? strtoull(argv[1], NULL, 10) : 64) * MIB / PAGE;
    u8 *at = map_pattern(pages, 1);
    ready();
    wait_go();
    char text[64];
    snprintf(text, sizeof text, "%lu %s\n", (unsigned long)pages, strerror(ENOENT));
    publish("begun", text);
    for (u64 i = 0; i < pages; i++) {
        u64 page = (i * 7919 + 13) % pages; // 7919 is a prime: every page once
        u8 *here = at + page * PAGE;
        if (!page_is(here, 1, page)) {
            u64 at_ns = now_ns(CLOCK_REALTIME);
            wrong("%s in page %lu, at %lu", page_is_zero(here) ? "zeros" : "other bytes", (unsigned long)page, (unsigned long)at_ns);
        }
        if (i % 64 == 0) sleep_ms(1);
    }
    ok();
}
