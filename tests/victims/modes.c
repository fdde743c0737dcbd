// A program that sets its terminal in every way that it can and says, when it is asked, what it finds: a key is a question.
#include "victim.h"
#include <sys/ioctl.h>
#include <termios.h>

// `=`: what is set now. `q`: ends with code 7. `z`: stops itself, as by Ctrl-Z. Other keys are said again.
int main(void) {
    struct termios t;
    int tty = 0;
    MUST(tcgetattr(tty, &t) == 0);
    cfmakeraw(&t);
    t.c_iflag |= IXANY | INLCR;
    t.c_oflag |= OPOST | ONLCR;
    t.c_cc[VINTR] = 1;
    t.c_cc[VERASE] = 2;
    t.c_cc[VMIN] = 1;
    t.c_cc[VTIME] = 0;
    cfsetispeed(&t, B9600);
    cfsetospeed(&t, B9600);
    MUST(tcsetattr(tty, TCSANOW, &t) == 0);
    struct winsize size = {33, 101, 7, 9};
    MUST(ioctl(tty, TIOCSWINSZ, &size) == 0);
    char text[32];
    snprintf(text, sizeof text, "%d\n", getpid());
    publish("pid", text);
    dprintf(1, "set\n");
    ready();
    for (;;) {
        char key;
        if (read(0, &key, 1) != 1) {
            if (errno == EINTR) continue;
            pause();
        }
        if (key == 'q') _exit(7);
        if (key == 'z') {
            kill(getpid(), SIGTSTP);
            dprintf(1, "went on\n");
        }
        if (key == '=') {
            MUST(ioctl(0, TIOCGWINSZ, &size) == 0);
            dprintf(1, "size %d %d\n", size.ws_row, size.ws_col);
        } else {
            dprintf(1, "key %c\n", key);
        }
    }
}
