// The first thread has ended (pthread_exit); another one goes on and comes to the verdict.
#include "victim.h"

static void *goes_on(void *x) {
    (void)x;
    char stat[64] = "", line[256] = "";
    snprintf(stat, sizeof stat, "/proc/self/task/%d/stat", getpid());
    while (!strstr(line, ") Z ")) {
        int fd = open(stat, O_RDONLY | O_CLOEXEC);
        MUST(fd >= 0 && read(fd, line, sizeof line - 1) > 0 && close(fd) == 0);
        sleep_ms(1);
    }
    ready();
    wait_go();
    ok();
    return NULL;
}

int main(void) {
    pthread_t thread;
    MUST(pthread_create(&thread, NULL, goes_on, NULL) == 0);
    pthread_exit(NULL);
}
