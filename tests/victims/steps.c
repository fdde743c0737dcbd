// Does one thing at a time, as it is told: `steps MIB`. After `go` it looks for the files `step.1`, `step.2`, ... and leaves `done.N` after
// each; a step that touches missing memory is done when that has come. A step is a word and up to two numbers:
//
//   touch FROM TO   compare pages      write FROM TO   fill pages anew, with a pattern of their own
//   drop FROM TO    MADV_DONTNEED      close           close every descriptor from 3 up, as daemons do
//   fork            a child that waits for the file `child`, then compares everything it has; its pid stands in `done.N`
//   orphan          the same, but it stays: it touches all else as well, leaves the file `compared`, waits for the file `leave`, unmaps
//                   what it compared and leaves `left`
//   join            wait for that child                exit            leave without a verdict
//   end             compare everything, the child too: the verdict
#include "victim.h"

static u8 *at, *state; // state of each page: 0 as it was, 1 written, 2 dropped
static u64 pages;
static pid_t child;

static void compare(u64 from, u64 to, const char *who) {
    for (u64 p = from; p < to; p++) {
        u8 *page = at + p * PAGE;
        const volatile u64 *words = (u64 *)page;
        int right = state[p] == 2 ? page_is_zero(page) : page_is(page, 1 + state[p], p);
        CHECK(right, "%s: page %lu differs: its first word is %lx, and it is %szeros", who, (unsigned long)p, (unsigned long)words[0], page_is_zero(page) ? "" : "not ");
    }
}

// Every page of everything, so that nothing is missing any more.
static void touch_all(void) {
    FILE *maps = fopen("/proc/self/maps", "r");
    MUST(maps != NULL);
    char line[512], can[5];
    u64 from, to;
    while (fgets(line, sizeof line, maps)) {
        if (sscanf(line, "%lx-%lx %4s", &from, &to, can) != 3 || can[0] != 'r' || strstr(line, "[v")) continue;
        for (u64 page = from; page < to; page += PAGE) (void)*(const volatile u8 *)page;
    }
    fclose(maps);
}

static void fork_child(int stays) {
    MUST((child = fork()) >= 0);
    if (child) return;
    while (access("child", F_OK) != 0) sleep_ms(2);
    compare(0, pages, "the child");
    if (stays) {
        touch_all();
        publish("compared", "");
        while (access("leave", F_OK) != 0) sleep_ms(2);
        // Somebody must read of this, if anybody watches.
        MUST(munmap(at, pages * PAGE) == 0);
        publish("left", "");
    }
    _exit(0);
}

static void join(void) {
    if (child) child_must_succeed(child, "join");
    child = 0;
}

// As programs did before close_range(): one by one, and nobody asks which are open.
static void close_all(void) {
    for (int fd = 3; fd < 65536; fd++) close(fd);
}

static void perform(const char *text) {
    char word[16] = {0};
    u64 from = 0, to = 0;
    CHECK(sscanf(text, "%15s %lu %lu", word, &from, &to) >= 1 && to <= pages, "step: %s", text);
    if (!strcmp(word, "touch")) {
        compare(from, to, "the process");
    } else if (!strcmp(word, "write")) {
        for (u64 p = from; p < to; p++) fill_page(at + p * PAGE, 2, p);
        memset(state + from, 1, to - from);
    } else if (!strcmp(word, "drop")) {
        MUST(madvise(at + from * PAGE, (to - from) * PAGE, MADV_DONTNEED) == 0);
        memset(state + from, 2, to - from);
    } else if (!strcmp(word, "close")) {
        close_all();
    } else if (!strcmp(word, "fork") || !strcmp(word, "orphan")) {
        fork_child(!strcmp(word, "orphan"));
    } else if (!strcmp(word, "join")) {
        join();
    } else if (!strcmp(word, "exit")) {
        _exit(0);
    } else if (!strcmp(word, "end")) {
        compare(0, pages, "the process at the end");
        join();
        ok();
    } else {
        wrong("step: %s", text);
    }
}

int main(int argc, char **argv) {
    pages = (argc > 1 ? strtoull(argv[1], NULL, 10) : 16) * MIB / PAGE;
    at = map_pattern(pages, 1);
    state = map_anonymous((pages + PAGE - 1) / PAGE);
    ready();
    wait_go();
    for (int n = 1;; n++) {
        char name[32], text[64] = {0};
        snprintf(name, sizeof name, "step.%d", n);
        int fd;
        while ((fd = open(name, O_RDONLY | O_CLOEXEC)) < 0) sleep_ms(2);
        MUST(read(fd, text, sizeof text - 1) >= 0);
        close(fd);
        perform(text);
        snprintf(name, sizeof name, "done.%d", n);
        snprintf(text, sizeof text, "%d\n", (int)child);
        publish(name, text);
    }
}
