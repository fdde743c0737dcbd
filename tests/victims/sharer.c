// Something shared with another process, which is no child: `sharer vm|files|fs`. A grandchild by clone(2) whose parent has ended.
#include "victim.h"
#include <sched.h>

static char stack[2][64 << 10] __attribute__((aligned(16)));
static int flags;

static int idle(void *x) {
    (void)x;
    for (;;) pause();
    return 0;
}

static int starts_one(void *x) {
    (void)x;
    return clone(idle, stack[1] + sizeof stack[1], flags, NULL) < 0;
}

int main(int argc, char **argv) {
    MUST(argc == 2);
    flags = strcmp(argv[1], "vm") == 0 ? CLONE_VM : strcmp(argv[1], "files") == 0 ? CLONE_FILES : CLONE_FS;
    int status, pid = clone(starts_one, stack[0] + sizeof stack[0], flags | SIGCHLD, NULL);
    MUST(pid > 0 && waitpid(pid, &status, 0) == pid && status == 0);
    ready();
    wait_go();
    ok();
}
