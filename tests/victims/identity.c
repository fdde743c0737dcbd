// What a process can ask about itself, before and after: maps, auxv, ids, limits, directories, names, scheduling.
#include "victim.h"
#include <sched.h>
#include <sys/auxv.h>
#include <sys/personality.h>
#include <sys/prctl.h>
#include <sys/resource.h>

#define BYTES (256 * 1024)

struct account {
    char maps[BYTES], auxv[4096], cmdline[4096], environ[65536], comm[64], exe[4096], cwd[4096], root[4096];
    pid_t pid, tid, pgid, sid;
    uid_t uids[3];
    gid_t gids[3], groups[64];
    int group_count, dumpable, no_new_privs, nice, policy, death, personality;
    mode_t umask;
    struct rlimit limits[RLIM_NLIMITS];
    cpu_set_t affinity;
    void *brk;
    char status[8192];
};

static struct account before, after;

static void slurp(const char *path, char *to, size_t room) {
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    MUST(fd >= 0);
    size_t have = 0;
    ssize_t n;
    while (have < room - 1 && (n = read(fd, to + have, room - 1 - have)) > 0) have += (size_t)n;
    to[have] = 0;
    close(fd);
}

static void follow(const char *path, char *to) {
    ssize_t n = readlink(path, to, 4095);
    MUST(n > 0);
    to[n] = 0;
}

// Lines of /proc/self/status that a restore must keep.
static void keep_status(char *status) {
    static char raw[16384];
    static const char *kept[] = {"Umask:", "Uid:", "Gid:", "Groups:", "Threads:", "SigQ:", "SigBlk:", "SigIgn:", "SigCgt:", "CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:", "NoNewPrivs:", "Seccomp:", "Cpus_allowed:", "THP_enabled:"};
    slurp("/proc/self/status", raw, sizeof raw);
    status[0] = 0;
    for (char *line = strtok(raw, "\n"); line; line = strtok(NULL, "\n"))
        for (size_t i = 0; i < sizeof kept / sizeof *kept; i++)
            if (strncmp(line, kept[i], strlen(kept[i])) == 0) {
                strcat(status, line);
                strcat(status, "\n");
            }
}

static void take(struct account *a) {
    slurp("/proc/self/maps", a->maps, sizeof a->maps);
    slurp("/proc/self/auxv", a->auxv, sizeof a->auxv);
    slurp("/proc/self/cmdline", a->cmdline, sizeof a->cmdline);
    slurp("/proc/self/environ", a->environ, sizeof a->environ);
    slurp("/proc/self/comm", a->comm, sizeof a->comm);
    follow("/proc/self/exe", a->exe);
    follow("/proc/self/root", a->root);
    MUST(getcwd(a->cwd, sizeof a->cwd));
    a->pid = getpid();
    a->tid = (pid_t)syscall(SYS_gettid);
    a->pgid = getpgrp();
    a->sid = getsid(0);
    getresuid(&a->uids[0], &a->uids[1], &a->uids[2]);
    getresgid(&a->gids[0], &a->gids[1], &a->gids[2]);
    a->group_count = getgroups(64, a->groups);
    a->dumpable = prctl(PR_GET_DUMPABLE);
    a->no_new_privs = prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0);
    prctl(PR_GET_PDEATHSIG, &a->death);
    a->nice = getpriority(PRIO_PROCESS, 0);
    a->policy = sched_getscheduler(0);
    a->personality = personality(0xffffffff);
    a->umask = umask(0);
    umask(a->umask);
    for (int i = 0; i < RLIM_NLIMITS; i++) getrlimit(i, &a->limits[i]);
    sched_getaffinity(0, sizeof a->affinity, &a->affinity);
    a->brk = sbrk(0);
    keep_status(a->status);
}

// The first line that differs, for the verdict.
static void same_text(const char *what, char *a, char *b) {
    while (*a && *b) {
        size_t la = strcspn(a, "\n"), lb = strcspn(b, "\n");
        CHECK(la == lb && memcmp(a, b, la) == 0, "%s: \"%.*s\" became \"%.*s\"", what, (int)la, a, (int)lb, b);
        a += la + (a[la] == '\n');
        b += lb + (b[lb] == '\n');
    }
    CHECK(!*a && !*b, "%s: lines came or went: \"%.*s\"", what, 120, *a ? a : b);
}

// Neighbours that differ in nothing are one mapping or two as the kernel likes (a page once written keeps them apart): join them.
static void join_neighbours(char *maps) {
    static char joined[BYTES];
    unsigned long start = 0, end = 0, offset = 0;
    char access[8] = "", rest[1024] = "";
    size_t at = 0;
    for (char *line = maps; *line; line += strcspn(line, "\n") + 1) {
        unsigned long s, e, o;
        char a[8], r[1024] = "";
        CHECK(sscanf(line, "%lx-%lx %7s %lx %1023[^\n]", &s, &e, a, &o, r) >= 4, "a line of maps cannot be read");
        int anonymous = strncmp(r, "00:00 0", 7) == 0;
        if (s == end && strcmp(a, access) == 0 && strcmp(r, rest) == 0 && (anonymous || o == offset + (end - start))) {
            end = e;
            continue;
        }
        if (end) at += (size_t)snprintf(joined + at, BYTES - at, "%lx-%lx %s %lx %s\n", start, end, access, offset, rest);
        start = s;
        end = e;
        offset = o;
        strcpy(access, a);
        strcpy(rest, r);
    }
    snprintf(joined + at, BYTES - at, "%lx-%lx %s %lx %s\n", start, end, access, offset, rest);
    strcpy(maps, joined);
}

int main(void) {
    umask(027);
    setpriority(PRIO_PROCESS, 0, 3);
    prctl(PR_SET_NAME, "an identity", 0, 0, 0);
    struct rlimit files = {512, 1024}, stack;
    MUST(setrlimit(RLIMIT_NOFILE, &files) == 0);
    MUST(getrlimit(RLIMIT_STACK, &stack) == 0);
    map_pattern(3, 1);
    u8 *shape = map_pattern(30, 2); // one mapping in pieces of all protections
    MUST(mprotect(shape, 5 * PAGE, PROT_READ) == 0 && mprotect(shape + 10 * PAGE, 5 * PAGE, PROT_NONE) == 0 && mprotect(shape + 20 * PAGE, 5 * PAGE, PROT_READ | PROT_EXEC) == 0);
    take(&before);
    take(&before); // the second time nothing new is mapped by taking
    ready();
    wait_go();
    take(&after);
    CHECK(after.pid == before.pid && after.tid == before.tid, "pid %d tid %d became %d and %d", before.pid, before.tid, after.pid, after.tid);
    CHECK(after.sid == before.sid && after.pgid == before.pgid, "session %d group %d became %d and %d", before.sid, before.pgid, after.sid, after.pgid);
    join_neighbours(before.maps);
    join_neighbours(after.maps);
    same_text("maps", before.maps, after.maps);
    CHECK(memcmp(before.auxv, after.auxv, sizeof before.auxv) == 0, "auxv differs");
    CHECK(memcmp(before.cmdline, after.cmdline, sizeof before.cmdline) == 0, "cmdline differs");
    CHECK(memcmp(before.environ, after.environ, sizeof before.environ) == 0, "environ differs");
    same_text("comm", before.comm, after.comm);
    same_text("exe", before.exe, after.exe);
    same_text("root", before.root, after.root);
    same_text("cwd", before.cwd, after.cwd);
    same_text("status", before.status, after.status);
    CHECK(memcmp(before.uids, after.uids, sizeof before.uids) == 0 && memcmp(before.gids, after.gids, sizeof before.gids) == 0, "user or group ids differ");
    CHECK(before.group_count == after.group_count && memcmp(before.groups, after.groups, sizeof before.groups) == 0, "groups differ");
    CHECK(before.umask == after.umask && after.umask == 027, "umask is %o", after.umask);
    // No core dump is written while memory is missing: the limit is 1 until then (tests/tests/side_doors.rs).
    if (after.limits[RLIMIT_CORE].rlim_cur == 1) after.limits[RLIMIT_CORE].rlim_cur = before.limits[RLIMIT_CORE].rlim_cur;
    for (int i = 0; i < RLIM_NLIMITS; i++) CHECK(memcmp(&before.limits[i], &after.limits[i], sizeof *before.limits) == 0, "limit %d differs", i);
    CHECK(CPU_EQUAL(&before.affinity, &after.affinity), "the CPU affinity differs");
    CHECK(before.brk == after.brk, "brk is %p instead of %p", after.brk, before.brk);
    CHECK(before.dumpable == after.dumpable, "dumpable is %d instead of %d", after.dumpable, before.dumpable);
    CHECK(before.no_new_privs == after.no_new_privs, "no_new_privs differs");
    CHECK(before.nice == after.nice && after.nice == 3, "niceness is %d", after.nice);
    CHECK(before.policy == after.policy, "the scheduling policy differs");
    CHECK(before.personality == after.personality, "personality is %#x instead of %#x", after.personality, before.personality);
    CHECK(before.death == after.death, "the parent-death signal differs");
    ok();
}
