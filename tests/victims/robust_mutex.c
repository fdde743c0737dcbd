// A robust mutex held by a thread that dies after the restore: the next owner is told.
#include "victim.h"

static pthread_mutex_t held, contended;
static int holding;

static void *holder(void *argument) {
    (void)argument;
    MUST(pthread_mutex_lock(&held) == 0);
    __atomic_store_n(&holding, 1, __ATOMIC_SEQ_CST);
    wait_go();
    return NULL; // without unlocking
}

static void *waiter(void *argument) {
    (void)argument;
    CHECK(pthread_mutex_lock(&contended) == 0, "the contended mutex");
    CHECK(pthread_mutex_unlock(&contended) == 0, "unlock the contended mutex");
    return NULL;
}

int main(void) {
    pthread_mutexattr_t attributes;
    pthread_mutexattr_init(&attributes);
    pthread_mutexattr_setrobust(&attributes, PTHREAD_MUTEX_ROBUST);
    pthread_mutex_init(&held, &attributes);
    pthread_mutex_init(&contended, &attributes);
    pthread_mutex_lock(&contended);
    pthread_t first = start(holder, NULL), second = start(waiter, NULL);
    while (!__atomic_load_n(&holding, __ATOMIC_SEQ_CST)) sleep_ms(1);
    sleep_ms(10);
    ready();
    wait_go();
    CHECK(pthread_mutex_unlock(&contended) == 0, "unlock what main held");
    CHECK(pthread_join(second, NULL) == 0, "join");
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += 20;
    int result = pthread_mutex_timedlock(&held, &until);
    CHECK(result == EOWNERDEAD, "the lock of a dead owner gave %s", strerror(result));
    CHECK(pthread_join(first, NULL) == 0, "join");
    CHECK(pthread_mutex_consistent(&held) == 0 && pthread_mutex_unlock(&held) == 0, "make it consistent");
    ok();
}
