// Open descriptors, one kind at a time: `descriptors KIND`. Each kind is two functions, one before and one after.
#include "victim.h"
#include <arpa/inet.h>
#include <dirent.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stddef.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/sysmacros.h>
#include <sys/timerfd.h>
#include <sys/un.h>

static int fds[16];
static int ports[4];

static void have(int fd, const char *bytes) {
    char got[256] = {0};
    ssize_t want = (ssize_t)strlen(bytes), n = read(fd, got, sizeof got - 1);
    CHECK(n == want && memcmp(got, bytes, (size_t)want) == 0, "fd %d gave \"%s\" (%zd bytes) instead of \"%s\"", fd, got, n, bytes);
}

static int readable(int fd) { return poll(&(struct pollfd){.fd = fd, .events = POLLIN}, 1, 0) == 1; }

static void flags_are(int fd, int status, int close_on_exec) {
    int now = fcntl(fd, F_GETFL) & ~(O_LARGEFILE | 0100000);
    CHECK(now == status, "fd %d has flags %#o instead of %#o", fd, now, status);
    CHECK((fcntl(fd, F_GETFD) & FD_CLOEXEC) == (close_on_exec ? FD_CLOEXEC : 0), "close-on-exec of fd %d differs", fd);
}

// --- regular files: position, flags, high numbers
static void regular_before(void) {
    int fd = open("text", O_RDWR | O_CREAT | O_TRUNC, 0644);
    MUST(fd >= 0 && write(fd, "0123456789", 10) == 10);
    MUST(lseek(fd, 4, SEEK_SET) == 4);
    fds[0] = fd;
    MUST((fds[1] = open("text", O_RDONLY | O_CLOEXEC)) >= 0);
    MUST((fds[2] = open("text", O_WRONLY | O_NONBLOCK)) >= 0 && lseek(fds[2], 1000000, SEEK_SET) == 1000000);
    MUST((fds[3] = fcntl(fd, F_DUPFD, 200)) >= 200);
}
static void regular_after(void) {
    flags_are(fds[0], O_RDWR, 0);
    flags_are(fds[1], O_RDONLY, 1);
    flags_are(fds[2], O_WRONLY | O_NONBLOCK, 0);
    CHECK(lseek(fds[2], 0, SEEK_CUR) == 1000000, "the position beyond the end differs");
    have(fds[0], "456789");
    have(fds[1], "0123456789");
    CHECK(write(fds[1], "x", 1) < 0 && errno == EBADF, "a read-only descriptor can be written");
    CHECK(lseek(fds[3], 0, SEEK_CUR) == 10, "fd 200 no longer shares its position");
}

// --- append
static void append_before(void) {
    int fd = open("log-file", O_WRONLY | O_CREAT | O_TRUNC | O_APPEND, 0644);
    MUST(fd >= 0 && write(fd, "one\n", 4) == 4);
    fds[0] = fd;
}
static void append_after(void) {
    flags_are(fds[0], O_WRONLY | O_APPEND, 0);
    struct stat before, after;
    MUST(stat("log-file", &before) == 0);
    int other = open("log-file", O_WRONLY | O_APPEND | O_CLOEXEC);
    MUST(other >= 0 && write(other, "two\n", 4) == 4 && write(fds[0], "three\n", 6) == 6);
    MUST(stat("log-file", &after) == 0);
    close(other);
    CHECK(after.st_size == before.st_size + 10, "an appending write landed elsewhere");
    MUST(truncate("log-file", 4) == 0);
}

// --- descriptors that share one description, and ones that only look so
static void shared_before(void) {
    int fd = open("shared-text", O_RDWR | O_CREAT | O_TRUNC, 0644);
    MUST(fd >= 0 && write(fd, "abcdefghij", 10) == 10 && lseek(fd, 0, SEEK_SET) == 0);
    fds[0] = fd;
    MUST((fds[1] = dup(fd)) >= 0);
    MUST((fds[2] = fcntl(fd, F_DUPFD_CLOEXEC, 50)) >= 50);
    MUST((fds[3] = open("shared-text", O_RDWR)) >= 0);
}
static void shared_after(void) {
    char byte;
    MUST(read(fds[0], &byte, 1) == 1 && byte == 'a');
    MUST(read(fds[1], &byte, 1) == 1 && byte == 'b');
    MUST(read(fds[2], &byte, 1) == 1 && byte == 'c');
    CHECK(lseek(fds[3], 0, SEEK_CUR) == 0, "a description of its own became shared");
    CHECK(fcntl(fds[2], F_GETFD) & FD_CLOEXEC && !(fcntl(fds[1], F_GETFD) & FD_CLOEXEC), "close-on-exec belongs to the descriptor");
    MUST(fcntl(fds[0], F_SETFL, O_NONBLOCK) == 0);
    CHECK(fcntl(fds[2], F_GETFL) & O_NONBLOCK && !(fcntl(fds[3], F_GETFL) & O_NONBLOCK), "status flags belong to the description");
}

// --- directories
static void directory_before(void) {
    MUST(mkdir("folder", 0755) == 0 || errno == EEXIST);
    close(open("folder/inside", O_CREAT | O_WRONLY, 0644));
    MUST((fds[0] = open("folder", O_RDONLY | O_DIRECTORY | O_CLOEXEC)) >= 0);
}
static void directory_after(void) {
    flags_are(fds[0], O_RDONLY | O_DIRECTORY, 1);
    struct stat inside;
    MUST(fstatat(fds[0], "inside", &inside, 0) == 0);
    DIR *dir = fdopendir(fds[0]);
    MUST(dir);
    int seen = 0;
    for (struct dirent *entry; (entry = readdir(dir));) seen += strcmp(entry->d_name, "inside") == 0;
    CHECK(seen == 1, "the folder's entry was seen %d times", seen);
}

// --- devices
static const char *devices[] = {"/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom"};
static void devices_before(void) {
    for (int i = 0; i < 5; i++) MUST((fds[i] = open(devices[i], i % 2 ? O_RDWR | O_CLOEXEC : O_RDWR)) >= 0);
}
static void devices_after(void) {
    char buffer[16];
    for (int i = 0; i < 5; i++) {
        struct stat is, want;
        MUST(fstat(fds[i], &is) == 0 && stat(devices[i], &want) == 0);
        CHECK(is.st_rdev == want.st_rdev, "%s is another device", devices[i]);
        flags_are(fds[i], O_RDWR, i % 2);
    }
    CHECK(read(fds[0], buffer, 16) == 0 && read(fds[1], buffer, 16) == 16 && !buffer[7] && read(fds[4], buffer, 16) == 16, "devices do not read as they should");
    CHECK(write(fds[0], "x", 1) == 1 && write(fds[2], "x", 1) < 0 && errno == ENOSPC, "devices do not write as they should");
}

// --- pipes with contents
static void pipe_before(void) {
    MUST(pipe(fds) == 0 && write(fds[1], "in the pipe", 11) == 11);
    MUST(pipe2(fds + 2, O_NONBLOCK | O_CLOEXEC) == 0 && fcntl(fds[3], F_SETPIPE_SZ, 1 << 20) == 1 << 20);
    static u64 words[100000];
    for (u64 i = 0; i < 100000; i++) words[i] = mix(i);
    MUST(write(fds[3], words, sizeof words) == sizeof words);
    MUST(pipe(fds + 4) == 0); // empty
}
static void pipe_after(void) {
    flags_are(fds[0], O_RDONLY, 0);
    flags_are(fds[2], O_RDONLY | O_NONBLOCK, 1);
    flags_are(fds[3], O_WRONLY | O_NONBLOCK, 1);
    have(fds[0], "in the pipe");
    CHECK(fcntl(fds[3], F_GETPIPE_SZ) == 1 << 20, "the pipe's capacity is %d", fcntl(fds[3], F_GETPIPE_SZ));
    static u64 words[100000];
    size_t have_bytes = 0;
    for (ssize_t n; (n = read(fds[2], (char *)words + have_bytes, sizeof words - have_bytes)) > 0;) have_bytes += (size_t)n;
    CHECK(have_bytes == sizeof words, "the large pipe held %zu bytes instead of %zu", have_bytes, sizeof words);
    for (u64 i = 0; i < 100000; i++) CHECK(words[i] == mix(i), "word %lu of the large pipe differs", (unsigned long)i);
    CHECK(!readable(fds[4]), "the empty pipe is not empty");
    MUST(write(fds[5], "new", 3) == 3);
    have(fds[4], "new");
    close(fds[1]);
    char byte;
    CHECK(read(fds[0], &byte, 1) == 0, "a pipe without writers does not end");
}

// --- eventfd
static void eventfd_before(void) {
    MUST((fds[0] = eventfd(42, EFD_NONBLOCK)) >= 0);
    MUST((fds[1] = eventfd(3, EFD_SEMAPHORE | EFD_CLOEXEC)) >= 0);
    MUST((fds[2] = eventfd(0, EFD_NONBLOCK)) >= 0);
}
static void eventfd_after(void) {
    u64 value;
    MUST(read(fds[0], &value, 8) == 8);
    CHECK(value == 42, "the event counter is %lu", (unsigned long)value);
    for (int i = 0; i < 3; i++) {
        CHECK(readable(fds[1]), "the semaphore ran dry after %d", i);
        MUST(read(fds[1], &value, 8) == 8);
        CHECK(value == 1, "the semaphore gave %lu", (unsigned long)value);
    }
    CHECK(!readable(fds[1]) && !readable(fds[2]), "an empty event counter is readable");
}

// --- epoll
static void epoll_before(void) {
    MUST((fds[0] = epoll_create1(EPOLL_CLOEXEC)) >= 0);
    MUST((fds[1] = eventfd(0, EFD_NONBLOCK)) >= 0 && (fds[2] = eventfd(1, EFD_NONBLOCK)) >= 0 && pipe(fds + 3) == 0);
    uint32_t events[] = {EPOLLIN, EPOLLIN | EPOLLET, EPOLLIN | EPOLLONESHOT};
    for (int i = 0; i < 3; i++) {
        struct epoll_event interest = {.events = events[i], .data.u64 = 0xaaaa000000000000ULL + (u64)i};
        MUST(epoll_ctl(fds[0], EPOLL_CTL_ADD, fds[i + 1], &interest) == 0);
    }
    MUST((fds[5] = dup(fds[0])) >= 0);
    MUST((fds[6] = epoll_create1(0)) >= 0); // one that watches another
    struct epoll_event outer = {.events = EPOLLIN, .data.u64 = 7};
    MUST(epoll_ctl(fds[6], EPOLL_CTL_ADD, fds[0], &outer) == 0);
}
static void epoll_after(void) {
    struct epoll_event got[8];
    int n = epoll_wait(fds[6], got, 8, 0);
    CHECK(n == 1 && got[0].data.u64 == 7, "the outer epoll reports %d events", n);
    n = epoll_wait(fds[0], got, 8, 0);
    CHECK(n == 1 && got[0].data.u64 == 0xaaaa000000000001ULL, "epoll reports %d events", n);
    MUST(write(fds[1], &(u64){1}, 8) == 8 && write(fds[4], "x", 1) == 1);
    n = epoll_wait(fds[5], got, 8, 0);
    int seen = 0;
    for (int i = 0; i < n; i++) seen |= 1 << (got[i].data.u64 & 3);
    CHECK(n == 2 && seen == 5, "after two writes epoll reports %d events, mask %d", n, seen);
    n = epoll_wait(fds[0], got, 8, 0);
    CHECK(n == 1 && got[0].data.u64 == 0xaaaa000000000000ULL, "the one-shot interest fired twice or the level one not again");
    MUST(epoll_ctl(fds[0], EPOLL_CTL_DEL, fds[2], NULL) == 0);
}

// --- timerfd
static void timerfd_before(void) {
    MUST((fds[0] = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK)) >= 0);
    MUST(timerfd_settime(fds[0], 0, &(struct itimerspec){{40, 0}, {4000, 0}}, NULL) == 0);
    MUST((fds[1] = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC)) >= 0);
    MUST(timerfd_settime(fds[1], 0, &(struct itimerspec){{0, 5000000}, {0, 5000000}}, NULL) == 0);
    MUST((fds[2] = timerfd_create(CLOCK_REALTIME, TFD_NONBLOCK)) >= 0); // never armed
    sleep_ms(20);
}
static void timerfd_after(void) {
    struct itimerspec now;
    MUST(timerfd_gettime(fds[0], &now) == 0);
    CHECK(now.it_interval.tv_sec == 40 && now.it_value.tv_sec > 3000 && now.it_value.tv_sec <= 4000, "the far timer has %ld s left, interval %ld", now.it_value.tv_sec, now.it_interval.tv_sec);
    u64 ticks = 0;
    CHECK(read(fds[0], &ticks, 8) < 0 && errno == EAGAIN, "the far timer ticked");
    MUST(read(fds[1], &ticks, 8) == 8);
    CHECK(ticks >= 1, "no ticks were kept");
    MUST(read(fds[1], &ticks, 8) == 8);
    CHECK(ticks >= 1, "the timer no longer ticks");
    MUST(timerfd_gettime(fds[2], &now) == 0);
    CHECK(!now.it_value.tv_sec && !now.it_value.tv_nsec, "the unarmed timer runs");
}

// --- signalfd
static void signalfd_before(void) {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    sigaddset(&set, SIGRTMIN + 1);
    MUST(sigprocmask(SIG_BLOCK, &set, NULL) == 0);
    MUST((fds[0] = signalfd(-1, &set, SFD_NONBLOCK | SFD_CLOEXEC)) >= 0);
    MUST(sigqueue(getpid(), SIGRTMIN + 1, (union sigval){.sival_int = 321}) == 0);
}
static void signalfd_after(void) {
    struct signalfd_siginfo info;
    MUST(read(fds[0], &info, sizeof info) == sizeof info);
    CHECK((int)info.ssi_signo == SIGRTMIN + 1 && info.ssi_int == 321, "signalfd gave signal %u value %d", info.ssi_signo, info.ssi_int);
    MUST(kill(getpid(), SIGUSR1) == 0 && read(fds[0], &info, sizeof info) == sizeof info);
    CHECK(info.ssi_signo == SIGUSR1, "signalfd gave signal %u", info.ssi_signo);
    CHECK(read(fds[0], &info, sizeof info) < 0 && errno == EAGAIN, "signalfd gave one signal too many");
}

// --- sockets
static int port_of(int fd) {
    struct sockaddr_storage address;
    socklen_t length = sizeof address;
    MUST(getsockname(fd, (struct sockaddr *)&address, &length) == 0);
    return ntohs(address.ss_family == AF_INET ? ((struct sockaddr_in *)&address)->sin_port : ((struct sockaddr_in6 *)&address)->sin6_port);
}

static int bound(int family, int type) {
    int fd = socket(family, type | SOCK_CLOEXEC, 0), one = 1;
    MUST(fd >= 0);
    if ((type & 0xf) == SOCK_STREAM) MUST(setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one) == 0);
    struct sockaddr_in v4 = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    struct sockaddr_in6 v6 = {.sin6_family = AF_INET6, .sin6_addr = IN6ADDR_LOOPBACK_INIT};
    if (family == AF_INET6) MUST(setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &one, sizeof one) == 0);
    MUST((family == AF_INET ? bind(fd, (struct sockaddr *)&v4, sizeof v4) : bind(fd, (struct sockaddr *)&v6, sizeof v6)) == 0);
    return fd;
}

// Somebody calls and is heard.
static void answers(int fd, struct sockaddr *address, socklen_t length) {
    int client = socket(address->sa_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    MUST(client >= 0 && connect(client, address, length) == 0);
    MUST(poll(&(struct pollfd){.fd = fd, .events = POLLIN}, 1, 5000) == 1);
    int server = accept4(fd, NULL, NULL, SOCK_CLOEXEC);
    MUST(server >= 0 && write(client, "hello", 5) == 5);
    have(server, "hello");
    close(client);
    close(server);
}

static int option(int fd, int level, int name) {
    int value = -1;
    socklen_t length = sizeof value;
    MUST(getsockopt(fd, level, name, &value, &length) == 0);
    return value;
}

static void tcp_before(int family) {
    fds[0] = bound(family, SOCK_STREAM | SOCK_NONBLOCK);
    int one = 1, bytes = 50000;
    MUST(setsockopt(fds[0], SOL_SOCKET, SO_KEEPALIVE, &one, sizeof one) == 0);
    MUST(setsockopt(fds[0], IPPROTO_TCP, TCP_NODELAY, &one, sizeof one) == 0);
    MUST(setsockopt(fds[0], SOL_SOCKET, SO_RCVBUF, &bytes, sizeof bytes) == 0);
    MUST(listen(fds[0], 77) == 0);
    ports[0] = port_of(fds[0]);
}
static void tcp_after(void) {
    CHECK(port_of(fds[0]) == ports[0], "it listens on port %d instead of %d", port_of(fds[0]), ports[0]);
    CHECK(option(fds[0], SOL_SOCKET, SO_ACCEPTCONN) == 1, "it no longer listens");
    CHECK(option(fds[0], SOL_SOCKET, SO_REUSEADDR) && option(fds[0], SOL_SOCKET, SO_KEEPALIVE) && option(fds[0], IPPROTO_TCP, TCP_NODELAY), "a socket option is off");
    CHECK(option(fds[0], SOL_SOCKET, SO_RCVBUF) == 100000, "the receive buffer is %d", option(fds[0], SOL_SOCKET, SO_RCVBUF));
    CHECK(fcntl(fds[0], F_GETFL) & O_NONBLOCK && fcntl(fds[0], F_GETFD) & FD_CLOEXEC, "a flag is off");
    struct sockaddr_storage address;
    socklen_t length = sizeof address;
    MUST(getsockname(fds[0], (struct sockaddr *)&address, &length) == 0);
    answers(fds[0], (struct sockaddr *)&address, length);
}
static void tcp4_before(void) { tcp_before(AF_INET); }
static void tcp6_before(void) { tcp_before(AF_INET6); }
static void tcp6_after(void) {
    CHECK(option(fds[0], IPPROTO_IPV6, IPV6_V6ONLY) == 1, "v6-only is off");
    tcp_after();
}

static struct sockaddr_un unix_addresses[2];
static socklen_t unix_lengths[2];
static void unix_before(void) {
    char here[80];
    MUST(getcwd(here, sizeof here));
    unix_addresses[0].sun_family = unix_addresses[1].sun_family = AF_UNIX;
    int n = snprintf(unix_addresses[0].sun_path, sizeof unix_addresses[0].sun_path, "%s/socket", here);
    unix_lengths[0] = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + (size_t)n + 1);
    n = snprintf(unix_addresses[1].sun_path + 1, sizeof unix_addresses[1].sun_path - 1, "victim-%d", getpid());
    unix_lengths[1] = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + (size_t)n + 1);
    unlink("socket");
    for (int i = 0; i < 2; i++) {
        MUST((fds[i] = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0)) >= 0);
        MUST(bind(fds[i], (struct sockaddr *)&unix_addresses[i], unix_lengths[i]) == 0 && listen(fds[i], 5) == 0);
    }
}
static void unix_after(void) {
    for (int i = 0; i < 2; i++) answers(fds[i], (struct sockaddr *)&unix_addresses[i], unix_lengths[i]);
}

static void unixdgram_before(void) {
    char here[80];
    MUST(getcwd(here, sizeof here));
    unix_addresses[0].sun_family = AF_UNIX;
    int n = snprintf(unix_addresses[0].sun_path, sizeof unix_addresses[0].sun_path, "%s/datagrams", here);
    unix_lengths[0] = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + (size_t)n + 1);
    MUST((fds[0] = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0)) >= 0);
    MUST(bind(fds[0], (struct sockaddr *)&unix_addresses[0], unix_lengths[0]) == 0);
    MUST((fds[1] = socket(AF_UNIX, SOCK_DGRAM, 0)) >= 0); // neither bound nor connected
}
static void unixdgram_after(void) {
    for (int i = 0; i < 2; i++) {
        MUST(sendto(fds[1], "datagram", 8, 0, (struct sockaddr *)&unix_addresses[0], unix_lengths[0]) == 8);
        have(fds[0], "datagram");
    }
    CHECK(!readable(fds[0]) && fcntl(fds[0], F_GETFL) & O_NONBLOCK, "the datagram socket differs");
}

static void udp_before(void) {
    fds[0] = bound(AF_INET, SOCK_DGRAM);
    fds[1] = bound(AF_INET6, SOCK_DGRAM);
    int one = 1;
    MUST(setsockopt(fds[0], SOL_SOCKET, SO_BROADCAST, &one, sizeof one) == 0);
    ports[0] = port_of(fds[0]);
    ports[1] = port_of(fds[1]);
}
static void udp_after(void) {
    CHECK(option(fds[0], SOL_SOCKET, SO_BROADCAST) == 1, "the broadcast option is off");
    for (int i = 0; i < 2; i++) {
        CHECK(port_of(fds[i]) == ports[i], "it is bound to port %d instead of %d", port_of(fds[i]), ports[i]);
        struct sockaddr_storage address;
        socklen_t length = sizeof address;
        MUST(getsockname(fds[i], (struct sockaddr *)&address, &length) == 0);
        int client = socket(address.ss_family, SOCK_DGRAM | SOCK_CLOEXEC, 0);
        MUST(client >= 0 && sendto(client, "datagram", 8, 0, (struct sockaddr *)&address, length) == 8);
        have(fds[i], "datagram");
        close(client);
    }
}

static void socketpair_before(void) {
    MUST(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) == 0);
    MUST(write(fds[0], "to one", 6) == 6 && write(fds[1], "to zero", 7) == 7);
    MUST(socketpair(AF_UNIX, SOCK_DGRAM | SOCK_NONBLOCK, 0, fds + 2) == 0);
    MUST(write(fds[2], "first", 5) == 5 && write(fds[2], "second", 6) == 6);
    MUST(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, fds + 4) == 0);
    MUST(write(fds[5], "packet", 6) == 6 && write(fds[5], "another", 7) == 7);
    MUST((fds[6] = dup(fds[0])) >= 0);
}
static void socketpair_after(void) {
    have(fds[1], "to one");
    have(fds[6], "to zero");
    have(fds[3], "first");
    have(fds[3], "second");
    CHECK(!readable(fds[3]) && fcntl(fds[3], F_GETFL) & O_NONBLOCK, "the datagram pair holds more");
    have(fds[4], "packet");
    have(fds[4], "another");
    for (int i = 0; i < 6; i++) {
        MUST(write(fds[i], "new", 3) == 3);
        have(fds[i ^ 1], "new");
    }
    close(fds[0]);
    close(fds[6]);
    char byte;
    CHECK(read(fds[1], &byte, 1) == 0, "a pair without its other end does not end");
}

static const struct { const char *name; void (*before)(void), (*after)(void); } kinds[] = {
    {"regular", regular_before, regular_after}, {"append", append_before, append_after}, {"shared", shared_before, shared_after},
    {"directory", directory_before, directory_after}, {"devices", devices_before, devices_after}, {"pipe", pipe_before, pipe_after},
    {"eventfd", eventfd_before, eventfd_after}, {"epoll", epoll_before, epoll_after}, {"timerfd", timerfd_before, timerfd_after},
    {"signalfd", signalfd_before, signalfd_after}, {"tcp4", tcp4_before, tcp_after}, {"tcp6", tcp6_before, tcp6_after},
    {"unix", unix_before, unix_after}, {"udp", udp_before, udp_after}, {"unixdgram", unixdgram_before, unixdgram_after}, {"socketpair", socketpair_before, socketpair_after},
};

int main(int argc, char **argv) {
    signal(SIGPIPE, SIG_IGN);
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        if (argc < 2 || strcmp(argv[1], kinds[i].name) != 0) continue;
        kinds[i].before();
        ready();
        wait_go();
        kinds[i].after();
        // Nothing else is open: 0 to 2, what was made, and out of the way what brings our pages: a userfaultfd and a pair of sockets.
        int hidden = 0;
        DIR *dir = opendir("/proc/self/fd");
        MUST(dir);
        for (struct dirent *entry; (entry = readdir(dir));) {
            int fd = atoi(entry->d_name), ours = fd <= 2 || fd == dirfd(dir) || entry->d_name[0] == '.';
            for (int k = 0; k < 16; k++) ours |= fds[k] == fd;
            char link[64] = {0};
            if (ours || readlinkat(dirfd(dir), entry->d_name, link, sizeof link - 1) <= 0) continue;
            CHECK(++hidden <= 3 && (strstr(link, "userfaultfd") || strstr(link, "socket:")), "fd %d (%s) came from nowhere", fd, link);
        }
        ok();
    }
    wrong("no such kind of descriptor");
}
