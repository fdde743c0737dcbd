// The stack grows while pages are missing: deep recursion below old frames, which stay right.
#include "victim.h"

static __attribute__((noinline)) u64 deep(u64 level) {
    volatile u64 frame[256];
    for (u64 i = 0; i < 256; i++) frame[i] = mix(level << 16 | i);
    u64 sum = level ? deep(level - 1) : 0;
    for (u64 i = 0; i < 256; i++) CHECK(frame[i] == mix(level << 16 | i), "frame %lu differs", (unsigned long)level);
    return sum + level;
}

static __attribute__((noinline)) void frozen_deep(u64 level) {
    volatile u64 frame[256];
    for (u64 i = 0; i < 256; i++) frame[i] = mix(~level << 16 | i);
    if (level) {
        frozen_deep(level - 1);
    } else {
        ready();
        wait_go();
        CHECK(deep(3000) == 3000UL * 3001 / 2, "recursion went wrong"); // 6 MiB below
    }
    for (u64 i = 0; i < 256; i++) CHECK(frame[i] == mix(~level << 16 | i), "old frame %lu differs", (unsigned long)level);
}

int main(void) {
    deep(200); // used before, stale now
    frozen_deep(300);
    ok();
}
