// Forks many children while memory is missing, all of which live at the same time. A child finds its memory right, or dies of SIGBUS where
// it was refused; its parent goes on, and finds its own right once `rest` is there. `refused` says how many died.
#include "victim.h"
#include <stdio.h>

#define PAGES 256UL

int main(int argc, char **argv) {
    long children = argc > 1 ? atol(argv[1]) : 10;
    u8 *early = map_pattern(PAGES, 1), *late = map_pattern(PAGES, 2);
    pid_t *pids = calloc(children, sizeof *pids);
    MUST(pids);
    ready();
    wait_go();
    int ends[2];
    MUST(pipe2(ends, O_CLOEXEC) == 0);
    for (long n = 0; n < children; n++) {
        pids[n] = fork();
        MUST(pids[n] >= 0);
        if (!pids[n]) {
            char byte;
            close(ends[1]);
            if (read(ends[0], &byte, 1) != 0) _exit(3);
            check_pattern(early, 0, PAGES, 1, "memory of a child");
            _exit(0);
        }
    }
    close(ends[1]);
    long refused = 0;
    for (long n = 0; n < children; n++) {
        int status;
        MUST(waitpid(pids[n], &status, 0) == pids[n]);
        if (WIFSIGNALED(status) && WTERMSIG(status) == SIGBUS) refused++;
        else CHECK(status == 0, "child %ld ended with status %#x", n, status);
    }
    char text[32];
    snprintf(text, sizeof text, "%ld\n", refused);
    publish("refused", text);
    while (access("rest", F_OK) != 0) sleep_ms(2);
    check_pattern(early, 0, PAGES, 1, "memory that children had as well");
    check_pattern(late, 0, PAGES, 2, "memory of the parent");
    ok();
}
