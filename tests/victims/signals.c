// Signals blocked and pending, for the process and for one thread, in order and with their values; every handler still in place.
// With `trap` SIGTRAP, which a tracer has its own uses for, is handled, blocked and pending; otherwise it is ignored.
#include "victim.h"

#define VALUES 5

static volatile sig_atomic_t got[128], at;
static volatile int values[64];
static volatile pid_t senders[64];

static void handler(int signal, siginfo_t *info, void *context) {
    (void)context;
    got[signal]++;
    if (signal == SIGRTMIN + 3) {
        senders[at] = info->si_pid;
        values[at++] = info->si_value.sival_int;
    }
}

static int thread_ready;
static void *other(void *argument) {
    (void)argument;
    sigset_t all, pending;
    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, NULL);
    CHECK(syscall(SYS_tgkill, getpid(), syscall(SYS_gettid), SIGUSR2) == 0, "tgkill");
    __atomic_store_n(&thread_ready, 1, __ATOMIC_SEQ_CST);
    wait_go();
    sigpending(&pending);
    CHECK(sigismember(&pending, SIGUSR2), "the thread's own SIGUSR2 is no longer pending");
    u64 only = 1ULL << (SIGUSR2 - 1);
    siginfo_t info;
    // Not the C library's, which calls every code SI_USER.
    CHECK(syscall(SYS_rt_sigtimedwait, &only, &info, &(struct timespec){0, 0}, 8) == SIGUSR2, "the thread's SIGUSR2 cannot be taken");
    CHECK(info.si_code == SI_TKILL && info.si_pid == getpid(), "the thread's SIGUSR2 has code %d from %d", info.si_code, info.si_pid);
    return NULL;
}

int main(int argc, char **argv) {
    int trap = argc > 1 && !strcmp(argv[1], "trap");
    struct sigaction actions[65], now;
    for (int s = 1; s <= 64; s++) {
        struct sigaction act = {.sa_sigaction = handler, .sa_flags = SA_SIGINFO | (s % 2 ? SA_RESTART : 0) | (s % 3 ? 0 : SA_NODEFER)};
        sigemptyset(&act.sa_mask);
        sigaddset(&act.sa_mask, s % 31 + 1);
        if (s % 5 == 0) act = (struct sigaction){.sa_handler = SIG_IGN};
        if ((trap && s == SIGTRAP) || s == SIGUSR1 || s == SIGUSR2 || s == SIGRTMIN + 3) act = (struct sigaction){.sa_sigaction = handler, .sa_flags = SA_SIGINFO};
        if (s != SIGSEGV && s != SIGBUS && s != SIGCHLD) sigaction(s, &act, NULL);
        sigaction(s, NULL, &actions[s]);
    }
    sigset_t blocked, mask, pending;
    sigemptyset(&blocked);
    sigaddset(&blocked, SIGUSR1);
    sigaddset(&blocked, SIGUSR2);
    sigaddset(&blocked, SIGHUP);
    sigaddset(&blocked, SIGRTMIN + 3);
    if (trap) sigaddset(&blocked, SIGTRAP);
    MUST(sigprocmask(SIG_SETMASK, &blocked, NULL) == 0);
    pthread_t thread = start(other, NULL);
    while (!__atomic_load_n(&thread_ready, __ATOMIC_SEQ_CST)) sleep_ms(1);
    MUST(kill(getpid(), SIGUSR1) == 0);
    MUST(kill(getpid(), SIGUSR1) == 0); // not queued twice
    if (trap) MUST(kill(getpid(), SIGTRAP) == 0);
    for (int i = 0; i < VALUES; i++) MUST(sigqueue(getpid(), SIGRTMIN + 3, (union sigval){.sival_int = 1000 + i}) == 0);

    ready();
    wait_go();

    CHECK(pthread_join(thread, NULL) == 0, "join");
    MUST(sigprocmask(SIG_SETMASK, NULL, &mask) == 0);
    for (int s = 1; s <= 64; s++) {
        if (s == 32 || s == 33) continue; // the C library's own
        CHECK(sigismember(&mask, s) == sigismember(&blocked, s), "signal %d is %sblocked", s, sigismember(&mask, s) ? "" : "not ");
        sigaction(s, NULL, &now);
        CHECK(now.sa_sigaction == actions[s].sa_sigaction && now.sa_flags == actions[s].sa_flags && memcmp(&now.sa_mask, &actions[s].sa_mask, 8) == 0, "the action of signal %d differs", s);
    }
    sigpending(&pending);
    CHECK(sigismember(&pending, SIGUSR1) && sigismember(&pending, SIGRTMIN + 3) && !sigismember(&pending, SIGUSR2) && !sigismember(&pending, SIGHUP) && sigismember(&pending, SIGTRAP) == trap, "other signals are pending");
    CHECK(got[SIGUSR1] == 0 && at == 0, "a blocked signal came through");
    sigemptyset(&mask);
    MUST(sigprocmask(SIG_SETMASK, &mask, NULL) == 0);
    CHECK(got[SIGTRAP] == trap, "SIGTRAP came %d times", (int)got[SIGTRAP]);
    CHECK(got[SIGUSR1] == 1, "SIGUSR1 came %d times", (int)got[SIGUSR1]);
    CHECK(at == VALUES, "%d queued signals came instead of %d", (int)at, VALUES);
    for (int i = 0; i < VALUES; i++) CHECK(values[i] == 1000 + i && senders[i] == getpid(), "queued signal %d has value %d from %d", i, values[i], senders[i]);
    ok();
}
