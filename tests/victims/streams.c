// Does what it is told, line by line, on its standard input: `say X`, `complain X`, `exit N`, `kill N`. Tells of signals it gets.
#include "victim.h"

static void handler(int signal) {
    char text[32];
    int n = snprintf(text, sizeof text, "signal %d\n", signal);
    if (write(1, text, (size_t)n) < 0) _exit(98);
}

static void line(char *to, size_t room) {
    size_t have = 0;
    while (have < room - 1) {
        ssize_t n = read(0, to + have, 1);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) {
            dprintf(1, "end of input\n");
            for (;;) pause();
        }
        if (to[have] == '\n') break;
        have++;
    }
    to[have] = 0;
}

int main(void) {
    int told[] = {SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGUSR1, SIGUSR2, SIGWINCH};
    for (size_t i = 0; i < sizeof told / sizeof *told; i++) signal(told[i], handler);
    u8 *pattern = map_pattern(2048, 6);
    char text[128];
    snprintf(text, sizeof text, "%d\n", getpid());
    publish("pid", text);
    ready();
    for (;;) {
        line(text, sizeof text);
        int number = atoi(text + 5);
        if (strncmp(text, "say ", 4) == 0) {
            check_pattern(pattern, 0, 2048, 6, "memory");
            dprintf(1, "said %s\n", text + 4);
        } else if (strncmp(text, "complain ", 9) == 0) {
            dprintf(2, "complained %s\n", text + 9);
        } else if (strncmp(text, "exit ", 5) == 0) {
            _exit(number);
        } else if (strncmp(text, "kill ", 5) == 0) {
            signal(number, SIG_DFL);
            kill(getpid(), number);
        }
    }
}
