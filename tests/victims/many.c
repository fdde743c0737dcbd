// Many of one thing: `many MAPPINGS THREADS DESCRIPTORS`.
//
// Mappings: of each two pages one has contents and the other may not be touched, so that each is a mapping of its own. Threads: each
// waits to be asked for its number. Descriptors: eventfds, pipes, files and socket pairs in turn, each with something in it.
//
// It looks at the clock all the time. Once that has jumped by more than [JUMP_NS] it was frozen: it leaves the time at which it saw
// that, in nanoseconds since 1970, in the file `first`. Told to `go`, it compares all that it has.
#include "victim.h"
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <sys/socket.h>

// Longer than a machine under load keeps anybody from running; whoever freezes it waits so long before it restores.
#define JUMP_NS 1000000000ULL

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t asked = PTHREAD_COND_INITIALIZER;
static int is_asked;
static u64 sum;

static void *waits(void *number) {
    pthread_mutex_lock(&lock);
    while (!is_asked) pthread_cond_wait(&asked, &lock);
    sum += (u64)number;
    pthread_mutex_unlock(&lock);
    return NULL;
}

static void start_threads(pthread_t *all, u64 threads) {
    pthread_attr_t small;
    pthread_attr_init(&small);
    pthread_attr_setstacksize(&small, 64 << 10);
    for (u64 i = 0; i < threads; i++) {
        int failed = pthread_create(&all[i], &small, waits, (void *)(i + 1));
        CHECK(!failed, "start thread %lu: %s", (unsigned long)i, strerror(failed));
    }
}

// Something with the number `fd`, or this and the next; yields how many.
static u64 fill_descriptor(u64 fd) {
    int ends[2];
    switch (fd / 2 % 4) {
    case 0: {
        int made = eventfd(fd % 1000, EFD_CLOEXEC);
        MUST(made == (int)fd);
        return 1;
    }
    case 1:
        MUST(pipe2(ends, O_CLOEXEC) == 0 && ends[0] == (int)fd);
        MUST(write(ends[1], &fd, sizeof fd) == sizeof fd);
        return 2;
    case 2: {
        int made = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
        MUST(made == (int)fd && lseek(made, fd % 1000, SEEK_SET) == (off_t)(fd % 1000));
        return 1;
    }
    default:
        MUST(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) == 0 && ends[0] == (int)fd);
        MUST(write(ends[1], &fd, sizeof fd) == sizeof fd);
        return 2;
    }
}

static u64 check_descriptor(u64 fd) {
    u64 found = 0;
    switch (fd / 2 % 4) {
    case 0:
        // One that counts 0 has nothing to be read.
        if (fd % 1000 == 0) return 1;
        MUST(read(fd, &found, sizeof found) == sizeof found);
        CHECK(found == fd % 1000, "eventfd %lu counts %lu", (unsigned long)fd, (unsigned long)found);
        return 1;
    case 2:
        CHECK(lseek(fd, 0, SEEK_CUR) == (off_t)(fd % 1000), "file %lu has another position", (unsigned long)fd);
        return 1;
    default:
        MUST(read(fd, &found, sizeof found) == sizeof found);
        CHECK(found == fd, "descriptor %lu yields %lu", (unsigned long)fd, (unsigned long)found);
        MUST(write(fd + 1, &fd, sizeof fd) == sizeof fd && read(fd, &found, sizeof found) == sizeof found);
        return 2;
    }
}

int main(int argc, char **argv) {
    CHECK(argc == 4, "usage: many MAPPINGS THREADS DESCRIPTORS");
    u64 mappings = strtoull(argv[1], NULL, 10), threads = strtoull(argv[2], NULL, 10), descriptors = strtoull(argv[3], NULL, 10);
    struct rlimit files;
    MUST(getrlimit(RLIMIT_NOFILE, &files) == 0);
    files.rlim_cur = files.rlim_max;
    MUST(setrlimit(RLIMIT_NOFILE, &files) == 0);
    u8 *region = mappings ? map_anonymous(mappings) : NULL;
    for (u64 i = 0; i < mappings; i += 2) {
        *(u64 *)(region + i * PAGE) = mix(i);
        if (i + 1 < mappings) MUST(mprotect(region + (i + 1) * PAGE, PAGE, PROT_NONE) == 0);
    }
    pthread_t *all = calloc(threads + 1, sizeof *all);
    start_threads(all, threads);
    // Every number up to the last, whatever else has one.
    u64 first = 3, last = first + descriptors;
    for (u64 fd = first; fd < last;) fd += fill_descriptor(fd);

    ready();
    for (u64 before = now_ns(CLOCK_REALTIME), now;; before = now) {
        now = now_ns(CLOCK_REALTIME);
        if (now - before < JUMP_NS && access("go", F_OK) != 0) continue;
        char text[64];
        snprintf(text, sizeof text, "%lu\n", (unsigned long)now);
        publish("first", text);
        break;
    }
    wait_go();

    for (u64 i = 0; i < mappings; i += 2)
        CHECK(*(volatile u64 *)(region + i * PAGE) == mix(i), "mapping %lu has other contents", (unsigned long)i);
    for (u64 fd = first; fd < last;) fd += check_descriptor(fd);
    pthread_mutex_lock(&lock);
    is_asked = 1;
    pthread_cond_broadcast(&asked);
    pthread_mutex_unlock(&lock);
    for (u64 i = 0; i < threads; i++) MUST(pthread_join(all[i], NULL) == 0);
    CHECK(sum == threads * (threads + 1) / 2, "the threads' numbers are %lu together", (unsigned long)sum);
    ok();
}
