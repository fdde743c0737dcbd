// A thousand moves of single pages, while their contents are missing and nobody may have room to note them: `moves`.
#include "victim.h"

#define PAGES 2048UL
#define MOVED 100UL

int main(void) {
    u8 *memory = map_pattern(PAGES, 1), *places = map_anonymous(MOVED);
    ready();
    wait_go();
    for (int round = 0; round < 10; round++)
        for (u64 i = 0; i < MOVED; i++) {
            u8 *here = memory + i * 7 * PAGE, *there = places + i * PAGE;
            if (round % 2) {
                u8 *swap = here;
                here = there;
                there = swap;
            }
            MUST(mremap(here, PAGE, PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, there) == there);
        }
    check_pattern(memory, 0, PAGES, 1, "memory that moved and came back");
    ok();
}
