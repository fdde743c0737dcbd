// A process with threads that ends by itself some microseconds after it was told: `brief`; `go` holds how many.
#include "victim.h"

static volatile u64 wait_us;

static void *body(void *argument) {
    u64 number = (u64)argument;
    while (!wait_us) sleep_ms(1);
    // Some threads end before the process does.
    usleep((useconds_t)(wait_us * number / 4));
    return NULL;
}

int main(void) {
    u8 *pattern = map_pattern(2048, 3);
    for (u64 i = 0; i < 6; i++) start(body, (void *)i);
    ready();
    wait_go();
    wait_us = go_number() + 1;
    usleep((useconds_t)wait_us);
    _exit(page_is(pattern, 3, 0) ? 0 : 1);
}
