// State of a task that a restore cannot build: `task_refused KIND` has it, and finds itself untouched after the refusal.
#include "victim.h"
#include <asm/ldt.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <sys/prctl.h>

static const char *kind;
static int made, leave;

static int is(const char *name) { return strcmp(kind, name) == 0; }

static void make(void) {
    if (is("files")) {
        MUST(unshare(CLONE_FILES) == 0);
    } else if (is("network")) {
        MUST(unshare(CLONE_NEWNET) == 0);
    } else if (is("seccomp")) {
        struct sock_filter allow = {BPF_RET | BPF_K, 0, 0, SECCOMP_RET_ALLOW};
        struct sock_fprog program = {1, &allow};
        MUST(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0);
        MUST(syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program) == 0);
    } else if (is("thread-keyring")) {
        MUST(syscall(SYS_add_key, "user", "victim", "secret", 6L, -1L) > 0);
    } else {
        CHECK(0, "no kind %s", kind);
    }
}

static void *idle(void *argument) {
    while (!__atomic_load_n(&leave, __ATOMIC_SEQ_CST)) sleep_ms(1);
    return argument;
}

static void *body(void *argument) {
    (void)argument;
    make();
    __atomic_store_n(&made, 1, __ATOMIC_SEQ_CST);
    while (!__atomic_load_n(&leave, __ATOMIC_SEQ_CST)) sleep_ms(1);
    return NULL;
}

int main(int argc, char **argv) {
    CHECK(argc > 1, "which kind?");
    kind = argv[1];
    pthread_t thread = 0;
    if (is("children")) {
        MUST(unshare(CLONE_NEWPID) == 0);
    } else if (is("ldt")) {
        struct user_desc d = {.entry_number = 0, .base_addr = 0x1000, .limit = 100, .seg_32bit = 1};
        MUST(syscall(SYS_modify_ldt, 1L, &d, sizeof d) == 0);
    } else if (is("key") || is("key-of-memory")) {
        long key = syscall(SYS_pkey_alloc, 0L, 0L);
        if (argc > 2 && strcmp(argv[2], "there are keys") == 0) {
            MUST(key == 1);
            if (is("key-of-memory")) MUST(syscall(SYS_pkey_mprotect, map_anonymous(1), PAGE, PROT_READ | PROT_WRITE, key) == 0);
        } else {
            CHECK(key < 0, "the CPU has protection keys after all");
        }
    } else if (is("landlock")) {
        u64 handled = 1 << 0; // LANDLOCK_ACCESS_FS_EXECUTE
        int rules = (int)syscall(444 /* landlock_create_ruleset */, &handled, sizeof handled, 0);
        MUST(rules >= 0 && prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0);
        MUST(syscall(446 /* landlock_restrict_self */, rules, 0) == 0 && close(rules) == 0);
        thread = start(idle, NULL);
    } else if (is("process-keyring")) {
        MUST(syscall(SYS_add_key, "user", "victim", "secret", 6L, -2L) > 0);
    } else if (is("session-keyring")) {
        MUST(syscall(SYS_keyctl, 1L, NULL) > 0);
        MUST(syscall(SYS_add_key, "user", "victim", "secret", 6L, -3L) > 0);
    } else {
        thread = start(body, NULL);
        while (!__atomic_load_n(&made, __ATOMIC_SEQ_CST)) sleep_ms(1);
    }
    ready();
    wait_go();
    leave = 1;
    if (thread) CHECK(pthread_join(thread, NULL) == 0, "join");
    ok();
}
