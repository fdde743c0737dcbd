// A process that is to end with its parent (PR_SET_PDEATHSIG): it may only end if its parent does.
#include "victim.h"
#include <sys/prctl.h>

int main(void) {
    MUST(prctl(PR_SET_PDEATHSIG, SIGKILL) == 0);
    ready();
    wait_go();
    int signal = 0;
    sleep_ms(300); // the restorer ends meanwhile
    MUST(prctl(PR_GET_PDEATHSIG, &signal) == 0);
    CHECK(signal == SIGKILL, "the parent-death signal is %d", signal);
    ok();
}
