// The heap's end grows and shrinks while its pages are missing.
#include "victim.h"

#define PAGES 8192UL

int main(void) {
    u8 *begin = (u8 *)(((uintptr_t)sbrk(0) + PAGE - 1) / PAGE * PAGE);
    MUST(brk(begin + PAGES * PAGE) == 0);
    for (u64 i = 0; i < PAGES; i++) fill_page(begin + i * PAGE, 9, i);
    u8 *end = sbrk(0);
    ready();
    wait_go();
    CHECK(sbrk(0) == end, "the heap ends at %p instead of %p", sbrk(0), end);
    MUST(brk(end + 4096 * PAGE) == 0);
    check_zero(end, 4096, "grown heap");
    for (u64 i = 0; i < 4096; i++) fill_page(end + i * PAGE, 10, i);
    check_pattern(begin + 100 * PAGE, 100, 100, 9, "heap");
    MUST(brk(begin + 4096 * PAGE) == 0); // drops pages that are there and pages that never came
    MUST(brk(begin + PAGES * PAGE) == 0);
    check_zero(begin + 4096 * PAGE, PAGES - 4096, "heap given back and taken again");
    check_pattern(begin, 0, 4096, 9, "heap");
    ok();
}
