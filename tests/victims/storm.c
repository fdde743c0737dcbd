// Four threads that check and change memory while whoever brings it is being killed: `storm MIB [PACE_US]`.
//
// Every page's contents follow from its record: the name it was filled under and a counter for each half. Records are memory like any
// other, filled before the freeze, and carry a sum of their own, so that a record read as zeros is found too. A page that was dropped
// or newly mapped is zeros, which its record says as well.
//
// Each thread has a slice and a mutex. It holds the mutex while record and page may disagree; a fork takes the forker's mutex, one in
// four takes all of them: a child checks only what was at rest when it was made. Nothing here maps memory at an address that the
// kernel chooses, so a hole stays a hole until its owner fills it. Blocks of 16 pages move as wholes, which bounds the number of
// mappings.
//
// `go` holds a seed. Counts stand in the file `progress` (see `struct counts`), `stop` ends it: everything is checked once more,
// children too, and then it is OK. A child that was ended by SIGKILL is counted, not blamed: whoever cannot serve it may do that. A child
// that finds something wrong writes the verdict and takes the parent with it.
//
// `storm MIB PACE_US 0 unrest`: children may dump core, and may be ended because there is no room for them.
// `storm MIB PACE_US DEFECT` spoils a byte after that many steps, to see that it is found.
#include "victim.h"
#include <sys/prctl.h>
#include <sys/resource.h>

#define THREADS 4
#define BLOCK 16UL // pages
#define KEPT 6     // children that one thread has at once
#define SALT 0x5709135eedULL

struct record {
    uint32_t name;     // what the page was filled as: its place at first
    uint32_t halves[2]; // counters; all zero and no name: a page of zeros
    uint32_t sum;
};

// What the file `progress` holds, one for each thread: children are counted, what they do is not.
struct counts {
    u64 steps, checked, changed, dropped, mapped, moved, forks, children_ok, children_killed;
};

struct slice {
    pthread_mutex_t mutex;
    u8 *at;
    u8 *spare; // a hole of one block
    struct record *records;
    u64 number, state;
    pid_t children[KEPT];
    struct counts counts;
};

static struct slice slices[THREADS];
static u64 pages; // of one slice
static u64 pace_us, defect;
static int dumps; // among what children do
static int progress;

#define NO_NAME 0xffffffffu

static uint32_t sum_of(const struct record *r, u64 slice, u64 page) {
    return (uint32_t)mix(SALT ^ slice << 56 ^ page << 24 ^ mix((u64)r->name << 32 | r->halves[0]) ^ mix(r->halves[1])) | 1;
}

static u64 word(u64 slice, uint32_t name, uint32_t counter, u64 i) {
    return mix(SALT + (slice << 60) + ((u64)name << 32) + counter) ^ mix(i);
}

// Page and record --------------------------------------------------------------------------------------------------------------------

static void set(struct slice *s, u64 page, uint32_t name, uint32_t first, uint32_t second) {
    struct record *r = &s->records[page];
    *r = (struct record){name, {first, second}, 0};
    r->sum = sum_of(r, s->number, page);
}

static const char *who_am_i = "the process";

static struct record get(struct slice *s, u64 page, const char *doing) {
    struct record r = s->records[page];
    CHECK(r.sum == sum_of(&r, s->number, page), "%s, %s: record of page %lu of slice %lu: expected its sum, found %x %x %x %x", who_am_i, doing,
          (unsigned long)page, (unsigned long)s->number, r.name, r.halves[0], r.halves[1], r.sum);
    return r;
}

static void check_half(struct slice *s, u64 page, int half, const char *doing) {
    struct record r = get(s, page, doing);
    const volatile u64 *at = (u64 *)(s->at + page * PAGE);
    u64 from = half ? PAGE / 16 : 0, to = half ? PAGE / 8 : PAGE / 16;
    for (u64 i = from; i < to; i++) {
        u64 expected = r.name == NO_NAME ? 0 : word(s->number, r.name, r.halves[half], i), found = at[i];
        CHECK(found == expected, "%s, %s: page %lu of slice %lu (%p) word %lu: expected %lx, found %lx", who_am_i, doing, (unsigned long)page,
              (unsigned long)s->number, (void *)(s->at + page * PAGE), (unsigned long)i, (unsigned long)expected, (unsigned long)found);
    }
}

static void check_one(struct slice *s, u64 page, const char *doing) {
    check_half(s, page, 0, doing);
    check_half(s, page, 1, doing);
    s->counts.checked++;
}

static void fill_half(struct slice *s, u64 page, uint32_t name, uint32_t counter, int half) {
    u64 *at = (u64 *)(s->at + page * PAGE);
    for (u64 i = half ? PAGE / 16 : 0; i < (half ? PAGE / 8 : PAGE / 16); i++) at[i] = word(s->number, name, counter, i);
}

// A page becomes what it is now, its counters raised: wholly, or one half without looking at the other.
static void change(struct slice *s, u64 page, int halves) {
    struct record r = get(s, page, "changing");
    uint32_t name = r.name == NO_NAME ? (uint32_t)page : r.name;
    if (r.name == NO_NAME) halves = 3;
    for (int half = 0; half < 2; half++)
        if (halves & 1 << half) fill_half(s, page, name, ++r.halves[half], half);
    set(s, page, name, r.halves[0], r.halves[1]);
    s->counts.changed++;
}

static void becomes_zeros(struct slice *s, u64 from, u64 count) {
    for (u64 p = from; p < from + count; p++) {
        struct record r = get(s, p, "emptying");
        // The counters go on, so that what was there can never be mistaken for what comes.
        set(s, p, NO_NAME, r.halves[0] + 1, r.halves[1] + 1);
    }
}

// Steps ------------------------------------------------------------------------------------------------------------------------------

static u64 roll(struct slice *s, u64 below) {
    s->state += 0x9e3779b97f4a7c15ULL;
    return mix(s->state) % below;
}

static void drop(struct slice *s) {
    u64 from = roll(s, pages), count = roll(s, 24) + 1;
    if (from + count > pages) count = pages - from;
    // Blocks lie in mappings of their own, without holes between them: one call crosses them.
    MUST(madvise(s->at + from * PAGE, count * PAGE, MADV_DONTNEED) == 0);
    becomes_zeros(s, from, count);
    check_one(s, from + roll(s, count), "dropped");
    s->counts.dropped += count;
}

static void pause_us(u64 us) {
    struct timespec t = {(time_t)(us / 1000000), (long)(us % 1000000 * 1000)};
    nanosleep(&t, NULL);
}

// Pages that may not be touched, and then may: what was there is gone. Kernels before 6.13 have no guards. Kernels up to 6.18 replace a
// guard by a page that comes in the microseconds after its place was looked at (pager/src/markers.rs): a tracer makes milliseconds of
// those, so only with unrest are pages guarded that may be missing.
static void guard(struct slice *s) {
    u64 from = roll(s, pages), count = roll(s, 24) + 1;
    if (from + count > pages) count = pages - from;
    for (u64 p = from; !dumps && p < from + count; p++) check_one(s, p, "to be guarded");
    if (madvise(s->at + from * PAGE, count * PAGE, 102 /* MADV_GUARD_INSTALL */) != 0) {
        MUST(errno == EINVAL);
        return;
    }
    if (roll(s, 2)) pause_us(1000);
    MUST(madvise(s->at + from * PAGE, count * PAGE, 103 /* MADV_GUARD_REMOVE */) == 0);
    becomes_zeros(s, from, count);
    check_one(s, from + roll(s, count), "guarded for a while");
    s->counts.dropped += count;
}

static u64 block(struct slice *s) { return roll(s, pages / BLOCK) * BLOCK; }

static void map_block(struct slice *s, u64 at) {
    u8 *wanted = s->at + at * PAGE;
    MUST(mmap(wanted, BLOCK * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0) == wanted);
    becomes_zeros(s, at, BLOCK);
    check_one(s, at + roll(s, BLOCK), "newly mapped");
    s->counts.mapped += BLOCK;
}

static void remap(u8 *from, u8 *to) {
    MUST(mremap(from, BLOCK * PAGE, BLOCK * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, to) == to);
}

// Contents follow their name, so only the records move along.
static void swap_blocks(struct slice *s) {
    u64 a = block(s), b = block(s);
    if (a == b) return;
    remap(s->at + a * PAGE, s->spare);
    remap(s->at + b * PAGE, s->at + a * PAGE);
    remap(s->spare, s->at + b * PAGE);
    for (u64 i = 0; i < BLOCK; i++) {
        struct record one = get(s, a + i, "moving"), other = get(s, b + i, "moving");
        set(s, a + i, other.name, other.halves[0], other.halves[1]);
        set(s, b + i, one.name, one.halves[0], one.halves[1]);
    }
    check_one(s, a + roll(s, BLOCK), "moved");
    s->counts.moved += 2 * BLOCK;
}

// One block over another, which is lost; something new where the first was.
static void overwrite_block(struct slice *s) {
    u64 from = block(s), to = block(s);
    if (from == to) return;
    remap(s->at + from * PAGE, s->at + to * PAGE);
    for (u64 i = 0; i < BLOCK; i++) {
        struct record r = get(s, from + i, "moving");
        set(s, to + i, r.name, r.halves[0], r.halves[1]);
    }
    map_block(s, from);
    check_one(s, to + roll(s, BLOCK), "moved over another");
    s->counts.moved += BLOCK;
}

static int stopped(void) { return access("stop", F_OK) == 0; }

static void check_all(struct slice *s, const char *doing) {
    for (u64 p = 0; p < pages; p++) check_one(s, p, doing);
}

static void fork_child(struct slice *s, int depth);
static void reap(struct slice *s, int wait);

static void step(struct slice *s, int depth) {
    u64 kind = roll(s, 1000), page = roll(s, pages);
    if (kind < 450) {
        for (u64 i = roll(s, 3) + 1; i-- && page < pages; page++) check_one(s, page, "reading");
    } else if (kind < 600) {
        check_one(s, page, "before a change");
        change(s, page, 3);
        check_one(s, page, "after a change");
    } else if (kind < 790) { // the touch is a write, and half of what was there must still be
        change(s, page, 1 << roll(s, 2));
        check_one(s, page, "after half a change");
    } else if (kind < 820) {
        drop(s);
    } else if (kind < 840) {
        u64 at = block(s);
        MUST(munmap(s->at + at * PAGE, BLOCK * PAGE) == 0);
        map_block(s, at);
    } else if (kind < 940) {
        swap_blocks(s);
    } else if (kind < 955) {
        overwrite_block(s);
    } else if (kind < 970) {
        guard(s);
    } else if (depth < 2) {
        fork_child(s, depth);
    }
    s->counts.steps++;
    if (defect && s->number == 2 && s->counts.steps == defect) s->at[77 * PAGE + 5] ^= 1;
}

// Children ---------------------------------------------------------------------------------------------------------------------------

// What a child does; it owns a copy of the slice, and of all of them where `all` were at rest.
static void child(struct slice *s, int depth, int all, u64 kind) {
    static const char *names[] = {"a child", "a grandchild", "a great-grandchild"};
    who_am_i = names[depth < 2 ? depth : 2];
    s->state = mix(s->state ^ (0xc0ffeeULL + (u64)depth));
    memset(s->children, 0, sizeof s->children);
    memset(&s->counts, 0, sizeof s->counts);
    if (kind == 9 && dumps) { // its memory is asked for by the kernel, which waits for nothing
        check_one(s, roll(s, pages), "looking");
        struct sigaction usual = {.sa_handler = SIG_DFL};
        sigaction(SIGABRT, &usual, NULL);
        abort();
    }
    if (kind < 4) { // looks at some pages and goes
        for (int i = 0; i < 24; i++) {
            struct slice *looked = all ? &slices[roll(s, THREADS)] : s;
            check_one(looked, roll(s, pages), "looking");
        }
    } else { // stays, and does to its copy what its parent does
        u64 steps = kind < 8 ? 60 : 300;
        for (u64 i = 0; i < steps && !stopped(); i++) {
            step(s, depth + 1);
            if (all) check_one(&slices[roll(s, THREADS)], roll(s, pages), "looking");
            pause_us(pace_us * 2);
        }
    }
    reap(s, 1);
    _exit(0);
}

static void fork_child(struct slice *s, int depth) {
    int free = -1;
    reap(s, 0);
    for (int i = 0; i < KEPT >> depth; i++)
        if (!s->children[i]) free = i;
    if (free < 0) return;
    int all = depth == 0 && roll(s, 4) == 0;
    u64 kind = roll(s, 10);
    // In order; we hold our own, and nobody else asks for it meanwhile: let go of it first.
    if (all) {
        pthread_mutex_unlock(&s->mutex);
        for (int i = 0; i < THREADS; i++) pthread_mutex_lock(&slices[i].mutex);
    }
    pid_t parent = getpid(), made = fork();
    if (made == 0) {
        // No child outlives a test that fails.
        if (prctl(PR_SET_PDEATHSIG, SIGKILL) < 0 || getppid() != parent) _exit(0);
        child(s, depth, all, kind);
    }
    int failed = errno;
    if (all)
        for (int i = 0; i < THREADS; i++)
            if (&slices[i] != s) pthread_mutex_unlock(&slices[i].mutex);
    errno = failed;
    MUST(made > 0);
    s->children[free] = made;
    s->counts.forks++;
}

static void reap(struct slice *s, int wait) {
    for (int i = 0; i < KEPT; i++) {
        if (!s->children[i]) continue;
        int status;
        pid_t ended = waitpid(s->children[i], &status, wait ? 0 : WNOHANG);
        if (ended == 0) continue;
        if (ended < 0 && errno == EINTR) {
            i--;
            continue;
        }
        MUST(ended == s->children[i]);
        s->children[i] = 0;
        if (WIFEXITED(status) && WEXITSTATUS(status) == 1) _exit(1); // it has said what
        if (dumps && WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT) {
            s->counts.children_ok++;
            continue;
        }
        // SIGBUS: there was no room for it, or no descriptor.
        if (WIFSIGNALED(status) && (WTERMSIG(status) == SIGKILL || (dumps && WTERMSIG(status) == SIGBUS))) {
            s->counts.children_killed++;
            continue;
        }
        CHECK(status == 0, "%s: a child ended with status %#x", who_am_i, status);
        s->counts.children_ok++;
    }
}

static void tell(struct slice *s) {
    MUST(pwrite(progress, &s->counts, sizeof s->counts, (off_t)(s->number * sizeof s->counts)) == (ssize_t)sizeof s->counts);
}

static void *thread(void *argument) {
    struct slice *s = argument;
    wait_go();
    s->state = mix(go_number() ^ (s->number << 32));
    while (!stopped()) {
        pthread_mutex_lock(&s->mutex);
        step(s, 0);
        pthread_mutex_unlock(&s->mutex);
        reap(s, 0);
        tell(s);
        pause_us(pace_us);
    }
    // Children of this thread only: nobody forks in between.
    pthread_mutex_lock(&s->mutex);
    check_all(s, "at the end");
    pthread_mutex_unlock(&s->mutex);
    reap(s, 1);
    tell(s);
    return NULL;
}

// A region with some room on either side, the spare block in it.
static u8 *arena(u64 bytes) {
    u8 *at = mmap(NULL, bytes + 4 * BLOCK * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    MUST(at != MAP_FAILED);
    return at + BLOCK * PAGE;
}

int main(int argc, char **argv) {
    u64 mib = argc > 1 ? strtoull(argv[1], NULL, 10) : 64;
    pace_us = argc > 2 ? strtoull(argv[2], NULL, 10) : 3000;
    defect = argc > 3 ? strtoull(argv[3], NULL, 10) : 0;
    dumps = argc > 4;
    if (dumps) MUST(setrlimit(RLIMIT_CORE, &(struct rlimit){16 * MIB, 16 * MIB}) == 0);
    pages = mib * MIB / PAGE / THREADS / BLOCK * BLOCK;
    CHECK(pages > 128, "give it a megabyte or more");
    for (u64 n = 0; n < THREADS; n++) {
        struct slice *s = &slices[n];
        s->number = n;
        pthread_mutex_init(&s->mutex, NULL);
        s->at = arena(pages * PAGE);
        s->spare = s->at + (pages + BLOCK) * PAGE;
        MUST(mprotect(s->at, pages * PAGE, PROT_READ | PROT_WRITE) == 0);
        s->records = (struct record *)map_anonymous((pages * sizeof *s->records + PAGE - 1) / PAGE);
        for (u64 p = 0; p < pages; p++) {
            if (p % 13 == 12) { // never touched
                set(s, p, NO_NAME, 0, 0);
                continue;
            }
            set(s, p, (uint32_t)p, 1, 1);
            fill_half(s, p, (uint32_t)p, 1, 0);
            fill_half(s, p, (uint32_t)p, 1, 1);
        }
    }
    pthread_t threads[THREADS];
    for (u64 n = 0; n < THREADS; n++) threads[n] = start(thread, &slices[n]);
    MUST((progress = open("progress", O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644)) >= 0);
    // Last: the kernel puts what is mapped without an address into such holes.
    for (u64 n = 0; n < THREADS; n++) MUST(munmap(slices[n].spare, BLOCK * PAGE) == 0);
    ready();
    for (u64 n = 0; n < THREADS; n++) MUST(pthread_join(threads[n], NULL) == 0);
    ok();
}
