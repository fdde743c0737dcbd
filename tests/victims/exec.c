// A new program while pages are missing: in a child by vfork, in a child by fork, and at last in place.
#include "victim.h"
#include <spawn.h>

extern char **environ;

int main(int argc, char **argv) {
    if (argc > 2 && strcmp(argv[1], "after") == 0) {
        CHECK(getpid() == atoi(argv[2]), "the pid after execve is %d instead of %s", getpid(), argv[2]);
        u8 *fresh = map_anonymous(64);
        check_zero(fresh, 64, "fresh memory after execve");
        ok();
    }
    char self[4096];
    ssize_t length = readlink("/proc/self/exe", self, sizeof self - 1);
    MUST(length > 0);
    self[length] = 0;
    u8 *at = map_pattern(4096, 1);
    ready();
    wait_go();
    pid_t child;
    char *words[] = {"true", NULL};
    int failed = posix_spawn(&child, "/bin/true", NULL, NULL, words, environ);
    CHECK(!failed, "posix_spawn: %s", strerror(failed));
    child_must_succeed(child, "spawned program");
    MUST((child = fork()) >= 0);
    if (!child) {
        execl("/bin/true", "true", NULL);
        _exit(9);
    }
    child_must_succeed(child, "forked program");
    check_pattern(at, 0, 1024, 1, "memory after children"); // the rest is still missing
    char pid[16];
    snprintf(pid, sizeof pid, "%d", getpid());
    execl(self, self, "after", pid, NULL);
    wrong("execve: %s", strerror(errno));
}
