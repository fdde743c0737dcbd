// Threads with directories and umask of their own (unshare(CLONE_FS), as samba's workers): one pair that shares them, one alone.
#include "victim.h"
#include <sched.h>

static pthread_barrier_t all;
static char wanted[4][64] = {"", "/usr/share", "/usr/share", "/usr/lib"};
static mode_t masks[4] = {022, 011, 011, 033};

static void still(int which, const char *when) {
    char cwd[4096];
    MUST(getcwd(cwd, sizeof cwd));
    mode_t mask = umask(0);
    umask(mask);
    if (which == 0) return; // its directory is the victim's own
    CHECK(strcmp(cwd, wanted[which]) == 0 && mask == masks[which], "%s, thread %d is in %s with umask %o", when, which, cwd, mask);
}

static void *partner(void *argument);

static void *body(void *argument) {
    int which = (int)(intptr_t)argument;
    MUST(unshare(CLONE_FS) == 0 && chdir(wanted[which]) == 0);
    umask(masks[which]);
    pthread_t other = 0;
    if (which == 1) other = start(partner, (void *)2); // shares them with this one
    pthread_barrier_wait(&all);
    pthread_barrier_wait(&all);
    still(which, "after");
    pthread_barrier_wait(&all);
    if (which == 1) MUST(chdir("/usr/bin") == 0);
    pthread_barrier_wait(&all);
    if (which == 1) CHECK(pthread_join(other, NULL) == 0, "join");
    return NULL;
}

static void *partner(void *argument) {
    int which = (int)(intptr_t)argument;
    pthread_barrier_wait(&all);
    pthread_barrier_wait(&all);
    still(which, "after");
    pthread_barrier_wait(&all);
    pthread_barrier_wait(&all);
    strcpy(wanted[2], "/usr/bin"); // they still share
    still(which, "once its partner went elsewhere");
    return NULL;
}

int main(void) {
    umask(masks[0]);
    char home[4096], now[4096];
    MUST(getcwd(home, sizeof home));
    MUST(pthread_barrier_init(&all, NULL, 4) == 0);
    pthread_t threads[2] = {start(body, (void *)1), start(body, (void *)3)};
    pthread_barrier_wait(&all);
    ready();
    wait_go();
    pthread_barrier_wait(&all);
    pthread_barrier_wait(&all);
    pthread_barrier_wait(&all);
    for (int i = 0; i < 2; i++) CHECK(pthread_join(threads[i], NULL) == 0, "join");
    MUST(getcwd(now, sizeof now));
    CHECK(strcmp(home, now) == 0, "the first thread is in %s instead of %s", now, home);
    ok();
}
