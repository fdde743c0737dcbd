// Unmapping while pages are missing: what is mapped there afterwards is zero, neighbours are untouched, all of it may go.
#include "victim.h"

#define PAGES 4096UL

int main(void) {
    u8 *at = map_pattern(PAGES, 1), *gone = map_pattern(PAGES, 2), *odd = map_pattern(PAGES, 3);
    ready();
    wait_go();
    MUST(munmap(at + 1000 * PAGE, 500 * PAGE) == 0);
    u8 *again = mmap(at + 1000 * PAGE, 500 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
    MUST(again == at + 1000 * PAGE);
    check_zero(again, 500, "mapped again");
    for (u64 i = 0; i < 500; i++) fill_page(again + i * PAGE, 4, i);
    check_pattern(at, 0, 1000, 1, "before the hole");
    check_pattern(at + 1500 * PAGE, 1500, PAGES - 1500, 1, "after the hole");
    check_pattern(again, 0, 500, 4, "written after mapping again");
    MUST(munmap(gone, PAGES * PAGE) == 0);
    // MAP_FIXED over missing pages unmaps them without saying so.
    MUST(mmap(odd + 64 * PAGE, 64 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == odd + 64 * PAGE);
    check_zero(odd + 64 * PAGE, 64, "mapped over");
    for (u64 i = 1; i < PAGES; i += 2)
        if (i < 64 || i >= 128) MUST(munmap(odd + i * PAGE, PAGE) == 0);
    for (u64 i = 0; i < PAGES; i += 2)
        if (i < 64 || i >= 128) CHECK(page_is(odd + i * PAGE, 3, i), "even page %lu differs", (unsigned long)i);
    ok();
}
