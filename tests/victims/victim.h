// What every victim shares: how it says that it is ready, is told to check itself, and writes its verdict.
//
// A victim prepares something, calls ready(), waits for the file `go` in its working directory, checks itself and writes `OK` or
// `WRONG ...` to the file `verdict`. It may be frozen at any moment in between and cannot tell. Nobody has to freeze it: without
// defrost every victim must find itself right too.

#ifndef VICTIM_H
#define VICTIM_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define PAGE 4096UL
#define MIB (1UL << 20)

typedef uint64_t u64;
typedef unsigned char u8;

// A file appears whole or not at all.
static inline void publish(const char *name, const char *text) {
    char partial[64];
    snprintf(partial, sizeof partial, "%s.partial", name);
    int fd = open(partial, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    if (fd < 0 || write(fd, text, strlen(text)) < 0 || close(fd) < 0 || rename(partial, name) < 0) _exit(99);
}

static inline void ready(void) { publish("ready", "READY\n"); }

static inline void ok(void) {
    publish("verdict", "OK\n");
    _exit(0);
}

static inline void wrong(const char *form, ...) {
    char text[512];
    int at = snprintf(text, sizeof text, "WRONG ");
    va_list list;
    va_start(list, form);
    at += vsnprintf(text + at, sizeof text - at - 2, form, list);
    va_end(list);
    if (at > (int)sizeof text - 2) at = sizeof text - 2;
    text[at] = '\n';
    text[at + 1] = 0;
    publish("verdict", text);
    _exit(1);
}

#define CHECK(condition, ...) do { if (!(condition)) wrong(__VA_ARGS__); } while (0)
// For steps that must work before and after: says which and why.
#define MUST(condition) CHECK(condition, "%s (line %d): %s", #condition, __LINE__, strerror(errno))

static inline u64 now_ns(clockid_t clock) {
    struct timespec t;
    clock_gettime(clock, &t);
    return (u64)t.tv_sec * 1000000000ULL + (u64)t.tv_nsec;
}

static inline void sleep_ms(long ms) {
    struct timespec t = {ms / 1000, ms % 1000 * 1000000L};
    nanosleep(&t, NULL); // cut short is as well: callers look again
}

static inline void wait_go(void) {
    while (access("go", F_OK) != 0) sleep_ms(2);
}

// What `go` says, as a number: victims driven by a seed get it there.
static inline u64 go_number(void) {
    char text[32] = {0};
    int fd = open("go", O_RDONLY | O_CLOEXEC);
    if (fd < 0) return 0;
    if (read(fd, text, sizeof text - 1) < 0) text[0] = 0;
    close(fd);
    return strtoull(text, NULL, 10);
}

// splitmix64: every word of a pattern follows from its place alone.
static inline u64 mix(u64 x) {
    x += 0x9e3779b97f4a7c15ULL;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ULL;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebULL;
    return x ^ (x >> 31);
}

// Page `number` of a pattern: word i is mix(salt, number, i).
static inline void fill_page(void *at, u64 salt, u64 number) {
    u64 *words = at;
    for (u64 i = 0; i < PAGE / 8; i++) words[i] = mix(salt ^ (number << 16) ^ i);
}

static inline int page_is(const void *at, u64 salt, u64 number) {
    const volatile u64 *words = at;
    for (u64 i = 0; i < PAGE / 8; i++)
        if (words[i] != mix(salt ^ (number << 16) ^ i)) return 0;
    return 1;
}

static inline int page_is_zero(const void *at) {
    const volatile u64 *words = at;
    for (u64 i = 0; i < PAGE / 8; i++)
        if (words[i]) return 0;
    return 1;
}

static inline u8 *map_anonymous(u64 pages) {
    u8 *at = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    MUST(at != MAP_FAILED);
    return at;
}

// A populated region of `pages` pages of pattern `salt`.
static inline u8 *map_pattern(u64 pages, u64 salt) {
    u8 *at = map_anonymous(pages);
    for (u64 i = 0; i < pages; i++) fill_page(at + i * PAGE, salt, i);
    return at;
}

static inline void check_pattern(const u8 *at, u64 first, u64 pages, u64 salt, const char *what) {
    for (u64 i = 0; i < pages; i++)
        CHECK(page_is(at + i * PAGE, salt, first + i), "%s: page %lu of %lu differs", what, (unsigned long)(first + i), (unsigned long)pages);
}

static inline void check_zero(const u8 *at, u64 pages, const char *what) {
    for (u64 i = 0; i < pages; i++) CHECK(page_is_zero(at + i * PAGE), "%s: page %lu is not zero", what, (unsigned long)i);
}

static inline pthread_t start(void *(*body)(void *), void *argument) {
    pthread_t thread;
    int failed = pthread_create(&thread, NULL, body, argument);
    CHECK(!failed, "start a thread: %s", strerror(failed));
    return thread;
}

// Until a child ends, with what it returned; a child that found something wrong has written the verdict itself.
static inline void child_must_succeed(pid_t child, const char *what) {
    int status;
    pid_t ended;
    while ((ended = waitpid(child, &status, 0)) < 0 && errno == EINTR) {}
    MUST(ended == child);
    if (WIFEXITED(status) && WEXITSTATUS(status) == 1) _exit(1);
    CHECK(status == 0, "%s: the child ended with status %#x", what, status);
}

#endif
