// What the kernel does with missing memory on a program's own behalf: each waits for the pages, and finds what is theirs. `readers
// sleep` does none of it: its memory is looked at from outside.
#include "victim.h"
#include <linux/aio_abi.h>
#include <linux/futex.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/uio.h>

#define PAGES 64UL
#define BYTES (PAGES * PAGE)
enum { WRITE, READ, DIRECT, SPLICE, SEND, FUTEX, POPULATE, LOCK, READV, WRITEV, AIO, MINCORE, ARGUMENT, MAPS };
static u8 *map[MAPS];
static u8 copy[BYTES] __attribute__((aligned(4096)));

static void same(int n, const void *at, u64 pages, const char *what) { check_pattern(at, 0, pages, 200 + n, what); }

// Writes from and reads into missing memory; a read of half a page leaves the other half.
static void files(void) {
    int fd = open("bytes", O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    MUST(fd >= 0 && write(fd, map[WRITE], BYTES) == (ssize_t)BYTES && pread(fd, copy, BYTES, 0) == (ssize_t)BYTES);
    same(WRITE, copy, PAGES, "write");
    MUST(pread(fd, map[READ] + PAGE / 2, PAGE / 2, PAGE / 2) == (ssize_t)PAGE / 2);
    u64 half = 0;
    for (u64 i = 0; i < PAGE / 16; i++) half |= ((u64 *)map[READ])[i] ^ mix((200 + READ) ^ i);
    CHECK(!half, "a read into half a page changed the other half");
    int direct = open("direct", O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC | O_DIRECT, 0644);
    if (direct >= 0) { // not on every file system
        MUST(write(direct, map[DIRECT], BYTES) == (ssize_t)BYTES && pread(direct, copy, BYTES, 0) == (ssize_t)BYTES);
        same(DIRECT, copy, PAGES, "O_DIRECT");
    }
    aio_context_t context = 0;
    if (syscall(SYS_io_setup, 1, &context) == 0) {
        struct iocb one = {.aio_lio_opcode = IOCB_CMD_PWRITE, .aio_fildes = fd, .aio_buf = (u64)map[AIO], .aio_nbytes = BYTES}, *list = &one;
        struct io_event done;
        MUST(syscall(SYS_io_submit, context, 1, &list) == 1 && syscall(SYS_io_getevents, context, 1, 1, &done, NULL) == 1);
        MUST(done.res == (long)BYTES && pread(fd, copy, BYTES, 0) == (ssize_t)BYTES);
        same(AIO, copy, PAGES, "AIO");
        MUST(syscall(SYS_io_destroy, context) == 0);
    }
}

static void pipes(void) {
    int ends[2], pair[2];
    MUST(pipe2(ends, O_CLOEXEC) == 0);
    struct iovec part = {map[SPLICE], 8 * PAGE};
    MUST(vmsplice(ends[1], &part, 1, 0) == 8 * (ssize_t)PAGE && read(ends[0], copy, 8 * PAGE) == 8 * (ssize_t)PAGE);
    same(SPLICE, copy, 8, "vmsplice");
    MUST(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) == 0);
    MUST(send(pair[0], map[SEND], 8 * PAGE, MSG_DONTWAIT) == 8 * (ssize_t)PAGE);
    for (u64 got = 0; got < 8 * PAGE;) {
        ssize_t more = recv(pair[1], copy + got, 8 * PAGE - got, 0);
        MUST(more > 0);
        got += more;
    }
    same(SEND, copy, 8, "send");
}

int main(int argc, char **argv) {
    for (int n = 0; n < MAPS; n++) map[n] = map_pattern(PAGES, 200 + n);
    char text[64];
    snprintf(text, sizeof text, "%lu\n", (unsigned long)map[LOCK]);
    publish("address", text);
    ready();
    wait_go();
    if (argc > 1 && strcmp(argv[1], "sleep") == 0) {
        for (int n = 0; n < MAPS; n++) same(n, map[n], PAGES, "after all");
        ok();
    }
    static u8 there[PAGES];
    MUST(mincore(map[MINCORE], BYTES, there) == 0); // says what is there, and brings nothing
    files();
    pipes();
    // The word of a futex is looked at by the kernel.
    MUST(syscall(SYS_futex, map[FUTEX], FUTEX_WAIT, 1, NULL, NULL, 0) < 0 && errno == EAGAIN);
    same(FUTEX, map[FUTEX], PAGES, "futex");
    MUST(madvise(map[POPULATE], BYTES, MADV_POPULATE_WRITE) == 0 && mlock(map[LOCK], BYTES) == 0);
    same(POPULATE, map[POPULATE], PAGES, "MADV_POPULATE_WRITE");
    same(LOCK, map[LOCK], PAGES, "mlock");
    struct iovec here = {copy, BYTES}, from = {map[READV], BYTES}, to = {map[WRITEV], PAGE / 2};
    MUST(process_vm_readv(getpid(), &here, 1, &from, 1, 0) == (ssize_t)BYTES);
    same(READV, copy, PAGES, "process_vm_readv");
    memcpy(copy, map[WRITEV] + PAGE, PAGE);
    CHECK(page_is(copy, 200 + WRITEV, 1), "behind what is written to");
    memset(copy, 7, PAGE / 2);
    here.iov_len = PAGE / 2;
    MUST(process_vm_writev(getpid(), &here, 1, &to, 1, 0) == (ssize_t)PAGE / 2);
    CHECK(map[WRITEV][0] == 7 && ((u64 *)map[WRITEV])[PAGE / 16] == mix((200 + WRITEV) ^ (PAGE / 16)), "process_vm_writev");
    same(MINCORE, map[MINCORE], PAGES, "mincore");
    // A path that lies in missing memory is read by the kernel as well: it is none, and the answer says so.
    MUST(access((char *)map[ARGUMENT], F_OK) < 0 && (errno == ENOENT || errno == ENAMETOOLONG));
    same(ARGUMENT, map[ARGUMENT], PAGES, "an argument");
    ok();
}
