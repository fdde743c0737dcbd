// A microVM's side of Firecracker's page-fault protocol: memory of its own that is watched by somebody else, and threads that touch it.
//
// `machine write FILE PAGES` writes the memory file: page n is a pattern of n, every eighth and a fifth of all 2 MiB are zeros.
// `machine run SOCKET PAGES REGIONS HUGE BALLOON [LIE]` maps that memory in so many regions, hands its userfaultfd over as Firecracker does
// (one sendmsg, a JSON array with both page-size fields in bytes, the descriptor along with it) and forgets the socket. After `go` four
// threads read the upper half of all pages; in the lower half four others do what a guest with a balloon does: read, drop (the memory
// must be zeros afterwards, for ever), write. With BALLOON 0 these only read.
#include "victim.h"
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/un.h>

#define SALT 0xf17eULL
#define READERS 4
#define BALLOONS 4
#ifndef UFFD_FEATURE_EVENT_REMOVE
#error "this needs the headers of Linux 4.11"
#endif

static u64 pages, regions, granule = 1, balloon;
static u8 **bases; // of each region
static u64 region_pages;

static u8 *page_at(u64 n) { return bases[n / region_pages] + n % region_pages * PAGE; }

static int is_zeros(u64 n) { return n % 8 == 3 || n / 512 % 5 == 4; }

static void check(u64 n, const char *what) {
    if (is_zeros(n)) CHECK(page_is_zero(page_at(n)), "%s: page %lu should be zeros", what, (unsigned long)n);
    else CHECK(page_is(page_at(n), SALT, n), "%s: page %lu differs%s", what, (unsigned long)n, page_is_zero(page_at(n)) ? ": it is zeros" : "");
}

static void write_file(const char *path) {
    int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    MUST(fd >= 0);
    static u8 page[PAGE];
    for (u64 n = 0; n < pages; n++) {
        if (is_zeros(n)) memset(page, 0, PAGE);
        else fill_page(page, SALT, n);
        MUST(write(fd, page, PAGE) == (ssize_t)PAGE);
    }
    MUST(close(fd) == 0);
}

// The userfaultfd of all regions, as Firecracker makes it.
static int watch(void) {
    int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
    MUST(fd >= 0);
    struct uffdio_api api = {.api = UFFD_API, .features = UFFD_FEATURE_EVENT_REMOVE};
    MUST(ioctl(fd, UFFDIO_API, &api) == 0);
    bases = calloc(regions, sizeof *bases);
    for (u64 r = 0; r < regions; r++) {
        int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | (granule > 1 ? MAP_HUGETLB : 0);
        bases[r] = mmap(NULL, region_pages * PAGE, PROT_READ | PROT_WRITE, flags, -1, 0);
        CHECK(bases[r] != MAP_FAILED, "map a region: %s", strerror(errno));
        struct uffdio_register watched = {.range = {(u64)bases[r], region_pages * PAGE}, .mode = UFFDIO_REGISTER_MODE_MISSING};
        MUST(ioctl(fd, UFFDIO_REGISTER, &watched) == 0);
    }
    return fd;
}

static void hand_over(const char *socket_path, int uffd, const char *lie) {
    char *text = malloc(regions * 200 + 64);
    int at = sprintf(text, "[");
    for (u64 r = 0; r < regions; r++) {
        u64 base = (u64)bases[r], size = region_pages * PAGE, offset = r * size, page = granule * PAGE;
        if (!strcmp(lie, "overlap") && r == 1) offset = 0;
        if (!strcmp(lie, "beyond") && r == regions - 1) offset += PAGE * granule;
        if (!strcmp(lie, "pagesize")) page = 8192;
        at += sprintf(text + at, "%s{\"base_host_virt_addr\":%lu,\"size\":%lu,\"offset\":%lu,\"page_size\":%lu,\"page_size_kib\":%lu}", r ? "," : "",
                      (unsigned long)base, (unsigned long)size, (unsigned long)offset, (unsigned long)page, (unsigned long)page);
    }
    at += sprintf(text + at, "]");
    int stream = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    strncpy(address.sun_path, socket_path, sizeof address.sun_path - 1);
    MUST(connect(stream, (struct sockaddr *)&address, sizeof address) == 0);
    if (!strcmp(lie, "late")) { // the list first, the descriptor with a blank behind it
        MUST(send(stream, text, at, 0) == at);
        sleep_ms(200);
        text = " ", at = 1;
    }
    char control[CMSG_SPACE(sizeof(int))] = {0};
    struct iovec part = {text, at};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
    struct cmsghdr *rights = CMSG_FIRSTHDR(&message);
    rights->cmsg_level = SOL_SOCKET, rights->cmsg_type = SCM_RIGHTS, rights->cmsg_len = CMSG_LEN(sizeof(int));
    int sent = strcmp(lie, "file") ? uffd : open("/dev/null", O_RDONLY | O_CLOEXEC);
    memcpy(CMSG_DATA(rights), &sent, sizeof sent);
    MUST(sendmsg(stream, &message, 0) == at);
    // The socket stays open and nothing else is ever sent.
}

// Pages in an order of its own: an odd stride visits each of a power of two, and others come by again.
static void *reader(void *argument) {
    u64 id = (u64)argument, from = pages / 2, count = pages - from, stride = mix(id) | 1;
    for (u64 i = 0; i < count; i++) check(from + i * stride % count, "the upper half");
    for (u64 i = 0; i < count; i++) check(from + i, "the upper half, again");
    return NULL;
}

static void *guest(void *argument) {
    u64 id = (u64)argument, each = pages / 2 / BALLOONS / granule * granule, from = id * each, state = id + 1;
    enum { FIRST, DROPPED, WRITTEN } *is = calloc(each + 1, sizeof *is);
    for (u64 step = 0; balloon && step < 600; step++) {
        state = mix(state);
        u64 n = state % (each ? each : 1), count = 1 + (state >> 32) % 48;
        n = n / granule * granule, count = (count + granule - 1) / granule * granule;
        // A call of madvise must not leave its mapping.
        u64 left = region_pages - (from + n) % region_pages;
        if (count > left) count = left;
        if (n + count > each) continue;
        switch (state >> 60) {
        case 0 ... 5:
            MUST(madvise(page_at(from + n), count * PAGE, MADV_DONTNEED) == 0);
            for (u64 i = n; i < n + count; i++) is[i] = DROPPED;
            CHECK(page_is_zero(page_at(from + n)), "page %lu was dropped and is not zeros", (unsigned long)(from + n));
            break;
        case 6 ... 9:
            fill_page(page_at(from + n), ~SALT, from + n);
            is[n] = WRITTEN;
            break;
        default: break;
        }
    }
    for (u64 n = 0; n < each; n++) {
        u64 at = from + n;
        if (is[n] == FIRST) check(at, "the lower half");
        else if (is[n] == DROPPED) CHECK(page_is_zero(page_at(at)), "page %lu was dropped and came back", (unsigned long)at);
        else CHECK(page_is(page_at(at), ~SALT, at), "page %lu lost what was written", (unsigned long)at);
    }
    free(is);
    return NULL;
}

int main(int count, char **words) {
    CHECK(count >= 4, "see above");
    pages = strtoull(words[3], NULL, 10);
    if (!strcmp(words[1], "write")) {
        write_file(words[2]);
        ready();
        ok();
    }
    CHECK(count >= 7, "see above");
    regions = strtoull(words[4], NULL, 10);
    granule = strtoull(words[5], NULL, 10) ? 512 : 1;
    balloon = strtoull(words[6], NULL, 10);
    const char *lie = count > 7 ? words[7] : "";
    region_pages = pages / regions;
    CHECK(region_pages * regions == pages && region_pages % granule == 0, "%lu pages in %lu regions", (unsigned long)pages, (unsigned long)regions);
    if (*lie) ready(); // it may be ended for its lie at once
    hand_over(words[2], watch(), lie);
    if (!*lie) ready();
    wait_go();
    pthread_t threads[READERS + BALLOONS];
    for (u64 i = 0; i < READERS; i++) threads[i] = start(reader, (void *)i);
    for (u64 i = 0; i < BALLOONS; i++) threads[READERS + i] = start(guest, (void *)i);
    for (u64 i = 0; i < READERS + BALLOONS; i++) pthread_join(threads[i], NULL);
    ok();
}
