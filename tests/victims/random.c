// Draws random bytes by the C library's getrandom(), before and after: what it draws after is in the file `drawn`.
#include "victim.h"
#include <sys/random.h>

static void draw(unsigned char *bytes, size_t count) { MUST(getrandom(bytes, count, 0) == (ssize_t)count); }

int main(void) {
    unsigned char before[16], after[16];
    char text[64];
    for (int i = 0; i < 3; i++) draw(before, sizeof before);
    ready();
    wait_go();
    draw(after, sizeof after);
    CHECK(memcmp(before, after, sizeof after) != 0, "the same bytes as before");
    for (size_t i = 0; i < sizeof after; i++) snprintf(text + 2 * i, 3, "%02x", after[i]);
    publish("drawn", text);
    ok();
}
