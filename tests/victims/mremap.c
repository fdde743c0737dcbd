// Mappings that move, grow and shrink while their pages are missing: contents move with them, old places are empty.
#include "victim.h"

#define PAGES 2048UL

static u8 *remap(u8 *from, u64 old_pages, u64 new_pages, u8 *to) {
    u8 *at = to ? mremap(from, old_pages * PAGE, new_pages * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, to)
                : mremap(from, old_pages * PAGE, new_pages * PAGE, MREMAP_MAYMOVE);
    MUST(at != MAP_FAILED);
    return at;
}

int main(void) {
    u8 *grows = map_pattern(PAGES, 1), *moves = map_pattern(PAGES, 2), *shrinks = map_pattern(PAGES, 3), *middle = map_pattern(PAGES, 4), *swaps[2] = {map_pattern(64, 5), map_pattern(64, 6)};
    ready();
    wait_go();
    CHECK(page_is(moves + 7 * PAGE, 2, 7), "a page differs before the move"); // one is there, the others are not
    grows = remap(grows, PAGES, PAGES * 2, NULL);
    check_zero(grows + PAGES * PAGE, PAGES, "grown part");
    check_pattern(grows, 0, PAGES, 1, "grown mapping");
    u8 *target = map_anonymous(PAGES), *old = moves;
    moves = remap(moves, PAGES, PAGES, target);
    u8 *again = mmap(old, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
    MUST(again == old);
    check_zero(again, PAGES, "place that was left");
    check_pattern(moves, 0, PAGES, 2, "moved mapping");
    shrinks = remap(shrinks, PAGES, 100, NULL);
    check_pattern(shrinks, 0, 100, 3, "shrunk mapping");
    // The middle third elsewhere, twice.
    target = map_anonymous(512);
    u8 *third = remap(middle + 700 * PAGE, 512, 512, target);
    target = map_anonymous(512);
    CHECK(page_is(third + 3 * PAGE, 4, 703), "a page differs after the first of two moves");
    third = remap(third, 512, 512, target);
    check_pattern(third, 700, 512, 4, "middle, moved twice");
    check_pattern(middle, 0, 700, 4, "before the middle");
    check_pattern(middle + 1212 * PAGE, 1212, PAGES - 1212, 4, "after the middle");
    u8 *spare = map_anonymous(64);
    remap(swaps[0], 64, 64, spare);
    remap(swaps[1], 64, 64, swaps[0]);
    remap(spare, 64, 64, swaps[1]);
    check_pattern(swaps[0], 0, 64, 6, "first of two swapped mappings");
    check_pattern(swaps[1], 0, 64, 5, "second of two swapped mappings");
    ok();
}
