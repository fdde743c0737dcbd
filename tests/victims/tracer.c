// Traces another process, as a debugger does: `tracer PID`. The other runs meanwhile.
#include "victim.h"
#include <sys/ptrace.h>

int main(int argc, char **argv) {
    pid_t other = argc > 1 ? atoi(argv[1]) : 0;
    MUST(ptrace(PTRACE_SEIZE, other, NULL, NULL) == 0);
    ready();
    wait_go();
    MUST(kill(other, 0) == 0 && ptrace(PTRACE_INTERRUPT, other, NULL, NULL) == 0);
    int status;
    CHECK(waitpid(other, &status, __WALL) == other && WIFSTOPPED(status), "the other is no longer traced by us");
    MUST(ptrace(PTRACE_DETACH, other, NULL, NULL) == 0);
    ok();
}
