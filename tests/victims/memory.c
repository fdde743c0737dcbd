// Memory of every sort, each page of a pattern that follows from its address: `memory [MiB]`, 64 unless told.
#include "victim.h"

static u64 bss[8192];
static u64 data[1024] = {1, 2, 3};

int main(int argc, char **argv) {
    u64 pages = (argc > 1 ? strtoull(argv[1], NULL, 10) : 64) * MIB / PAGE;
    // Every seventh page is zero, every eleventh one page over and over, the rest each its own.
    u8 *big = map_anonymous(pages);
    for (u64 i = 0; i < pages; i++) {
        if (i % 7 == 0) big[i * PAGE] = 0; // populated, yet zero
        else fill_page(big + i * PAGE, 1, i % 11 == 0 ? 0 : i);
    }
    u8 *sparse = map_anonymous(1 << 20); // 4 GiB of address space, 64 pages of it used
    for (u64 i = 0; i < 64; i++) fill_page(sparse + i * (1 << 14) * PAGE, 2, i);
    u8 *untouched = map_anonymous(256);
    u8 *readable = map_pattern(16, 3), *nothing = map_pattern(16, 4), *code = map_pattern(16, 5);
    MUST(mprotect(readable, 16 * PAGE, PROT_READ) == 0);
    MUST(mprotect(nothing, 16 * PAGE, PROT_NONE) == 0);
    MUST(mprotect(code, 16 * PAGE, PROT_READ | PROT_EXEC) == 0);
    u8 *heap[64];
    for (u64 i = 0; i < 64; i++) {
        u64 bytes = 4096 + mix(i) % 100000;
        MUST(heap[i] = malloc(bytes));
        for (u64 b = 0; b < bytes; b++) heap[i][b] = (u8)mix(i << 32 | b);
    }
    // A private mapping of a file: some pages the file's own, some written over.
    int fd = open("mapped", O_RDWR | O_CREAT | O_TRUNC, 0644);
    MUST(fd >= 0);
    static u64 page[PAGE / 8];
    for (u64 i = 0; i < 64; i++) {
        fill_page(page, 6, i);
        MUST(write(fd, page, PAGE) == (ssize_t)PAGE);
    }
    u8 *file = mmap(NULL, 64 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
    MUST(file != MAP_FAILED);
    close(fd);
    for (u64 i = 0; i < 64; i += 3) fill_page(file + i * PAGE, 7, i);
    for (u64 i = 0; i < 8192; i++) bss[i] = mix(i);
    for (u64 i = 3; i < 1024; i++) data[i] = mix(~i);
    u64 stack[2048];
    for (u64 i = 0; i < 2048; i++) stack[i] = mix(i * 3);

    ready();
    wait_go();

    // Scattered first, so that neighbours are still missing; then everything.
    for (u64 i = 0; i < pages / 16; i++) {
        u64 at = mix(i) % pages;
        CHECK(at % 7 == 0 ? page_is_zero(big + at * PAGE) : page_is(big + at * PAGE, 1, at % 11 == 0 ? 0 : at), "scattered page %lu differs", (unsigned long)at);
    }
    for (u64 i = 0; i < pages; i++)
        CHECK(i % 7 == 0 ? page_is_zero(big + i * PAGE) : page_is(big + i * PAGE, 1, i % 11 == 0 ? 0 : i), "page %lu differs", (unsigned long)i);
    for (u64 i = 0; i < 64; i++) CHECK(page_is(sparse + i * (1 << 14) * PAGE, 2, i), "sparse page %lu differs", (unsigned long)i);
    check_zero(sparse + PAGE, 64, "sparse hole");
    check_zero(untouched, 256, "untouched memory");
    check_pattern(readable, 0, 16, 3, "read-only memory");
    MUST(mprotect(nothing, 16 * PAGE, PROT_READ) == 0);
    check_pattern(nothing, 0, 16, 4, "memory without access");
    check_pattern(code, 0, 16, 5, "executable memory");
    for (u64 i = 0; i < 64; i++) {
        u64 bytes = 4096 + mix(i) % 100000;
        for (u64 b = 0; b < bytes; b++) CHECK(heap[i][b] == (u8)mix(i << 32 | b), "heap block %lu byte %lu differs", (unsigned long)i, (unsigned long)b);
        free(heap[i]);
    }
    for (u64 i = 0; i < 64; i++) CHECK(page_is(file + i * PAGE, i % 3 ? 6 : 7, i), "page %lu of the mapped file differs", (unsigned long)i);
    for (u64 i = 0; i < 8192; i++) CHECK(bss[i] == mix(i), "bss word %lu differs", (unsigned long)i);
    CHECK(data[0] == 1 && data[1] == 2 && data[2] == 3, "data differs");
    for (u64 i = 3; i < 1024; i++) CHECK(data[i] == mix(~i), "data word %lu differs", (unsigned long)i);
    for (u64 i = 0; i < 2048; i++) CHECK(stack[i] == mix(i * 3), "stack word %lu differs", (unsigned long)i);
    // Still writable.
    for (u64 i = 0; i < pages; i += 5) fill_page(big + i * PAGE, 8, i);
    for (u64 i = 0; i < pages; i += 5) CHECK(page_is(big + i * PAGE, 8, i), "page %lu differs after it was written", (unsigned long)i);
    ok();
}
