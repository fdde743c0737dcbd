# What every socket victim shares: `python3 victim.py NAME` runs NAME_before(), appears ready, waits for
# `go`, runs NAME_after() and writes its verdict, as victims/victim.h describes.
import array, ctypes, fcntl, os, resource, select, socket, stat, struct, sys, time, traceback

held = []


def publish(name, text):
    with open(name + ".partial", "w") as file:
        file.write(text)
    os.rename(name + ".partial", name)


def check(holds, what):
    if not holds:
        raise AssertionError(what)


def same(now, before, what):
    check(now == before, f"{what}: {now!r} instead of {before!r}")


def keep(*sockets):
    held.extend(sockets)
    return sockets[0] if len(sockets) == 1 else sockets


def events(sock):
    poll = select.poll()
    poll.register(sock, select.POLLIN | select.POLLPRI | select.POLLOUT | select.POLLRDHUP)
    found = poll.poll(0)
    return found[0][1] if found else 0


def credentials(sock):
    return struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))


# ---- files of unix sockets


def file_of(path):
    s = os.lstat(path)
    acl = {name: os.getxattr(path, name, follow_symlinks=False)
           for name in os.listxattr(path, follow_symlinks=False) if name != "trusted.defrost"}
    return stat.S_IFMT(s.st_mode), stat.S_IMODE(s.st_mode), s.st_uid, s.st_gid, acl


def answers(listener, path, kind=socket.SOCK_STREAM):
    client = socket.socket(socket.AF_UNIX, kind)
    client.connect(path)
    other, _ = listener.accept()
    other.sendall(b"hello")
    same(client.recv(9), b"hello", path)
    # A client sees who listens.
    same(credentials(client)[0], os.getpid(), "the listener's pid")
    return credentials(client)


def files_before():
    global seen, one, two, third, moved, gone, again, datagram, abstract, pair
    os.umask(0o022)
    home = os.getcwd()
    one = keep(socket.socket(socket.AF_UNIX))
    one.bind(home + "/one"); one.listen(7)
    os.chmod("one", 0o660); os.chown("one", 33, 33)
    # Relative, and the working directory is another one since.
    os.mkdir("deep")
    two = keep(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
    two.bind("deep/../deep/two"); two.listen(3); os.chmod("deep/two", 0o600)
    # Three at one path: one was moved, one was removed.
    moved, gone, again = (keep(socket.socket(socket.AF_UNIX)) for _ in range(3))
    moved.bind("same"); moved.listen(1); os.rename("same", "moved"); os.chmod("moved", 0o700)
    gone.bind("same"); gone.listen(1); os.unlink("same")
    again.bind("same"); again.listen(1); os.chmod("same", 0o444)
    datagram = keep(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
    datagram.bind("datagram"); os.chmod("datagram", 0)
    # An access control list: user 33 may write.
    acl = struct.pack("<I" + "HHI" * 5, 2, 1, 6, 0xffffffff, 2, 6, 33, 4, 0, 0xffffffff,
                      16, 6, 0xffffffff, 32, 0, 0xffffffff)
    third = keep(socket.socket(socket.AF_UNIX))
    third.bind("third"); third.listen(1)
    try:
        os.setxattr("third", "system.posix_acl_access", acl)
    except OSError:
        pass  # this file system has none
    abstract = keep(socket.socket(socket.AF_UNIX))
    abstract.bind("\0defrost-%d" % os.getpid()); abstract.listen(2)
    os.fchown(one.fileno(), 33, 34); os.fchmod(one.fileno(), 0o640)
    seen = names()
    os.chdir("/")


def names():
    paths = ("one", "deep/two", "moved", "same", "datagram", "third")
    sockets = (one, two, moved, gone, again, datagram, third, abstract)
    owners = [(s.st_uid, s.st_gid, s.st_mode) for s in (os.fstat(s.fileno()) for s in sockets)]
    return [file_of(path) for path in paths], [s.getsockname() for s in sockets], owners


def files_after():
    os.chdir(home)
    now = names()
    for what, a, b in zip(("files", "names", "owners"), now, seen):
        same(a, b, what)
    answers(one, "one"); answers(moved, "moved"); answers(again, "same"); answers(third, "third")
    answers(two, "deep/two", socket.SOCK_SEQPACKET)
    answers(abstract, "\0defrost-%d" % os.getpid())
    client = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    client.sendto(b"packet", "datagram")
    same(datagram.recv(9), b"packet", "datagram")
    left = [name for name in os.listdir(".") if name.startswith(".defrost")]
    same(left, [], "left behind")


# ---- pairs


def pairs_before():
    global pairs, ended, dgram, seen
    pairs = [socket.socketpair(socket.AF_UNIX, kind)
             for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_SEQPACKET)]
    for a, b in pairs:
        b.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        a.send(b"first")
    for a, b in pairs[1:]:
        a.send(b""); a.send(b"third")
    # More than it may send by now.
    pairs[2][0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    pairs[2][0].send(b"long" * 50000); pairs[2][0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    # Its other end is closed, and something is left to read.
    ended, other = socket.socketpair()
    other.send(b"last words"); other.close()
    # A datagram socket that is connected to a name.
    dgram = [keep(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) for _ in range(2)]
    dgram[0].bind("dgram"); dgram[1].connect("dgram")
    seen = [credentials(end) for pair in pairs for end in pair]


def received(sock):
    data, control, _, _ = sock.recvmsg(99, 999)
    who = [struct.unpack("3i", value) for level, kind, value in control
           if kind == socket.SCM_CREDENTIALS]
    return data, who[0] if who else None


def pairs_after():
    own = (os.getpid(), os.getuid(), os.getgid())
    same([credentials(end) for pair in pairs for end in pair], seen, "SO_PEERCRED")
    for a, b in pairs:
        same(received(b), (b"first", own), "first")
    for a, b in pairs[1:]:
        same(received(b), (b"", own), "the empty message")
        same(received(b), (b"third", own), "third")
    same(len(pairs[2][1].recv(999999)), 200000, "the long message")
    for a, b in pairs:
        a.send(b"new"); same(received(b), (b"new", own), "new")
        b.send(b"back"); same(a.recv(9), b"back", "back")
    same(ended.recv(99), b"last words", "last words")
    same(ended.recv(99), b"", "the end")
    try:
        ended.send(b"x"); check(False, "a pair without its other end takes bytes")
    except BrokenPipeError:
        pass
    dgram[1].send(b"by name"); same(dgram[0].recv(9), b"by name", "by name")


# ---- IP


def connected(listener):
    client = socket.create_connection(listener.getsockname())
    accepted, _ = listener.accept()
    return client, accepted


def reset(sock):
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def ip_before():
    global listener, dead, told, free, shared, low, udp, server, ports, bound, seen, waiting
    listener = keep(socket.socket()); listener.bind(("127.0.0.1", 0)); listener.listen(5)
    # Reset by the client before and after the process is told; beside the listener of that port.
    client, dead = connected(listener); reset(client); time.sleep(0.02)
    client, told = connected(listener); client.sendall(b"left"); time.sleep(0.02); reset(client)
    time.sleep(0.02)
    same(told.recv(9), b"left", "before")
    try:
        told.recv(9)
    except ConnectionResetError:
        pass
    # An address that the host does not have; the leave to bind to it is taken back.
    free = keep(socket.socket())
    free.setsockopt(socket.IPPROTO_IP, 15, 1)
    free.bind(("192.0.2.77", 0)); free.setsockopt(socket.IPPROTO_IP, 15, 0); free.listen(1)
    # One port, shared, and the leave to share it taken back by one.
    shared = [keep(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) for _ in range(2)]
    for s in shared:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    shared[0].bind(("127.0.0.1", 0)); shared[1].bind(shared[0].getsockname())
    bound = [keep(socket.socket()) for _ in range(2)]
    for s in bound:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    bound[0].bind(("127.0.0.1", 0)); bound[1].bind(bound[0].getsockname())
    bound[0].listen(3)
    bound[1].setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
    server = keep(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)); server.bind(("127.0.0.1", 0))
    udp = keep(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)); udp.connect(server.getsockname())
    ports = [keep(socket.socket(socket.AF_INET6)), keep(socket.socket(socket.AF_INET, 1, 262))]
    ports[0].bind(("::1", 0)); ports[1].bind(("127.0.0.1", 0)); ports[1].listen(4)
    ports[0].listen(2)
    low = keep(socket.socket()); low.setsockopt(socket.IPPROTO_IP, 24, 1); low.bind(("127.0.0.2", 0))
    seen = addresses()


def addresses():
    all = (listener, free, *shared, *bound, server, udp, *ports, low)
    names = [s.getsockname() for s in all] + [udp.getpeername()]
    reuse = [s.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR) for s in all]
    states = [s.getsockopt(6, 11, 104)[0] for s in (listener, free, *bound, ports[0], dead, told, low)]
    backlogs = [s.getsockopt(6, 11, 104)[28:32] for s in (listener, bound[0], ports[0])]
    return names, reuse, states, backlogs


def ip_after():
    for what, a, b in zip(("names", "SO_REUSEADDR", "states", "backlogs"), addresses(), seen):
        same(a, b, what)
    try:
        dead.recv(9); check(False, "the reset is not told")
    except ConnectionResetError:
        pass
    same(dead.recv(9), b"", "after the reset"); same(told.recv(9), b"", "after it was told")
    for s in (dead, told):
        try:
            s.send(b"x"); check(False, "a dead connection takes bytes")
        except BrokenPipeError:
            pass
    for l in (listener, bound[0], *ports):
        client, accepted = connected(l) if l is not ports[0] else six(l)
        client.sendall(b"hi"); same(accepted.recv(9), b"hi", "a new connection")
    udp.send(b"ping"); data, who = server.recvfrom(9)
    same((data, who), (b"ping", udp.getsockname()), "connected UDP")
    server.sendto(b"pong", who); same(udp.recv(9), b"pong", "connected UDP")


def six(l):
    client = socket.socket(socket.AF_INET6); client.connect(l.getsockname())
    return client, l.accept()[0]


# Connections to the test, which a checkpoint with --tcp-close closes.
def closing_before():
    global established, ended, half, coming, unread, server, accepted
    port = int(open("port").read())
    server = keep(socket.socket()); server.bind(("127.0.0.1", 0)); server.listen(4)
    publish("server", str(server.getsockname()[1]))
    connect = lambda: keep(socket.create_connection(("127.0.0.1", port)))
    established, ended, half, unread = connect(), connect(), connect(), connect()
    for s, word in ((established, b"stay"), (ended, b"ends"), (half, b"stay"), (unread, b"says")):
        s.sendall(word)
    half.shutdown(socket.SHUT_WR)
    accepted, _ = server.accept()
    while not events(ended) & select.POLLRDHUP or not events(unread) & select.POLLIN:
        time.sleep(0.01)
    # Nothing answers there, so the connection is being made for ever: the queue of this one is full.
    full = keep(socket.socket()); full.bind(("127.0.0.1", 0)); full.listen(0)
    for _ in range(3):
        coming = keep(socket.socket()); coming.setblocking(False)
        coming.connect_ex(full.getsockname()); time.sleep(0.02)
    check(not events(coming) & select.POLLOUT, "it is connected")


def told_of_reset(sock, what):
    try:
        data = sock.recv(9)
        check(False, f"{what}: {data!r} instead of a reset")
    except ConnectionResetError:
        pass
    same(sock.recv(9), b"", what)


def closing_after():
    told_of_reset(established, "established"); told_of_reset(accepted, "accepted"); told_of_reset(half, "half")
    same(ended.recv(9), b"", "ended")
    same(unread.recv(9), b"unread", "unread"); told_of_reset(unread, "unread")
    same(coming.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR), 111, "being made")
    client = socket.create_connection(server.getsockname())
    other, name = server.accept()
    same(name, client.getsockname(), "a new client")
    reset(client)  # nothing of it is left at the port


# ---- datagrams of other families


def families_before():
    global lite, raw, netlink, packet, seen, icmp6
    lite = [keep(socket.socket(socket.AF_INET, socket.SOCK_DGRAM, 136)) for _ in range(2)]
    lite[0].bind(("127.0.0.1", 0)); lite[0].setsockopt(136, 10, 8); lite[1].connect(lite[0].getsockname())
    raw = keep(socket.socket(socket.AF_INET, socket.SOCK_RAW, 253))
    raw.bind(("127.0.0.1", 0)); raw.connect(("127.0.0.3", 0))
    raw.setsockopt(socket.IPPROTO_IP, 3, 1)
    icmp6 = keep(socket.socket(socket.AF_INET6, socket.SOCK_RAW, 58))
    icmp6.setsockopt(58, 1, b"\xff" * 32)
    netlink = keep(socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0))
    netlink.bind((0, 0x1000)); netlink.setsockopt(270, 1, 14)  # groups that no kernel sends to
    packet = keep(socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0))
    blocks = struct.pack("HBBI", 6, 0, 0, 0)
    code = ctypes.create_string_buffer(blocks)
    packet.setsockopt(socket.SOL_SOCKET, 26, struct.pack("HxxxxxxQ", 1, ctypes.addressof(code)))
    packet.bind(("lo", 0x0800))
    packet.setsockopt(263, 1, struct.pack("iHH8s", socket.if_nametoindex("lo"), 1, 0, b""))
    packet.setsockopt(socket.SOL_SOCKET, 44, 1)
    seen = family_state()


def program(sock):
    buffer = (ctypes.c_char * 800)(); length = ctypes.c_uint(100)
    failed = ctypes.CDLL(None, use_errno=True).getsockopt(sock.fileno(), 1, 26, buffer, ctypes.byref(length))
    return bytes(buffer)[:length.value * 8] if not failed else ctypes.get_errno()


def family_state():
    return ([s.getsockname() for s in (*lite, raw, netlink, packet)], lite[1].getpeername(),
            netlink.getsockopt(270, 9, 64), program(packet), packet.getsockopt(1, 44), icmp6.getsockopt(58, 1, 32))


def families_after():
    for what, a, b in zip(("names", "peer", "groups", "filter", "lock", "icmp6"), family_state(), seen):
        same(a, b, what)
    lite[1].send(b"light"); same(lite[0].recv(9), b"light", "UDP-Lite")
    request = struct.pack("IHHII", 17 + 3, 18, 0x301, 1, 0) + b"\0" * 4
    netlink.send(request); check(len(netlink.recv(65536)) > 16, "netlink does not answer")
    wanted = struct.pack("iHH8s", socket.if_nametoindex("lo"), 1, 0, b"")
    packet.setsockopt(263, 2, wanted)  # fails where it was not joined


# ---- multicast


def multicast_before():
    global v4, v6, only
    lo = socket.if_nametoindex("lo")
    v4 = keep(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)); v4.bind(("0.0.0.0", 0))
    v4.setsockopt(0, 35, socket.inet_aton("239.7.7.7") + socket.inet_aton("127.0.0.1"))
    only = keep(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)); only.bind(("0.0.0.0", 0))
    only.setsockopt(0, 39, socket.inet_aton("239.7.7.8") + socket.inet_aton("127.0.0.1") + socket.inet_aton("127.0.0.9"))
    v6 = keep(socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)); v6.bind(("::", 0))
    v6.setsockopt(41, 20, socket.inet_pton(socket.AF_INET6, "ff02::7:7") + struct.pack("i", lo))
    listen_to_groups("before")


def listen_to_groups(when):
    sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sender.setsockopt(0, 32, socket.inet_aton("127.0.0.1"))
    v4.settimeout(5); only.settimeout(5)
    sender.sendto(b"four", ("239.7.7.7", v4.getsockname()[1])); same(v4.recv(9), b"four", when)
    sender.sendto(b"nothing", ("239.7.7.8", only.getsockname()[1]))
    ninth = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); ninth.bind(("127.0.0.9", 0))
    ninth.setsockopt(0, 32, socket.inet_aton("127.0.0.1"))
    ninth.sendto(b"source", ("239.7.7.8", only.getsockname()[1])); same(only.recv(9), b"source", when)


def multicast_after():
    listen_to_groups("after")
    # Each of these fails where the group was not joined.
    v4.setsockopt(0, 36, socket.inet_aton("239.7.7.7") + socket.inet_aton("127.0.0.1"))
    lo = socket.if_nametoindex("lo")
    v6.setsockopt(41, 21, socket.inet_pton(socket.AF_INET6, "ff02::7:7") + struct.pack("i", lo))


# ---- services

def service_before():
    global log, bus
    folder = open("service").read()
    log = keep(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)); log.connect(folder + "/log")
    bus = keep(socket.socket(socket.AF_UNIX)); bus.connect(folder + "/bus")


def service_after():
    log.send(b"line"); bus.sendall(b"again")


def streams_before():
    folder = open("service").read()
    bus = socket.socket(socket.AF_UNIX); bus.connect(folder + "/bus")
    os.dup2(bus.fileno(), 1); bus.close()


def streams_after():
    if open(home + "/go").read() == "null":
        same(os.readlink("/proc/self/fd/1"), "/dev/null", "standard output")
    else:
        os.write(1, b"to the restorer")


# ---- what is refused, and stays as it was

def unread_udp_before():
    global udp
    udp = keep(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)); udp.bind(("127.0.0.1", 0))
    socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"", udp.getsockname())


def unread_udp_after():
    same(udp.recv(9), b"", "the datagram")


dropped_before = unread_udp_before


def dropped_after():
    udp.setblocking(False)
    try:
        udp.recv(9); check(False, "the datagram was not dropped")
    except BlockingIOError:
        pass


def unread_netlink_before():
    global netlink
    netlink = keep(socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)); netlink.bind((0, 0))
    netlink.send(struct.pack("IHHII", 20, 18, 1, 1, 0) + b"\0" * 4)


def unread_netlink_after():
    check(len(netlink.recv(999)) >= 16, "the answer")


def unread_unix_before():
    global named
    named = keep(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)); named.bind("named")
    other = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM); other.bind("gone"); other.sendto(b"message", "named")


def unread_unix_after():
    same(named.recv(9), b"message", "the message")


def closed_after_sending(over, data, fds):
    socket.send_fds(over, [data], fds)
    for fd in fds:
        os.close(fd)


def in_flight_before():
    global stream, packets, grams, kept, itself, ended
    kinds = (socket.SOCK_STREAM, socket.SOCK_SEQPACKET, socket.SOCK_DGRAM)
    stream, packets, grams = (keep(*socket.socketpair(socket.AF_UNIX, kind)) for kind in kinds)
    with open("text", "w") as file:
        file.write("0123456789")
    kept = os.open("text", os.O_RDWR | os.O_APPEND); os.lseek(kept, 3, 0)
    # Bytes with descriptors between bytes without; one that the process has, twice.
    stream[0].send(b"plain")
    socket.send_fds(stream[0], [b"with"], [kept, kept])
    stream[0].send(b"after")
    # What the process has no more.
    gone = os.open("text", os.O_RDONLY); os.lseek(gone, 7, 0)
    locked = os.open("text", os.O_RDONLY); fcntl.flock(locked, fcntl.LOCK_EX)
    closed_after_sending(stream[0], b"1", [gone, os.dup(gone), locked])
    read_end, write_end = os.pipe()
    os.write(write_end, b"in the pipe")
    memory = os.memfd_create("sent"); os.write(memory, b"in memory")
    event = os.eventfd(5, os.EFD_NONBLOCK)
    status = os.open("/proc/self/status", os.O_RDONLY)
    listener = socket.socket(); listener.bind(("127.0.0.1", 0)); listener.listen(3)
    closed_after_sending(packets[0], b"", [read_end, write_end, memory])
    closed_after_sending(packets[0], b"second", [status, listener.detach()])
    # An epoll in flight, which watches what is only in flight.
    epoll = select.epoll()
    epoll.register(event, select.EPOLLIN)
    closed_after_sending(packets[0], b"third", [os.dup(epoll.fileno()), event]); epoll.close()
    # A socket in flight, with a message and another descriptor waiting in it, in flight.
    one, two = socket.socketpair()
    deepest = os.open("/dev/zero", os.O_RDONLY)
    closed_after_sending(one, b"deep", [deepest])
    closed_after_sending(grams[0], b"sockets", [one.detach(), two.detach()])
    grams[0].send(b"last")
    # A pair that was sent over itself, of which one end is left.
    e, itself = socket.socketpair()
    socket.send_fds(e, [b"self"], [e.fileno(), itself.fileno()]); e.close()
    # Of a connection that has ended.
    other, ended = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    keep(itself, ended)
    other.send(b""); closed_after_sending(other, b"end", [os.dup(kept)]); other.shutdown(socket.SHUT_WR); other.close()


def taken(sock, data, count):
    got, fds, _, _ = socket.recv_fds(sock, 99 if sock.type != socket.SOCK_STREAM else max(len(data), 1), 9)
    same((got, len(fds)), (data, count), f"a message of {count} descriptors")
    return fds


def in_flight_after():
    a, b = stream
    taken(b, b"plain", 0)
    first, second = taken(b, b"with", 2)
    os.lseek(kept, 4, 0)
    same([os.lseek(fd, 0, 1) for fd in (first, second)], [4, 4], "the shared position")
    check(fcntl.fcntl(first, fcntl.F_GETFL) & os.O_APPEND, "O_APPEND")
    taken(b, b"after", 0)
    gone, again, locked = taken(b, b"1", 3)
    same((os.read(gone, 1), os.read(again, 9)), (b"7", b"89"), "a file that was closed")
    try:
        fcntl.flock(os.open("text", os.O_RDONLY), fcntl.LOCK_SH | fcntl.LOCK_NB); check(False, "the lock is gone")
    except BlockingIOError:
        fcntl.flock(locked, fcntl.LOCK_UN)
    a, b = packets
    read_end, write_end, memory = taken(b, b"", 3)
    same(os.read(read_end, 99), b"in the pipe", "the pipe")
    os.write(write_end, b"more"); same(os.read(read_end, 99), b"more", "the pipe's other end")
    same(os.pread(memory, 99, 0), b"in memory", "the memfd")
    status, listener = taken(b, b"second", 2)
    check(b"Pid:\t%d\n" % os.getpid() in os.read(status, 9999), "its own status")
    listener = socket.socket(fileno=listener)
    client = socket.create_connection(listener.getsockname()); accepted, _ = listener.accept()
    client.close(); accepted.close()
    epoll, event = taken(b, b"third", 2)
    epoll = select.epoll.fromfd(epoll); told = epoll.poll(0)
    check(len(told) == 1 and told[0][1] == select.EPOLLIN, f"the epoll tells {told}")
    same(os.eventfd_read(event), 5, "the eventfd")
    same(epoll.poll(0), [], "the epoll, read")
    a, b = grams
    one, two = (socket.socket(fileno=fd) for fd in taken(b, b"sockets", 2))
    same(b.recv(9), b"last", "the last")
    same(os.read(taken(two, b"deep", 1)[0], 3), b"\0\0\0", "the deepest")
    two.send(b"back"); same(one.recv(9), b"back", "the pair that was sent")
    e, f = (socket.socket(fileno=fd) for fd in taken(itself, b"self", 2))
    e.send(b"x"); same(f.recv(9), b"x", "the pair that was sent over itself")
    same(os.fstat(f.fileno()).st_ino, os.fstat(itself.fileno()).st_ino, "the end that was kept")
    taken(ended, b"", 0)
    taken(ended, b"end", 1)
    same(ended.recv(9), b"", "the end")


def in_flight_many_before():
    global runs, packets, half
    resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))
    runs, half = keep(*socket.socketpair()), keep(*socket.socketpair())
    packets = keep(*socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET))
    for n in range(8):
        closed_after_sending(packets[0], b"%d" % n, [os.open("/dev/null", os.O_RDONLY) for _ in range(250)])
    fd = os.open("/dev/zero", os.O_RDONLY)
    runs[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    runs[0].send(b"a" * 50000); socket.send_fds(runs[0], [b"b" * 20000], [fd])
    socket.send_fds(runs[0], [b"c"], [fd, fd]); runs[0].send(b"d" * 30000)
    # The first has been received in part, and its descriptor with that.
    socket.send_fds(half[0], [b"partial"], [fd]); socket.send_fds(half[0], [b"more"], [fd])
    os.close(fd)
    data, fds, _, _ = socket.recv_fds(half[1], 3, 4)
    same((data, len(fds)), (b"par", 1), "the first bytes"); os.close(fds[0])
    resource.setrlimit(resource.RLIMIT_NOFILE, (20, 4096))


def in_flight_many_after():
    same(resource.getrlimit(resource.RLIMIT_NOFILE), (20, 4096), "the limit")
    resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))
    for n in range(8):
        data, fds, _, _ = socket.recv_fds(packets[1], 9, 253)
        same((data, len(fds)), (b"%d" % n, 250), "many descriptors")
    # Bytes without descriptors are received on their own if so few are asked for.
    for length, count in ((50000, 0), (20000, 1), (1, 2), (30000, 0)):
        data, fds, _, _ = socket.recv_fds(runs[1], length, 9)
        same((len(data), len(fds)), (length, count), "a run")
    for wanted in ((b"ti", 0), (b"al", 0), (b"more", 1)):
        data, fds, _, _ = socket.recv_fds(half[1], len(wanted[0]), 9)
        same((data, len(fds)), wanted, "what was received in part")


def in_flight_kinds_before():
    global over, epoll, own
    over = keep(*socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET))
    # An epoll that watches what is only in flight.
    epoll, event = select.epoll(), os.eventfd(0, os.EFD_NONBLOCK)
    epoll.register(event, select.EPOLLIN)
    closed_after_sending(over[0], b"watched", [event])
    libc = ctypes.CDLL(None)
    os.mkdir("watched")
    notes = libc.inotify_init1(0); libc.inotify_add_watch(notes, b"watched", 0x100)
    timer = libc.timerfd_create(time.CLOCK_MONOTONIC, os.O_NONBLOCK)
    libc.timerfd_settime(timer, 0, struct.pack("4q", 0, 0, 1, 0), None)
    folder, path = os.open("/", os.O_DIRECTORY), os.open("/usr", os.O_PATH)
    with open("doomed", "w") as file:
        file.write("deleted")
    doomed = os.open("doomed", os.O_RDWR); os.unlink("doomed")
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); udp.bind(("127.0.0.1", 0))
    locked = os.open("locked", os.O_RDWR | os.O_CREAT)
    fcntl.fcntl(locked, 37, OFD_LOCK)
    read_end, write_end = os.pipe(); fcntl.fcntl(read_end, fcntl.F_SETOWN, os.getpid())
    fds = [notes, timer, os.pidfd_open(os.getpid()), os.open("/proc/self/ns/net", os.O_RDONLY), folder, path, doomed,
           udp.detach(), locked, read_end]
    closed_after_sending(over[0], b"kinds", fds); os.close(write_end)
    # A file that the process has locked: the lock ends if it closes any descriptor of that.
    sent = os.open("own", os.O_RDWR | os.O_CREAT); socket.send_fds(over[0], [b"own"], [sent]); os.close(sent)
    own = os.open("own", os.O_RDWR); fcntl.lockf(own, fcntl.LOCK_EX)


# struct flock of F_OFD_SETLK: a lock to write, on everything.
OFD_LOCK = struct.pack("hhqqi4x", fcntl.F_WRLCK, 0, 0, 0, 0)


def in_flight_kinds_after():
    (event,) = taken(over[1], b"watched", 1)
    same(epoll.poll(0), [], "the epoll before"); os.eventfd_write(event, 1)
    same(len(epoll.poll(0)), 1, "the epoll after")
    data, fds, _, _ = socket.recv_fds(over[1], 99, 20)
    same((data, len(fds)), (b"kinds", 10), "all kinds")
    notes, timer, pid, net, folder, path, doomed, udp, locked, read_end = fds
    # A second restore finds the file of the first.
    name = "new%d" % time.monotonic_ns()
    open("watched/" + name, "w").close(); check(name.encode() in os.read(notes, 999), "inotify")
    time.sleep(1.1); same(struct.unpack("Q", os.read(timer, 8))[0], 1, "the timer")
    check(os.readlink("/proc/self/fd/%d" % pid) == "anon_inode:[pidfd]", "the pidfd")
    same(os.fstat(net).st_ino, os.stat("/proc/self/ns/net").st_ino, "the namespace")
    check("usr" in os.listdir(folder), "the directory"); same(os.readlink("/proc/self/fd/%d" % path), "/usr", "the path")
    same(os.pread(doomed, 99, 0), b"deleted", "the deleted file")
    check(socket.socket(fileno=udp).getsockname()[1] != 0, "the UDP socket")
    try:
        fcntl.fcntl(os.open("locked", os.O_RDWR), 37, OFD_LOCK); check(False, "the lock of a description is gone")
    except BlockingIOError:
        pass
    same(fcntl.fcntl(read_end, fcntl.F_GETOWN), os.getpid(), "who gets signals")
    child = os.fork()
    if child == 0:
        try:
            fcntl.lockf(os.open("own", os.O_RDWR), fcntl.LOCK_EX | fcntl.LOCK_NB); os._exit(1)
        except BlockingIOError:
            os._exit(0)
    same(os.waitpid(child, 0)[1], 0, "the lock of the process")


# ---- datagrams and connections that wait


def datagrams_before():
    global named, away, abstract, half, late, receiver_asks
    named, other, away, abstract, half, late = (keep(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) for _ in range(6))
    named.bind("named"); other.bind("other"); abstract.bind("\0defrost-waits-%d" % os.getpid())
    # Its file is elsewhere, and it is connected since to one that has sent nothing.
    away.bind("away"); os.rename("away", "moved")
    other.sendto(b"from other", "named"); other.sendto(b"", "named")
    abstract.sendto(b"from abstract", "named")
    nameless = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    nameless.sendto(b"from none", "named"); nameless.close()
    fd = os.open("/dev/zero", os.O_RDONLY)
    rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd, fd]))
    named.sendmsg([b"to itself"], [rights], 0, "named"); os.close(fd)
    other.sendto(b"moved", "moved"); away.connect("named")
    other.connect("\0defrost-waits-%d" % os.getpid()); other.send(b"to abstract")
    # More than others may send: those that are connected with each other have no bound but memory.
    abstract.connect("other")
    for n in range(30):
        abstract.send(b"%d" % n)
    keep(other)
    half.bind("half"); other2 = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    other2.sendto(b"half", "half"); half.shutdown(socket.SHUT_RD); other2.close()
    # It has a name, and the one that it is connected to is gone.
    global widow
    spouse = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM); spouse.bind("spouse")
    widow = keep(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)); widow.bind("widow"); widow.connect("spouse")
    spouse.close(); os.unlink("spouse")
    # It asks who sends to it once that is sent.
    late.bind("late"); late.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    other3 = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM); other3.sendto(b"who", "late"); other3.close()
    late.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 0)
    receiver_asks = keep(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)); receiver_asks.bind("asks")
    other4 = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM); other4.sendto(b"unsaid", "asks"); other4.close()
    receiver_asks.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)


def datagrams_after():
    mine = "\0defrost-waits-%d" % os.getpid()
    mine = mine.encode()
    other = held[1]
    for wanted in ((b"from other", "other"), (b"", "other"), (b"from abstract", mine), (b"from none", None)):
        same(named.recvfrom(99), wanted, "a datagram")
    data, fds, _, sender = socket.recv_fds(named, 99, 9)
    same((data, len(fds), sender), (b"to itself", 2, "named"), "a datagram with descriptors")
    same(os.read(fds[1], 1), b"\0", "the descriptor")
    same(away.recvfrom(99), (b"moved", "other"), "to a file that was moved")
    same(abstract.recvfrom(99), (b"to abstract", "other"), "to an abstract name")
    for n in range(30):
        same(other.recvfrom(9), (b"%d" % n, mine), "of its peer")
    same(half.recv(9), b"half", "before the end"); same(half.recv(9), b"", "the end")
    try:
        widow.send(b"x"); check(False, "it sends to one that is gone")
    except ConnectionRefusedError:
        pass
    away.sendto(b"hello", "widow"); same(widow.recvfrom(9), (b"hello", "away"), "by its name")
    late.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    own = (os.getpid(), os.getuid(), os.getgid())
    same(received(late), (b"who", own), "who sent it")
    same(received(receiver_asks), (b"unsaid", (0, 65534, 65534)), "a sender that is not said")
    for sock in (named, away, other, abstract, late):
        sock.setblocking(False)
        try:
            sock.recv(9); check(False, "one more datagram")
        except BlockingIOError:
            pass
    away.send(b"again"); same(named.recvfrom(9), (b"again", "away"), "again")


# ---- a look that takes its time

PEEK_OFF, MANY = 42, 1000


def looked_at_before():
    global looked
    looked = [keep(*socket.socketpair(socket.AF_UNIX, kind))
              for kind in (socket.SOCK_SEQPACKET, socket.SOCK_DGRAM, socket.SOCK_STREAM)]
    for n, (a, b) in enumerate(looked):
        a.setsockopt(socket.SOL_SOCKET, 32, 1 << 26)  # SO_SNDBUFFORCE
        b.setsockopt(socket.SOL_SOCKET, PEEK_OFF, -1 if n == 0 else n)
        for m in range(MANY):
            a.send(b"%05d" % m)
    publish("sockets", "\n".join(str(b.fileno()) for a, b in looked))
    # One that is in flight itself.
    global carrier, sender
    carrier = keep(*socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM))
    sender, sent = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    sender.setsockopt(socket.SOL_SOCKET, 32, 1 << 26); sent.setsockopt(socket.SOL_SOCKET, PEEK_OFF, 5)
    for m in range(MANY):
        sender.send(b"%05d" % m)
    socket.send_fds(carrier[0], [b"sent"], [sent.fileno()]); sent.close()


def looked_at_after():
    fd = socket.recv_fds(carrier[1], 9, 1)[1][0]
    looked.append((sender, socket.socket(fileno=fd)))
    for n, (a, b) in enumerate(looked):
        same(b.getsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED), 0, "SO_PASSCRED")
        same(b.getsockopt(socket.SOL_SOCKET, PEEK_OFF), (-1, 1, 2, 5)[n], "SO_PEEK_OFF")
        b.setsockopt(socket.SOL_SOCKET, PEEK_OFF, -1)
        for m in range(MANY):
            same(b.recv(5), b"%05d" % m, "a message")


# ---- connections of its own

def callers_before():
    global servers, callers
    servers, callers = [], []
    for number, kind in enumerate((socket.SOCK_STREAM, socket.SOCK_SEQPACKET, socket.SOCK_STREAM, socket.SOCK_STREAM)):
        name = "\0defrost-calls-%d" % os.getpid() if number == 2 else "calls%d" % number
        server = keep(socket.socket(socket.AF_UNIX, kind)); server.bind(name); server.listen(5)
        for n in range(4):
            caller = keep(socket.socket(socket.AF_UNIX, kind))
            if n == 1:
                caller.bind("caller%d" % number)
            caller.connect(name); callers.append(caller)
        servers.append(server)
    callers[3].shutdown(socket.SHUT_WR)
    # The file is gone, and fewer may wait than do.
    os.unlink("calls0"); servers[1].listen(1)
    # A caller that is only in flight.
    a, b = keep(*socket.socketpair())
    closed_after_sending(a, b"caller", [os.dup(callers[14].fileno())]); callers[14].close()
    held.remove(callers[14]); servers.append(b)


def callers_after():
    *listeners, b = servers
    (fd,) = taken(b, b"caller", 1)
    callers[14] = socket.socket(fileno=fd)
    for number, server in enumerate(listeners):
        for n in range(4):
            accepted, name = server.accept()
            same(name or "", "caller%d" % number if n == 1 else "", "its name")
            same(credentials(accepted)[0], os.getpid(), "its pid")
            caller = callers[4 * number + n]
            accepted.send(b"to %d" % n); same(caller.recv(9), b"to %d" % n, "in order")
            if number == 0 and n == 3:
                same(accepted.recv(9), b"", "its end")
            else:
                caller.send(b"back"); same(accepted.recv(9), b"back", "back")
        check(server.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) == 1, "it listens")


def waiting_unix_before():
    global server
    server = keep(socket.socket(socket.AF_UNIX)); server.bind("server"); server.listen(2)
    client = keep(socket.socket(socket.AF_UNIX)); client.connect("server"); client.close()


def waiting_unix_after():
    server.accept()


def listens_before():
    global server
    server = keep(socket.socket(socket.AF_UNIX)); server.bind("listens"); server.listen(2)


def listens_after():
    server.accept()


def waiting_data_before():
    global server, client
    server = keep(socket.socket(socket.AF_UNIX)); server.bind("server"); server.listen(2)
    client = keep(socket.socket(socket.AF_UNIX)); client.connect("server"); client.send(b"early")


def waiting_data_after():
    same(server.accept()[0].recv(9), b"early", "what was sent early")


def waiting_tcp_before():
    global server
    server = keep(socket.socket()); server.bind(("127.0.0.1", 0)); server.listen(2)
    client = socket.create_connection(server.getsockname()); client.close(); time.sleep(0.02)


def waiting_tcp_after():
    server.accept()


def corked_before():
    global one, two
    one, two = (keep(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) for _ in range(2))
    one.bind(("127.0.0.1", 0)); two.connect(one.getsockname())
    two.send(b"held ", socket.MSG_MORE)


def corked_after():
    two.send(b"back"); same(one.recv(99), b"held back", "what was corked")


def error_before():
    global udp
    free = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); free.bind(("127.0.0.1", 0))
    udp = keep(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)); udp.connect(free.getsockname())
    free.close(); udp.send(b"x"); time.sleep(0.02)


def error_after():
    same(udp.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR), 111, "the error")


def ebpf_before():
    global filtered
    libc = ctypes.CDLL(None, use_errno=True)
    code = ctypes.create_string_buffer(struct.pack("BBhi", 0xb7, 0, 0, -1) + struct.pack("BBhi", 0x95, 0, 0, 0))
    licence = ctypes.create_string_buffer(b"GPL")
    attributes = ctypes.create_string_buffer(
        struct.pack("IIQQ", 1, 2, ctypes.addressof(code), ctypes.addressof(licence)).ljust(128, b"\0"))
    program = libc.syscall(321, 5, attributes, 128)
    check(program >= 0, f"bpf: {os.strerror(ctypes.get_errno())}")
    filtered = keep(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    filtered.setsockopt(socket.SOL_SOCKET, 50, program); os.close(program)


def md5_before():
    server = keep(socket.socket()); server.bind(("127.0.0.1", 0))
    key = struct.pack("HH4s120xBBHI80s", 2, 0, socket.inet_aton("127.0.0.1"), 0, 0, 3, 0, b"key")
    server.setsockopt(6, 14, key); server.listen(1)


def urgent_before():
    global a, b
    a, b = socket.socketpair(); a.send(b"!", socket.MSG_OOB)


def urgent_after():
    same(b.recv(1, socket.MSG_OOB), b"!", "urgent data")


def vsock_before():
    keep(socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM))


def netfilter_before():
    keep(socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12))


def ring_before():
    keep(socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)).setsockopt(263, 5, struct.pack("4I", 4096, 4, 2048, 8))


def fanout_before():
    packet = keep(socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, 0)); packet.bind(("lo", 0x88b5))
    packet.setsockopt(263, 18, 77)


# ---- options: every one of the table that can be set, on every sort of socket

SORTS = {
    "tcp": (2, 1, 6), "tcp6": (10, 1, 6), "udp": (2, 2, 17), "udp6": (10, 2, 17), "udplite": (2, 2, 136),
    "mptcp": (2, 1, 262), "raw": (2, 3, 253), "raw6": (10, 3, 253), "icmp": (2, 3, 1), "icmp6": (10, 3, 58),
    "stream": (1, 1, 0), "datagram": (1, 2, 0), "packets": (1, 5, 0), "netlink": (16, 3, 0), "packet": (17, 3, 0),
}
PADDING = b"\0\0\1\4\0\0\0\0"
VALUES = [b"lo\0", struct.pack("ii", 1, 5), struct.pack("qq", 3, 0), b"reno", struct.pack("iI", 1, 1), PADDING,
          b"\1\1\1\1", b"0123456789abcdef", struct.pack("Q", 123456), b"\x7f\0\0\1", b"\0\0\0\1", b"\x55" * 32]
NUMBERS = [1, 0, 2, 3, 7, 5, 16, 100, 1000, 1400, 20000, 100000, 6, 255, 0x40, 0x18, 0x0001]


def read(sock, level, name):
    try:
        return sock.getsockopt(level, name, 1024)
    except OSError:
        return None


def options_before():
    global sockets, seen
    table = [line.split() for line in open("options")]
    table = [(int(level), int(name), label) for level, name, label in table]
    sockets, changed = {}, set()
    for sort, how in SORTS.items():
        fresh, sock = socket.socket(*how), keep(socket.socket(*how))
        sockets[sort] = sock
        for level, name, label in table:
            usual = read(fresh, level, name)
            if usual is None:
                continue
            for value in [struct.pack("i", n) for n in NUMBERS] + VALUES:
                try:
                    sock.setsockopt(level, name, value)
                except OSError:
                    continue
                if read(sock, level, name) != usual:
                    changed.add(label)
                    break
    publish("changed", "\n".join(sorted(changed)))
    seen = option_values(table)
    sockets["table"] = table


def option_values(table):
    return {(sort, label): read(sockets[sort], level, name) for sort in SORTS for level, name, label in table}


def options_after():
    now = option_values(sockets["table"])
    wrong = [f"{key}: {now[key]} instead of {seen[key]}" for key in seen if now[key] != seen[key]]
    check(not wrong, "; ".join(wrong))


if __name__ == "__main__":
    home = os.getcwd()
    try:
        globals()[sys.argv[1] + "_before"]()
        publish(home + "/ready", "READY\n")
        while not os.path.exists(home + "/go"):
            time.sleep(0.002)
        after = globals().get(sys.argv[1] + "_after")
        if after:
            after()
        publish(home + "/verdict", "OK\n")
    except BaseException:
        publish(home + "/verdict", "WRONG " + traceback.format_exc().replace("\n", " | ") + "\n")
