// A random sequence of reads, writes, unmappings, moves, drops, protections and forks, predicted byte for byte by a model.
//
// `model PAGES` fills an arena from a fixed seed and is frozen; the seed of what follows stands in `go`, so one snapshot serves many
// seeds. The model is rebuilt from the seeds after the restore: nothing of it comes from restored memory.
//
// Every page has eight blocks; a block's contents follow from its stamp (0: zeros). A `label` tells which pages lie in one mapping.
#include "victim.h"

#define BLOCKS 8
#define WORDS (PAGE / 8 / BLOCKS)
#define FIRST 0x5eedULL

struct page {
    u64 stamps[BLOCKS];
    u64 label; // 0: not mapped
};

static u64 pages, state, next_label, next_stamp;
static u8 *arena;
static struct page *model;
static u64 seed, step;

static u64 roll(u64 below) {
    state += 0x9e3779b97f4a7c15ULL;
    return mix(state) % below;
}

static u64 first_stamp(u64 page, u64 block) {
    u64 kind = mix(page * 31 + FIRST) % 8;
    if (kind == 0) return 0;                       // a zero page
    if (kind == 1) return block % 2 ? 0 : page + 1; // half zero
    return (page * BLOCKS + block) * 2 + 1;
}

static void write_block(u64 page, u64 block, u64 stamp) {
    u64 *at = (u64 *)(arena + page * PAGE) + block * WORDS;
    for (u64 i = 0; i < WORDS; i++) at[i] = stamp ? mix(stamp << 8 | i) : 0;
}

static void check_block(u64 page, u64 block, const char *what) {
    const volatile u64 *at = (u64 *)(arena + page * PAGE) + block * WORDS;
    u64 stamp = model[page].stamps[block];
    for (u64 i = 0; i < WORDS; i++) {
        u64 want = stamp ? mix(stamp << 8 | i) : 0, is = at[i];
        CHECK(is == want, "seed %lu step %lu %s: page %lu block %lu word %lu is %lx instead of %lx", (unsigned long)seed, (unsigned long)step, what, (unsigned long)page, (unsigned long)block, (unsigned long)i, (unsigned long)is, (unsigned long)want);
    }
}

static void check_page(u64 page, const char *what) {
    if (model[page].label)
        for (u64 b = 0; b < BLOCKS; b++) check_block(page, b, what);
}

static void check_all(const char *what) {
    for (u64 p = 0; p < pages; p++) check_page(p, what);
}

// A run of mapped pages of one mapping, at most `most` long, from a random place; 0 if there is none there.
static u64 run(u64 *from, u64 most) {
    *from = roll(pages);
    u64 label = model[*from].label, length = 0, wanted = roll(most) + 1;
    if (!label) return 0;
    while (length < wanted && *from + length < pages && model[*from + length].label == label) length++;
    return length;
}

static void becomes_zero(u64 from, u64 length, u64 label) {
    for (u64 p = from; p < from + length; p++) {
        memset(model[p].stamps, 0, sizeof model[p].stamps);
        model[p].label = label;
    }
}

static u64 label(void) { return ++next_label; }
static u8 *at(u64 page) { return arena + page * PAGE; }

static void operate(int depth);

static void fork_child(int depth) {
    pid_t child = fork();
    MUST(child >= 0);
    if (!child) {
        state = mix(state ^ 0xc0ffee);
        for (int i = 0; i < 30; i++) operate(depth + 1);
        check_all("in a child");
        _exit(0);
    }
    if (roll(2)) { // meanwhile the parent goes on
        for (int i = 0; i < 10; i++) operate(depth + 1);
    }
    child_must_succeed(child, "child of the model");
}

static void operate(int depth) {
    step++;
    u64 from, length, kind = roll(100);
    if (kind < 35) {
        if ((length = run(&from, 4))) check_block(from, roll(BLOCKS), "read");
    } else if (kind < 60) {
        if (!run(&from, 1)) return;
        u64 block = roll(BLOCKS), stamp = roll(5) ? (1ULL << 40) + ++next_stamp : 0;
        write_block(from, block, stamp);
        model[from].stamps[block] = stamp;
        if (roll(2)) check_page(from, "after a write");
    } else if (kind < 68) {
        if (!(length = run(&from, 32))) return;
        MUST(munmap(at(from), length * PAGE) == 0);
        becomes_zero(from, length, 0);
    } else if (kind < 76) {
        // Something new in a hole, or over what is there.
        from = roll(pages);
        length = roll(32) + 1;
        if (from + length > pages) length = pages - from;
        MUST(mmap(at(from), length * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == at(from));
        becomes_zero(from, length, label());
        check_page(from + roll(length), "newly mapped");
    } else if (kind < 86) {
        if (!(length = run(&from, 32))) return;
        u64 to = roll(pages - length);
        if (to < from + length && from < to + length) return;
        MUST(mremap(at(from), length * PAGE, length * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, at(to)) == at(to));
        u64 moved = label();
        for (u64 i = 0; i < length; i++) {
            model[to + i] = model[from + i];
            model[to + i].label = moved;
        }
        becomes_zero(from, length, 0);
        check_page(to + roll(length), "moved");
    } else if (kind < 94) {
        if (!(length = run(&from, 64))) return;
        MUST(madvise(at(from), length * PAGE, MADV_DONTNEED) == 0);
        becomes_zero(from, length, model[from].label);
        check_page(from + roll(length), "dropped");
    } else if (kind < 97) {
        if (!(length = run(&from, 16))) return;
        MUST(mprotect(at(from), length * PAGE, PROT_READ) == 0);
        check_page(from + roll(length), "read-only");
        MUST(mprotect(at(from), length * PAGE, PROT_READ | PROT_WRITE) == 0);
        u64 own = label();
        for (u64 i = 0; i < length; i++) model[from + i].label = own;
    } else if (depth < 2) {
        fork_child(depth);
    }
}

int main(int argc, char **argv) {
    pages = argc > 1 ? strtoull(argv[1], NULL, 10) : 2048;
    // Twice the room: the upper half is not mapped at first.
    arena = mmap(NULL, pages * 2 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    MUST(arena != MAP_FAILED && munmap(arena + pages * PAGE, pages * PAGE) == 0);
    MUST(mprotect(arena, pages * PAGE, PROT_READ | PROT_WRITE) == 0);
    for (u64 p = 0; p < pages; p++)
        for (u64 b = 0; b < BLOCKS; b++)
            if (first_stamp(p, b) || p % 3 == 0) write_block(p, b, first_stamp(p, b));
    ready();
    wait_go();
    seed = go_number();
    state = mix(seed);
    model = mmap(NULL, pages * sizeof *model, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    MUST(model != MAP_FAILED);
    next_label = 1;
    for (u64 p = 0; p < pages; p++) {
        model[p].label = 1;
        for (u64 b = 0; b < BLOCKS; b++) model[p].stamps[b] = first_stamp(p, b);
    }
    for (int i = 0; i < 600; i++) operate(0);
    check_all("at the end");
    ok();
}
