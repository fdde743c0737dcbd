// The first thread ends and others go on: `leaderless early` before it is ready, `leaderless late` after its checkpoint. Another
// thread looks at all memory, and at what is left of the first one.
#include "victim.h"
#include <sys/prctl.h>

#define PAGES 4096UL
#define CODE 7

static u8 *memory;
static int late;

// State and exit code of the first thread.
static char first_thread(int *code) {
    char line[1024] = "";
    int fd = open("/proc/self/stat", O_RDONLY | O_CLOEXEC);
    MUST(fd >= 0 && read(fd, line, sizeof line - 1) > 0 && close(fd) == 0);
    char *state = strrchr(line, ')') + 2, *last = strrchr(line, ' ');
    *code = atoi(last + 1) >> 8;
    return *state;
}

static void wait_for_its_end(void) {
    int code = 0;
    while (first_thread(&code) != 'Z') sleep_ms(1);
    CHECK(code == CODE, "the first thread ended with %d", code);
    char name[32] = "";
    int fd = open("/proc/self/comm", O_RDONLY | O_CLOEXEC);
    MUST(fd >= 0 && read(fd, name, sizeof name - 1) > 0 && close(fd) == 0);
    CHECK(strcmp(name, "the first\n") == 0, "its name is %s", name);
}

static void *goes_on(void *x) {
    if (x) {
        for (;;) pause();
    }
    MUST(prctl(PR_SET_NAME, "another") == 0);
    if (!late) wait_for_its_end();
    ready();
    wait_go();
    wait_for_its_end();
    for (u64 i = 0; i < PAGES; i += 2) CHECK(page_is(memory + i * PAGE, 5, i), "page %lu", (unsigned long)i);
    MUST(madvise(memory, PAGES / 2 * PAGE, MADV_DONTNEED) == 0);
    pid_t child = fork();
    MUST(child >= 0);
    for (u64 i = 1; i < PAGES; i += 2) {
        int right = i < PAGES / 2 ? page_is_zero(memory + i * PAGE) : page_is(memory + i * PAGE, 5, i);
        if (child == 0 && !right) _exit(1);
        CHECK(right, "page %lu", (unsigned long)i);
    }
    if (child == 0) _exit(0);
    int status;
    MUST(waitpid(child, &status, 0) == child);
    CHECK(status == 0, "the child found other memory (%x)", status);
    ok();
    return NULL;
}

int main(int argc, char **argv) {
    late = argc > 1 && strcmp(argv[1], "late") == 0;
    memory = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    MUST(memory != MAP_FAILED && prctl(PR_SET_NAME, "the first") == 0);
    for (u64 i = 0; i < PAGES; i++) fill_page(memory + i * PAGE, 5, i);
    pthread_t thread;
    MUST(pthread_create(&thread, NULL, goes_on, memory) == 0 && pthread_create(&thread, NULL, goes_on, NULL) == 0);
    if (late) wait_go();
    syscall(SYS_exit, CODE);
}
