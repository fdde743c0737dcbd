# One descriptor of each kind that this kernel makes, so that what its fdinfo shows can be compared with the table.
import ctypes, os, select, socket, sys, time
libc = ctypes.CDLL(None, use_errno=True)
room = ctypes.create_string_buffer(256)
held = []
def have(what, fd):
    if fd < 0:
        sys.exit(f"no {what}: {os.strerror(ctypes.get_errno())}")
    held.append(fd)
    return fd
epoll, pipe = select.epoll(), os.pipe()
epoll.register(pipe[0])
have("epoll", epoll.fileno())
have("eventfd", libc.eventfd(3, 0))
have("timerfd", libc.timerfd_create(0, 0))
have("signalfd", libc.signalfd(-1, ctypes.byref(ctypes.create_string_buffer(128)), 0))
have("pidfd", os.pidfd_open(os.getpid()))
inotify = have("inotify", libc.inotify_init1(0))
have("watch", libc.inotify_add_watch(inotify, b"/tmp", 0xfff))
have("watch", libc.inotify_add_watch(inotify, b"/proc/self", 0xfff))
fanotify = have("fanotify", libc.fanotify_init(0, 0))
have("mark", libc.fanotify_mark(fanotify, 1, ctypes.c_uint64(2), -100, b"/tmp"))
have("userfaultfd", libc.syscall(323, 0))
have("io_uring", libc.syscall(425, 4, room))
have("fscontext", libc.syscall(430, b"tmpfs", 0))
attr = ctypes.create_string_buffer(bytes([1, 0, 0, 0, 128, 0, 0, 0]) + bytes(120))
libc.syscall(298, attr, 0, -1, -1, 0)  # perf_event: none on a machine without counters
have("bpf map", libc.syscall(321, 0, ctypes.byref((ctypes.c_uint32 * 16)(2, 4, 4, 1)), 64))
for name in ["net", "mnt", "pid", "uts", "ipc", "user", "cgroup"]:
    have(name, os.open(f"/proc/self/ns/{name}", 0))
unix, tcp, udp = socket.socketpair(), socket.socket(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
netlink = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)
for path in ["/proc/self/stat", "/proc/meminfo", "/sys/devices", "/dev/null", "/tmp", "/proc/self/exe"]:
    have(path, os.open(path, 0))
have("memfd", os.memfd_create("x"))
print("ready", flush=True)
time.sleep(600)
