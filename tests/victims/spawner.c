// Threads that come and go all the time: each checks what it was given and ends; the count of those begun and ended must agree.
#include "victim.h"

#define SPAWNERS 4

static int stop;
static u64 begun, ended;

struct given { u64 number, words[32]; };

static void *brief(void *argument) {
    struct given *given = argument;
    for (u64 i = 0; i < 32; i++) CHECK(given->words[i] == mix(given->number << 8 | i), "word %lu given to thread %lu differs", (unsigned long)i, (unsigned long)given->number);
    u64 number = given->number;
    free(given);
    __atomic_fetch_add(&ended, 1, __ATOMIC_SEQ_CST);
    return (void *)number;
}

static void *spawner(void *argument) {
    (void)argument;
    while (!__atomic_load_n(&stop, __ATOMIC_SEQ_CST)) {
        pthread_t threads[3];
        u64 numbers[3];
        for (int i = 0; i < 3; i++) {
            struct given *given = malloc(sizeof *given);
            MUST(given);
            numbers[i] = given->number = __atomic_fetch_add(&begun, 1, __ATOMIC_SEQ_CST);
            for (u64 w = 0; w < 32; w++) given->words[w] = mix(given->number << 8 | w);
            threads[i] = start(brief, given);
        }
        for (int i = 0; i < 3; i++) {
            void *result;
            CHECK(pthread_join(threads[i], &result) == 0 && (u64)result == numbers[i], "a thread returned another's number");
        }
    }
    return NULL;
}

int main(void) {
    u8 *pattern = map_pattern(512, 4);
    pthread_t threads[SPAWNERS];
    for (int i = 0; i < SPAWNERS; i++) threads[i] = start(spawner, NULL);
    while (__atomic_load_n(&ended, __ATOMIC_SEQ_CST) < 100) sleep_ms(1);
    ready();
    wait_go();
    u64 before = __atomic_load_n(&ended, __ATOMIC_SEQ_CST);
    while (__atomic_load_n(&ended, __ATOMIC_SEQ_CST) < before + 100) sleep_ms(1);
    __atomic_store_n(&stop, 1, __ATOMIC_SEQ_CST);
    for (int i = 0; i < SPAWNERS; i++) CHECK(pthread_join(threads[i], NULL) == 0, "join");
    CHECK(begun == ended, "%lu threads begun, %lu ended", (unsigned long)begun, (unsigned long)ended);
    check_pattern(pattern, 0, 512, 4, "memory");
    ok();
}
